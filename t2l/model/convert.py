"""A model in another form: precision, diffusers folder, one file, Stable Diffusion for the paper's other systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import override
from ..diffusion import DiffusionConfig
from ..io.checkpoint import load_exactly, read_metadata, read_tensors, write_tensors
from ..io.header import read_header
from .autoencoder import AutoencoderConfig
from .device import DTYPES
from .diffusers_folder import folder_to_file, save_folder
from .from_sd import autoencoder_from_sd, is_foreign, license_of, text_encoder_from_sd, unet_from_sd
from .systems import build_autoencoder
from .text2layer import Text2Layer, as_dtype, has_batchnorm, load_autoencoder, save_autoencoder
from .text_encoder import TextEncoderConfig
from .unet import UNetConfig


def export_snapshot(snapshot: Path, out: Path, dtype: str) -> str:
    """Write a training run's snapshot, a whole model or an autoencoder, as a checkpoint for use; dtype: one of DTYPES.

    Returns a sentence where the snapshot itself is coarser than asked for, as runs wrote them at first; else "".
    """
    if read_metadata(snapshot).get("kind") == "autoencoder":
        save_autoencoder(load_autoencoder(snapshot), out, dtype=DTYPES[dtype], fold=True)
    else:
        Text2Layer.load(snapshot).save(out, DTYPES[dtype])
    coarse = {"F16": "float16", "BF16": "bfloat16"}
    found = {coarse[entry.dtype] for entry in read_header(snapshot).tensors.values() if entry.dtype in coarse}
    if dtype != "fp32" or not found:
        return ""
    return f"{snapshot} holds {' and '.join(sorted(found))}, so the float32 weights of {out} are rounded to that"


def export_lora(lora: Path, out: Path, dtype: str) -> None:
    """Write the low-rank matrices that a run keeps beside its snapshot as a LoRA for use; dtype: one of DTYPES."""
    tensors, metadata = read_tensors(lora)
    write_tensors(out, as_dtype(tensors, DTYPES[dtype]), metadata)


def convert_model(source: Path, out: Path, dtype: str, whole: bool = False, overrides: Sequence[str] = ()) -> None:
    """Write a model in another form; dtype: one of DTYPES.

    A diffusers folder becomes one file; a checkpoint of ours a diffusers folder, unless `out` is a .safetensors file;
    Stable Diffusion, with `whole`, a checkpoint of ours. Else the source's autoencoder is written alone, under its
    config with the overrides (name=value). Raises ValueError, FileNotFoundError or OSError with a sentence.
    """
    alone = not (source.is_dir() or whole) and out.suffix == ".safetensors"
    if overrides and not alone:
        raise ValueError(f"name=value is for writing an autoencoder alone; leave out {' '.join(overrides)}")
    if source.is_dir():
        folder_to_file(source, out, DTYPES[dtype])
    elif whole:
        stable_diffusion(source).save(out, DTYPES[dtype])
    elif alone:
        _write_autoencoder(source, out, DTYPES[dtype], list(overrides))
    else:
        save_folder(Text2Layer.load(source), out, DTYPES[dtype])


def stable_diffusion(
    source: Path,
    autoencoder: AutoencoderConfig | None = None,
    unet: UNetConfig | None = None,
    text_encoder: TextEncoderConfig | None = None,
) -> Text2Layer:
    """Stable Diffusion as it is, as a model that paints pictures without layers: the paper's SD-v1-4, for reference.

    The configs are Stable Diffusion 1.x's when left out. Raises as `autoencoder_from_sd`.
    """
    return Text2Layer(
        autoencoder_from_sd(source, autoencoder or AutoencoderConfig(layout="composite")),
        unet_from_sd(source, unet or UNetConfig()),
        text_encoder_from_sd(source, text_encoder or TextEncoderConfig()),
        DiffusionConfig(),
        info={"system": "SD-v1-4", "size": "512", "license": license_of(source)},
    )


def _write_autoencoder(source: Path, out: Path, dtype: torch.dtype, overrides: list[str]) -> None:
    if is_foreign(source):
        model = autoencoder_from_sd(source, override(AutoencoderConfig(), overrides))
    else:
        found = load_autoencoder(source)
        model = build_autoencoder(override(found.config, overrides))
        if not has_batchnorm(found):
            model.fold_batchnorm()
        load_exactly(model, found.state_dict(), f"the autoencoder of {source}")
    save_autoencoder(model, out, {"license": license_of(source)}, dtype)
