"""Pictures of things with alpha: read, cut to their box, recoloured, put into a frame.

Inside this file a cut-out is premultiplied RGBA, (4, H, W) floats in [0, 1].
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2l.compositing.bleed import push_pull
from t2l.io.picture_file import FORMATS

COLOURS = {  # hue in degrees, saturation, value of a fully lit surface
    "red": (2, 0.90, 0.90),
    "yellow": (49, 0.92, 1.00),
    "green": (130, 0.80, 0.72),
    "blue": (215, 0.88, 0.92),
    "purple": (276, 0.72, 0.80),
    "orange": (26, 0.92, 0.98),
    "pink": (335, 0.48, 0.98),
    "brown": (24, 0.62, 0.50),
    "white": (40, 0.03, 0.96),
    "black": (230, 0.12, 0.20),
}
EXTENTS = {"": 0.66, "small": 0.41, "large": 0.86}  # of the frame's side, by the word for a thing's size
CELL = 1 / 16  # of the frame: 8 of 128 pixels
LARGEST, SMALLEST = 384, 200  # pixels a cut-out has along its longer side: shrunk above, doubled below


def read_cutout(data: bytes) -> Tensor:
    """A picture file as a premultiplied cut-out, cropped to what is visible. Alpha is stretched to reach 0 and 1."""
    return cutout_from(cut_out(data))


def cut_out(data: bytes) -> Image.Image:
    """The same as a premultiplied picture in 8 bits, shrunk where it is large."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A").point(lambda a: min(255, max(0, round((a - 8) * 255 / 239))))
    rgba.putalpha(alpha)
    rgba = rgba.crop(alpha.getbbox())
    premultiplied = rgba.convert("RGBa")  # resizing straight colours would drag in what lies under alpha 0
    premultiplied.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return premultiplied


def cutout_from(premultiplied: Image.Image) -> Tensor:
    """What `cut_out` gives as a cut-out, doubled where it is small."""
    if max(premultiplied.size) < SMALLEST:  # poses are read from it bilinearly
        size = (2 * premultiplied.width, 2 * premultiplied.height)
        premultiplied = premultiplied.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(premultiplied)).permute(2, 0, 1).float() / 255


def can_recolour(cutout: Tensor) -> bool:
    """True when one hue covers enough of the thing to make it that colour."""
    return float(_dominant_share(cutout)[0]) > 0.3


def recolour(cutout: Tensor, colour: str) -> Tensor:
    """Give the thing's dominant hue one of `COLOURS`, keeping its shading, highlights and other colours."""
    _, weight = _dominant_share(cutout)
    alpha = cutout[3].clamp(min=1e-4)
    straight = (cutout[:3] / alpha).clamp(0, 1)
    luma = _luma(straight)
    typical = (luma * weight * alpha).sum() / (weight * alpha).sum().clamp(min=1e-4)
    shade = luma / typical.clamp(min=0.05)
    base = torch.tensor(_hsv_to_rgb(*COLOURS[colour])).view(3, 1, 1)
    dark = base * shade.clamp(max=1) ** 0.9
    light = 1 - (1 - base) / shade.clamp(min=1)  # towards white, never past it
    painted = torch.where(shade > 1, light, dark).clamp(0, 1)
    return torch.cat([torch.lerp(straight, painted, weight) * cutout[3], cutout[3:]])


