"""Pictures and masks blurred, brought to another size, and laid on a canvas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Method = Literal["lanczos", "bicubic", "bilinear", "area", "nearest"]


def cut_window(x: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """What (..., H, W) shows in a window of size (height, width) whose top-left pixel is at corner (row, column).

    Outside of it, the nearest edge pixel.
    """
    rows, columns = (
        torch.arange(start, start + length, device=x.device).clamp(0, limit - 1)
        for start, length, limit in zip(corner, size, x.shape[-2:], strict=True)
    )
    return x[..., rows[:, None], columns]


def paste(colours: Tensor, mask: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Colours (..., 3, H, W) and mask (..., 1, H, W) on a canvas of size (height, width), top-left at (row, column).

    Around them the mask is 0 and the colour that of the nearest edge pixel.
    """
    if corner == (0, 0) and size == tuple(mask.shape[-2:]):
        return colours, mask
    inside = mask.new_zeros(size)
    rows, columns = (slice(max(0, x), max(0, x + length)) for x, length in zip(corner, mask.shape[-2:], strict=True))
    inside[rows, columns] = 1
    window = -corner[0], -corner[1]
    return cut_window(colours, window, size), cut_window(mask, window, size) * inside


def gaussian_blur(mask: Tensor, sigma: float) -> Tensor:
    """A mask (N, 1, H, W) in [0, 1] blurred by a standard deviation of sigma pixels; its edges go on outwards.

    Masks of all 0 and all 1, and every mask at sigma 0, come back unchanged.
    """
    if sigma == 0:
        return mask
    kernel = _gaussian(sigma).to(mask)
    radius = len(kernel) // 2
    rows = F.conv2d(F.pad(mask, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1)).clamp(0, 1)


def _gaussian(sigma: float) -> Tensor:
    """The weights of a Gaussian out to 3 sigma, (2 ceil(3 sigma) + 1,), float64.

    Whole multiples of 2^-22 that sum to 1: float32 adds them without rounding in any order, so 1 stays exactly 1.
    """
    radius = math.ceil(3 * sigma)
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma
    weights = torch.exp(-(distance**2) / 2)
    weights = (weights / weights.sum() * 2**22).round()
    weights[radius] += 2**22 - weights.sum()
    return weights / 2**22


def resize(pixels: Tensor, size: tuple[int, int], method: Method) -> Tensor:
    """Pixels (N, C, H, W) in [0, 1] at size (height, width); pixels that merge are averaged, overshoot is cut off."""
    if size == tuple(pixels.shape[-2:]):
        return pixels
    if method in _KERNELS:
        return _resample_columns(_resample_columns(pixels, size[1], method).mT, size[0], method).mT.clamp(0, 1)
    return F.interpolate(pixels, size=size, mode="nearest-exact" if method == "nearest" else "area")


def _resample_columns(x: Tensor, length: int, method: Method) -> Tensor:
    """Resampled along the last axis; taps outside the picture are left out.

    Weights are whole multiples of 2^-22 that sum to 1, which float32 adds without rounding: white stays exactly white.
    """
    lobes, kernel = _KERNELS[method]
    before = x.shape[-1]
    stretch = max(1.0, before / length)  # the kernel of a smaller picture averages what that leaves out
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
