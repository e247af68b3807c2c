"""What a checkpoint is, ours or another program's, and what it says of itself, by its header: torch is not even loaded.

`model.diffusion_model.*` is the UNet, `first_stage_model.*` the autoencoder, `cond_stage_model.transformer.*` the text
encoder, as in a Stable Diffusion checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..budget import NotJSON, parse_json, shown_path
from ..io.header import Entry, read_header

FORMAT, VERSION = "text2layer", "1"
UNET, AUTOENCODER, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
PARTS = {"unet": UNET, "autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}
SHOWN = 300_000  # characters of metadata that are told in full, all together
SD, PICTURE_AUTOENCODER = "an ordinary Stable Diffusion checkpoint", "an ordinary autoencoder"

# Part of a tensor's name -> what a file with it is; the first that is found counts.
FAMILIES = {
    "lora": "a LoRA",
    "control_model.": "a ControlNet",
    "conditioner.embedders.": "a Stable Diffusion XL checkpoint",
    "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
    "joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "double_blocks.": "a Flux checkpoint",
    "down_blocks.": "one part of a diffusers folder",
    "model.diffusion_model.": SD,
    "encoder.conv_in.": PICTURE_AUTOENCODER,
}


def about(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint of ours, JSON opened, what is very long cut, and the parameters of each part.

    Raises FileNotFoundError, or ValueError with a sentence for any other file.
    """
    header, name = read_header(path), shown_path(path)
    if header.metadata.get("format") != FORMAT:
        what = describe(list(header.tensors))
        raise ValueError(f"{name} is {what}, not a checkpoint of this project: its metadata does not say so")
    said, left = {}, SHOWN
    for key, text in sorted(header.metadata.items()):
        left -= len(text)
        said[key] = _opened(text, f"{name}: its {key}") if left >= 0 else f"{text[:100]}... ({len(text):,} characters)"
    parts = {part: _parameters(header.tensors, prefix) for part, prefix in PARTS.items()}
    counts = {"all": _parameters(header.tensors)} | {part: count for part, count in parts.items() if count}
    return said | {"parameters": counts}


def _parameters(tensors: dict[str, Entry], prefix: str = "") -> int:
    return sum([math.prod(entry.shape) for name, entry in tensors.items() if name.startswith(prefix)])


def _opened(text: str, what: str) -> Any:
    """What is JSON opened, anything else as it is."""
    try:
        return parse_json(text, what)
    except NotJSON:
        return text


def describe(names: Sequence[str]) -> str:
    """What a file with tensors of these names is, with its article."""
    lowered = [name.lower() for name in names]
    found = (words for part, words in FAMILIES.items() if any(part in name for name in lowered))
    return next(found, "a safetensors file of something else")