def _dominant_share(cutout: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the thing in its dominant hue, and how much each pixel belongs to it: (H, W) in [0, 1]."""
    straight = (cutout[:3] / cutout[3].clamp(min=1e-4)).clamp(0, 1)
    hue, saturation, value = _rgb_to_hsv(straight)
    vivid = ((saturation - 0.15) / 0.25).clamp(0, 1) * ((value - 0.08) / 0.15).clamp(0, 1)
    weight = vivid * (cutout[3] > 0.5)
    histogram = torch.histc(hue[weight > 0.5], bins=36, min=0, max=360)
    smooth = histogram.roll(-1) + histogram + histogram.roll(1)
    dominant = (float(smooth.argmax()) + 0.5) * 10
    distance = ((hue - dominant + 180) % 360 - 180).abs()
    belongs = vivid * ((60 - distance) / 20).clamp(0, 1)
    return (belongs * cutout[3]).sum() / cutout[3].sum(), belongs


def _luma(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)


def _rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(3, H, W) in [0, 1] -> hue in degrees, saturation and value, (H, W) each."""
    r, g, b = rgb
    value, low = rgb.max(0).values, rgb.min(0).values
    chroma = (value - low).clamp(min=1e-6)
    hue = torch.where(value == r, (g - b) / chroma, torch.where(value == g, 2 + (b - r) / chroma, 4 + (r - g) / chroma))
    return (hue * 60) % 360, (value - low) / value.clamp(min=1e-6), value


def _hsv_to_rgb(hue: float, saturation: float, value: float) -> list[float]:
    wheel = [(n + hue / 60) % 6 for n in (5, 3, 1)]
    return [value - value * saturation * max(0.0, min(k, 4 - k, 1.0)) for k in wheel]


@dataclass(frozen=True)
class Pose:
    """Where a cut-out stands in a square frame; lengths as shares of the frame's side."""

    extent: float  # longer side of the thing's box
    x: float  # of the box's centre, 0 = left
    y: float  # of the box's lower edge, 0 = top


def random_pose(rng: np.random.Generator, cutout: Tensor, grounded: bool, size: str = "") -> Pose:
    """A pose with the whole thing inside the frame, upright, as large as its size says (EXTENTS).

    grounded: it stands low in the frame.

    Positions are whole cells of the latents of a 128 pixel picture: a thing is the same latents wherever it stands, and
    the diffusion model learns what it looks like from fewer views. Layers move, turn and scale afterwards anyway.
    """
    height, width = cutout.shape[1:]
    aspect = min(height, width) / max(height, width)
    extent = EXTENTS[size] + 0.08 * (1 - aspect)  # slim things may be longer
    scale = extent / max(height, width)
    aside = max(0, math.floor((0.49 - scale * width / 2) / CELL))
    x = 0.5 + CELL * float(np.clip(np.round(rng.normal(0, 1.2)), -aside, aside))
    lowest, highest = math.floor(0.985 / CELL), math.ceil((0.015 + scale * height) / CELL)
    drop = rng.beta(3.5, 1.5) if grounded else rng.beta(2.5, 2.5)
    return Pose(extent, x, CELL * (highest + round((lowest - highest) * float(drop))))


def place_cutout(cutout: Tensor, pose: Pose, size: int) -> tuple[Tensor, Tensor]:
    """Put a cut-out into a frame: foreground (3, size, size), straight, extended to all of it, and mask (1, ...)."""
    height, width = cutout.shape[1:]
    scale = pose.extent / max(height, width)
    line = (torch.arange(2 * size) + 0.5) / (2 * size)  # twice the size, halved below
    v, u = torch.meshgrid((line - pose.y) / scale + height / 2, (line - pose.x) / scale, indexing="ij")
    padded = F.pad(cutout, (2, 2, 2, 2))  # so that it fades at the box's own edge
    grid = torch.stack([2 * u / (width + 4), 2 * v / (height + 4)], dim=-1)
    warped = F.grid_sample(padded[None], grid[None], mode="bilinear", align_corners=False)
    pixels = F.avg_pool2d(warped, 2)[0]
    mask = ((pixels[3:] - 0.01) / 0.98).clamp(0, 1)  # no faint haze around, no holes inside
    return extend_colours(pixels[:3], pixels[3:]), mask


def extend_colours(premultiplied: Tensor, alpha: Tensor) -> Tensor:
    """Straight colours everywhere: where alpha fades out, the solid colours nearby go on (push-pull pyramid).

    premultiplied: (3, H, W), alpha: (1, H, W). Returns (3, H, W).
    """
    solid = ((alpha - 0.2) / 0.6).clamp(0, 1) + 1e-3 * alpha  # rims carry the noise of the file's old background
    straight = (premultiplied / alpha.clamp(min=1e-4)).clamp(0, 1)
    return push_pull(straight[None], solid.clamp(max=1)[None])[0]
