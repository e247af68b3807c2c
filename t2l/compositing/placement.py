"""A foreground laid over any background: moved, turned, scaled, softened, faded and blended.

Positions are pixels from the top-left corner, x to the right and y down; pixel (i, j) covers the square from (j, i) to
(j + 1, i + 1). At offset 0 the top-left corners of the foreground's canvas and of the background coincide, whatever
their sizes; scale, rotation and flips keep the centre of the foreground's canvas where it is.

What can be copied is copied, never resampled: whole-pixel offsets, flips and quarter turns keep every value exactly.
What must be resampled is resampled with each colour counting as much as it shows, so that nothing hidden tints an edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .bleed import extend_colours
from .blend import BlendMode, ColourSpace, blend, linear_to_srgb, srgb_to_linear
from .comfyui_blend import blend_over, to_light, to_srgb
from .resample import gaussian_blur, paste
from .shadow import NO_SHADOW, Shadow, cast_shadow

UNSEEN = 1e-4  # of a resampled mask: below it there is no colour to be told


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a foreground is laid over a background. The flips come first, then scale, rotation and offset.

    Raises ValueError for a number out of its range, and for a blend mode or colour space that does not exist.
    """

    x: float = 0.0  # pixels to the right
    y: float = 0.0  # pixels down
    scale: float = 1.0  # > 0, about the centre of the foreground's canvas
    rotation: float = 0.0  # degrees clockwise, about the same centre
    flip_horizontal: bool = False  # left and right change places
    flip_vertical: bool = False  # top and bottom change places
    opacity: float = 1.0  # in [0, 1], multiplies the mask
    blend_mode: BlendMode = "normal"
    feather: float = 0.0  # pixels, >= 0: standard deviation of the blur of the mask
    # srgb: as the paper and Photoshop mix; linear: all in light; comfyui: mixed in light, blended by core's formulas
    colour_space: ColourSpace = "srgb"

    def __post_init__(self) -> None:
        for name in ("x", "y", "scale", "rotation", "opacity", "feather"):
            self._require(name, math.isfinite(getattr(self, name)), "a finite number", f"{getattr(Placement, name)} is")
        self._require(
            "scale", self.scale > 0, "above 0", "1 keeps the size, 0.5 halves it; to mirror use the flips, 1 is"
        )
        self._require("opacity", 0 <= self.opacity <= 1, "from 0 (unseen) to 1 (full)", "for 50 % give 0.5; 1 is")
        self._require("feather", self.feather >= 0, "0 or more pixels", "0 (a sharp edge) is")
        for name, kind in (("blend_mode", BlendMode), ("colour_space", ColourSpace)):
            known = get_args(kind)
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}", f"{known[0]} is")

    def _require(self, name: str, holds: bool, must: str, advice: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {must}, got {getattr(self, name)!r}; {advice} the default")


def compose(
    foreground: Tensor, mask: Tensor, background: Tensor, placement: Placement, shadow: Shadow = NO_SHADOW
) -> tuple[Tensor, Tensor]:
    """The picture seen when a foreground with its mask is laid over a background, and the mask where it lies there.

    foreground, background: (N, 3, H, W), mask: (N, 1, H, W), in [0, 1], of 32 or 64 bits; one foreground serves all
    backgrounds and one background all foregrounds. Picture (N, 3, H, W) and mask (N, 1, H, W) have the background's
    size, the rest cut off. C = m blend(B, F) + (1 - m) B, mixed in the placement's colour space, always sRGB-encoded.

    Raises ValueError for a background of another shape, or for two batches of different sizes.
    """
    count = _common_batch_size(len(mask), background)
    background = background.to(foreground)
    foreground, mask = move(foreground, mask, placement, (background.shape[-2], background.shape[-1]))
    background = cast_shadow(background, mask, shadow, placement.colour_space)
    foreground, background, mask = (x.expand(count, -1, -1, -1) for x in (foreground, background, mask))
    return _mix(foreground, background, mask, placement), mask


def move(foreground: Tensor, mask: Tensor, placement: Placement, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Colours (N, 3, H, W) and mask (N, 1, H, W) where a placement puts them, on a canvas of size (height, width).

    Outside its own canvas the foreground has mask 0 and the colour of its nearest edge pixel. Under a feather its
    colours go on beyond its edge, so that what the mask hid is not seen. Nothing is blended yet.
    """
    if placement.feather:
        foreground = extend_colours(foreground, mask)
    before = mask.shape[-2:]
    quarter_turns, angle = divmod(placement.rotation, 90)
    foreground, mask = (_turn(x, placement, int(quarter_turns) % 4) for x in (foreground, mask))
    centre = (before[0] / 2 + placement.y, before[1] / 2 + placement.x)
    extent = (mask.shape[-2] * placement.scale, mask.shape[-1] * placement.scale)
    if placement.scale < 1:
        foreground, mask = resize_cutout(foreground, mask, (max(1, round(extent[0])), max(1, round(extent[1]))))
    corner = (centre[0] - extent[0] / 2, centre[1] - extent[1] / 2)
    on_the_grid = all(edge.is_integer() for edge in corner) and extent == tuple(mask.shape[-2:])
    if angle == 0 and on_the_grid:
        foreground, mask = paste(foreground, mask, (int(corner[0]), int(corner[1])), size)
    else:
        foreground, mask = _warp(foreground, mask, _inverse_affine(centre, extent, angle, size), size)
    return foreground, gaussian_blur(mask, placement.feather) * placement.opacity


def resize_cutout(foreground: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Colours (N, 3, H, W) and mask (N, 1, H, W) at size (height, width), bilinear; pixels that merge are averaged.

    A colour counts as much as it shows: what a cut-out hides beside its edge leaves no fringe.
    """
    resample = partial(F.interpolate, size=size, mode="bilinear", antialias=True)
    return _unpremultiply(resample(foreground), resample(foreground * mask), resample(mask))


def _mix(foreground: Tensor, background: Tensor, mask: Tensor, placement: Placement) -> Tensor:
    """The picture (N, 3, H, W) of a foreground that lies where it should."""
    mode = placement.blend_mode
    if placement.colour_space == "srgb":
        return torch.lerp(background, blend(background, foreground, mode), mask)
    if placement.colour_space == "comfyui":
        light = blend_over(to_light(background), torch.ones_like(mask), to_light(foreground), mask, mode)[0]
        return torch.where(mask == 0, background, to_srgb(light.clamp(0, 1)))
    if mode != "normal":
        foreground = linear_to_srgb(blend(srgb_to_linear(background), srgb_to_linear(foreground), mode))
    light = torch.lerp(srgb_to_linear(background), srgb_to_linear(foreground), mask)
    # At the ends of the mask nothing is mixed, so nothing is changed by going to light and back.
    mixed = torch.where(mask == 0, background, linear_to_srgb(light))
    return torch.where(mask == 1, foreground, mixed)


def _common_batch_size(foregrounds: int, background: Tensor) -> int:
    """How many pictures come out. Raises ValueError for a background that does not fit under so many foregrounds."""
    if background.ndim != 4 or background.shape[1] != 3:
        raise ValueError(f"the background must be RGB pictures (N, 3, H, W), got {tuple(background.shape)}")
    if len({foregrounds, len(background)} - {1}) > 1:
        raise ValueError(
            f"foregrounds and backgrounds must be equally many, or one of either, got {foregrounds} foregrounds and "
            f"{len(background)} backgrounds; give {foregrounds} backgrounds, or 1 for all of them"
        )
    return max(foregrounds, len(background))


def _turn(x: Tensor, placement: Placement, quarter_turns: int) -> Tensor:
    """Flipped, then turned clockwise: (N, C, H, W) -> (N, C, H, W), or (N, C, W, H) for an odd number of turns."""
    flipped = [axis for axis, flip in ((-1, placement.flip_horizontal), (-2, placement.flip_vertical)) if flip]
    x = x.flip(flipped) if flipped else x
    return torch.rot90(x, -quarter_turns, (-2, -1)) if quarter_turns else x


def _inverse_affine(
    centre: tuple[float, float], extent: tuple[float, float], angle: float, size: tuple[int, int]
) -> Tensor:
    """From the canvas to the foreground, both from -1 to 1 across, as affine_grid wants it: (2, 3), float64, x first.

    centre, extent: where the foreground's middle lies on the canvas and how large it is drawn, (y, x) in pixels.
    angle: degrees clockwise. size: the canvas, (height, width).
    """
    half_height, half_width = size[0] / 2, size[1] / 2
    to_pixels = torch.tensor(
        [[half_width, 0, half_width - centre[1]], [0, half_height, half_height - centre[0]]], dtype=torch.float64
    )
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn_back = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    from_pixels = torch.tensor([2 / extent[1], 2 / extent[0]], dtype=torch.float64).diag()
    return from_pixels @ turn_back @ to_pixels


def _warp(foreground: Tensor, mask: Tensor, theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sampled bilinearly through the inverse affine theta (2, 3): the colour goes on past its edge, the mask is 0."""
    grid = F.affine_grid(theta[None].to(mask), [1, 1, *size], align_corners=False).expand(len(mask), -1, -1, -1)
    sampled = partial(F.grid_sample, grid=grid, mode="bilinear", align_corners=False)
    return _unpremultiply(sampled(foreground, padding_mode="border"), sampled(foreground * mask), sampled(mask))


def _unpremultiply(colour: Tensor, premultiplied: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Of resampled colours, premultiplied colours and masks: straight colours and masks.

    Where nothing shows, the colour is that of what is hidden there.
    """
    shown = premultiplied / covered.clamp(min=UNSEEN)
    return torch.where(covered > UNSEEN, shown, colour).clamp(0, 1), covered.clamp(0, 1)
