"""A picture of any number of layers: what a PSD, an OpenRaster file and a LAYERS document of ComfyUI hold.

`Layers` is the paper's picture, two layers and their mask in a batch; a `Stack` is one picture as editors know it.
Positions are pixels from the canvas' top-left corner to the layer's, x right, y down; layers may lie off the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from ..budget import shown
from ..layers import Layers
from .blend import BlendMode, blend
from .placement import Placement, move, resize_cutout
from .resample import paste

BACKGROUND, FOREGROUND = "background", "foreground"  # the names of the two layers that `Layers` becomes
TOP = "top"  # the rule of to_layers that takes the top visible layer
PIECE = 1 << 19  # pixels of a picture that are mixed at once: what is made on the way takes some 50 MB at most
Callback = Callable[[], None]  # called before every piece of a long computation; what it raises ends that


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One picture of a stack. Colours are straight, not premultiplied: there is a colour also where the mask is 0.

    A layer may be shown larger, turned or mirrored without its pixels being touched: the flips come first, then the
    size, then the rotation about the middle of the box that x, y and the shown size make. `drawn` resamples it. Raises
    ValueError when image and mask do not fit together, for an opacity outside [0, 1], for a position that is no whole
    number, for a shown size without pixels and for a blend mode that does not exist.
    """

    image: Tensor  # (3, H, W), RGB in [0, 1]
    mask: Tensor  # (1, H, W) in [0, 1], 1 = the layer shows
    name: str = "layer"
    x: int = 0  # pixels from the canvas' left edge to the layer's; may be negative
    y: int = 0  # the same from top to top
    opacity: float = 1.0  # in [0, 1], multiplies the mask
    blend_mode: BlendMode = "normal"
    visible: bool = True
    shown_height: int | None = None  # pixels of the canvas; None = those of the image
    shown_width: int | None = None
    rotation: float = 0.0  # radians clockwise, as a LAYERS document has it
    flip_horizontal: bool = False
    flip_vertical: bool = False
    source: Any = None  # what the layer was read from, for whoever writes it back; nothing here looks into it

    def __post_init__(self) -> None:
        image, mask = tuple(self.image.shape), tuple(self.mask.shape)
        if len(image) != 3 or image[0] != 3 or mask != (1, *image[1:]) or 0 in image:
            raise ValueError(f"layer {self.name!r} needs image (3, H, W) and mask (1, H, W), got {image} and {mask}")
        if not (math.isfinite(self.opacity) and 0 <= self.opacity <= 1):
            raise ValueError(f"the opacity of layer {self.name!r} must be from 0 to 1, got {self.opacity!r}")
        if not (isinstance(self.x, int) and isinstance(self.y, int)):
            raise ValueError(f"layer {self.name!r} must lie on whole pixels, got x {self.x!r}, y {self.y!r}")
        if min(self.shown_size) < 1 or not math.isfinite(self.rotation):
            height, width = self.shown_size
            raise ValueError(
                f"layer {self.name!r} needs a shown size of at least one pixel and a finite rotation, got {width} x "
                f"{height} and {self.rotation!r}"
            )
        if self.blend_mode not in get_args(BlendMode):
            known = ", ".join(get_args(BlendMode))
            raise ValueError(
                f"the blend mode of layer {self.name!r} must be one of {known}, got {shown(self.blend_mode)}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.mask.shape[-2], self.mask.shape[-1]

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width on the canvas, before the rotation."""
        return self.shown_height or self.size[0], self.shown_width or self.size[1]

    @property
    def is_drawn(self) -> bool:
        """Whether the pixels lie on the canvas' as they are: at their own size, neither turned nor mirrored."""
        return self.shown_size == self.size and not (self.rotation or self.flip_horizontal or self.flip_vertical)

    @cached_property
    def drawn(self) -> Layer:
        """The same layer on the canvas' pixels; itself where nothing has to be resampled."""
        if self.is_drawn:
            return self
        image, mask, degrees = self.image[None], self.mask[None], math.degrees(self.rotation)
        if self.shown_size != self.size:
            image, mask = resize_cutout(image, mask, self.shown_size)
        left, top, right, bottom = _bounds(self, degrees)
        flips: dict[str, Any] = {"flip_horizontal": self.flip_horizontal, "flip_vertical": self.flip_vertical}
        where = Placement(x=self.x - left, y=self.y - top, rotation=degrees, **flips)
        image, mask = move(image, mask, where, (bottom - top, right - left))
        unturned: dict[str, Any] = {"shown_height": None, "shown_width": None, "rotation": 0.0}
        unturned |= dict.fromkeys(flips, False)
        return replace(self, image=image[0], mask=mask[0], x=left, y=top, **unturned)


@dataclass(frozen=True, eq=False)
class Stack:
    """Layers over one another on a canvas. Raises ValueError without any layer, and for a canvas without any pixel."""

    height: int  # of the canvas, pixels
    width: int
    layers: tuple[Layer, ...]  # from the bottom up
    source: Any = None  # as Layer.source

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a canvas needs at least one pixel, got {self.width} x {self.height}")
        if not self.layers:
            raise ValueError("a stack needs at least one layer, got none")

    @property
    def drawn(self) -> Stack:
        """The same stack with every layer on the canvas' pixels, for files and networks."""
        return replace(self, layers=tuple(layer.drawn for layer in self.layers))

    def composite(self, callback: Callback | None = None) -> Tensor:
        """The picture seen, (3, H, W): the layers stacked in sRGB, over white where all of them are transparent."""
        return _over_white(*self.flattened(callback))

    def flattened(self, callback: Callback | None = None) -> tuple[Tensor, Tensor]:
        """The visible layers merged into one: straight colour (3, H, W) and alpha (1, H, W), both in [0, 1]."""
        colour = self.layers[0].image.new_zeros(3, self.height, self.width)
        return colour, _paint_all([layer for layer in self.layers if layer.visible], colour, callback)

    def to_layers(self, rule: str = TOP, callback: Callback | None = None) -> Layers:
        """One layer against the composite of all other visible ones: Layers of batch 1 and the canvas' size.

        rule: "top", the highest visible layer, or the name of a layer, which is taken also when it is hidden. Of
        several with one name the highest counts. The mask carries the layer's opacity, the foreground its blend with
        the rest, so for the top layer `composite()` of the result is that of the stack. Outside its own rectangle the
        foreground has mask 0 and the colour of its nearest edge pixel. Raises ValueError for a name that none bears.
        """
        chosen = self.index(rule)
        others = [layer for i, layer in enumerate(self.layers) if layer.visible and i != chosen]
        stacked = self.layers[0].image.new_zeros(1, 7, self.height, self.width)  # large ones are not copied
        background, alpha = stacked[0, 3:6], _paint_all(others, stacked[0, 3:6], callback)
        front, stacked[0, 6:] = placed(self.layers[chosen], self.height, self.width)
        stacked[0, :3] = blended(front, background, alpha, self.layers[chosen].blend_mode)
        _over_white(background, alpha)
        return Layers.from_stacked(stacked)

    @classmethod
    def from_layers(cls, layers: Layers, names: Sequence[str] = (BACKGROUND, FOREGROUND)) -> Stack:
        """The first picture of the batch as an opaque background below and the foreground with its mask above."""
        below = Layer(image=layers.background[0], mask=torch.ones_like(layers.mask[0]), name=names[0])
        above = Layer(image=layers.foreground[0], mask=layers.mask[0], name=names[1])
        return cls(*layers.size, (below, above))

    def index(self, rule: str) -> int:
        """Which layer a rule of `to_layers` means, from 0 at the bottom."""
        if rule != TOP:
            named = [i for i, layer in enumerate(self.layers) if layer.name == rule]
            if not named:
                names = ", ".join(shown(layer.name) for layer in self.layers)
                raise ValueError(
                    f"no layer is called {shown(rule)}; there are {names}, or {TOP!r} for the highest visible one"
                )
            return named[-1]
        visible = [i for i, layer in enumerate(self.layers) if layer.visible]
        if not visible:
            raise ValueError(f"all {len(self.layers)} layers are hidden; show one, or name the layer to take")
        return visible[-1]


def _bounds(layer: Layer, degrees: float) -> tuple[int, int, int, int]:
    """The whole pixels that a turned layer touches: left, top, right, bottom."""
    height, width = layer.shown_size
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    x, y = layer.x + width / 2, layer.y + height / 2
    small = 1e-6  # a quarter turn is no reason for another pixel
    left, top = math.floor(x - half_width + small), math.floor(y - half_height + small)
    return left, top, math.ceil(x + half_width - small), math.ceil(y + half_height - small)


def placed(layer: Layer, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A layer on a canvas: colour (3, height, width) and mask times opacity (1, height, width).

    Outside the layer's rectangle the mask is 0 and the colour that of its nearest edge pixel.
    """
    layer = layer.drawn
    return paste(layer.image, layer.mask * layer.opacity, (layer.y, layer.x), (height, width))


def cropped(layer: Layer, height: int, width: int) -> Layer | None:
    """The part of a layer on a canvas of this size, drawn, at its place; None for a layer that lies outside."""
    layer = layer.drawn
    top, left = max(0, layer.y), max(0, layer.x)
    bottom, right = min(height, layer.y + layer.size[0]), min(width, layer.x + layer.size[1])
    if top >= bottom or left >= right:
        return None
    rows, columns = slice(top - layer.y, bottom - layer.y), slice(left - layer.x, right - layer.x)
    return replace(layer, image=layer.image[:, rows, columns], mask=layer.mask[:, rows, columns], x=left, y=top)


def _paint_all(layers: Sequence[Layer], colour: Tensor, callback: Callback | None) -> Tensor:
    """Layers from the bottom up on an empty canvas, straight colour (3, H, W); returns their alpha, (1, H, W)."""
    alpha = colour.new_zeros(1, *colour.shape[1:])
    for layer in layers:
        paint(layer, colour, alpha, callback)
    return alpha


def _over_white(colour: Tensor, alpha: Tensor) -> Tensor:
    """Colour (3, H, W) over white, in its own memory."""
    for piece in pieces(*alpha.shape[1:]):
        colour[piece] = torch.lerp(torch.ones_like(colour[piece]), colour[piece], alpha[piece])
    return colour


def pieces(height: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """A picture (C, height, width) in pieces of at most PIECE pixels, whole rows where they are that short."""
    columns = min(width, PIECE)
    rows = PIECE // max(1, columns)
    for y in range(0, height, rows):
        for x in range(0, width, columns):
            yield slice(None), slice(y, y + rows), slice(x, x + columns)


def paint(layer: Layer, colour: Tensor, alpha: Tensor, callback: Callback | None = None) -> None:
    """Put a layer over a picture where it lies, in the memory of colour (3, H, W) and alpha (1, H, W)."""
    part = cropped(layer, *alpha.shape[1:])
    if part is None:
        return
    rows, columns = slice(part.y, part.y + part.size[0]), slice(part.x, part.x + part.size[1])
    colour, alpha = colour[:, rows, columns], alpha[:, rows, columns]
    for piece in pieces(*part.size):
        if callback is not None:
            callback()
        small = replace(part, image=part.image[piece], mask=part.mask[piece])
        colour[piece], alpha[piece] = over(small, colour[piece], alpha[piece])


def blended(image: Tensor, colour: Tensor, alpha: Tensor, mode: BlendMode) -> Tensor:
    """Colours (3, H, W) blended in their mode with a backdrop of the same size; unchanged where that is transparent."""
    if mode == "normal":
        return image
    result = torch.empty_like(image)
    for piece in pieces(*alpha.shape[1:]):
        result[piece] = torch.lerp(image[piece], blend(colour[piece], image[piece], mode), alpha[piece])
    return result


def over(layer: Layer, colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """A layer over a backdrop of its size: straight colour (3, H, W) and alpha (1, H, W) of both together.

    cr = (1 - w) cb + w ((1 - ab) cs + ab B(cb, cs)), ar = ab + (1 - ab) as, w = as / ar: W3C Compositing and Blending
    Level 1, sections 5.8 and 7.1, divided by ar to keep the colour straight. Where ab is 1 this is the paper's
    C = m F + (1 - m) B to the bit.
    """
    weight = layer.mask * layer.opacity
    source = blended(layer.image, colour, alpha, layer.blend_mode)
    joint = torch.lerp(alpha, torch.ones_like(alpha), weight)
    share = torch.where(joint > 0, weight / joint.clamp(min=torch.finfo(joint.dtype).tiny), 0)
    return torch.lerp(colour, source, share), joint
