"""LAYERS documents <-> Stack: ComfyUI's own layer document, read as core reads it and given back as it was.

Inside a document a mask is 1 where the layer is transparent; ours are 1 where it shows. It is turned only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..t2l.budget import NAME_LENGTH
from ..t2l.compositing.blend import BlendMode
from ..t2l.compositing.comfyui_blend import NAMES, WITHOUT_NAME
from ..t2l.compositing.comfyui_compositor import placed_bounds
from ..t2l.compositing.stack import Layer, Stack
from ..t2l.layers import Layers
from .inputs import describe, node_errors, until_cancelled
from .limits import MAX_SIDE, check_canvas, most_together, shown_sizes
from .types import image_to_alpha, image_to_pixels, mask_to_pixels, pixels_to_image, shape_of

MAX_FRAMES = 50  # layers of one document, as in ComfyUI itself
LARGEST_NUMBER = 1e300  # whole numbers have no end in Python
EMPTY_CANVAS = (64, 64)  # what core shows of a document without layers
OWN_MODE = "t2l_blend_mode"  # in an item: a blend mode that core has no name for
KEYS = {  # a field of Layer -> the keys of an item that say it
    "image": ("image", "mask"),
    "mask": ("image", "mask"),  # an alpha channel is both
    "name": ("name",),
    "x": ("x",),
    "y": ("y",),
    "opacity": ("opacity",),
    "blend_mode": ("blend_mode", OWN_MODE),
    "visible": ("visible",),
    "shown_height": ("w", "h"),
    "shown_width": ("w", "h"),
    "rotation": ("rotation",),
    "flip_horizontal": ("flip_h",),
    "flip_vertical": ("flip_v",),
}


def to_documents(layers: Layers) -> list[dict[str, Any]]:
    """One LAYERS document per picture: the background below, the foreground with its mask above."""
    return [stack_to_document(Stack.from_layers(layers[i : i + 1])) for i in until_cancelled(range(len(layers)))]


def stack_to_document(stack: Stack) -> dict[str, Any]:
    """Stack -> LAYERS document, one raster item per layer from the bottom up.

    What came out of a document goes back as it was, layers that nobody changed as the very items they were: with their
    tensors, their batches, their size, rotation and flips, and every key that only others know.
    """
    items = _with_order([item for layers in _by_item(stack.layers) for item in _layers_to_items(layers)])
    document = {"version": 1, **(stack.source or {}), "layers": items}
    if stack.source is None or _canvas(stack.source) or _extent(stack.layers) != (stack.width, stack.height):
        document["canvas"] = (stack.width, stack.height)
    return document


def unknown_to_core(stack: Stack) -> list[str]:
    """A sentence for every layer whose blend mode ComfyUI's own layer nodes do not know; ours go on showing it."""
    return [
        f"the blend mode {layer.blend_mode} of {layer.name!r} is unknown to ComfyUI's own layer nodes: they show it as "
        f"{NAMES[layer.blend_mode]}"
        for layer in stack.layers
        if layer.blend_mode in WITHOUT_NAME
    ]


def composited(stack: Stack) -> Tensor:
    """The picture seen as an IMAGE; Cancel ends it."""
    return pixels_to_image(stack.composite(mm.throw_exception_if_processing_interrupted)[None])


def stack_to_layers(stack: Stack, layer: str) -> Layers:
    """The layer that the input `layer` of a node means, against all others; Cancel ends it."""
    with node_errors("layer"):
        return stack.to_layers(layer, mm.throw_exception_if_processing_interrupted)


def document_to_stack(document: Any) -> Stack:
    """LAYERS document of the input `layers` -> Stack.

    Read as ComfyUI's own nodes read it: items go by z_index; a batch inside one becomes consecutive layers in one
    place; an alpha channel and a mask both count; what has no picture is skipped; a value of the wrong kind counts as
    absent. Without a canvas it reaches as far as the layers do. Scaled, mirrored and turned layers keep their pixels.
    """
    items = _items(document)
    layers = [layer for number, item in enumerate(items, 1) for layer in _item_to_layers(item, number)]
    width, height = _canvas(document) or _extent(layers)
    _check_canvas((width, height), layers)
    others = {key: value for key, value in document.items() if key != "layers"}
    return Stack(height, width, tuple(layers) or (_nothing(height, width),), source=others)


def _check_canvas(canvas: tuple[int, int], layers: Sequence[Layer]) -> None:
    """Raises ValueError for pictures that are too large, before any is made."""
    for side in canvas:
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"layers: a side of canvas must be a number from 1 to {MAX_SIDE}, got {describe(side)}")
    check_canvas(canvas[::-1], shown_sizes(layers), "layers")


