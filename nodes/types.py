"""The only door between ComfyUI's sockets and t2l's pixels.

IMAGE is (N, H, W, 3 or 4), MASK (N, H, W) or (H, W), both in [0, 1]; pixels are (N, C, H, W). Our masks are 1 where the
foreground shows; inside a LAYERS document a mask is 1 where the layer is transparent. It is turned here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.layers import Layers

AUTOENCODER = io.Custom("T2L_AUTOENCODER")
LAYERS = io.Custom("LAYERS")
POLARITY = "1 = the foreground shows, 0 = the background does (Load Image gives the opposite: 1 = transparent)"
BACKGROUND, FOREGROUND = "background", "foreground"  # the names of our two layers in a document


def image_to_pixels(image: Any, source: str) -> Tensor:
    """IMAGE -> (N, 3, H, W); an alpha channel is left out, grey is repeated. `source` names node and input in errors."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{source} needs an IMAGE of shape (N, H, W, 3), got {_shape(image)}; connect a picture")
    pixels = image[..., :3].movedim(-1, 1).float()
    return _finite(pixels.expand(-1, 3, -1, -1), source)


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
    return [_document(layers[i : i + 1]) for i in range(len(layers))]


def from_document(document: Any, node: str) -> Layers:
    """A LAYERS document of two whole-canvas raster layers -> Layers of batch 1."""
    items = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(
            f"{node}: layers needs a LAYERS document, got {_shape(document)}; connect Join or Decode Layers"
        )
    items = sorted(items, key=lambda item: item.get("z_index", 0))
    if len(items) != 2:
        raise ValueError(
            f"{node}: layers needs a document of two layers, a background and a foreground, got {len(items)} layers"
        )
    below, above = items
    if moved := [item for item in items if item.get("x") or item.get("y")]:
        raise ValueError(
            f"{node}: layers needs layers of the whole canvas, got one at x {moved[0].get('x')}, y {moved[0].get('y')}; "
            "flatten it to the canvas before"
        )
    transparent = above.get("mask")
    front, source = above.get("image"), f"{node}: the upper layer"
    if transparent is None and isinstance(front, Tensor):
        transparent = 1 - front[..., 3] if front.shape[-1] == 4 else torch.zeros(front.shape[:-1])
    mask = 1 - transparent if isinstance(transparent, Tensor) else transparent
    return to_layers(front, below.get("image"), mask, source)


def _document(layers: Layers) -> dict[str, Any]:
    height, width = layers.size
    placed = {"type": "raster", "x": 0, "y": 0, "opacity": 1.0, "blend_mode": "normal", "visible": True}
    below = placed | {"name": BACKGROUND, "z_index": 0, "image": pixels_to_image(layers.background)}
    above = placed | {"name": FOREGROUND, "z_index": 1, "image": pixels_to_image(layers.foreground)}
    above["mask"] = 1 - pixels_to_mask(layers.mask)
    return {"version": 1, "canvas": (width, height), "layers": [below, above]}


def _finite(pixels: Tensor, source: str) -> Tensor:
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{source} holds NaN or infinite values; repair the picture before this node")
    return pixels


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
