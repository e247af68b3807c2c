"""The soft contact shadow of a thing that stands on the ground, so that it does not float over another background.

The ground loses most light where the thing touches it, and less, over a wider area, under what is higher. So the mask
is cut into slices by height above its foot, each cast on the line of the foot: the higher, the fainter and softer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .blend import ColourSpace, linear_to_srgb, srgb_to_linear
from .resample import gaussian_blur

HEIGHTS = (0.0, 0.05, 0.12, 0.22, 0.36, 0.55, 0.8)  # ends of the slices, in sizes of the thing above its foot
FADING = 0.3  # sizes above the foot at which 1/e of the darkening is left
SPREAD, RISE = 0.015, 0.4  # of the blur along the ground: at the foot and for each size of height, in sizes
FLAT = 0.35  # depth to width on the ground, seen from a little above
DEEPEST = 0.9  # of the light, right where the thing stands
SOLID = 0.5  # from here on a mask is part of the thing, below it is its soft edge
# Of the line of the feet, in sizes: its radius under a foot, its largest fall, its blur.
CURVE, BACK, ROUND = 1.5, 0.2, 0.05
COLUMNS = 512  # in which that line is drawn
LARGEST = 1024  # pixels along a side at which a shadow is computed; larger pictures get it enlarged
MOST = 64  # things, the widest; a mask of stripes has hundreds, and each takes its time
SMALLEST = 0.1  # of the widest thing: narrower ones are specks that cast no shadow


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """How a shadow looks. Raises ValueError for a number out of its range."""

    strength: float = 0.0  # in [0, 1]; 0 = none
    softness: float = 1.0  # from 0.1 to 10: times the blur

    def __post_init__(self) -> None:
        for name, low, high in (("strength", 0, 1), ("softness", 0.1, 10)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} of the shadow must be from {low} to {high}, got {getattr(self, name)!r}")


NO_SHADOW = Shadow()


def cast_shadow(background: Tensor, mask: Tensor, shadow: Shadow, colour_space: ColourSpace = "srgb") -> Tensor:
    """The background (N, 3, H, W) darkened by the thing of this mask (N, 1, H, W); 1 of either serves all of the other.

    The darkening multiplies colours in srgb, and their light in linear. At strength 0 the background itself comes back.
    """
    if shadow.strength == 0:
        return background
    left = 1 - shadow.strength * torch.cat([ground_shadow(one, shadow) for one in mask]).to(background)
    if colour_space == "srgb":
        return background * left
    darker = linear_to_srgb(srgb_to_linear(background) * left)
    return torch.where(left == 1, background, torch.minimum(background, darker))


def ground_shadow(mask: Tensor, shadow: Shadow) -> Tensor:
    """The share of light that the ground loses at full strength, (1, 1, H, W), of one mask (1, H, W)."""
    height, width = mask.shape[-2:]
    if (times := max(height, width) / LARGEST) > 1:  # a shadow is soft, and large ones take long
        small = F.interpolate(mask[None], size=(math.ceil(height / times), math.ceil(width / times)), mode="area")
        return F.interpolate(ground_shadow(small[0], shadow), size=(height, width), mode="bilinear")
    opacity = mask.max().clamp(min=torch.finfo(mask.dtype).tiny)  # a faded thing casts a faint shadow of the same shape
    thing, light = mask[0] / opacity, torch.ones_like(mask[0])
    column = torch.arange(width, device=mask.device)
    for first, last in find_things(thing):
        light = light * _light_left(thing * ((column >= first) & (column < last)), shadow)
    return (opacity * (1 - light))[None, None]


def find_things(mask: Tensor) -> list[tuple[int, int]]:
    """The columns from and up to which each thing of a mask (H, W) reaches; things beside one another are apart."""
    columns = (mask >= SOLID).any(dim=0).int()
    edges = torch.diff(columns, prepend=columns.new_zeros(1), append=columns.new_zeros(1))
    found = list(
        zip((edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist(), strict=True)
    )
    widest = sorted((last - first for first, last in found), reverse=True)[:MOST] or [0]
    least = max(SMALLEST * widest[0], widest[-1] if len(found) > MOST else 0)
    return [(first, last) for first, last in found if last - first >= least][:MOST]


def _light_left(thing: Tensor, shadow: Shadow) -> Tensor:
    """The share of light that the ground keeps under one thing, (H, W); all if its foot is outside the picture."""
    solid = thing >= SOLID
    rows = solid.any(dim=1).nonzero().flatten()
    top, foot = int(rows[0]), int(rows[-1]) + 1
    light = torch.ones_like(thing)
    if foot == len(thing):
        return light
    size = math.sqrt((foot - top) * int(solid.any(dim=0).sum()))
    row = torch.arange(len(thing), device=thing.device, dtype=thing.dtype)[:, None] + 0.5
    above = (ground_line(solid, size).to(thing) - row) / size
    for low, high in zip(HEIGHTS, HEIGHTS[1:], strict=False):
        height = (low + high) / 2
        blur = max(0.5, size * shadow.softness * (SPREAD + RISE * height))
        covered = (thing * ((above >= low) & (above < high))).amax(dim=0)
        covered = gaussian_blur(covered.view(1, 1, 1, -1), blur)[0, 0]
        depth = torch.exp(-((above * size / (FLAT * blur)) ** 2) / 2)
        light = light * (1 - DEEPEST * math.exp(-height / FADING) * covered * depth)
    return light


def ground_line(solid: Tensor, size: float) -> Tensor:
    """The row in which the ground lies under each column of a thing (H, W), (W,), float32.

    It goes through the feet, also through those that stand further back, and falls off around each like a parabola:
    what is above it is above the ground.
    """
    height, width = solid.shape
    rows = torch.arange(1, height + 1, device=solid.device, dtype=torch.float32)[:, None]
    feet = torch.where(solid, rows, -1.0).amax(dim=0)
    feet = F.adaptive_max_pool1d(feet[None], min(width, COLUMNS))[0]
    column = (torch.arange(len(feet), device=solid.device) + 0.5) * (width / len(feet))
    fall = ((column[:, None] - column) ** 2 / (2 * CURVE * size)).clamp(max=BACK * size)
    line = F.interpolate((feet - fall).amax(dim=1)[None, None], size=width, mode="linear", align_corners=False)
    return gaussian_blur(line[None] / height, ROUND * size)[0, 0, 0] * height
