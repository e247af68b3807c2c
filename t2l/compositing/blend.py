"""How the colour of a layer meets the colour below it: the blend modes that Photoshop, Krita and GIMP share.

b is the backdrop's colour, s the source's, both (..., 3, H, W) in [0, 1]. Separable modes and the four of hue,
saturation, color and luminosity follow W3C Compositing and Blending Level 1, sections 9.1 and 9.2; the modes that it
leaves out follow the descriptions in Photoshop's own manual, the two of grain GIMP's. Soft light is there twice: the
standard's, which is Photoshop's too (measured, LOG.md 2026-11-26), and Krita's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

ColourSpace = Literal["srgb", "linear", "comfyui"]
BlendMode = Literal[
    "normal",
    "multiply",
    "screen",
    "overlay",
    "darken",
    "lighten",
    "add",
    "soft light",
    "soft light krita",
    "hard light",
    "color dodge",
    "color burn",
    "linear burn",
    "vivid light",
    "linear light",
    "pin light",
    "hard mix",
    "difference",
    "exclusion",
    "subtract",
    "divide",
    "grain extract",
    "grain merge",
    "darker color",
    "lighter color",
    "hue",
    "saturation",
    "color",
    "luminosity",
]


def blend(backdrop: Tensor, source: Tensor, mode: BlendMode) -> Tensor:
    """blend(B, F): the source's colours after its blend mode, (..., 3, H, W) in [0, 1]. "normal" leaves them."""
    return source if mode == "normal" else _BLENDS[mode](backdrop, source).clamp(0, 1)


def srgb_to_linear(colour: Tensor) -> Tensor:
    """Encoded sRGB to linear light, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Linear light to encoded sRGB, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).clamp(0, 1)


def _screen(b: Tensor, s: Tensor) -> Tensor:
    return b + s - b * s


def _overlay(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(b <= 0.5, s * 2 * b, _screen(s, 2 * b - 1))


def _soft_light(b: Tensor, s: Tensor) -> Tensor:
    """The standard's and PDF's, with a polynomial for the root's steep beginning; OpenRaster's svg:soft-light."""
    return _softened(b, s, torch.where(b <= 0.25, ((16 * b - 12) * b + 4) * b, b.sqrt()))


def _soft_light_krita(b: Tensor, s: Tensor) -> Tensor:
    """The square root throughout: what Krita makes of a PSD's soft light, krita:soft_light."""
    return _softened(b, s, b.sqrt())


def _softened(b: Tensor, s: Tensor, lifted: Tensor) -> Tensor:
    return torch.where(s <= 0.5, b - (1 - 2 * s) * b * (1 - b), b + (2 * s - 1) * (lifted - b))


def _color_dodge(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, (b / (1 - s)).nan_to_num(nan=1.0, posinf=1.0))


def _color_burn(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(b == 1, 1.0, 1 - ((1 - b) / s).nan_to_num(nan=1.0, posinf=1.0).clamp(max=1))


def _vivid_light(b: Tensor, s: Tensor) -> Tensor:
    """Burn below half, dodge above; at its ends the source wins also over black and white, unlike in burn and dodge."""
    burnt = torch.where(s == 0, 0.0, 1 - (1 - b) / (2 * s))
    dodged = torch.where(s == 1, 1.0, b / (2 - 2 * s))
    return torch.where(s <= 0.5, burnt, dodged)


def _pin_light(b: Tensor, s: Tensor) -> Tensor:
    return torch.where(s <= 0.5, torch.minimum(b, 2 * s), torch.maximum(b, 2 * s - 1))


def _hard_mix(b: Tensor, s: Tensor) -> Tensor:
    return ((b + s > 1) | ((b + s == 1) & (b > 0.5))).to(b.dtype)


def _divide(b: Tensor, s: Tensor) -> Tensor:
    return (b / s).nan_to_num(nan=0.0, posinf=1.0)


def luminosity(colour: Tensor) -> Tensor:
    """Lum(C) of the standard's section 9.2, (..., 1, H, W)."""
    red, green, blue = colour.split(1, dim=-3)
    return 0.3 * red + 0.59 * green + 0.11 * blue


def _with_luminosity(colour: Tensor, target: Tensor) -> Tensor:
    """SetLum and ClipColor: the colour moved to a luminosity, and towards it until every channel is in [0, 1]."""
    colour = colour + (target - luminosity(colour))
    low, high = colour.amin(dim=-3, keepdim=True), colour.amax(dim=-3, keepdim=True)
    lifted = target + (colour - target) * target / (target - low).clamp(min=1e-9)
    colour = torch.where(low < 0, lifted, colour)
    lowered = target + (colour - target) * (1 - target) / (high - target).clamp(min=1e-9)
    return torch.where(high > 1, lowered, colour)


def _saturation(colour: Tensor) -> Tensor:
    return colour.amax(dim=-3, keepdim=True) - colour.amin(dim=-3, keepdim=True)


def _with_saturation(colour: Tensor, target: Tensor) -> Tensor:
    """SetSat: the smallest channel becomes 0, the largest the target, the middle one keeps its place between them."""
    return (colour - colour.amin(dim=-3, keepdim=True)) * target / _saturation(colour).clamp(min=1e-9)


def _hue(b: Tensor, s: Tensor) -> Tensor:
    return _with_luminosity(_with_saturation(s, _saturation(b)), luminosity(b))


def _saturate(b: Tensor, s: Tensor) -> Tensor:
    return _with_luminosity(_with_saturation(b, _saturation(s)), luminosity(b))


_BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": torch.mul,
    "screen": _screen,
    "overlay": _overlay,
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "add": torch.add,  # not in the standard's section 9.1; Photoshop calls it linear dodge
    "soft light": _soft_light,
    "soft light krita": _soft_light_krita,
    "hard light": lambda b, s: _overlay(s, b),
    "color dodge": _color_dodge,
    "color burn": _color_burn,
    "linear burn": lambda b, s: b + s - 1,
    "vivid light": _vivid_light,
    "linear light": lambda b, s: b + 2 * s - 1,
    "pin light": _pin_light,
    "hard mix": _hard_mix,
    "difference": lambda b, s: (b - s).abs(),
    "exclusion": lambda b, s: b + s - 2 * b * s,
    "subtract": torch.sub,
    "divide": _divide,
    "grain extract": lambda b, s: b - s + 0.5,
    "grain merge": lambda b, s: b + s - 0.5,
    "darker color": lambda b, s: torch.where(luminosity(s) < luminosity(b), s, b),
    "lighter color": lambda b, s: torch.where(luminosity(s) > luminosity(b), s, b),
    "hue": _hue,
    "saturation": _saturate,
    "color": lambda b, s: _with_luminosity(s, luminosity(b)),
    "luminosity": lambda b, s: _with_luminosity(b, luminosity(s)),
}