@dataclass(frozen=True, eq=False)
class Origin:
    """What a layer was read from: one frame of a document's item, and how it was read. Layer.source holds it."""

    item: dict[str, Any] | None  # None: of a document without layers
    frame: int
    frames: int
    layer: Layer | None = None

    def is_untouched(self, layer: Layer) -> bool:
        """Whether nothing of the layer has changed since."""
        return all(self.is_same(layer, field.name) for field in fields(Layer) if field.name != "source")

    def is_same(self, layer: Layer, name: str) -> bool:
        now, then = getattr(layer, name), getattr(self.layer, name)
        return now is then or (not isinstance(now, Tensor) and now == then)


def _items(document: Any) -> list[dict[str, Any]]:
    """A document's items with pictures from the bottom up, none of them looked into yet."""
    items = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(items or [], list):
        raise ValueError(
            f"layers needs a LAYERS document, got {shape_of(document)}; connect Join, Decode or Load Layers"
        )
    version = document.get("version")
    if not (version is None or (isinstance(version, (int, float)) and version == 1)):
        raise ValueError(f"layers needs a LAYERS document of version 1, got version {describe(version)}")
    items = [item for item in items or [] if isinstance(item, dict)]
    for number, item in enumerate(items, 1):
        kind, name = item.get("type", "raster"), _name(item, number)
        NAME_LENGTH.check(len(name), f"layers: the name of layer {number} has")
        if not (isinstance(kind, str) and kind == "raster"):
            raise ValueError(
                f"layers: layer {describe(name)} must be of type raster, got {describe(kind)}; render it before"
            )
    items = [item for item in items if isinstance(item.get("image"), Tensor)]
    items = [item for item in items if _frames_of(item)]  # a batch of none is no layer
    frames = sum(_frames_of(item) for item in items)
    if frames > MAX_FRAMES:
        raise ValueError(f"layers takes at most {MAX_FRAMES} layers, got {frames}; merge some, or split the batch")
    values = sum(item["image"].numel() for item in items if not item["image"].is_nested)
    if values > 4 * most_together():
        raise ValueError(
            f"layers takes at most {most_together():,} pixels in all layers, got {values:,} numbers; make them smaller"
        )
    return sorted(items, key=lambda item: _whole(item.get("z_index"), 0))


def _frames_of(item: dict[str, Any]) -> int:
    image = item["image"]
    return image.shape[0] if image.ndim == 4 and not image.is_nested else 1


def _item_to_layers(item: dict[str, Any], number: int) -> list[Layer]:
    """One item of a document as a layer for each picture of its batch."""
    name = _name(item, number)
    source = f"layers: layer {describe(name)}"
    image, mask = _item_pixels(item, source)
    count, layers = len(image), []
    for i in range(count):
        with node_errors(source):
            layer = Layer(
                image=image[i],
                mask=mask[i],
                name=name if count == 1 else f"{name} {i + 1}",
                opacity=min(max(_finite_number(item.get("opacity"), 1.0), 0.0), 1.0),
                blend_mode=_blend_mode(item),
                visible=_switch(item.get("visible"), True),
                **_item_placement(item),
            )
        layers.append(replace(layer, source=Origin(item, i, count, layer)))
    return layers


def _name(item: dict[str, Any], number: int) -> str:
    given = item.get("name")
    return given if isinstance(given, str) and given else f"layer {number}"


def _blend_mode(item: dict[str, Any]) -> BlendMode:
    """An item's blend mode by our name; core's, ours and those with other spaces are understood."""
    given = item.get("blend_mode")
    text = given[:80] if isinstance(given, str) else "normal"
    mode = text.lower().replace("_", " ").replace("-", " ")
    mode = "add" if mode == "linear dodge" else mode
    own = item.get(OWN_MODE)
    is_own = isinstance(own, str) and own in WITHOUT_NAME and NAMES[own] == given
    return own if is_own else mode  # type: ignore[return-value]


def _item_pixels(item: dict[str, Any], source: str) -> tuple[Tensor, Tensor]:
    """An item's colours (N, 3, H, W) and mask (N, 1, H, W), 1 = shows. Frames beyond the masks have none."""
    image, shows = (read(item["image"], f"{source}: image") for read in (image_to_pixels, image_to_alpha))
    if isinstance(transparent := item.get("mask"), Tensor):
        size = (image.shape[-2], image.shape[-1])
        hidden = mask_to_pixels(transparent, size, f"{source}: mask").to(shows.device)
        hidden = hidden.expand(len(shows), -1, -1, -1) if len(hidden) == 1 else hidden[: len(shows)]
        shows = torch.cat([shows[: len(hidden)] * (1 - hidden), shows[len(hidden) :]])
    return image, shows


