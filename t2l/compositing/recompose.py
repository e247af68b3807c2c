"""Does m F + (1 - m) B show the picture it should? How far it is off, and the least change of F and B that mends it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Layers
from .stack import Layer, Stack

LEVELS = 255  # a picture file of 8 bits has as many steps from black to white


@dataclass(frozen=True)
class Agreement:
    """How far two pictures are apart, in 1/255."""

    mean: float  # over all pixels and channels
    max: float

    def __str__(self) -> str:
        return f"mean {self.mean:.2f}, max {self.max:.2f} of {LEVELS}"


def agreement(seen: Tensor, picture: Tensor) -> Agreement:
    """How far a recomposed picture is from what it should be; of one shape, in [0, 1]. Raises ValueError otherwise."""
    difference = difference_picture(seen, picture) * LEVELS
    return Agreement(difference.mean().item(), difference.max().item())


def difference_picture(seen: Tensor, picture: Tensor, gain: float = 1.0) -> Tensor:
    """|seen - picture| times gain, at most 1: black where the two agree. Raises ValueError for two sizes."""
    if seen.shape != picture.shape:
        sizes = [" x ".join(map(str, reversed(x.shape[-2:]))) for x in (seen, picture)]
        raise ValueError(
            f"the picture must be as large as the layers, {sizes[0]} pixels, got {sizes[1]}; scale one of them"
        )
    return ((seen - picture).abs() * gain).clamp(max=1)


def correct_stack(stack: Stack, picture: Tensor) -> Stack:
    """Two layers that make the picture (3, H, W) exactly. Raises ValueError if others would have to change."""
    stack = stack.drawn
    whole = [layer.size == (stack.height, stack.width) and _is_plain(layer) for layer in stack.layers]
    if whole != [True, True] or not bool((stack.layers[0].mask == 1).all()):
        raise ValueError(
            f"correct needs an opaque layer and one over it, both as large as the canvas, visible and of normal "
            f"blend mode, got {len(stack.layers)} layers; switch it off, or put Split Layers and Join Layers before"
        )
    layers = correct_layers(stack.to_layers(), picture[None])
    return Stack.from_layers(layers, names=[layer.name for layer in stack.layers])


def _is_plain(layer: Layer) -> bool:
    """Whether a layer lies on the canvas as it is."""
    return (layer.x, layer.y, layer.opacity, layer.blend_mode, layer.visible) == (0, 0, 1, "normal", True)


def correct_layers(layers: Layers, picture: Tensor) -> Layers:
    """The layers nearest to these that compose to the picture (N, 3, H, W) exactly; the mask stays.

    Per pixel and channel the least squares step along m F + (1 - m) B = C: with r = C - m F - (1 - m) B, F takes m r /
    (m^2 + (1 - m)^2) and B (1 - m) r / (m^2 + (1 - m)^2). Where that leaves [0, 1] the nearest point of the line inside
    is taken; there always is one, F = B = C. Written for the heavier of the two, which it is safe to divide by.
    """
    mask = layers.mask
    in_front = mask >= 0.5
    heavy = torch.where(in_front, layers.foreground, layers.background)
    light = torch.where(in_front, layers.background, layers.foreground)
    weight = torch.where(in_front, mask, 1 - mask)
    rest = 1 - weight
    missing = picture - layers.composite()
    step = light + rest * missing / (weight.square() + rest.square())
    divisor = rest.clamp(min=1e-6)  # below, the light one is not seen
    lowest, highest = ((picture - weight) / divisor).clamp(min=0), (picture / divisor).clamp(max=1)
    light = torch.where(rest > 1e-6, torch.minimum(torch.maximum(step, lowest), highest), light)
    heavy = ((picture - rest * light) / weight).clamp(0, 1)
    return Layers(torch.where(in_front, heavy, light), torch.where(in_front, light, heavy), mask)
