"""A model as a diffusers folder, and back into one file.

Out: `unet`, `text_encoder`, `tokenizer`, `scheduler` as StableDiffusionPipeline reads them; `vae` where the autoencoder
is an ordinary one to other programs; `text2layer.safetensors`, the autoencoder as it is, with everything the checkpoint
says about itself. Back: a folder of ours becomes the same checkpoint again, and any other of Stable Diffusion 1.x a
single file with ldm's names, to start a run from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget import parse_json, read_object, shown, shown_path
from ..config import config_from_dict
from ..io.checkpoint import read_tensors, write_tensors
from .autoencoder import MOST_LEVELS, Autoencoder
from .text2layer import AUTOENCODER, TEXT_ENCODER, UNET, Text2Layer, as_dtype, flat_input, folded
from .text_encoder import TextEncoderConfig, clip_config, compact_vocabulary, full_vocabulary
from .tokenizer import END_TEXT, MAX_TOKENS, START_TEXT, read_merges, vocabulary
from .unet import config_of_diffusers, rename, unet_to_ldm

OURS = "text2layer.safetensors"
LAYERED = ("encoder.conv_in_layers.", "decoder.head_")  # what an ordinary autoencoder does not have
TEXT_MODEL = "text_model."
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # diffusers' own first names


def save_folder(model: Text2Layer, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a diffusers folder, whole or not at all. Raises ValueError where it exists, and as Text2Layer.save."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a folder that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        whole = Path(partial) / "whole"
        _write_unet(model, whole / "unet", dtype)
        _write_text_encoder(model, whole, dtype)
        parts = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
        parts |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
        if _is_ordinary(model.autoencoder):
            _write_vae(model.autoencoder, whole / "vae", dtype)
            parts["vae"] = ["diffusers", "AutoencoderKL"]
        steps = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}
        schedule = {"_class_name": "DDIMScheduler", **model.diffusion.for_diffusers(), **steps}
        _write_json(whole / "scheduler" / "scheduler_config.json", schedule)
        nobody = {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts, **nobody}
        _write_json(whole / "model_index.json", index)
        autoencoder = folded(model.autoencoder).state_dict() | flat_input(model.autoencoder)
        tensors = as_dtype({AUTOENCODER + name: x for name, x in autoencoder.items()}, dtype)
        write_tensors(whole / OURS, tensors, model.metadata())
        whole.rename(folder)


def folder_to_file(folder: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a diffusers folder as one file: a checkpoint of ours if it was one, else an ordinary Stable Diffusion 1.x.

    Raises ValueError for a folder of something else, FileNotFoundError for one that lacks a part.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a diffusers folder: it has no model_index.json")
    kind = _read_json(folder / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(
            f"{folder} is a {shown_path(kind)} of diffusers; a StableDiffusionPipeline, Stable Diffusion 1.x, is needed"
        )
    tensors, text_encoder = _read_unet(folder / "unet"), _read_text_encoder(folder / "text_encoder")
    if (folder / OURS).is_file():
        autoencoder, metadata = read_tensors(folder / OURS)
        with _reading_config(folder / OURS):
            config = parse_json(metadata["config"], "its config")["text_encoder"]
            text_encoder = compact_vocabulary(text_encoder, config_from_dict(TextEncoderConfig, config))
    else:
        autoencoder = {AUTOENCODER + name: x for name, x in _read_vae(folder / "vae").items()}
        metadata = {"format": "pt"}
    tensors = autoencoder | {UNET + name: x for name, x in tensors.items()}
    tensors |= {TEXT_ENCODER + name: x for name, x in text_encoder.items()}
    write_tensors(out, as_dtype(tensors, dtype), metadata)


def vae_module_names(levels: int, num_res_blocks: int) -> dict[str, str]:
    """Every module of diffusers' AutoencoderKL and its name in ldm; old names of the attention first."""
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, ways, blocks in (("encoder", "down", num_res_blocks), ("decoder", "up", num_res_blocks + 1)):
        names |= {f"{side}.{end}": f"{side}.{end}" for end in ("conv_in", "conv_out")}
        names |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
        names |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        for theirs, ldm in (OLD_ATTENTION | ATTENTION).items():
            names[f"{side}.mid_block.attentions.0.{theirs}"] = f"{side}.mid.attn_1.{ldm}"
        for i in range(levels):
            level = i if side == "encoder" else levels - 1 - i  # ldm numbers the levels from full resolution
            theirs, ldm = f"{side}.{ways}_blocks.{i}", f"{side}.{ways}.{level}"
            names[f"{theirs}.{ways}samplers.0"] = f"{ldm}.{ways}sample"
            for block in range(blocks):
                names[f"{theirs}.resnets.{block}"] = f"{ldm}.block.{block}"
                names[f"{theirs}.resnets.{block}.conv_shortcut"] = f"{ldm}.block.{block}.nin_shortcut"
    return names