def _item_placement(item: dict[str, Any]) -> dict[str, Any]:
    """Where an item says it lies, as fields of a Layer; w and h of 0, None or missing mean the picture's own size."""
    x, y, width, height = (min(max(_whole(item.get(key), 0), -MAX_SIDE), MAX_SIDE) for key in ("x", "y", "w", "h"))
    return {
        "x": x,
        "y": y,
        "shown_width": width if width > 0 else None,
        "shown_height": height if height > 0 else None,
        "rotation": _finite_number(item.get("rotation"), 0.0),
        "flip_horizontal": _switch(item.get("flip_h"), False),
        "flip_vertical": _switch(item.get("flip_v"), False),
    }


def _canvas(document: dict[str, Any]) -> tuple[int, int] | None:
    """A document's canvas, (width, height); None where it says none that has pixels."""
    canvas = document.get("canvas")
    if not isinstance(canvas, (tuple, list)) or len(canvas) != 2:
        return None
    width, height = (_whole(side, 0) for side in canvas)
    return (width, height) if width > 0 and height > 0 else None


def _extent(layers: Sequence[Layer]) -> tuple[int, int]:
    """The canvas that layers reach over from the top-left corner, (width, height); that of no layers is core's."""
    if not layers or layers[0].source is not None and layers[0].source.item is None:
        return EMPTY_CANVAS
    bounds = [placed_bounds(layer) for layer in layers]
    return max(1, *(box[0] + box[2] for box in bounds)), max(1, *(box[1] + box[3] for box in bounds))


def _nothing(height: int, width: int) -> Layer:
    """What stands for the layers of a document that has none."""
    layer = Layer(image=torch.zeros(3, height, width), mask=torch.zeros(1, height, width))
    return replace(layer, source=Origin(None, 0, 1, layer))


def _by_item(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in order, those together that are frames of one item and follow on one another."""
    runs: list[list[Layer]] = []
    for layer in layers:
        before = runs[-1][-1].source if runs else None
        here = layer.source
        follows = before and here and here.item is before.item and here.frame == before.frame + 1
        if follows:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _layers_to_items(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The items of layers that came from one: that one when all of it is there and untouched."""
    origin: Origin | None = layers[0].source
    if origin is not None and all(layer.source.is_untouched(layer) for layer in layers):
        if origin.item is None:
            return []
        if len(layers) == origin.frames:
            return [origin.item]
    return [_layer_to_item(layer) for layer in layers]


def _layer_to_item(layer: Layer) -> dict[str, Any]:
    """A layer as a raster item; what it has from another item and did not change stays as it is there."""
    values, origin = _layer_values(layer), layer.source
    if origin is None or origin.item is None:
        return {"type": "raster", **values}
    changed = {key for name, keys in KEYS.items() if not origin.is_same(layer, name) for key in keys}
    frame = _frame_of(origin) if origin.frames > 1 else origin.item
    kept = {key: value for key, value in frame.items() if key not in changed}
    return kept | {key: values[key] for key in changed if key in values}


def _layer_values(layer: Layer) -> dict[str, Any]:
    """Everything that an item says of a layer, by its keys."""
    values = {
        "name": layer.name,
        "x": layer.x,
        "y": layer.y,
        "z_index": 0,  # the order of the list counts, and a layer that core's Add Layer adds lies above
        "opacity": layer.opacity,
        "blend_mode": NAMES[layer.blend_mode],
        "visible": layer.visible,
        "image": pixels_to_image(layer.image[None]),
        "mask": 1 - layer.mask,
    }
    if layer.blend_mode in WITHOUT_NAME:
        values[OWN_MODE] = layer.blend_mode
    if layer.shown_size != layer.size:
        values |= {"w": layer.shown_size[1], "h": layer.shown_size[0]}
    turned = {"rotation": layer.rotation, "flip_h": layer.flip_horizontal, "flip_v": layer.flip_vertical}
    return values | {key: value for key, value in turned.items() if value}


def _frame_of(origin: Origin) -> dict[str, Any]:
    """One frame of a batch as an item of its own."""
    assert origin.item is not None and origin.layer is not None, "an origin of several frames has an item"
    frame = slice(origin.frame, origin.frame + 1)
    item = origin.item | {"image": origin.item["image"][frame], "name": origin.layer.name}
    mask = item.get("mask")
    if isinstance(mask, Tensor) and mask.ndim > 2 and len(mask) > 1:
        item["mask"] = mask[frame] if origin.frame < len(mask) else None
    return item


def _with_order(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items whose z_index keeps them in this order: as they have it, else 0 for all."""
    order = [_whole(item.get("z_index"), 0) for item in items]
    return items if order == sorted(order) else [item | {"z_index": 0} for item in items]


def _whole(value: Any, default: int) -> int:
    """A number without its fraction, as core takes positions; the default for what is none."""
    return int(_finite_number(value, default))


def _finite_number(value: Any, default: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= LARGEST_NUMBER else default


def _switch(value: Any, default: bool) -> bool:
    return bool(value) if isinstance(value, (bool, int, float, str)) else default
