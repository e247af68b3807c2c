"""Layers brought to the size that a model was trained on, so that the model paints one thing and paints it whole.

A latent diffusion model takes any size and paints well near one. How near was measured with the shipped checkpoint,
trained on 256 x 256 (LOG.md, 2026-11-26): squares of 192 to 288 pixels and pictures of the same area up to 2 : 1 are
right; at 128 a thing is a patch, from 320 there are two of it, and in a picture 144 pixels high its head is cut off.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

from .resample import Method
from .stack import Stack
from .upscale import upscale

Fit = Literal["keep aspect", "crop", "stretch"]
SMALLEST_AREA, LARGEST_AREA = 0.5, 1.3  # of the trained one, between which things are whole
SHORTEST_SIDE = 2 / 3  # of the trained one


def paints_well(size: tuple[int, int], trained_size: int) -> bool:
    """Whether a model trained on trained_size x trained_size pixels paints whole things at size (height, width)."""
    area = size[0] * size[1] / trained_size**2
    return SMALLEST_AREA <= area <= LARGEST_AREA and min(size) >= SHORTEST_SIDE * trained_size


def fit_stack(
    stack: Stack, trained_size: int, multiple: int, fit: Fit, method: Method = "lanczos"
) -> tuple[Stack, Stack]:
    """The stack at a size that a model paints well, and the stack that `upscale` brings it back to the size of.

    multiple: of pixels a side, those of a latent. fit: "keep aspect" takes as many pixels as the model was trained on
    in the aspect of the canvas, the shorter side at least half of trained_size; "crop" cuts the largest square out of
    the middle; "stretch" makes a square of the whole. Only with "crop" the second stack is not the one that came: it is
    the square. Raises ValueError for another fit or method.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}")
    if fit == "crop":
        stack = _cut_middle_square(stack)
    return upscale(stack, *fitted_size((stack.height, stack.width), trained_size, multiple, fit), method), stack


def fitted_size(size: tuple[int, int], trained_size: int, multiple: int, fit: Fit) -> tuple[int, int]:
    """Height and width that `fit_stack` brings a canvas to; with "crop", of one that is cut."""
    square = _round_to_grid(trained_size, multiple)
    return near_size(size, trained_size, multiple) if fit == "keep aspect" else (square, square)


def near_size(size: tuple[int, int], trained_size: int, multiple: int) -> tuple[int, int]:
    """Height and width in the aspect of `size` with the area of trained_size^2, both whole multiples."""
    height, width = size
    scale = max(trained_size / math.sqrt(height * width), trained_size / 2 / min(size))
    return _round_to_grid(height * scale, multiple), _round_to_grid(width * scale, multiple)


def _round_to_grid(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple


def _cut_middle_square(stack: Stack) -> Stack:
    side = min(stack.height, stack.width)
    left, top = (stack.width - side) // 2, (stack.height - side) // 2
    layers = tuple(replace(layer, x=layer.x - left, y=layer.y - top) for layer in stack.layers)
    return replace(stack, height=side, width=side, layers=layers)
