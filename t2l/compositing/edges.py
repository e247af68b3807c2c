"""The edge of a cut-out: colours freed of the background mixed in, colours beyond the edge, the mask itself.

All colours are straight. A picture that a foreground is cut from shows C = m F + (1 - m) B where the mask is soft;
copied as it is, the cut-out carries a fringe of the old background. Beyond its edge a foreground needs colours too:
whoever softens, moves or enlarges the mask sees them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .bleed import extend_colours
from .resample import cut_window, gaussian_blur
from .stack import TOP, Layer, Stack

FUSION_RADII = (45, 10, 3, 1, 1, 1)  # pixels; Forte 2021 has windows of 90 and 6 alone, LOG.md 2026-11-24 compares


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """What is done to an edge, in this order. Raises ValueError for a number out of its range."""

    refine: int = 0  # pixels: radius in which the mask follows the edges of the picture; 0 = not at all
    decontaminate: bool = True  # free soft edges of the background's colours, and extend the colours beyond the edge
    shrink: float = 0.0  # pixels the mask is drawn in; below 0 it grows
    feather: float = 0.0  # pixels: standard deviation of the mask's blur

    def __post_init__(self) -> None:
        for name, low, high in (("refine", 0, 64), ("shrink", -256, 256), ("feather", 0, 256)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"{name} must be from {low} to {high} pixels, got {value!r}; 0 leaves the mask as it is"
                )

    @property
    def grows(self) -> bool:
        """Whether the edge comes to show what the mask hid."""
        return self.feather > 0 or self.shrink < 0


def clean_edges(
    colours: Tensor, mask: Tensor, config: EdgeConfig | None = None, picture: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Foreground and mask with a clean edge. colours: (N, 3, H, W), mask: (N, 1, H, W), both in [0, 1].

    picture: (N, 3, H, W), the picture that shows the foreground in front of its old background; None when the colours
    are a plain copy of it. Where the mask is 1 the foreground is that picture, unchanged.
    """
    config = config or EdgeConfig()
    picture = colours if picture is None else picture
    if config.refine:
        mask = refine_mask(mask, picture, config.refine)
    if config.decontaminate:
        colours = free_colours(picture, mask)
    if config.decontaminate or config.grows:
        colours = extend_colours(colours, mask)
    return colours, gaussian_blur(shrink_mask(mask, config.shrink), config.feather)


def clean_layer(stack: Stack, config: EdgeConfig, picture: Tensor | None = None, rule: str = TOP) -> Stack:
    """The stack with the edge of one layer cleaned, within the layer's own rectangle.

    picture: (3, H, W) on the canvas, as `clean_edges` takes it. rule: "top" or a layer's name, as in Stack.to_layers.
    A layer that is shown larger, smaller, turned or mirrored keeps its own pixels, and the config counts those of the
    canvas; beside a picture it is drawn before.
    """
    index = stack.index(rule)
    layer = stack.layers[index] if picture is None else stack.layers[index].drawn
    own = None if picture is None else cut_window(picture, (layer.y, layer.x), layer.size)[None]
    colours, mask = clean_edges(layer.image[None], layer.mask[None], _in_pixels_of(layer, config), own)
    layers = list(stack.layers)
    layers[index] = replace(layer, image=colours[0], mask=mask[0])
    return replace(stack, layers=tuple(layers))


def free_colours(picture: Tensor, mask: Tensor, radii: tuple[int, ...] = FUSION_RADII) -> Tensor:
    """The foreground of a picture (N, 3, H, W) without the background in its soft edge: (N, 3, H, W).

    Blur fusion (Forte 2021, arXiv 2101.05639, Eqs. 4 to 7): with b(x) the mean over a window, F^ = b(F m) / b(m) and B^
    = b(B (1 - m)) / b(1 - m), the next F is F^ + m (C - m F^ - (1 - m) B^), within [0, 1]; once per radius, from F = B
    = C. Where the mask is 1 the picture comes back unchanged; where it is 0 everywhere in the window, too.
    """
    foreground = background = picture
    for radius in radii:
        foreground = _average_where(foreground, mask, radius, otherwise=picture)
        background = _average_where(background, 1 - mask, radius, otherwise=picture)
        seen = torch.lerp(background, foreground, mask)
        foreground = (foreground + mask * (picture - seen)).clamp(0, 1)
    return torch.where(mask == 1, picture, foreground)


