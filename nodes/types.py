"""The only door between ComfyUI's sockets and t2l's pixels.

IMAGE is (N, H, W, 3 or 4), MASK (N, H, W) or (H, W), both in [0, 1]; pixels are (N, C, H, W). Our masks are 1 where the
foreground shows; inside a LAYERS document a mask is 1 where the layer is transparent. It is turned here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.edges import bled
from ..t2l.layers import Layers
from ..t2l.stack import TOP, Box, Layer, Stack, transformed

AUTOENCODER = io.Custom("T2L_AUTOENCODER")
LAYERS = io.Custom("LAYERS")
POLARITY = "1 = the foreground shows, 0 = the background does (Load Image gives the opposite: 1 = transparent)"
MAX_FRAMES = 50  # layers of one document, as in ComfyUI itself
MAX_SIDE = 16384  # pixels, ComfyUI's own largest picture

LAYER_INPUT = io.String.Input(
    "layer",
    default=TOP,
    optional=True,
    tooltip="The foreground: top = the highest visible layer, or the name of one. All others are the background.",
)


def known(**keywords: Any) -> dict[str, Any]:
    """Those of some keywords of io.Schema that this ComfyUI has: the older ones refuse what came later."""
    names = {field.name for field in dataclasses.fields(io.Schema)}
    return {name: value for name, value in keywords.items() if name in names}


def image_to_pixels(image: Any, source: str) -> Tensor:
    """IMAGE -> (N, 3, H, W); an alpha channel is left out, grey is repeated. `source` names node and input in errors."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{source} needs an IMAGE of shape (N, H, W, 3), got {_shape(image)}; connect a picture")
    pixels = image[..., :3].movedim(-1, 1).float()
    return _finite(pixels.expand(-1, 3, -1, -1), source)


def image_to_alpha(image: Tensor, source: str) -> Tensor:
    """The alpha channel of an IMAGE that image_to_pixels takes -> (N, 1, H, W), 1 = shows; 1 everywhere without one."""
    alpha = image[..., 3:] if image.shape[-1] == 4 else torch.ones_like(image[..., :1])
    return _finite(alpha.movedim(-1, 1).float(), source).clamp(0, 1)


def mask_to_pixels(mask: Any, size: tuple[int, int], source: str) -> Tensor:
    """MASK of any size -> (N, 1, height, width), resized to `size` when needed."""
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3, 4):
        raise ValueError(f"{source} needs a MASK of shape (N, H, W), got {_shape(mask)}; connect a mask")
    pixels = _finite(mask.reshape(-1, 1, *mask.shape[-2:]).float(), source)
    return pixels if pixels.shape[-2:] == size else resized(pixels, size, crop="disabled")


def pixels_to_image(pixels: Tensor) -> Tensor:
    """(N, C, H, W) -> IMAGE."""
    return pixels.movedim(1, -1).contiguous()


def pixels_to_mask(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) -> MASK."""
    return pixels[:, 0].contiguous()


def layers_to_cutout(layers: Layers) -> Tensor:
    """The foreground with the mask as its alpha -> IMAGE, (N, H, W, 4); its colours go on where the alpha is 0."""
    return pixels_to_image(torch.cat([bled(layers.foreground, layers.mask), layers.mask], dim=1))


def to_layers(foreground: Any, background: Any, mask: Any, node: str) -> Layers:
    """Three sockets -> Layers of the foreground's size.

    The background is scaled to cover that size and cropped in the middle, the mask is stretched; one picture serves a
    whole batch of the others.
    """
    front = image_to_pixels(foreground, f"{node}: foreground")
    size = (front.shape[-2], front.shape[-1])
    back = image_to_pixels(background, f"{node}: background")
    back = back if back.shape[-2:] == size else resized(back, size, crop="center")
    joint = mask_to_pixels(mask, size, f"{node}: mask")
    counts = {"foreground": len(front), "background": len(back), "mask": len(joint)}
    count = max(counts.values())
    if wrong := {name: n for name, n in counts.items() if n not in (1, count)}:
        raise ValueError(f"{node}: batches must hold {count} pictures, as the largest does, or one, got {wrong}")
    return Layers(*(x.expand(count, -1, -1, -1).clamp(0, 1) for x in (front, back, joint)))


def resized(pixels: Tensor, size: tuple[int, int], crop: str) -> Tensor:
    """(N, C, H, W) at height x width, by ComfyUI's own resampling; crop is "center" or "disabled"."""
    return comfy.utils.common_upscale(pixels, size[1], size[0], "bilinear", crop)


def to_documents(layers: Layers) -> list[dict[str, Any]]:
    """One LAYERS document per picture: the background below, the foreground with its mask above."""
    return [stack_to_document(Stack.from_layers(layers[i : i + 1])) for i in range(len(layers))]


def stack_to_document(stack: Stack) -> dict[str, Any]:
    """Stack -> LAYERS document, one raster item per layer from the bottom up."""
    items = [
        {
            "type": "raster",
            "name": layer.name,
            "x": layer.x,
            "y": layer.y,
            "z_index": i,
            "opacity": layer.opacity,
            "blend_mode": layer.blend_mode,
            "visible": layer.visible,
            "image": pixels_to_image(layer.image[None]),
            "mask": 1 - layer.mask,
        }
        for i, layer in enumerate(stack.layers)
    ]
    return {"version": 1, "canvas": (stack.width, stack.height), "layers": items}


