"""A flat picture taken apart by a mask: the thing shown, freed of what shone through its edge, and what lies behind it.

Steps 3 and 4 of LAION-L2I (Zhang et al. 2023, arXiv 2307.09781): F is the picture where m > 0.1, B the picture
inpainted under the dilated mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Layers
from .bleed import push_pull
from .edges import free_colours, shrink_mask
from .fill import Inpainter, fill

REFERENCE_SIDE = 512  # pixels of the shorter side that a config's pixels are meant for
FREED_SIDE = 768  # pixels of the longer side at which the colours at an edge are told apart, at most; they are smooth
HOLE_SIDE = 1024  # pixels of the longer side at which a mask is dilated, at most: the radius grows with the picture


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How a picture is taken apart. Raises ValueError for a number out of its range."""

    threshold: float = 0.1  # the foreground's own colours are where the mask is above it (the paper's); else they go on
    free_colours: bool = True  # free soft edges of the background's colours; off: the paper's plain copy
    hole_threshold: float = 0.05  # behind a mask above it the background is painted in
    dilation: float = 8.0  # pixels that the hole reaches beyond it, of a picture of 512; the paper names none

    def __post_init__(self) -> None:
        for name, high in (("threshold", 1), ("hole_threshold", 1), ("dilation", 256)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ValueError(
                    f"{name} must be from 0 to {high}, got {value!r}; the default is {getattr(type(self), name)}"
                )


def split(
    picture: Tensor,
    mask: Tensor,
    background: Tensor | None = None,
    inpaint: Inpainter = fill,
    config: SplitConfig | None = None,
) -> Layers:
    """Pictures (N, 3, H, W) and soft masks (N, 1, H, W), 1 = foreground, both in [0, 1] -> Layers with that mask.

    background: (N, 3, H, W), what lies behind; None: `inpaint` paints it. The composite is the picture exactly where
    the mask is 1, and where it is 0 outside of the hole; at a soft edge it is as near as the two colours found there. A
    picture whose mask shows nothing is its own foreground and background.
    """
    config = config or SplitConfig()
    if background is None:
        background = inpaint(picture, find_hole(mask, config))
    return Layers(_foreground(picture, mask, config), background, mask)


def find_hole(mask: Tensor, config: SplitConfig | None = None) -> Tensor:
    """Where the background of a mask (N, 1, H, W) is to be painted: 1 there, 0 elsewhere, the same shape."""
    config = config or SplitConfig()
    height, width = mask.shape[-2:]
    scale = min(1.0, HOLE_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    hole = (F.adaptive_max_pool2d(mask.float(), size) > config.hole_threshold).float()
    grown = shrink_mask(hole, -config.dilation * min(size) / REFERENCE_SIDE)
    return F.interpolate((grown > 0).to(mask), (height, width))


def _foreground(picture: Tensor, mask: Tensor, config: SplitConfig) -> Tensor:
    """The colours in front, which go on where the mask is at most the threshold."""
    colours = _free_large(picture, mask) if config.free_colours else picture
    own = (mask > config.threshold).to(mask)
    shows = own.amax(dim=(1, 2, 3), keepdim=True) > 0
    return torch.where(shows, push_pull(colours, own), picture)


def _free_large(picture: Tensor, mask: Tensor) -> Tensor:
    """The foreground's colours without the background's, (N, 3, H, W).

    Of a large picture both are found at a smaller size, and the last step of blur fusion is taken at the full one:
    F = F^ + m (C - m F^ - (1 - m) B^), as in edges.py.
    """
    height, width = mask.shape[-2:]
    scale = FREED_SIDE / max(height, width)
    if scale >= 1:
        return free_colours(picture, mask)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small, small_mask = (F.interpolate(x, size, mode="area") for x in (picture, mask))
    pair = free_colours(small, small_mask), free_colours(small, 1 - small_mask)
    foreground, background = (F.interpolate(x, (height, width), mode="bilinear") for x in pair)
    seen = torch.lerp(background, foreground, mask)
    return torch.where(mask == 1, picture, (foreground + mask * (picture - seen)).clamp(0, 1))
