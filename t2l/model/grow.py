"""A trained UNet goes on as a larger one that starts from what it knows.

At twice the size: one more level is put around it (Karras et al. 2018, progressive growing; Gu et al. 2023, Matryoshka
diffusion). The paper resumes the same network at twice the size instead, and so pays four times as much for every step.
With attention at more levels: each new one begins as nothing (zero residuals, as in ControlNet, Zhang et al. 2023).
With input channels for a kept layer: their weights begin as 0, as inpainting models' do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import differences
from ..keep import keep_channels
from .blocks import add_identity
from .from_sd import with_channels
from .unet import UNetConfig, build_unet, config_of_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def grow_to(
    wanted: UNetConfig, unet: UNet2DConditionModel, alphas_cumprod: Tensor, source: str
) -> UNet2DConditionModel:
    """A trained UNet as it is, or as its new config wants: one more level, more attention, other channels.

    alphas_cumprod: the noise schedule it knows. Raises ValueError, naming the source, for any other config.
    """
    found, wanted = config_of_unet(unet), _normalized(wanted)
    if wanted == found:
        return unet
    if wanted == grown_config(found):
        return grow(unet, alphas_cumprod)
    if adds_attention(wanted, found):
        return with_attention(unet, wanted)
    if wanted == replace(found, in_channels=found.out_channels + keep_channels(found.out_channels)):
        return with_keep_channels(unet, wanted)
    if replace(wanted, in_channels=found.in_channels, out_channels=found.out_channels) == found:
        wider = build_unet(wanted)
        wider.load_state_dict(with_channels(unet.state_dict(), wanted, source))
        return wider
    has, asked = differences(found, wanted)
    raise ValueError(
        f"{source} holds a UNet with {has}, the config asks for {asked}; make them equal, or give it one level more, "
        "attention at more levels, input channels for a kept layer, or three times the channels"
    )


def grown_config(config: UNetConfig) -> UNetConfig:
    """The config of the UNet that `grow` makes: one more level, as wide as the first and without attention."""
    return replace(
        config,
        channel_multipliers=(config.channel_multipliers[0], *config.channel_multipliers),
        attention_levels=tuple(level + 1 for level in config.attention_levels),
    )


@torch.no_grad()
def grow(unet: UNet2DConditionModel, alphas_cumprod: Tensor) -> UNet2DConditionModel:
    """A UNet for latents of twice the size that starts from what `unet` knows; its config is `grown_config`'s.

    The old levels keep their weights and work at half the new size. The new outer level hands on what it gets: means of
    2 x 2 cells on the way down, repeated cells on the way up. The time embedding is refitted to such a mean's noise.
    """
    old = config_of_unet(unet)
    larger = build_unet(grown_config(old))
    state = larger.state_dict()
    state |= {_inner_name(name): tensor for name, tensor in unet.state_dict().items()}
    larger.load_state_dict(state)
    _hand_on(larger.down_blocks[0], larger.up_blocks[-2], larger.up_blocks[-1])
    _halve_noise(larger, alphas_cumprod)
    return larger


def adds_attention(config: UNetConfig, found: UNetConfig) -> bool:
    """Whether `config` is `found` with attention at more levels."""
    more = set(config.attention_levels) > set(found.attention_levels)
    return more and replace(config, attention_levels=found.attention_levels) == found


@torch.no_grad()
def with_attention(unet: UNet2DConditionModel, config: UNetConfig) -> UNet2DConditionModel:
    """The UNet of `config` that predicts what `unet` does; its new attentions add nothing until they are trained.

    config: that of `unet` with more attention_levels (`adds_attention`).
    """
    larger = build_unet(config)
    larger.load_state_dict(larger.state_dict() | unet.state_dict())
    known = dict(unet.named_modules())
    for name, module in larger.named_modules():
        if name.endswith(".proj_out") and name not in known:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return larger


@torch.no_grad()
def with_keep_channels(unet: UNet2DConditionModel, config: UNetConfig) -> UNet2DConditionModel:
    """The UNet of `config`, with input channels for a kept layer: it predicts what `unet` does, whatever they say."""
    larger = build_unet(config)
    state = unet.state_dict()
    known = state["conv_in.weight"]
    weight = known.new_zeros(known.shape[0], config.in_channels, *known.shape[2:])
    weight[:, : known.shape[1]] = known
    larger.load_state_dict(state | {"conv_in.weight": weight})
    return larger


@torch.no_grad()
def _hand_on(outer_down: Any, inner_up: Any, outer_up: Any) -> None:
    """The blocks of the new level, and the way up to it, hand on what they get."""
    for block in (*outer_down.resnets, *outer_up.resnets):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        if block.conv_shortcut is not None:
            _set_identity(block.conv_shortcut, window=slice(0, 1))
    _set_identity(outer_down.downsamplers[0].conv, window=slice(1, 3))
    _set_identity(inner_up.upsamplers[0].conv, window=slice(1, 2))


@torch.no_grad()
def _halve_noise(larger: UNet2DConditionModel, alphas_cumprod: Tensor) -> None:
    """Refit the last layer of the time embedding, so that t gives what the time of half the noise gave."""
    embedding: Any = larger.time_embedding
    times = torch.arange(len(alphas_cumprod))
    wanted = embedding(larger.time_proj(halved_noise_time(alphas_cumprod)))
    features = embedding.act(embedding.linear_1(larger.time_proj(times)))
    ones = torch.ones_like(features[:, :1])
    solution = torch.linalg.lstsq(torch.cat([features, ones], dim=1).double(), wanted.double(), driver="gelsd").solution
    embedding.linear_2.weight.copy_(solution[:-1].T)
    embedding.linear_2.bias.copy_(solution[-1])


def halved_noise_time(alphas_cumprod: Tensor) -> Tensor:
    """For every t the (fractional) time at which the noise is half as strong beside the picture, (steps,).

    The mean of 2 x 2 cells halves the standard deviation of their noise and keeps a smooth picture (Hoogeboom et al.
    2023, simple diffusion, section 3.1). Never below 0.
    """
    a = alphas_cumprod.double().clamp(min=1e-8)  # 0 at the end of a schedule with zero terminal SNR
    log_sigma = 0.5 * torch.log((1 - a) / a)  # rises with t
    wanted = log_sigma - torch.log(torch.tensor(2.0))
    above = torch.searchsorted(log_sigma, wanted).clamp(1, len(a) - 1)
    low, high = log_sigma[above - 1], log_sigma[above]
    return (above - 1 + (wanted - low) / (high - low)).clamp(min=0).float()


def _inner_name(name: str) -> str:
    """Where a parameter of the smaller UNet goes: one level further in on the way down; ways up count from within."""
    if not name.startswith("down_blocks."):
        return name
    _, level, rest = name.split(".", 2)
    return f"down_blocks.{int(level) + 1}.{rest}"


def _set_identity(conv: Any, window: slice) -> None:
    """A convolution that passes channel i on to channel i, averaged over a window of its kernel."""
    conv.weight.zero_()
    conv.bias.zero_()
    add_identity(conv, window)


def _normalized(config: UNetConfig) -> UNetConfig:
    """The config as `config_of_unet` writes it, where several say the same."""
    with torch.device("meta"):
        return config_of_unet(build_unet(config))
