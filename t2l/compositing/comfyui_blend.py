"""ComfyUI core's blend modes: its 26 names, and its own formulas in the light or the encoding that it takes for each.

Core (comfy_extras/compositor_blend.py of 0.31 and newer) keeps a canvas in linear light and mixes there. It computes
the blend itself in light for some modes and on sRGB values for the others, limits nothing before the end, and lets
every mode but normal show only where something lies below. b is the backdrop, s the source, both (3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from .blend import BlendMode

EPSILON = 1e-6  # core's: what is smaller divides nothing
NAMES: dict[BlendMode, str] = {  # what core calls a mode of ours
    **{mode: mode.replace(" ", "-") for mode in get_args(BlendMode)},
    "add": "linear-dodge",
    # Core has no name for these three: it shows the nearest that it has.
    "soft light krita": "soft-light",
    "darker color": "normal",
    "lighter color": "normal",
}
WITHOUT_NAME: tuple[BlendMode, ...] = ("soft light krita", "darker color", "lighter color")
IN_LIGHT = {"normal", "multiply", "darken", "lighten", "linear-dodge", "subtract", "divide", "luminosity"}


def blend_over(
    backdrop: Tensor, below: Tensor, source: Tensor, weight: Tensor, mode: BlendMode
) -> tuple[Tensor, Tensor]:
    """A layer over a backdrop as core has it: the new colour (3, H, W) and alpha (1, H, W), both in linear light.

    backdrop, source: (3, H, W), linear light, straight, not limited to [0, 1]. below, weight: (1, H, W), the backdrop's
    alpha and the layer's mask times its opacity.
    """
    name = NAMES[mode]
    if name == "normal":
        joint = weight + (1 - weight) * below
        share = torch.where(joint > 0, weight / joint.clamp(min=torch.finfo(joint.dtype).tiny), 0)
        mixed = torch.where(below == 0, source, torch.lerp(backdrop, source, share))
        return torch.where(weight == 0, backdrop, mixed), joint
    if name in IN_LIGHT:
        blended = _BLENDS[name](backdrop, source)
    else:
        blended = to_light(_BLENDS[name](to_srgb(backdrop), to_srgb(source)))
    return torch.where((below == 0) | (weight == 0), backdrop, torch.lerp(backdrop, blended, weight)), below


def to_light(colour: Tensor) -> Tensor:
    """Encoded sRGB to linear light, also outside [0, 1]: a straight line below 0."""
    return torch.where(colour <= 0.04045, colour / 12.92, _power((colour.clamp(min=0) + 0.055) / 1.055, 2.4))


def to_srgb(light: Tensor) -> Tensor:
    """The inverse of `to_light`."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * _power(light.clamp(min=0), 1 / 2.4) - 0.055)


def _power(x: Tensor, exponent: float) -> Tensor:
    """By numpy, as core: torch differs in the last bit, which decides hard mix where two colours make exactly 1."""
    return torch.from_numpy(np.power(x.detach().cpu().numpy(), exponent)).to(x)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b.abs() >= EPSILON, a / torch.where(b.abs() >= EPSILON, b, 1), 0.0)