def refine_mask(mask: Tensor, picture: Tensor, radius: int, eps: float = 1e-4) -> Tensor:
    """A mask (N, 1, H, W) whose edge follows the edges of the picture (N, 3, H, W) within `radius` pixels.

    The guided filter (He et al. 2010, "Guided Image Filtering", Eqs. 19 to 21): in every window the mask is fitted as a
    linear function of the colour, a = (S + eps U)^-1 cov(I, m), b = mean(m) - a mean(I), and the fits are averaged.
    eps: variance of colour that counts as an edge. A window of all 0 or all 1 stays as it is.
    """
    mean, covariance = box_mean(picture, radius), _covariance(picture, picture, radius)
    covariance = covariance + eps * torch.eye(3).to(picture).view(1, 3, 3, 1, 1)
    slope = _solve(covariance, _covariance(picture, mask, radius)[:, :, 0])
    offset = box_mean(mask, radius) - (slope * mean).sum(dim=1, keepdim=True)
    refined = (box_mean(slope, radius) * picture).sum(dim=1, keepdim=True) + box_mean(offset, radius)
    return _keep_where_flat(refined.clamp(0, 1), mask, 2 * radius)


def shrink_mask(mask: Tensor, pixels: float) -> Tensor:
    """A mask (N, 1, H, W) drawn in by so many pixels all around; below 0 it grows. The picture's border is no edge.

    Parts of a pixel are mixed from the whole ones beside them.
    """
    if pixels == 0:
        return mask
    if pixels > 0:
        return 1 - shrink_mask(1 - mask, -pixels)
    whole = math.floor(-pixels)
    grown = _dilate(mask, whole)
    return grown if whole == -pixels else torch.lerp(grown, _dilate(mask, whole + 1), -pixels - whole)


def _in_pixels_of(layer: Layer, config: EdgeConfig) -> EdgeConfig:
    """A config that counts pixels of the canvas as one that counts the layer's own."""
    if layer.shown_size == layer.size:
        return config
    scale = math.sqrt(layer.mask[0].numel() / math.prod(layer.shown_size))
    refine = min(round(config.refine * scale), 64)
    shrink, feather = (min(max(x * scale, -256), 256) for x in (config.shrink, config.feather))
    return replace(config, refine=refine, shrink=shrink, feather=feather)


def box_mean(x: Tensor, radius: int) -> Tensor:
    """The mean over the pixels within `radius` along both axes, none outside the picture: (N, C, H, W) -> the same."""
    return _line_mean(_line_mean(x, radius).mT, radius).mT


def _line_mean(x: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(x, (1, 2 * radius + 1), stride=1, padding=(0, radius), count_include_pad=False)


def _average_where(colours: Tensor, weight: Tensor, radius: int, otherwise: Tensor) -> Tensor:
    """The weighted mean of colours in a window; what has no weight in its window comes from `otherwise`."""
    total = box_mean(weight, radius)
    mean = box_mean(colours * weight, radius) / total.clamp(min=1e-6)
    return torch.where(total > 1e-6, mean, otherwise)


def _covariance(a: Tensor, b: Tensor, radius: int) -> Tensor:
    """cov(a_i, b_j) in windows: (N, A, H, W), (N, B, H, W) -> (N, A, B, H, W)."""
    products = a[:, :, None] * b[:, None]
    mean = box_mean(products.flatten(1, 2), radius).view_as(products)
    return mean - box_mean(a, radius)[:, :, None] * box_mean(b, radius)[:, None]


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """x of matrix x = vector per pixel, by Cramer's rule: symmetric (N, 3, 3, H, W), (N, 3, H, W) -> (N, 3, H, W)."""
    first, second, third = matrix.unbind(dim=1)
    cofactors = [torch.linalg.cross(a, b, dim=1) for a, b in ((second, third), (third, first), (first, second))]
    determinant = (first * cofactors[0]).sum(dim=1, keepdim=True)
    return torch.stack([(cofactor * vector).sum(dim=1) for cofactor in cofactors], dim=1) / determinant


def _keep_where_flat(changed: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Changed, but for the pixels around which the mask is all 0 or all 1: there a rounding error would be seen."""
    lowest, highest = 1 - square_max(1 - mask, radius), square_max(mask, radius)
    return torch.where((lowest == 1) | (highest == 0), mask, changed)


def square_max(mask: Tensor, radius: int) -> Tensor:
    """The largest value of a mask (N, 1, H, W) within `radius` along both axes, outside the picture left out."""
    rows = F.max_pool2d(mask, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """The largest value within a disc of so many pixels, outside the picture left out.

    The disc is made of rows, from its short ones to the long one in the middle, each grown out of the one before.
    """
    height, width = mask.shape[-2:]
    row, reach, result = mask, 0, mask
    for dy in range(radius, -1, -1):
        half = math.isqrt(radius**2 - dy**2)
        for dx in range(reach + 1, min(half, width - 1) + 1):
            row = _largest_of_two_sides(row, mask, (dx, -dx, 0, 0))
        reach = half
        if dy < height:
            result = _largest_of_two_sides(result, row, (0, 0, dy, -dy))
    return result


def _largest_of_two_sides(x: Tensor, other: Tensor, shift: tuple[int, int, int, int]) -> Tensor:
    """The largest of x and of the other moved to either side; what comes in is 0, which is no maximum of a mask."""
    there, back = F.pad(other, shift), F.pad(other, [-n for n in shift])
    return torch.maximum(x, torch.maximum(there, back))
