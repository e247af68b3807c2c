"""Stable Diffusion, or an ordinary autoencoder of ours, as files of ours for the systems that the paper compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..config import DiffusionConfig
from ..io.checkpoint import load_exactly
from .autoencoder import AutoencoderConfig
from .from_sd import autoencoder_from_sd, is_foreign, license_of, text_encoder_from_sd, unet_from_sd
from .systems import build_autoencoder
from .text2layer import Text2Layer, load_autoencoder, save_autoencoder
from .text_encoder import TextEncoderConfig
from .unet import UNetConfig


def autoencoder_for_layout(
    source: Path,
    out: Path,
    change: Callable[[AutoencoderConfig], AutoencoderConfig],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the source's autoencoder under the config that `change` makes of its own, or for Stable Diffusion of the defaults.

    Raises ValueError when the weights do not fit that config.
    """
    if is_foreign(source):
        model = autoencoder_from_sd(source, change(AutoencoderConfig()))
    else:
        found = load_autoencoder(source)
        model = build_autoencoder(change(found.config))
        load_exactly(model, found.state_dict(), f"the autoencoder of {source}")
    save_autoencoder(model, out, {"license": license_of(source)}, dtype)


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
