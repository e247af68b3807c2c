"""A foreground laid over its own or another background: moved, turned, scaled, softened, faded and blended.

Positions are pixels from the top-left corner, x to the right and y down; pixel (i, j) covers the square from (j, i) to
(j + 1, i + 1). At offset 0 the top-left corners of the foreground's canvas and of the background coincide, whatever
their sizes; scale, rotation and flips keep the centre of the foreground's canvas where it is.

What can be copied is copied, never resampled: whole-pixel offsets, flips and quarter turns keep every value exactly.
What must be resampled is resampled with each colour counting as much as it shows, so that nothing hidden tints an edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Layers
from .bleed import bled
from .blend import BlendMode, blend
from .comfyui_blend import blend_over, to_light, to_srgb

ColourSpace = Literal["srgb", "linear", "comfyui"]
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
    # srgb: as the paper and Photoshop mix; linear: everything in light; comfyui: mixed in light, blended by core's formulas
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


def place(layers: Layers, placement: Placement, background: Tensor | None = None) -> Layers:
    """The foreground and mask moved onto the background: Layers of the background's size.

    background: (N, 3, H, W) or (1, 3, H, W) in [0, 1]; None takes the layers' own. Floats of 32 or 64 bits. A single
    foreground goes onto every background and a single background under every foreground. What falls outside the
    background is cut off; outside its own canvas the foreground has mask 0 and the colour of its nearest edge pixel. Under a
    feather its colours go on beyond its edge, so that what the mask hid is not seen.

    The returned foreground carries the blend with the background, so in the colour space srgb `composite()` is exactly
    `compose`. In linear the blend is computed in light, but `composite()` still mixes as the paper does: it agrees with
    `compose` where the mask is 0 or 1 and not between, since no foreground within [0, 1] could make up the difference.

    Raises ValueError for a background of another shape, or for two batches of different sizes.
    """
    background = layers.background if background is None else background.to(layers.foreground)
    batch_size = _common_batch_size(layers, background)
    if placement.feather:
        layers = Layers(bled(layers.foreground, layers.mask), layers.background, layers.mask)
    foreground, mask = _moved(layers, placement, (background.shape[-2], background.shape[-1]))
    mask = gaussian_blur(mask, placement.feather) * placement.opacity
    foreground, background, mask = (x.expand(batch_size, -1, -1, -1) for x in (foreground, background, mask))
    return Layers(_blended(foreground, background, placement), background, mask)


def compose(layers: Layers, placement: Placement, background: Tensor | None = None) -> Tensor:
    """The picture seen when the layers are placed, (N, 3, H, W): C = m blend(B, F) + (1 - m) B.

    Blend and mix happen in the placement's colour space; the picture is sRGB-encoded in any case. Takes and raises
    what `place` does.
    """
    if placement.colour_space == "comfyui":
        return _composed_as_comfyui(place(layers, replace(placement, blend_mode="normal"), background), placement)
    placed = place(layers, placement, background)
    if placement.colour_space == "srgb":
        return placed.composite()
    light = torch.lerp(srgb_to_linear(placed.background), srgb_to_linear(placed.foreground), placed.mask)
    # At the ends of the mask nothing is mixed, so nothing is changed by going to light and back.
    mixed = torch.where(placed.mask == 0, placed.background, linear_to_srgb(light))
    return torch.where(placed.mask == 1, placed.foreground, mixed)


def _composed_as_comfyui(placed: Layers, placement: Placement) -> Tensor:
    """The picture that core's compositor makes of a foreground over an opaque background, both not blended yet."""
    below = torch.ones_like(placed.mask)
    light = blend_over(
        to_light(placed.background), below, to_light(placed.foreground), placed.mask, placement.blend_mode
    )[0]
    return torch.where(placed.mask == 0, placed.background, to_srgb(light.clamp(0, 1)))


def srgb_to_linear(colour: Tensor) -> Tensor:
    """Encoded sRGB to linear light, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Linear light to encoded sRGB, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).clamp(0, 1)


def gaussian_blur(mask: Tensor, sigma: float) -> Tensor:
    """A mask (N, 1, H, W) in [0, 1] blurred with a standard deviation of sigma pixels; the edges are continued outwards.

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