def _overlay(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(b < 0.5, 2 * b * s, 1 - 2 * (1 - s) * (1 - b))


def _hard_light(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(s > 0.5, 1 - (1 - b) * (2 - 2 * s), 2 * b * s).clamp(max=1)


def _soft_light(b: Tensor, s: Tensor) -> Tensor:
    """Pegtop's, which GIMP has too."""
    return (1 - b) * b * s + b * (1 - (1 - b) * (1 - s))


def _dodge(b: Tensor, s: Tensor) -> Tensor:
    dodged = torch.where(1 - s <= EPSILON, 1.0, _divided(b, 1 - s).clamp(max=1))
    return torch.where(b <= 0, 0.0, dodged)


def _burn(b: Tensor, s: Tensor) -> Tensor:
    burnt = torch.where(s <= EPSILON, 0.0, 1 - _divided(1 - b, s).clamp(max=1))
    return torch.where(b >= 1, 1.0, burnt)


def _vivid_light(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(s <= 0.5, _burn(b, 2 * s), _dodge(b, 2 * s - 1))


def _pin_light(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(s > 0.5, torch.maximum(b, 2 * s - 1), torch.minimum(b, 2 * s))


def _luminance(colour: Tensor) -> Tensor:
    red, green, blue = colour.split(1, dim=-3)
    return 0.2224884 * red + 0.71690369 * green + 0.06060791 * blue


def _extremes(colour: Tensor) -> tuple[Tensor, Tensor]:
    return colour.amin(dim=-3, keepdim=True), colour.amax(dim=-3, keepdim=True)


def _lightness(colour: Tensor) -> Tensor:
    low, high = _extremes(colour)
    return (low + high) / 2


def _hue(b: Tensor, s: Tensor) -> Tensor:
    """The source's hue with the backdrop's saturation and value, in HSV; a grey source changes nothing."""
    (low, high), (source_low, source_high) = _extremes(b), _extremes(s)
    spread = source_high - source_low
    ratio = torch.where(high == 0, 0.0, high - low) / torch.where(spread <= EPSILON, 1, spread)
    return torch.where(spread <= EPSILON, b, s * ratio + high - source_high * ratio)


def _saturation(b: Tensor, s: Tensor) -> Tensor:
    """The source's saturation with the backdrop's hue and value, in HSV; of a grey backdrop its value is left."""
    (low, high), (source_low, source_high) = _extremes(b), _extremes(s)
    spread = high - low
    saturation = torch.where(
        source_high == 0, 0.0, (source_high - source_low) / torch.where(source_high == 0, 1, source_high)
    )
    ratio = saturation * high / torch.where(spread <= EPSILON, 1, spread)
    return torch.where(spread <= EPSILON, high.expand_as(b), b * ratio + (1 - ratio) * high)


def _color(b: Tensor, s: Tensor) -> Tensor:
    """The source's hue and saturation with the backdrop's lightness, in HSL; black and white leave a grey of it."""
    lightness, source_lightness = _lightness(b), _lightness(s)
    grey = (source_lightness.abs() <= EPSILON) | ((1 - source_lightness).abs() <= EPSILON)
    room = torch.minimum(lightness, 1 - lightness)
    ratio = room / torch.where(grey, 1, torch.minimum(source_lightness, 1 - source_lightness))
    offset = torch.where(lightness > 0.5, 1 - 2 * room, 0) + torch.where(source_lightness > 0.5, 2 * room - ratio, 0)
    return torch.where(grey, lightness.expand_as(b), s * ratio + offset)


def _luminosity(b: Tensor, s: Tensor) -> Tensor:
    """The backdrop scaled to the source's luminance; over black a grey of it."""
    below, own = _luminance(b), _luminance(s)
    ratio = own / torch.where(below <= EPSILON, 1, below)
    return torch.where(below <= EPSILON, own.expand_as(b), b * ratio)


_BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": torch.mul,
    "screen": lambda b, s: 1 - (1 - b) * (1 - s),
    "overlay": _overlay,
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "color-dodge": _dodge,
    "color-burn": _burn,
    "hard-light": _hard_light,
    "soft-light": _soft_light,
    "difference": lambda b, s: (b - s).abs(),
    "exclusion": lambda b, s: 0.5 - 2 * (b - 0.5) * (s - 0.5),
    "linear-dodge": torch.add,
    "linear-burn": lambda b, s: b + s - 1,
    "vivid-light": _vivid_light,
    "pin-light": _pin_light,
    "linear-light": lambda b, s: b + 2 * s - 1,
    "hard-mix": lambda b, s: torch.where(b + s < 1, 0.0, 1.0),
    "subtract": lambda b, s: (b - s).clamp(min=0),
    "divide": lambda b, s: (b / s.clamp(min=EPSILON)).clamp(0, 1),
    "grain-extract": lambda b, s: b - s + 0.5,
    "grain-merge": lambda b, s: b + s - 0.5,
    "hue": _hue,
    "saturation": _saturation,
    "color": _color,
    "luminosity": _luminosity,
}
