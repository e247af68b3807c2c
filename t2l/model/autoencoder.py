"""CaT2I-AE, the composition-aware two-layer autoencoder (Zhang et al. 2023, section 4), with ldm's parameter names.

The trunk is Stable Diffusion's KL autoencoder (Rombach et al. 2022): `encoder.down.0.block.0.conv1`, `quant_conv`, ...
so that checkpoints need no key conversion. Two knobs make it small and fast: `norm="none"` and `patch=2`. What is ours
has names of its own: `encoder.conv_in_layers` (7 channels: foreground, background, mask) and `decoder.head_*`.

Inside the networks pixels lie in [-1, 1]; `encode` and `decode` take and give [0, 1]. The autoencoders of the systems
that the paper compares with stand in systems.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_ranges
from ..layers import Layers
from .blocks import (
    AttnBlock,
    BlockHead,
    Downsample,
    Head,
    Middle,
    ResBlock,
    Upsample,
    activated,
    add_identity,
    make_norm,
)

MOST_LEVELS = 8  # of a config; Stable Diffusion has 4
LAYER_CHANNELS = 7  # foreground 3, background 3, mask 1
Layout = Literal["joint", "separate", "composite"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What an Autoencoder is built from. Every checkpoint carries it, so a file describes itself."""

    layout: Layout = "joint"  # how layers become latents: together; one after the other; only what they compose to
    latent_channels: int = 4  # of all that the UNet sees; in the layout "separate" a third each is F, B and m
    base_channels: int = 128  # width at full resolution
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)  # one per level; each level after the first halves H and W
    num_res_blocks: int = 2  # per encoder level; a decoder level has one more
    head_channels: int = 64  # width inside the conv-bn-relu-conv heads of the layout "joint"
    auxiliary: bool = True  # the composed head of the layout "joint"; False is the paper's "no-sup"
    auxiliary_reach: Literal["trunk", "block"] = "trunk"  # where its gradient ends: nowhere, or before the last block
    mask_block: bool = False  # the mask's head reads a last block of its own, which the pictures do not train
    norm: Literal["group", "none"] = "group"
    patch: int = 1  # pixel-unshuffle before the first convolution, pixel-shuffle after the last
    latent_scale: float = 0.18215  # latents * latent_scale has unit variance over the training set

    def __post_init__(self) -> None:
        if not 1 <= len(self.channel_multipliers) <= MOST_LEVELS:
            raise ValueError(
                f"AutoencoderConfig.channel_multipliers must have 1 to {MOST_LEVELS} levels, got "
                f"{len(self.channel_multipliers)}"
            )
        if self.patch not in (1, 2):
            raise ValueError(f"AutoencoderConfig.patch must be 1 or 2, got {self.patch}")
        check_ranges(
            self,
            latent_channels=(1, 1024),
            base_channels=(0, 4096),  # a multiple of 32, below
            channel_multipliers=(0, 64),
            num_res_blocks=(1, 16),
            head_channels=(1, 4096),
            latent_scale=(1e-4, 1e4),
        )
        if self.layout == "separate" and self.latent_channels % 3:
            raise ValueError(
                "latent_channels of the layout 'separate' must be a multiple of 3 (as many for foreground, background "
                f"and mask), got {self.latent_channels}"
            )
        widths = [self.base_channels * m for m in self.channel_multipliers]
        if wrong := [w for w in widths if w % 32 or w < 32]:
            raise ValueError(f"every width must be a multiple of 32 (GroupNorm has 32 groups), got {wrong}")

    @property
    def downscale(self) -> int:
        """Pixels per latent, along each of H and W."""
        return self.patch * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def trunk_channels(self) -> int:
        """Latent channels of one pass through the trunk."""
        return self.latent_channels // 3 if self.layout == "separate" else self.latent_channels

    @property
    def has_auxiliary(self) -> bool:
        """Whether the composed picture is predicted too."""
        return self.auxiliary if self.layout == "joint" else self.layout == "composite"

    @property
    def has_layers(self) -> bool:
        """Whether layers come back out, and not only what they compose to."""
        return self.layout != "composite"


@dataclass(frozen=True, eq=False)
class Posterior:
    """The encoder's diagonal Gaussian over latents (Kingma & Welling 2014)."""

    mean: Tensor  # (N, C, h, w)
    logvar: Tensor  # (N, C, h, w), clamped to [-30, 20] as in ldm

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents drawn from the posterior, (N, C, h, w)."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the decoder makes of latents: the layers, and the auxiliary prediction of the composed picture."""

    layers: Layers
    auxiliary: Tensor | None  # (N, 3, H, W), None without the auxiliary head