def _common_batch_size(layers: Layers, background: Tensor) -> int:
    """How many pictures come out. Raises ValueError for a background that does not fit under the layers."""
    if background.ndim != 4 or background.shape[1] != 3:
        raise ValueError(f"the background must be RGB pictures (N, 3, H, W), got {tuple(background.shape)}")
    if len({len(layers), len(background)} - {1}) > 1:
        raise ValueError(
            f"foregrounds and backgrounds must be equally many, or one of either, got {len(layers)} foregrounds and "
            f"{len(background)} backgrounds; give {len(layers)} backgrounds, or 1 for all of them"
        )
    return len(background) if len(layers) == 1 else len(layers)


def _moved(layers: Layers, placement: Placement, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and mask on a canvas of size (height, width), neither feathered nor faded."""
    quarter_turns, angle = divmod(placement.rotation, 90)
    foreground, mask = (_turned(x, placement, int(quarter_turns) % 4) for x in (layers.foreground, layers.mask))
    centre = (layers.size[0] / 2 + placement.y, layers.size[1] / 2 + placement.x)
    extent = (mask.shape[-2] * placement.scale, mask.shape[-1] * placement.scale)
    if placement.scale < 1:
        foreground, mask = resized(foreground, mask, (max(1, round(extent[0])), max(1, round(extent[1]))))
    corner = (centre[0] - extent[0] / 2, centre[1] - extent[1] / 2)
    on_the_grid = all(edge.is_integer() for edge in corner) and extent == tuple(mask.shape[-2:])
    if angle == 0 and on_the_grid:
        return _pasted(foreground, mask, (int(corner[0]), int(corner[1])), size)
    return _warped(foreground, mask, _inverse_affine(centre, extent, angle, size), size)


def _turned(x: Tensor, placement: Placement, quarter_turns: int) -> Tensor:
    """Flipped, then turned clockwise: (N, C, H, W) -> (N, C, H, W), or (N, C, W, H) for an odd number of turns."""
    flipped = [axis for axis, flip in ((-1, placement.flip_horizontal), (-2, placement.flip_vertical)) if flip]
    x = x.flip(flipped) if flipped else x
    return torch.rot90(x, -quarter_turns, (-2, -1)) if quarter_turns else x


def resized(foreground: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Colours (N, 3, H, W) and mask (N, 1, H, W) at size (height, width), bilinear; pixels that merge are averaged.

    A colour counts as much as it shows: what a cut-out hides beside its edge leaves no fringe.
    """
    resample = partial(F.interpolate, size=size, mode="bilinear", antialias=True)
    return _as_it_shows(resample(foreground), resample(foreground * mask), resample(mask))


def _pasted(foreground: Tensor, mask: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Copied to a canvas of size (height, width) with the top-left pixel at corner (row, column)."""
    if corner == (0, 0) and size == tuple(mask.shape[-2:]):
        return foreground, mask
    rows, columns = (torch.arange(n, device=mask.device) - start for n, start in zip(size, corner, strict=True))
    height, width = mask.shape[-2:]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    rows, columns = rows.clamp(0, height - 1)[:, None], columns.clamp(0, width - 1)
    return foreground[:, :, rows, columns], mask[:, :, rows, columns] * inside


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


def _warped(foreground: Tensor, mask: Tensor, theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sampled bilinearly through the inverse affine theta (2, 3): the colour goes on past its edge, the mask is 0."""
    grid = F.affine_grid(theta[None].to(mask), [1, 1, *size], align_corners=False).expand(len(mask), -1, -1, -1)
    sampled = partial(F.grid_sample, grid=grid, mode="bilinear", align_corners=False)
    return _as_it_shows(sampled(foreground, padding_mode="border"), sampled(foreground * mask), sampled(mask))


def _as_it_shows(colour: Tensor, premultiplied: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Of resampled colours, premultiplied colours and masks: straight colours and masks.

    Where nothing shows, the colour is that of what is hidden there.
    """
    shown = premultiplied / covered.clamp(min=UNSEEN)
    return torch.where(covered > UNSEEN, shown, colour).clamp(0, 1), covered.clamp(0, 1)


def _blended(foreground: Tensor, background: Tensor, placement: Placement) -> Tensor:
    """The foreground's colours after the blend mode, sRGB-encoded: blend(B, F)."""
    if placement.blend_mode == "normal" or placement.colour_space == "srgb":
        return blend(background, foreground, placement.blend_mode)
    if placement.colour_space == "comfyui":
        return _composed_as_comfyui(Layers(foreground, background, torch.ones_like(foreground[:, :1])), placement)
    return linear_to_srgb(blend(srgb_to_linear(background), srgb_to_linear(foreground), placement.blend_mode))
