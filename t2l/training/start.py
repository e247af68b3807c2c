"""What a training run begins with: random weights, a checkpoint of ours, or Stable Diffusion 1.x, told apart by the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..model.autoencoder import Autoencoder, AutoencoderConfig
from ..model.from_sd import autoencoder_from_sd, is_foreign, text_encoder_from_sd, unet_from_sd, with_channels
from ..model.systems import build_autoencoder
from ..model.text2layer import Text2Layer, load_autoencoder
from ..model.text_encoder import TextEncoder, TextEncoderConfig
from ..model.unet import UNetConfig, build_unet, config_of_unet
from .grow import attends_more, grow, grown_config, with_attention

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from .train_unet import UNetTrainConfig


def starting_autoencoder(config: AutoencoderConfig, init: Path | None) -> Autoencoder:
    """The autoencoder a run begins with. Raises ValueError when the file does not fit the config."""
    if init is None:
        return build_autoencoder(config)
    if is_foreign(init):
        return autoencoder_from_sd(init, config)
    model = load_autoencoder(init)
    if model.config != config:
        raise ValueError(f"{init} holds {model.config}, the config asks for {config}; make them equal")
    return model


def starting_networks(config: UNetTrainConfig, init: Path | None) -> tuple[UNet2DConditionModel, TextEncoder]:
    """The UNet and the text encoder a run begins with. Raises ValueError when the file does not fit the config."""
    if init is None and "text_encoder" in config.frozen:
        raise ValueError(
            "the config freezes the text encoder, so a trained one has to come from somewhere: give --init a Stable "
            "Diffusion 1.x checkpoint, or one of ours"
        )
    if init is None:
        unet, text_encoder = build_unet(config.unet), TextEncoder(config.text_encoder)
    elif is_foreign(init):
        text_encoder = text_encoder_from_sd(init, config.text_encoder)
        unet = build_unet(config.unet) if config.unet_from_scratch else unet_from_sd(init, config.unet)
    else:
        start = Text2Layer.load(init)
        text_encoder = start.text_encoder
        unet = build_unet(config.unet) if config.unet_from_scratch else _continued(start, config, init)
    if text_encoder.config.width != config.unet.conditioning_width:
        raise ValueError(
            f"the text encoder is {text_encoder.config.width} wide, the UNet takes {config.unet.conditioning_width}; "
            "make them equal in the config"
        )
    return unet, text_encoder


def starting_text_encoder(init: Path, config: TextEncoderConfig) -> TextEncoder:
    """The text encoder of a checkpoint; config: of Stable Diffusion's, a file of ours has its own."""
    return text_encoder_from_sd(init, config) if is_foreign(init) else Text2Layer.load(init).text_encoder


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Take parts of the model, by their module names, out of training. Raises ValueError for a name there is not."""
    modules = dict(model.named_modules())
    for name in parts:
        if name not in modules:
            around = modules.get(name.rpartition(".")[0], model)
            there_are = ", ".join(child for child, _ in around.named_children())
            raise ValueError(f"frozen names a part that is not there, {name}; there are {there_are}")
        modules[name].requires_grad_(False)


def _continued(start: Text2Layer, config: UNetTrainConfig, init: Path) -> UNet2DConditionModel:
    """The UNet of a checkpoint of ours: as it is, with one more level, more attention, or three times the channels."""
    if start.diffusion != config.diffusion:
        raise ValueError(f"{init} was trained with {start.diffusion}, the config asks for {config.diffusion}")
    found, wanted = config_of_unet(start.unet), _in_its_own_words(config.unet)
    if wanted == found:
        return start.unet
    if wanted == grown_config(found):
        return grow(start.unet, config.diffusion)
    if attends_more(wanted, found):
        return with_attention(start.unet, wanted)
    if replace(wanted, in_channels=found.in_channels, out_channels=found.out_channels) == found:
        unet = build_unet(config.unet)
        unet.load_state_dict(with_channels(start.unet.state_dict(), config.unet, str(init)))
        return unet
    raise ValueError(
        f"{init} holds {found}, the config asks for {wanted}; make them equal, or give it one level more, attention at more "
        "levels, or three times the channels"
    )


def _in_its_own_words(config: UNetConfig) -> UNetConfig:
    """The config as `config_of_unet` writes it, where several say the same."""
    with torch.device("meta"):
        return config_of_unet(build_unet(config))
