"""Layers at another size without fringes: colours are extended beyond the edge before they are resampled, the mask goes alone.

A network that enlarges pictures is passed in as a callable; without one, pictures are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .bleed import bled
from .edges import square_max
from .stack import Layer, Stack

Method = Literal["lanczos", "bicubic", "bilinear", "area", "nearest"]
Enlarge = Callable[[Tensor], Tensor]  # (N, 3, h, w) in [0, 1] -> (N, 3, s h, s w)


def upscaled(
    stack: Stack, height: int, width: int, method: Method = "lanczos", enlarge: Enlarge | None = None
) -> Stack:
    """The stack on a canvas of height x width pixels, every layer with its place and its mask.

    enlarge: makes pictures larger before `method` brings them to their exact size; it sees colours without any edge, and
    the mask as a grey picture. Neighbouring layers stay neighbours. Without `enlarge`, layers that keep their size keep
    every pixel. Raises ValueError for a canvas without pixels and for an unknown method.
    """
    if min(height, width) < 1:
        raise ValueError(f"a canvas needs at least one pixel, got {width} x {height}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    scale = height / stack.height, width / stack.width
    layers = tuple(_upscaled_layer(layer, scale, method, enlarge) for layer in stack.layers)
    return replace(stack, height=height, width=width, layers=layers)


def resized(pixels: Tensor, size: tuple[int, int], method: Method) -> Tensor:
    """Pixels (N, C, H, W) in [0, 1] at size (height, width); pixels that merge are averaged, overshoot is cut off."""
    if size == tuple(pixels.shape[-2:]):
        return pixels
    if method in _KERNELS:
        return _resampled(_resampled(pixels, size[1], method).mT, size[0], method).mT.clamp(0, 1)
    return F.interpolate(pixels, size=size, mode="nearest-exact" if method == "nearest" else "area")


def _upscaled_layer(layer: Layer, scale: tuple[float, float], method: Method, enlarge: Enlarge | None) -> Layer:
    """A layer at its place on the new canvas, its own pixels resampled once, from as many as it has.

    A layer that has more pixels than it will show keeps them. One that is turned is drawn before where the canvas is
    stretched, which would shear it.
    """
    if layer.rotation and scale[0] != scale[1]:
        layer = layer.drawn
    left, width = _scaled_edge(layer.x, layer.shown_size[1], scale[1])
    top, height = _scaled_edge(layer.y, layer.shown_size[0], scale[0])
    size = height, width
    if _has_enough(layer, size) or (size == layer.size and enlarge is None):
        shown = (None, None) if size == layer.size else size
        return replace(layer, x=left, y=top, shown_height=shown[0], shown_width=shown[1])
    image, mask = _resampled_pixels(layer, size, method, enlarge)
    return replace(layer, image=image, mask=mask, x=left, y=top, shown_height=None, shown_width=None)


def _has_enough(layer: Layer, size: tuple[int, int]) -> bool:
    """Whether a layer that is shown at another size than its own has all the pixels that it will show."""
    return layer.shown_size != layer.size and layer.size[0] >= size[0] and layer.size[1] >= size[1]


def _resampled_pixels(
    layer: Layer, size: tuple[int, int], method: Method, enlarge: Enlarge | None
) -> tuple[Tensor, Tensor]:
    """Colours (3, H, W) and mask (1, H, W) at a size, one without the other."""
    image, mask = bled(layer.image[None], layer.mask[None]), layer.mask[None]
    if enlarge is not None:
        image, grey = enlarge(image), enlarge(mask.expand(-1, 3, -1, -1))
    else:
        grey = mask
    image = resized(image.clamp(0, 1), size, method)
    alone = resized(grey.mean(dim=1, keepdim=True).clamp(0, 1), size, method)
    return image[0], _kept_flat(alone, mask)[0]


def _scaled_edge(start: int, length: int, scale: float) -> tuple[int, int]:
    """Start and length on the new canvas; both ends are rounded, so that what touched still touches."""
    first, last = (math.floor(end * scale + 0.5) for end in (start, start + length))
    return first, max(1, last - first)


def _kept_flat(mask: Tensor, before: Tensor) -> Tensor:
    """An enlarged mask that is exactly 1 and 0 where the one before was, a pixel away from its edge.

    A network paints white as 0.997 and resampling rings: seen through, that is a veil over the whole picture.
    """
    size = mask.shape[-2:]
    if size[0] < before.shape[-2] or size[1] < before.shape[-1]:
        return mask
    solid, empty = (F.interpolate(square_max(x, 1), size=size, mode="nearest-exact") == 0 for x in (1 - before, before))
    return torch.where(solid, 1.0, torch.where(empty, 0.0, mask))


def _resampled(x: Tensor, length: int, method: Method) -> Tensor:
    """Resampled along the last axis; taps outside the picture are left out.

    Weights are whole multiples of 2^-22 that sum to 1, which float32 adds without rounding: white stays exactly white.
    """
    lobes, kernel = _KERNELS[method]
    before = x.shape[-1]
    stretch = max(
        1.0, before / length
    )  # a kernel of a smaller picture is wider, so that it averages what it leaves out
    reach = math.ceil(lobes * stretch)
    centre = ((torch.arange(length, dtype=torch.float64) + 0.5) * before / length - 0.5)[:, None]
    taps = centre.floor().long() + torch.arange(1 - reach, 1 + reach)
    distance = ((taps - centre) / stretch).abs()
    weights = kernel(distance) * (distance < lobes) * (taps >= 0) * (taps < before)
    weights = (weights / weights.sum(dim=1, keepdim=True) * 2**22).round()
    weights.scatter_add_(1, weights.argmax(dim=1, keepdim=True), 2**22 - weights.sum(dim=1, keepdim=True))
    weights = (weights / 2**22).to(x.dtype).to(x.device)
    taps = taps.clamp(0, before - 1).to(x.device)
    result = x.new_zeros(*x.shape[:-1], length)
    for i in range(taps.shape[1]):
        result = result + x[..., taps[:, i]] * weights[:, i]
    return result


def _cubic(d: Tensor) -> Tensor:
    """Keys 1981 with a = -1/2, as Pillow and torch's antialiased bicubic have it."""
    return torch.where(d < 1, (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)


_KERNELS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # pixels from the centre, weight at a distance
    "lanczos": (3, lambda d: torch.sinc(d) * torch.sinc(d / 3)),
    "bicubic": (2, _cubic),
    "bilinear": (1, lambda d: 1 - d),
}
