"""Photoshop's PSD and PSB, through psd-tools: what reading (psd_read.py) and writing (psd_write.py) share."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from ..compositing.blend import BlendMode

UNLIKE = ("grain extract", "grain merge", "soft light krita")  # modes that the format does not have
MODES: dict[str, BlendMode] = {  # by the names of psd_tools.constants.BlendMode, which are ours in capitals
    mode.upper().replace(" ", "_"): mode for mode in get_args(BlendMode) if mode not in (*UNLIKE, "add")
} | {"LINEAR_DODGE": "add"}


def check_installed() -> None:
    if find_spec("psd_tools") is None:
        sentence = "Photoshop files need the package psd-tools: run `pip install psd-tools` with this Python"
        raise ModuleNotFoundError(sentence, name="psd_tools")
