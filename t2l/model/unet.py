"""Stable Diffusion 1.x's UNet family at any width (Rombach et al. 2022), and its two vocabularies of parameter names.

diffusers' UNet2DConditionModel trains and samples; files carry ldm's names (`input_blocks.1.0.in_layers.0.weight`),
which ComfyUI and the other tools read. The map between them is built from the config, so it holds for every geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..config import check_ranges

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from .text_encoder import TextEncoder

MOST_LEVELS = 8  # of a config; Stable Diffusion has 4
GROUPS = 32  # of every GroupNorm

RESNET_NAMES = {  # diffusers -> ldm, inside one residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """What a UNet is built from; the defaults are SD 1.x: 859,520,964 parameters."""

    in_channels: int = 4
    out_channels: int = 4
    base_channels: int = 320
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)  # one per level; each level after the first halves H and W
    attention_levels: tuple[int, ...] = (0, 1, 2)  # levels that attend to the prompt; the middle block always does
    num_res_blocks: int = 2  # per level on the way down, one more on the way up
    num_heads: int = 8  # of every attention; each head is width / num_heads wide
    conditioning_width: int = 768  # the text encoder's width

    def __post_init__(self) -> None:
        if max(len(self.channel_multipliers), len(self.attention_levels)) > MOST_LEVELS:
            raise ValueError(f"UNetConfig has at most {MOST_LEVELS} levels, got {len(self.channel_multipliers)}")
        check_ranges(
            self,
            in_channels=(1, 1024),
            out_channels=(1, 1024),
            base_channels=(1, 4096),
            channel_multipliers=(1, 64),
            num_res_blocks=(1, 16),
            num_heads=(1, 256),
            conditioning_width=(1, 16384),
        )
        widths = self.widths
        if not widths or any(w % GROUPS for w in widths):
            raise ValueError(
                f"every width must be a multiple of {GROUPS} (GroupNorm has {GROUPS} groups), got {widths}"
            )
        if any(w % widths[0] for w in widths):
            raise ValueError(
                "every width must be a whole multiple of the first, else ComfyUI's UNet, which knows one base width "
                f"and whole multipliers, cannot hold the model; got {widths}"
            )
        if wrong := [level for level in self.attention_levels if not 0 <= level < len(widths)]:
            raise ValueError(f"UNetConfig.attention_levels must lie from 0 to {len(widths) - 1}, got {wrong}")
        attending = [*(widths[level] for level in self.attention_levels), widths[-1]]
        if wrong := [w for w in attending if w % self.num_heads]:
            raise ValueError(f"widths with attention must be multiples of num_heads ({self.num_heads}), got {wrong}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, from full resolution down."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)


def build_unet(config: UNetConfig) -> UNet2DConditionModel:
    """A UNet with random weights: (N, C, h, w) scaled latents, t (N,), conditioning (N, 77, width) -> (N, C, h, w)."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    attends = [level in config.attention_levels for level in range(len(config.widths))]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        layers_per_block=config.num_res_blocks,
        attention_head_dim=config.num_heads,  # diffusers' misnomer, kept there for old files: the number of heads
        cross_attention_dim=config.conditioning_width,
        norm_num_groups=GROUPS,
    )


def config_of_unet(unet: UNet2DConditionModel) -> UNetConfig:
    """The config a UNet of `build_unet` has, with its first width as base_channels."""
    return config_of_diffusers(unet.config)


def config_of_diffusers(found: Mapping[str, Any]) -> UNetConfig:
    """The same from diffusers' own config, as it stands in a folder's config.json."""
    widths = tuple(found["block_out_channels"])
    attends = ["CrossAttn" in kind for kind in found["down_block_types"]]
    return UNetConfig(
        in_channels=found["in_channels"],
        out_channels=found["out_channels"],
        base_channels=widths[0],
        channel_multipliers=tuple(w // widths[0] for w in widths),
        attention_levels=tuple(level for level, attending in enumerate(attends) if attending),
        num_res_blocks=found["layers_per_block"],
        num_heads=found["attention_head_dim"],
        conditioning_width=found["cross_attention_dim"],
    )


def unet_to_ldm(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """A diffusers state dict under ldm's names. Raises ValueError for a name that this geometry does not have."""
    return rename(state, module_names(config), "diffusers")


def unet_from_ldm(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The inverse of `unet_to_ldm`."""
    return rename(state, {ldm: diffusers for diffusers, ldm in module_names(config).items()}, "ldm")


def module_names(config: UNetConfig) -> dict[str, str]:
    """Every renamed module of diffusers' UNet and its name in ldm.

    ldm counts input and output blocks through all levels; a level takes num_res_blocks + 1 of them on either way.
    """
    names = dict(OUTER_NAMES)
    for i, ldm in enumerate(["middle_block.0", "middle_block.2"]):
        names |= _resnet(f"mid_block.resnets.{i}", ldm)
    last, per_level = len(config.widths) - 1, config.num_res_blocks + 1
    for level in range(last + 1):
        for i in range(config.num_res_blocks):
            names |= _block(f"down_blocks.{level}", i, f"input_blocks.{1 + per_level * level + i}", level, config)
        if level < last:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{per_level * (level + 1)}.0.op"
        up = last - level  # diffusers and ldm both count the way up from the lowest resolution
        for i in range(per_level):
            names |= _block(f"up_blocks.{up}", i, f"output_blocks.{per_level * up + i}", level, config)
        if level > 0:
            slot = 2 if level in config.attention_levels else 1
            names[f"up_blocks.{up}.upsamplers.0.conv"] = f"output_blocks.{per_level * up + per_level - 1}.{slot}.conv"
    return names


def _block(diffusers: str, i: int, ldm: str, level: int, config: UNetConfig) -> dict[str, str]:
    names = _resnet(f"{diffusers}.resnets.{i}", f"{ldm}.0")
    return names | {f"{diffusers}.attentions.{i}": f"{ldm}.1"} if level in config.attention_levels else names


def _resnet(diffusers: str, ldm: str) -> dict[str, str]:
    return {f"{diffusers}.{ours}": f"{ldm}.{theirs}" for ours, theirs in RESNET_NAMES.items()}


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Parameters renamed, by the longest module name that begins theirs. Raises ValueError for one without."""
    renamed = {}
    for key, tensor in state.items():
        module, parameter = key, ""
        while module and module not in names:
            module, _, last = module.rpartition(".")
            parameter = f".{last}{parameter}"
        if not module:
            raise ValueError(f"{key} is no {source} name of a network with this config")
        renamed[names[module] + parameter] = tensor
    return renamed


class Conditioned(nn.Module):
    """The two networks trained together: the text conditions the UNet through the text encoder, or as its output."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        conditioning = text if text.is_floating_point() else self.text_encoder(text)
        return self.unet(x_t, t, encoder_hidden_states=conditioning).sample