class Autoencoder(nn.Module):
    """SD's KL autoencoder around first and last layers of its own: what the layouts of AutoencoderConfig share.

    Layers <-> latents (N, latent_channels, H / downscale, W / downscale). Any size: padded inside, cropped after.
    `operations` gives the layer classes: torch.nn, or one of comfy.ops inside ComfyUI.
    """

    def __init__(self, config: AutoencoderConfig, encoder: Encoder, decoder: nn.Module, operations: Any) -> None:
        super().__init__()
        self.config = config
        z = config.trunk_channels
        self.encoder = encoder
        self.decoder: Any = decoder
        self.quant_conv = operations.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = operations.Conv2d(z, z, 1)
        if not self.quant_conv.weight.is_meta:  # where there is nothing to start, as when a file is measured
            self._init_paths()

    def encode(self, layers: Layers) -> Posterior:
        """The posterior over latents; H and W are padded by repeating the border up to the latent grid."""
        raise NotImplementedError

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, clamp: bool = True) -> Decoded:
        """Latents -> layers, cropped to `size` (height, width) when given.

        Training takes clamp=False: beyond [0, 1] the clamped values have no gradient.
        """
        raise NotImplementedError

    def last_layers(self) -> dict[str, Tensor]:
        """The weight of each picture's last layer: `foreground`, `background`, and `composed` if there is one."""
        raise NotImplementedError

    def fold_batchnorm(self) -> Autoencoder:
        """Fold every BatchNorm into the convolution before it, in place: inference gives the same pictures."""
        return self

    def _posterior(self, pixels: Tensor) -> Posterior:
        """Pixels in [0, 1] of the encoder's channels -> moments of one pass through the trunk."""
        padded = pad_to_multiple(pixels, self.config.downscale)
        mean, logvar = self.quant_conv(self.encoder(2 * padded - 1)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    @torch.no_grad()
    def _init_paths(self) -> None:
        """Start where training is quick: little posterior noise and, without norms, a straight path through the trunk.

        At unit noise over latents of std 0.2, and with gains of 0.6 per convolution, colours are not learnt in the
        first 300 steps (LOG.md, 2026-11-22).
        """
        z = self.config.trunk_channels
        self.quant_conv.bias[z:] -= 6  # logvar: std 0.05
        if self.config.norm == "group":
            return
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
                if hasattr(module, "nin_shortcut"):
                    add_identity(module.nin_shortcut)
            elif isinstance(module, AttnBlock):
                nn.init.zeros_(module.proj_out.weight)
            elif isinstance(module, Upsample):
                add_identity(module.conv)
            elif isinstance(module, Downsample):
                add_identity(module.conv, window=slice(0, 2))  # the mean of each 2 x 2
        for conv in (self.encoder.first, self.decoder.conv_in, self.quant_conv, self.post_quant_conv):
            add_identity(conv)

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """Whether residual blocks compute their activations again in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.checkpointing = enabled

    @torch.no_grad()
    def standardize_latents(self, mean: Tensor, std: Tensor) -> Autoencoder:
        """Shift and scale the latent space, in place, so that latents * latent_scale get zero mean and unit variance.

        mean, std: (latent_channels,), of today's latents over the training set. Exact: quant_conv and post_quant_conv
        are 1x1, so what one takes away the other gives back, and pictures stay the same. With SD's latent_scale of
        0.18215 the stock loaders then scale our latents rightly.
        """
        scale = 1 / (std * self.config.latent_scale)
        both = torch.cat([scale, scale])
        self.quant_conv.weight.mul_(both.view(-1, 1, 1, 1))
        z = self.config.trunk_channels
        self.quant_conv.weight[z:].div_(scale.view(-1, 1, 1, 1))
        self.quant_conv.bias[:z].sub_(mean).mul_(scale)
        self.quant_conv.bias[z:].add_(2 * scale.log())
        weight = self.post_quant_conv.weight
        self.post_quant_conv.bias.add_((weight * mean.view(1, -1, 1, 1)).sum(dim=(1, 2, 3)))
        weight.div_(scale.view(1, -1, 1, 1))
        return self


class LayeredAutoencoder(Autoencoder):
    """CaT2I-AE: foreground, background and mask go into the latents together, and come out of three heads."""

    def __init__(self, config: AutoencoderConfig, operations: Any = nn) -> None:
        super().__init__(config, Encoder(config, operations), Decoder(config, operations), operations)

    def encode(self, layers: Layers) -> Posterior:
        return self._posterior(layers.stacked)

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, clamp: bool = True) -> Decoded:
        foreground, background, mask, auxiliary = self.decoder(self.post_quant_conv(latents))
        layers = Layers(*(to_pixels(x, size, clamp) for x in (foreground, background, mask)))
        return Decoded(layers, None if auxiliary is None else to_pixels(auxiliary, size, clamp))

    def last_layers(self) -> dict[str, Tensor]:
        last = {name: head.conv2.weight for name, head in self.decoder.heads().items() if name != "mask"}
        return last if self.decoder.conv_out is None else last | {"composed": self.decoder.conv_out.weight}

    def fold_batchnorm(self) -> Autoencoder:
        for head in self.decoder.heads().values():
            head.fold_batchnorm()
        return self


class Encoder(nn.Module):
    """Stacked layers in [-1, 1] (N, 7, H, W) -> moments (N, 2 trunk_channels, H / downscale, W / downscale)."""

    first_name, in_channels = "conv_in_layers", LAYER_CHANNELS

    def __init__(self, config: AutoencoderConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patch = config.patch
        first = operations.Conv2d(self.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.add_module(self.first_name, first)
        self.down = nn.ModuleList()
        width = widths[0]
        for level, out in enumerate(widths):
            stage = nn.Module()
            blocks = [
                ResBlock(width if i == 0 else out, out, config.norm, operations) for i in range(config.num_res_blocks)
            ]
            stage.block = nn.ModuleList(blocks)
            if level < len(widths) - 1:
                stage.downsample = Downsample(out, operations)
            self.down.append(stage)
            width = out
        self.mid = Middle(width, config.norm, operations)
        self.norm_out = make_norm(width, config.norm, operations)
        self.conv_out = operations.Conv2d(width, 2 * config.trunk_channels, 3, padding=1)

    @property
    def first(self) -> Any:
        """The convolution that reads pixels."""
        return getattr(self, self.first_name)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(x, self.patch))
        stage: Any  # a plain nn.Module that holds the blocks of one level
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
        return self.conv_out(activated(self.norm_out, self.mid(x)))


class DecoderTrunk(nn.Module):
    """Latents after post_quant_conv -> the features (N, width, H / patch, W / patch) that every last layer reads."""

    def __init__(self, config: AutoencoderConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patch = config.patch
        width = widths[-1]
        self.conv_in = operations.Conv2d(config.trunk_channels, width, 3, padding=1)
        self.mid = Middle(width, config.norm, operations)
        stages: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            out, stage = widths[level], nn.Module()
            count = config.num_res_blocks + 1
            blocks = [ResBlock(width if i == 0 else out, out, config.norm, operations) for i in range(count)]
            stage.block = nn.ModuleList(blocks)
            if level > 0:
                stage.upsample = Upsample(out, operations)
            stages.insert(0, stage)  # ldm numbers the levels from full resolution
            width = out
        self.up = nn.ModuleList(stages)
        self.norm_out = make_norm(width, config.norm, operations)
        self.width = width

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.trunk(x))

    def trunk(self, x: Tensor) -> Tensor:
        """All but the last block, (N, width, H / patch, W / patch)."""
        x = self.mid(self.conv_in(x))
        stage: Any  # a plain nn.Module that holds the blocks of one level
        for level, stage in reversed([*enumerate(self.up)]):
            for block in stage.block if level else stage.block[:-1]:
                x = block(x)
            if level:
                x = stage.upsample(x)
        return x

    def last(self, x: Tensor) -> Tensor:
        """The last block, of the shape that it takes."""
        stage: Any = self.up[0]
        return activated(self.norm_out, stage.block[-1](x))


class Decoder(DecoderTrunk):
    """Latents after post_quant_conv -> foreground, background, mask and auxiliary (or None) in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig, operations: Any) -> None:
        super().__init__(config, operations)
        width, repeat = self.width, config.patch**2
        self.auxiliary_reach = config.auxiliary_reach
        self.conv_out = operations.Conv2d(width, 3 * repeat, 3, padding=1) if config.auxiliary else None
        self.head_foreground = Head(width, config.head_channels, 3 * repeat, operations)
        self.head_background = Head(width, config.head_channels, 3 * repeat, operations)
        mask = (width, config.head_channels, repeat, operations)
        self.head_mask = BlockHead(*mask, config.norm) if config.mask_block else Head(*mask)

    def heads(self) -> dict[str, Head]:
        """The three prediction heads by the layer they predict."""
        return {"foreground": self.head_foreground, "background": self.head_background, "mask": self.head_mask}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        trunk = self.trunk(x)
        features = self.last(trunk)
        outputs = [head(trunk if isinstance(head, BlockHead) else features) for head in self.heads().values()]
        if self.conv_out is not None:
            ends = self.auxiliary_reach == "block" and torch.is_grad_enabled()
            outputs.append(self.conv_out(self.last(trunk.detach()) if ends else features))
        foreground, background, mask, *auxiliary = (F.pixel_shuffle(x, self.patch) for x in outputs)
        return foreground, background, mask, auxiliary[0] if auxiliary else None


def to_pixels(x: Tensor, size: tuple[int, int] | None, clamp: bool) -> Tensor:
    """What a last layer gives, in [-1, 1] -> pixels, cropped to `size` (height, width) when given."""
    x = (x + 1) / 2
    x = x.clamp(0, 1) if clamp else x
    return x if size is None else x[..., : size[0], : size[1]]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the right and lower border of (N, C, H, W) until H and W are multiples."""
    height, width = x.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    return F.pad(x, pad, mode="replicate") if any(pad) else x


def latent_size(height: int, width: int, downscale: int) -> tuple[int, int]:
    """Latent height and width that cover a picture of height x width pixels."""
    return math.ceil(height / downscale), math.ceil(width / downscale)
