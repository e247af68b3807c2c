"""Starts from Stable Diffusion 1.x: autoencoder, UNet and text encoder of one .safetensors file with ldm's names.

Nothing is guessed from shapes: the run's config says the geometry, and the file must fit it.

What is new stands at zero, and what there was takes the background's place. Of the two layers the background is the
whole picture that Stable Diffusion knows; the foreground's colours beyond its mask are made up. So a run starts from
this: latents = Stable Diffusion's of the background; every colour head gives what its decoder gives; the mask is 0,
nothing stands in front. A flat picture (F = B) goes through exactly as in Stable Diffusion, also for other programs.
AlphaVAE (arXiv 2507.09308) starts alike: new input slices at zero, alpha constant, there at 1 over the foreground.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..budget import shown_path
from ..io.checkpoint import check_finite, check_fits, load_exactly, read_metadata, read_names, read_tensors
from .about import PICTURE_AUTOENCODER, SD, describe
from .autoencoder import Autoencoder, AutoencoderConfig
from .blocks import Head
from .systems import CompositeAutoencoder, build_autoencoder
from .text2layer import AUTOENCODER, FORMAT, TEXT_ENCODER, UNET
from .text_encoder import TextEncoder, TextEncoderConfig
from .unet import UNetConfig, build_unet, unet_from_ldm, unet_to_ldm

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

LICENSE = "creativeml-openrail-m"  # of Stable Diffusion 1.x
AUTOENCODER_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # its files may hold losses too
SD_CHANNELS = 4  # of its latents
LAYER_COUNT, BACKGROUND = 3, 1  # latents in the order foreground, background, mask
NO_MASK = -1.0  # in network units: the background shows everywhere
COLOUR_STD = 0.5  # of a colour channel of photographs, in network units, about


def is_foreign(path: str | Path) -> bool:
    """Whether a file is another program's; whether a run can start from it is checked when it is read.

    Raises FileNotFoundError, or ValueError with a sentence for a pickle, a truncated file and a diffusers folder.
    """
    if (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"{path} is a diffusers folder, one .safetensors file is needed; make one with "
            f"`t2l export {path} --out FILE.safetensors`"
        )
    return read_metadata(path).get("format") != FORMAT


def license_of(path: str | Path) -> str:
    """The licence that a checkpoint's weights are under, and what is trained on from them."""
    return LICENSE if is_foreign(path) else read_metadata(path).get("license", "unknown")


