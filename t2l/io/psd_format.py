"""What reading and writing PSD share: the blend modes by the names of psd-tools, and whether psd-tools is there."""

from __future__ import annotations

from importlib.util import find_spec

from ..compositing.blend import BlendMode

MODES: dict[str, BlendMode] = {  # by the names of psd_tools.constants.BlendMode
    "NORMAL": "normal",
    "MULTIPLY": "multiply",
    "SCREEN": "screen",
    "OVERLAY": "overlay",
    "DARKEN": "darken",
    "LIGHTEN": "lighten",
    "LINEAR_DODGE": "add",
    "SOFT_LIGHT": "soft light",
    "HARD_LIGHT": "hard light",
    "COLOR_DODGE": "color dodge",
    "COLOR_BURN": "color burn",
    "LINEAR_BURN": "linear burn",
    "VIVID_LIGHT": "vivid light",
    "LINEAR_LIGHT": "linear light",
    "PIN_LIGHT": "pin light",
    "HARD_MIX": "hard mix",
    "DIFFERENCE": "difference",
    "EXCLUSION": "exclusion",
    "SUBTRACT": "subtract",
    "DIVIDE": "divide",
    "DARKER_COLOR": "darker color",
    "LIGHTER_COLOR": "lighter color",
    "HUE": "hue",
    "SATURATION": "saturation",
    "COLOR": "color",
    "LUMINOSITY": "luminosity",
}


def check_installed() -> None:
    if find_spec("psd_tools") is None:
        sentence = "Photoshop files need the package psd-tools: run `pip install psd-tools` with this Python"
        raise ModuleNotFoundError(sentence, name="psd_tools")
