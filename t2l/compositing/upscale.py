"""Layers at another size without fringes: colours are extended beyond the edge before resampling, the mask goes alone.

A network that enlarges pictures is passed in as a callable; without one, pictures are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .bleed import extend_colours
from .edges import square_max
from .resample import Method, resize
from .stack import Layer, Stack

Enlarge = Callable[[Tensor], Tensor]  # (N, 3, h, w) in [0, 1] -> (N, 3, s h, s w)


def upscale(stack: Stack, height: int, width: int, method: Method = "lanczos", enlarge: Enlarge | None = None) -> Stack:
    """The stack on a canvas of height x width pixels, every layer with its place and its mask.

    enlarge: makes pictures larger before `method` brings them to their exact size; it sees colours without any edge,
    and the mask as a grey picture. Neighbouring layers stay neighbours. Without `enlarge`, layers that keep their size
    keep every pixel. Raises ValueError for a canvas without pixels and for an unknown method.
    """
    if min(height, width) < 1:
        raise ValueError(f"a canvas needs at least one pixel, got {width} x {height}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    scale = height / stack.height, width / stack.width
    layers = tuple(_upscale_layer(layer, scale, method, enlarge) for layer in stack.layers)
    return replace(stack, height=height, width=width, layers=layers)


def enlarged_size(size: tuple[int, int], factor: float, width: int = 0, height: int = 0) -> tuple[int, int]:
    """What a canvas (height, width) becomes by a width, height (aspect kept) or both; by the factor if both are 0."""
    scale_x = width / size[1] if width else height / size[0] if height else factor
    scale_y = height / size[0] if height else scale_x
    return max(1, round(size[0] * scale_y)), max(1, round(size[1] * scale_x))


def _upscale_layer(layer: Layer, scale: tuple[float, float], method: Method, enlarge: Enlarge | None) -> Layer:
    """A layer at its place on the new canvas, its own pixels resampled once, from as many as it has.

    A layer that has more pixels than it will show keeps them. One that is turned is drawn before where the canvas is
    stretched, which would shear it.
    """
    if layer.rotation and scale[0] != scale[1]:
        layer = layer.drawn
    left, width = _scale_edge(layer.x, layer.shown_size[1], scale[1])
    top, height = _scale_edge(layer.y, layer.shown_size[0], scale[0])
    size = height, width
    if _has_enough(layer, size) or (size == layer.size and enlarge is None):
        shown = (None, None) if size == layer.size else size
        return replace(layer, x=left, y=top, shown_height=shown[0], shown_width=shown[1])
    image, mask = _resample_pixels(layer, size, method, enlarge)
    return replace(layer, image=image, mask=mask, x=left, y=top, shown_height=None, shown_width=None)


def _has_enough(layer: Layer, size: tuple[int, int]) -> bool:
    """Whether a layer that is shown at another size than its own has all the pixels that it will show."""
    return layer.shown_size != layer.size and layer.size[0] >= size[0] and layer.size[1] >= size[1]


def _resample_pixels(
    layer: Layer, size: tuple[int, int], method: Method, enlarge: Enlarge | None
) -> tuple[Tensor, Tensor]:
    """Colours (3, H, W) and mask (1, H, W) at a size, one without the other."""
    image, mask = extend_colours(layer.image[None], layer.mask[None]), layer.mask[None]
    if enlarge is not None:
        image, grey = enlarge(image), enlarge(mask.expand(-1, 3, -1, -1))
    else:
        grey = mask
    image = resize(image.clamp(0, 1), size, method)
    alone = resize(grey.mean(dim=1, keepdim=True).clamp(0, 1), size, method)
    return image[0], _keep_flat(alone, mask)[0]


def _scale_edge(start: int, length: int, scale: float) -> tuple[int, int]:
    """Start and length on the new canvas; both ends are rounded, so that what touched still touches."""
    first, last = (math.floor(end * scale + 0.5) for end in (start, start + length))
    return first, max(1, last - first)


def _keep_flat(mask: Tensor, before: Tensor) -> Tensor:
    """An enlarged mask that is exactly 1 and 0 where the one before was, a pixel away from its edge.

    A network paints white as 0.997 and resampling rings: seen through, that is a veil over the whole picture.
    """
    size = mask.shape[-2:]
    if size[0] < before.shape[-2] or size[1] < before.shape[-1]:
        return mask
    solid, empty = (F.interpolate(square_max(x, 1), size=size, mode="nearest-exact") == 0 for x in (1 - before, before))
    return torch.where(solid, 1.0, torch.where(empty, 0.0, mask))
