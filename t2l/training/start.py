"""What a training run begins with: random weights, a checkpoint of ours or Stable Diffusion 1.x; the file tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..config import differences
from ..data.latents import Latents
from ..diffusion import scaled_linear_schedule
from ..keep import keep_channels
from ..model.autoencoder import Autoencoder, AutoencoderConfig
from ..model.from_sd import autoencoder_from_sd, is_foreign, text_encoder_from_sd, unet_from_sd
from ..model.grow import grow_to
from ..model.systems import build_autoencoder, same_latents
from ..model.text2layer import Text2Layer, load_autoencoder, read_vocabulary
from ..model.text_encoder import TextEncoder, TextEncoderConfig, add_tokens
from ..model.tokenizer import MAX_TOKENS, Tokenizer
from ..model.unet import build_unet
from ..model.vocabulary import Vocabulary
from .configs import UNetTrainConfig

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def starting_autoencoder(config: AutoencoderConfig, init: Path | None) -> Autoencoder:
    """The autoencoder a run begins with. Raises ValueError when the file does not fit the config."""
    if init is None:
        return build_autoencoder(config)
    if is_foreign(init):
        return autoencoder_from_sd(init, config)
    model = load_autoencoder(init)
    if model.config != config:
        found, wanted = differences(model.config, config)
        raise ValueError(f"{init} holds an autoencoder with {found}, the config asks for {wanted}; make them equal")
    return model


def starting_networks(config: UNetTrainConfig, init: Path | None) -> tuple[UNet2DConditionModel, TextEncoder]:
    """The UNet and the text encoder a run begins with, with a row for every token that the config names.

    Raises ValueError when the file does not fit the config.
    """
    if config.lora_rank and (init is None or config.unet_from_scratch):
        raise ValueError(
            "lora_rank trains matrices beside a trained UNet, which has to come from somewhere: give --init a "
            "checkpoint, and leave unet_from_scratch out"
        )
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
        add_tokens(text_encoder, config.text_encoder.token_ids or ())
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


def trains_text_encoder(config: UNetTrainConfig) -> bool:
    """Whether a run trains its text encoder."""
    return "text_encoder" not in config.frozen and not config.lora_rank


def add_vocabulary(
    config: UNetTrainConfig, captions: Iterable[str], init: Path | None, before: Path | None = None
) -> tuple[UNetTrainConfig, str]:
    """The config with a row for every token of the captions and of its start; and a sentence on new words.

    The sentence is empty where a start lacks no word, or has none to compare. captions: read once at most. before: the
    snapshot of a run that goes on, whose rows are those of its state. A config that names its own tokens keeps them.
    """
    if before is not None:
        return _with_token_ids(config, read_vocabulary(before)), ""
    if config.text_encoder.token_ids is not None:
        return config, ""
    if init is None:
        return _with_token_ids(config, Tokenizer().ids_in(captions)), ""
    known = None if is_foreign(init) else read_vocabulary(init)
    missing = Vocabulary(known).missing(captions)
    if known is None or not missing.token_ids:
        return config, ""
    if trains_text_encoder(config):
        sentence = f"{missing.counted()} new to {init} and will be learnt: {missing.listed()}"
        return _with_token_ids(config, known + missing.token_ids), sentence
    remedy = "leave lora_rank out" if config.lora_rank else "take text_encoder out of frozen"
    return config, (
        f"{missing.counted()} new to {init} and cannot be learnt, because the text encoder is frozen; to it they are "
        f"all one unknown word: {missing.listed()}; say them in known words, or {remedy}"
    )


def _with_token_ids(config: UNetTrainConfig, token_ids: tuple[int, ...] | None) -> UNetTrainConfig:
    return replace(config, text_encoder=replace(config.text_encoder, token_ids=token_ids))


def check_cache(cached: Latents, config: UNetTrainConfig, autoencoder: Autoencoder, init: Path | None = None) -> str:
    """Raise ValueError unless a latent cache fits the config's UNet. autoencoder: the one beside the latents.

    Returns a sentence where all fits but the start knows latents of another autoencoder, else an empty text.
    """
    folder, unet, channels = cached.autoencoder.parent, config.unet, autoencoder.config.latent_channels
    found = cached.read(torch.tensor([0]))[0].shape[1]
    if found != channels:
        raise ValueError(
            f"the latents in {folder} have {found} channels, and the autoencoder beside them makes {channels}; make "
            "the cache again in another folder"
        )
    keeping = channels + keep_channels(channels)
    if unet.in_channels not in (channels, keeping) or unet.out_channels != channels:
        raise ValueError(
            f"the latents in {folder} have {channels} channels, the config's UNet takes {unet.in_channels} and gives "
            f"{unet.out_channels}; set unet.in_channels and unet.out_channels to {channels} (in_channels to {keeping} "
            "where it is to learn to keep a layer), or make latents with another autoencoder"
        )
    if config.keep_prob and not (unet.in_channels == keeping and cached.keeps):
        raise ValueError(
            f"keep_prob {config.keep_prob:g} needs a UNet with channels for a kept layer and a cache with each layer "
            f"alone: set unet.in_channels to {keeping}, got {unet.in_channels}, and make the latents in {folder} with "
            "--keep, or set keep_prob to 0"
        )
    smallest = min(-(-side // autoencoder.config.downscale) for size in cached.sizes for side in size)
    needed = 2 ** (len(unet.channel_multipliers) - 1)
    if smallest < needed:
        raise ValueError(
            f"latents in {folder} are {smallest} high or wide, and the config's UNet of "
            f"{len(unet.channel_multipliers)} levels needs at least {needed}: make them of pictures of at least "
            f"{needed * autoencoder.config.downscale} pixels, or take fewer unet.channel_multipliers"
        )
    if cached.embeddings is not None:
        tokens, width = cached.embeddings[[""]].shape[1:]
        if (tokens, width) != (MAX_TOKENS, unet.conditioning_width):
            raise ValueError(
                f"the text embeddings in {folder} are {tokens} tokens x {width}, the config's UNet takes {MAX_TOKENS} "
                f"x {unet.conditioning_width}: set unet.conditioning_width, or cache those of another --text-encoder"
            )
    if init is None or is_foreign(init) or config.unet_from_scratch:
        return ""
    if same_latents(load_autoencoder(init), autoencoder):
        return ""
    return f"the UNet of {init} knows latents of another autoencoder than that of {folder}, and has these to learn anew"


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
    """The UNet of a checkpoint of ours as the config wants it."""
    if start.diffusion != config.diffusion:
        was, asked = differences(start.diffusion, config.diffusion)
        raise ValueError(f"{init} was trained with {was}, the config asks for {asked}; make them equal in diffusion")
    return grow_to(config.unet, start.unet, scaled_linear_schedule(config.diffusion), str(init))