def vae_to_ldm(state: dict[str, Tensor], levels: int, num_res_blocks: int) -> dict[str, Tensor]:
    """A diffusers state dict under ldm's names, the attention's matrices as 1x1 convolutions."""
    renamed = rename(state, vae_module_names(levels, num_res_blocks), "diffusers")
    return {name: x[..., None, None] if ".attn_1." in name and x.ndim == 2 else x for name, x in renamed.items()}


def vae_from_ldm(state: dict[str, Tensor], levels: int, num_res_blocks: int) -> dict[str, Tensor]:
    """The inverse of `vae_to_ldm`."""
    names = vae_module_names(levels, num_res_blocks)
    renamed = rename(state, {ldm: theirs for theirs, ldm in names.items()}, "ldm")
    return {name: x[..., 0, 0] if ".attentions.0.to_" in name and x.ndim == 4 else x for name, x in renamed.items()}


# ---- parts of a folder


def _write_unet(model: Text2Layer, folder: Path, dtype: torch.dtype) -> None:
    config = {"_class_name": "UNet2DConditionModel", **model.unet.config}
    _write_json(
        folder / "config.json",
        {name: x for name, x in config.items() if name not in ("_name_or_path", "_use_default_values")},
    )
    write_tensors(folder / WEIGHTS, as_dtype(model.unet.state_dict(), dtype), {"format": "pt"})


def _write_text_encoder(model: Text2Layer, whole: Path, dtype: torch.dtype) -> None:
    """CLIP with its whole vocabulary, and the tokenizer's two files."""
    config = model.text_encoder.config
    full = clip_config(replace(config, token_ids=None)).to_dict() | {"architectures": ["CLIPTextModel"]}
    _write_json(whole / "text_encoder" / "config.json", full)
    state = full_vocabulary(model.text_encoder.state_dict(), config)
    write_tensors(whole / "text_encoder" / TEXT_WEIGHTS, as_dtype(state, dtype), {"format": "pt"})
    tokenizer = whole / "tokenizer"
    _write_json(tokenizer / "vocab.json", vocabulary())
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in read_merges()), ""]
    (tokenizer / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    special = {"bos_token": START_TEXT, "eos_token": END_TEXT, "unk_token": END_TEXT, "pad_token": END_TEXT}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, **special}
    _write_json(tokenizer / "tokenizer_config.json", about)


def _is_ordinary(autoencoder: Autoencoder) -> bool:
    """Whether other programs can take the autoencoder for an ordinary one."""
    config = autoencoder.config
    return config.norm == "group" and config.patch == 1 and (config.has_auxiliary or config.layout == "separate")


def _write_vae(autoencoder: Autoencoder, folder: Path, dtype: torch.dtype) -> None:
    config = autoencoder.config
    levels = len(config.channel_multipliers)
    _write_json(
        folder / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [config.base_channels * m for m in config.channel_multipliers],
            "layers_per_block": config.num_res_blocks,
            "latent_channels": config.trunk_channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "scaling_factor": config.latent_scale,
        },
    )
    state = autoencoder.state_dict() | flat_input(autoencoder)
    ordinary = {name: x for name, x in state.items() if not name.startswith(LAYERED)}
    write_tensors(
        folder / WEIGHTS, as_dtype(vae_from_ldm(ordinary, levels, config.num_res_blocks), dtype), {"format": "pt"}
    )


def _read_unet(folder: Path) -> dict[str, Tensor]:
    found = _read_json(folder / "config.json")
    if found.get("use_linear_projection"):
        raise ValueError(f"{folder} is of Stable Diffusion 2 or later; 1.x is needed")
    with _reading_config(folder / "config.json"):
        config = config_of_diffusers(found)
    return unet_to_ldm(read_tensors(folder / WEIGHTS)[0], config)


def _read_text_encoder(folder: Path) -> dict[str, Tensor]:
    tensors = read_tensors(folder / TEXT_WEIGHTS)[0]
    named = {name if name.startswith(TEXT_MODEL) else TEXT_MODEL + name: x for name, x in tensors.items()}
    return {name: x for name, x in named.items() if not name.endswith("position_ids")}


def _read_vae(folder: Path) -> dict[str, Tensor]:
    config = _read_json(folder / "config.json")
    with _reading_config(folder / "config.json"):
        levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
        if not 1 <= levels <= MOST_LEVELS or type(blocks) is not int or not 1 <= blocks <= 16:
            raise ValueError(f"it has {levels} levels of {shown(blocks)} blocks")
    return vae_to_ldm(read_tensors(folder / WEIGHTS)[0], levels, blocks)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"the diffusers folder lacks {path}")
    return read_object(path, "a config of diffusers")


@contextmanager
def _reading_config(path: Path) -> Iterator[None]:
    """What a config of somebody else lacks, or has of another kind, becomes a sentence that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        reason = (
            str(error) if isinstance(error, ValueError) else f"{shown(error.args[0])} is missing or of another kind"
        )
        raise ValueError(f"{path} is not what diffusers writes: {reason}") from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