def stack_to_layers(stack: Stack, layer: str, node: str) -> Layers:
    """The layer that the input `layer` of a node means, against all others."""
    try:
        return stack.to_layers(layer)
    except ValueError as error:
        raise ValueError(f"{node}: layer: {error}") from error


def document_to_stack(document: Any, source: str) -> Stack:
    """LAYERS document -> Stack; `source` names node and input in errors.

    Items are ordered by z_index; a batch inside one becomes consecutive layers in one place. Scaled, mirrored and turned items
    are resampled; an alpha channel and a mask both count. Without a canvas it reaches as far as the layers do.
    """
    items = _items(document, source)
    layers = [layer for number, item in enumerate(items, 1) for layer in _item_to_layers(item, number, source)]
    canvas = document.get("canvas")
    if canvas is None:
        canvas = tuple(max(1, *(place + extent for place, extent in edges)) for edges in _edges(layers))
    if not isinstance(canvas, (tuple, list)) or len(canvas) != 2:
        raise ValueError(f"{source}: canvas must be (width, height), got {canvas!r}")
    width, height = (_number(side, "a side of canvas", source, 1, MAX_SIDE) for side in canvas)
    return Stack(round(height), round(width), tuple(layers))


def _items(document: Any, source: str) -> list[dict[str, Any]]:
    """A document's items from the bottom up, none of them looked into yet."""
    items = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(
            f"{source} needs a LAYERS document, got {_shape(document)}; connect Join, Decode or Load Layers"
        )
    if document.get("version", 1) != 1:
        raise ValueError(f"{source} needs a LAYERS document of version 1, got version {document['version']!r}")
    if not items:
        raise ValueError(f"{source} needs a document with at least one layer, got an empty one")
    frames = sum(len(item["image"]) for item in items if isinstance(item.get("image"), Tensor))
    if frames > MAX_FRAMES:
        raise ValueError(f"{source} takes at most {MAX_FRAMES} layers, got {frames}; merge some, or split the batch")
    return sorted(items, key=lambda item: _number(item.get("z_index", 0), "z_index", source, -(2**31), 2**31))


def _item_to_layers(item: dict[str, Any], number: int, source: str) -> list[Layer]:
    """One item of a document as a layer for each picture of its batch."""
    name = str(item.get("name") or f"layer {number}")
    source = f"{source}: layer {name!r}"
    if item.get("type", "raster") != "raster":
        raise ValueError(f"{source} must be of type raster, got {item['type']!r}; render it to pixels before")
    image, mask = _item_pixels(item, source)
    blend_mode = str(item.get("blend_mode", "normal")).lower().replace("_", " ").replace("-", " ")
    opacity = _number(item.get("opacity", 1.0), "opacity", source, 0, 1)
    count, layers = len(image), []
    for i in range(count):
        layer_name = name if count == 1 else f"{name} {i + 1}"
        visible = bool(item.get("visible", True))
        try:
            layer = Layer(
                image=image[i], mask=mask[i], name=layer_name, opacity=opacity, blend_mode=blend_mode, visible=visible
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        layers.append(transformed(layer, _item_placement(item, layer.size, source)))
    return layers


def _item_pixels(item: dict[str, Any], source: str) -> tuple[Tensor, Tensor]:
    """An item's colours (N, 3, H, W) and mask (N, 1, H, W), 1 = shows."""
    image = image_to_pixels(item.get("image"), f"{source}: image").clamp(0, 1)
    shows = torch.ones_like(image[:, :1])
    if item["image"].shape[-1] == 4:
        shows = _finite(item["image"][..., 3].unsqueeze(1).float(), source).clamp(0, 1)
    if (transparent := item.get("mask")) is not None:
        size = (image.shape[-2], image.shape[-1])
        shows = shows * (1 - mask_to_pixels(transparent, size, f"{source}: mask").clamp(0, 1)).to(shows.device)
    if len(shows) != len(image):
        raise ValueError(f"{source} needs one mask, or one for each of its {len(image)} pictures, got {len(shows)}")
    return image, shows


def _item_placement(item: dict[str, Any], size: tuple[int, int], source: str) -> Box:
    """Where an item says it lies; 0, None and a missing value of w and h mean the picture's own size."""
    height, width = (
        _number(item.get(key) or side, key, source, 1, MAX_SIDE) for key, side in zip("hw", size, strict=True)
    )
    x, y = (_number(item.get(key) or 0, key, source, -(2**20), 2**20) for key in "xy")
    rotation = _number(item.get("rotation") or 0, "rotation", source, -(2**20), 2**20)
    flips = bool(item.get("flip_h")), bool(item.get("flip_v"))
    return Box(x, y, width, height, math.degrees(rotation), *flips)


def _edges(layers: Sequence[Layer]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Position and extent of every layer, along x and along y."""
    return [(layer.x, layer.size[1]) for layer in layers], [(layer.y, layer.size[0]) for layer in layers]


def _number(value: Any, name: str, source: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{source}: {name} must be a number from {low} to {high}, got {value!r}")
    return value


def _finite(pixels: Tensor, source: str) -> Tensor:
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{source} holds NaN or infinite values; repair the picture before this node")
    return pixels


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
