"""Checkpoints of other programs, told apart by the names of their tensors: what a sentence of refusal calls them."""

from __future__ import annotations

from collections.abc import Sequence

SD, PICTURE_AUTOENCODER = "an ordinary Stable Diffusion checkpoint", "an ordinary autoencoder"

# A part of a name -> what a file with it is; the first that is found counts.
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


def describe(names: Sequence[str]) -> str:
    """What a file with tensors of these names is, with its article."""
    lowered = [name.lower() for name in names]
    found = (words for part, words in FAMILIES.items() if any(part in name for name in lowered))
    return next(found, "a safetensors file of something else")