def autoencoder_from_sd(path: str | Path, config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder of any layout that starts as Stable Diffusion's; the file may hold that alone, without prefix.

    Raises ValueError for a config of another geometry, and for every file that is something else.
    """
    if config.norm != "group" or config.patch != 1:
        raise ValueError(
            "a start from Stable Diffusion needs its kind of autoencoder, norm 'group' and patch 1; the config has "
            f"norm {config.norm!r} and patch {config.patch}"
        )
    prefix = AUTOENCODER if _kind(path, (SD, PICTURE_AUTOENCODER)) == SD else ""
    tensors = {name: _as_convolution(name, x) for name, x in _read(path, prefix, AUTOENCODER_PARTS).items()}
    with torch.device("meta"):
        ordinary = CompositeAutoencoder(replace(config, layout="composite", latent_channels=config.trunk_channels))
    check_fits(ordinary.state_dict(), tensors, f"the autoencoder of {path}")
    model = build_autoencoder(config)
    if config.layout == "joint":
        _start_layers(model, tensors)
    else:
        load_exactly(model, tensors, f"the autoencoder of {path}")
    return model.eval()


def unet_from_sd(path: str | Path, config: UNetConfig) -> UNet2DConditionModel:
    """Stable Diffusion's UNet, with 4 channels or with 12 (`with_channels`). Raises as `autoencoder_from_sd`."""
    _kind(path, (SD,))
    tensors = _read(path, UNET)
    source = replace(config, in_channels=SD_CHANNELS, out_channels=SD_CHANNELS)
    with torch.device("meta"):
        expected = unet_to_ldm(build_unet(source).state_dict(), source)
    check_fits(expected, tensors, f"the UNet of {path}")
    unet = build_unet(config)
    unet.load_state_dict(with_channels(unet_from_ldm(tensors, source), config, str(path)))
    return unet.eval()


def text_encoder_from_sd(path: str | Path, config: TextEncoderConfig) -> TextEncoder:
    """Stable Diffusion's CLIP text encoder. Raises as `autoencoder_from_sd`."""
    _kind(path, (SD,))
    if config.token_ids is not None:
        raise ValueError(
            "a start from Stable Diffusion brings CLIP's whole vocabulary; leave text_encoder.token_ids out"
        )
    tensors = {name: x for name, x in _read(path, TEXT_ENCODER).items() if not name.endswith("position_ids")}
    encoder = TextEncoder(config)
    load_exactly(encoder, tensors, f"the text encoder of {path}")
    return encoder.eval()


def with_channels(state: dict[str, Tensor], config: UNetConfig, source: str) -> dict[str, Tensor]:
    """A UNet's state dict (diffusers' names) with the config's channels: the same, or three times as many.

    New input slices and outputs are zero, so the network begins with its own estimate of the background's noise, and
    none, whose error is 1, of the others'. Raises ValueError for other channels; `source` begins the sentence.
    """
    channels = state["conv_in.weight"].shape[1]
    if config.in_channels != config.out_channels or config.in_channels not in (channels, LAYER_COUNT * channels):
        raise ValueError(
            f"{source} has a UNet of {channels} channels, which can go on with {channels} or {LAYER_COUNT * channels}; "
            f"the config asks for {config.in_channels} in and {config.out_channels} out"
        )
    if config.in_channels == channels:
        return state
    place = slice(BACKGROUND * channels, (BACKGROUND + 1) * channels)
    weight_in = _in_place(state["conv_in.weight"].transpose(0, 1), place, config.in_channels).transpose(0, 1)
    out = {name: _in_place(state[name], place, config.out_channels) for name in ("conv_out.weight", "conv_out.bias")}
    return state | out | {"conv_in.weight": weight_in}


def _in_place(x: Tensor, place: slice, count: int) -> Tensor:
    """Zeros with `count` rows, x among them."""
    whole = x.new_zeros(count, *x.shape[1:])
    whole[place] = x
    return whole


@torch.no_grad()
def _start_layers(model: Any, tensors: dict[str, Tensor]) -> None:
    """CaT2I-AE from an ordinary autoencoder's tensors (the module's docstring says from which state)."""
    own = model.state_dict()
    for name in tensors.keys() & own.keys():
        own[name].copy_(tensors[name])
    first = model.encoder.first
    nn.init.zeros_(first.weight)
    first.weight[:, 3:6] = tensors["encoder.conv_in.weight"]
    first.bias.copy_(tensors["encoder.conv_in.bias"])
    last = tensors["decoder.conv_out.weight"], tensors["decoder.conv_out.bias"]
    for name, head in model.decoder.heads().items():
        nn.init.zeros_(head.conv2.weight)
        if name == "mask":
            nn.init.constant_(head.conv2.bias, NO_MASK)
        else:
            _start_head(head, *last)


def _start_head(head: Head, weight: Tensor, bias: Tensor) -> None:
    """conv-bn-relu-conv that gives what one convolution gives: y = relu(y) - relu(-y).

    Exact with the running statistics, which are those of photographs; with a batch's own it is that batch, normalised.
    The other hidden channels keep their random start and count for nothing yet.
    """
    count = len(weight)
    if len(head.conv1.weight) < 2 * count:
        raise ValueError(
            f"head_channels must be at least {2 * count} for a start from Stable Diffusion, got "
            f"{len(head.conv1.weight)}"
        )
    head.conv1.weight[: 2 * count] = torch.cat([weight, -weight])
    head.conv1.bias[: 2 * count] = torch.cat([bias, -bias])
    bn: Any = head.bn
    bn.running_var[: 2 * count] = COLOUR_STD**2
    bn.weight[: 2 * count] = (COLOUR_STD**2 + bn.eps) ** 0.5
    nn.init.zeros_(head.conv2.bias)
    for i in range(count):
        head.conv2.weight[i, i, 1, 1], head.conv2.weight[i, count + i, 1, 1] = 1, -1


def _kind(path: str | Path, wanted: tuple[str, ...]) -> str:
    """What the file is. Raises ValueError when it is none of what is wanted."""
    is_ours, found = not is_foreign(path), describe(read_names(path))
    if is_ours or found not in wanted:
        raise ValueError(
            f"{path} is {'a Text2Layer checkpoint' if is_ours else found}; a Stable Diffusion 1.x checkpoint in one "
            ".safetensors file, with ldm's names, is needed"
        )
    return found


def _read(path: str | Path, prefix: str, parts: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """The tensors under a prefix, float32, without it; only those of `parts`. Raises ValueError if there are none."""
    tensors, _ = read_tensors(path, tuple(prefix + part for part in parts))
    if not tensors:
        raise ValueError(
            f"{shown_path(path)} holds no tensor under {prefix}; a whole Stable Diffusion 1.x checkpoint, UNet, "
            "autoencoder and text encoder together, is needed"
        )
    check_finite(tensors, shown_path(path))
    return {name.removeprefix(prefix): x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def _as_convolution(name: str, x: Tensor) -> Tensor:
    """Some programs write the attention's 1x1 convolutions as matrices."""
    return x[..., None, None] if ".attn_1." in name and x.ndim == 2 else x
