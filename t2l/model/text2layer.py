"""A whole Text2Layer model and the file it lives in: one .safetensors with ldm's names that explains itself.

The tensors' names are a Stable Diffusion checkpoint's (about.py). The metadata holds format, version, kind, every
config as JSON and what else the maker says. An autoencoder alone has the same and no prefix, like a VAE file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from ..budget import parse_json, shown_path
from ..config import config_from_dict, config_to_dict
from ..diffusion import DiffusionConfig
from ..io.checkpoint import check_finite, fill_exactly, read_tensors, write_tensors
from ..io.header import Entry, Header, check_fits, read_header
from ..keep import keep_channels
from .about import AUTOENCODER, FORMAT, TEXT_ENCODER, UNET, VERSION, describe
from .autoencoder import Autoencoder, AutoencoderConfig
from .device import device_of
from .measure import Shapes, text_encoder_shapes, unet_shapes
from .systems import build_autoencoder
from .text_encoder import TextEncoder, TextEncoderConfig, full_vocabulary
from .unet import UNetConfig, build_unet, config_of_unet, unet_to_ldm

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

RESERVED = {"format", "version", "kind", "config", "batchnorm", "latent_rgb_factors", "latent_rgb_bias"}
DEFAULT_SIZE = 256  # pixels a side, of a file that does not say what it was trained on
SIZES = range(32, 16385)  # pixels a side that a file may name
FLAT_INPUT = ("encoder.conv_in.weight", "encoder.conv_in.bias")
Kind = Literal["text2layer", "autoencoder"]
Network = TypeVar("Network", bound=nn.Module)
Found = TypeVar("Found", Tensor, Entry)


@dataclass(frozen=True)
class ModelConfigs:
    """What the parts of a whole model are built from; its file carries them."""

    autoencoder: AutoencoderConfig
    unet: UNetConfig
    text_encoder: TextEncoderConfig
    diffusion: DiffusionConfig


@dataclass(eq=False)
class Text2Layer:
    """The three networks that turn a prompt into layers, and what they were trained with.

    Raises ValueError when the networks do not fit together.
    """

    autoencoder: Autoencoder
    unet: UNet2DConditionModel
    text_encoder: TextEncoder
    diffusion: DiffusionConfig
    latent_rgb_factors: list[list[float]] | None = None  # (C, 3): scaled latents -> RGB in [-1, 1], for previews
    latent_rgb_bias: list[float] | None = None  # (3,)
    info: dict[str, str] = field(default_factory=dict)  # license, steps, ...: goes into the file's metadata

    def __post_init__(self) -> None:
        unet, channels = config_of_unet(self.unet), self.autoencoder.config.latent_channels
        if unet.in_channels not in (channels, channels + keep_channels(channels)) or unet.out_channels != channels:
            raise ValueError(
                f"the autoencoder has {channels} latent channels, the UNet takes {unet.in_channels} "
                f"and gives {unet.out_channels}"
            )
        if unet.conditioning_width != self.text_encoder.config.width:
            raise ValueError(
                f"the text encoder is {self.text_encoder.config.width} wide, the UNet takes {unet.conditioning_width}"
            )

    @property
    def trained_size(self) -> int:
        """Height and width in pixels of the pictures the UNet was trained on; what it draws best."""
        return _trained_size(self.info) or DEFAULT_SIZE

    @property
    def device(self) -> torch.device:
        return device_of(self.unet)

    @property
    def keeps(self) -> bool:
        """Whether the UNet has input channels for a layer that is kept (keep.py)."""
        return config_of_unet(self.unet).in_channels > self.autoencoder.config.latent_channels

    def to(self, *args: Any, **kwargs: Any) -> Text2Layer:
        """Move all three networks, in place; takes what nn.Module.to takes."""
        for network in (self.autoencoder, self.unet, self.text_encoder):
            nn.Module.to(network, *args, **kwargs)  # diffusers' own `to` warns of every cast
        return self

    def configs(self) -> ModelConfigs:
        unet = config_of_unet(self.unet)
        return ModelConfigs(self.autoencoder.config, unet, self.text_encoder.config, self.diffusion)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the checkpoint, whole or not at all; the heads' BatchNorm is folded.

        Raises ValueError for weights that dtype cannot hold, OSError for a full disk or an unwritable folder.
        """
        tensors = self._tensors(folded(self.autoencoder))
        tensors |= {AUTOENCODER + name: x for name, x in flat_input(self.autoencoder).items()}
        write_tensors(path, as_dtype(tensors, dtype), self.metadata())

    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        metadata = _metadata("text2layer", config_to_dict(self.configs()), self.autoencoder, True, self.info)
        if self.latent_rgb_factors is not None:
            metadata["latent_rgb_factors"] = json.dumps(self.latent_rgb_factors)
            metadata["latent_rgb_bias"] = json.dumps(self.latent_rgb_bias or [0.0] * 3)
        return metadata

    @classmethod
    def load(cls, path: str | Path) -> Text2Layer:
        """A checkpoint, float32 on the CPU, ready for use. Raises FileNotFoundError, or ValueError with a sentence."""
        header = _checked_header(path, "text2layer")
        configs, metadata = _measured(path, header), header.metadata
        autoencoder = _measured_autoencoder(path, header, configs.autoencoder)
        unet = _allocated(_on_meta(build_unet, configs.unet))
        text_encoder = TextEncoder(configs.text_encoder)
        factors, bias = _latent_rgb(path, metadata, autoencoder.config.latent_channels)
        info = {name: text for name, text in metadata.items() if name not in RESERVED}
        model = cls(autoencoder, unet, text_encoder, configs.diffusion, factors, bias, info)
        tensors = _without_flat_input(read_tensors(path)[0], AUTOENCODER, autoencoder)
        fill_exactly(model._tensors(autoencoder), tensors, shown_path(path))
        for network in (autoencoder, unet, text_encoder):
            network.eval()
        return model

    def _tensors(self, autoencoder: Autoencoder) -> dict[str, Tensor]:
        """Every weight under its name in the file."""
        tensors = {UNET + name: x for name, x in unet_to_ldm(self.unet.state_dict(), config_of_unet(self.unet)).items()}
        tensors |= {AUTOENCODER + name: x for name, x in autoencoder.state_dict().items()}
        return tensors | {TEXT_ENCODER + name: x for name, x in self.text_encoder.state_dict().items()}


def save_autoencoder(
    autoencoder: Autoencoder,
    path: str | Path,
    info: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    fold: bool = False,
) -> None:
    """Write an autoencoder alone. The defaults lose nothing, so that training can start from the file.

    Raises what `Text2Layer.save` raises.
    """
    tensors = (folded(autoencoder) if fold else autoencoder).state_dict() | flat_input(autoencoder)
    metadata = _metadata(
        "autoencoder", {"autoencoder": config_to_dict(autoencoder.config)}, autoencoder, fold, info or {}
    )
    write_tensors(path, as_dtype(tensors, dtype), metadata)


@dataclass(frozen=True, eq=False)
class CheckpointParts:
    """A checkpoint that is read but not built, for programs with a UNet and a text encoder of their own (ComfyUI)."""

    unet: dict[str, Tensor]  # under ldm's names, without a prefix
    unet_config: UNetConfig
    text_encoder: dict[str, Tensor]  # under transformers' names, with CLIP's whole vocabulary
    text_encoder_config: TextEncoderConfig
    diffusion: DiffusionConfig
    latent_rgb_factors: list[list[float]] | None
    latent_rgb_bias: list[float] | None


def read_parts(path: str | Path) -> CheckpointParts:
    """The UNet and the text encoder of a whole model. Raises FileNotFoundError, or ValueError with a sentence."""
    header = _checked_header(path, "text2layer")
    configs = _measured(path, header)
    tensors, _ = read_tensors(path, (UNET, TEXT_ENCODER))
    check_finite(tensors, shown_path(path))
    return CheckpointParts(
        _without_prefix(tensors, UNET),
        configs.unet,
        full_vocabulary(_without_prefix(tensors, TEXT_ENCODER), configs.text_encoder),
        configs.text_encoder,
        configs.diffusion,
        *_latent_rgb(path, header.metadata, configs.autoencoder.latent_channels),
    )


def load_autoencoder(path: str | Path, operations: Any = nn) -> Autoencoder:
    """The autoencoder of a file that holds it alone or with the rest of a model: float32 on the CPU, ready for use.

    operations: as Autoencoder takes them. Raises FileNotFoundError, or ValueError with a sentence.
    """
    header = _checked_header(path, "autoencoder")
    config = _config(path, header.metadata, "autoencoder", AutoencoderConfig)
    autoencoder, prefix = _measured_autoencoder(path, header, config, operations), _prefix(header)
    tensors = _without_flat_input(read_tensors(path, (prefix,))[0], prefix, autoencoder)
    fill_exactly({prefix + name: x for name, x in autoencoder.state_dict().items()}, tensors, shown_path(path))
    return autoencoder.eval()


def read_trained_size(path: str | Path) -> int | None:
    """Height and width in pixels of the pictures that a file's UNet was trained on; None where it names none."""
    return _trained_size(read_header(path).metadata)


def read_vocabulary(path: str | Path) -> tuple[int, ...] | None:
    """The token ids that a whole model's text encoder has rows for; None = all of CLIP's. Raises as `read_parts`."""
    metadata = _checked_header(path, "text2layer").metadata
    return _config(path, metadata, "text_encoder", TextEncoderConfig).token_ids


def folded(autoencoder: Autoencoder) -> Autoencoder:
    """A copy whose heads have their BatchNorm folded into the convolutions."""
    return copy.deepcopy(autoencoder).fold_batchnorm()


def has_batchnorm(autoencoder: Autoencoder) -> bool:
    """Whether its heads have their BatchNorm still."""
    return any(name.endswith("bn.running_var") for name in autoencoder.state_dict())


def flat_input(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """`encoder.conv_in` for an ordinary picture I, from the layered one; empty without one, and outside SD's geometry.

    A flat picture is F = B = I and m = 1/2, which is 0 in network units, so W_F + W_B with the same bias is exact,
    border included. With it the file is an ordinary VAE to programs that know nothing of layers.
    """
    config, conv = autoencoder.config, autoencoder.encoder.first
    if config.layout != "joint" or config.norm != "group" or config.patch != 1:
        return {}
    weight = conv.weight[:, :3] + conv.weight[:, 3:6]
    return dict(zip(FLAT_INPUT, (weight, conv.bias.clone()), strict=True))


@torch.no_grad()
def latent_preview(autoencoder: Autoencoder, latents: Tensor) -> tuple[list[list[float]], list[float]]:
    """Factors (C, 3) and bias (3,) that turn scaled latents into a small composite, fitted on latents (N, C, h, w)."""
    device = device_of(autoencoder)
    composites = torch.cat([autoencoder.decode(part.to(device)).layers.composite().cpu() for part in latents.split(8)])
    return fit_latent_rgb(latents * autoencoder.config.latent_scale, composites)


def fit_latent_rgb(scaled_latents: Tensor, images: Tensor) -> tuple[list[list[float]], list[float]]:
    """The linear map from scaled latents to colours that previews use, by least squares: factors (C, 3), bias (3,).

    scaled_latents: (N, C, h, w). images: (N, 3, H, W), pixels in [0, 1], averaged to h x w. The map gives [-1, 1], as
    ComfyUI's latent previews expect.
    """
    height, width = scaled_latents.shape[-2:]
    small = torch.nn.functional.adaptive_avg_pool2d(images.double(), (height, width))
    x = scaled_latents.double().movedim(1, -1).flatten(0, -2)
    y = (2 * small - 1).movedim(1, -1).flatten(0, -2)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), y).solution
    return solution[:-1].tolist(), solution[-1].tolist()


# ---- metadata


def _metadata(
    kind: Kind, configs: dict[str, Any], autoencoder: Autoencoder, fold: bool, info: dict[str, str]
) -> dict[str, str]:
    if clash := sorted(RESERVED & info.keys()):
        raise ValueError(f"info must not hold {', '.join(clash)}; the checkpoint writes them itself")
    is_folded = fold or not has_batchnorm(autoencoder)
    ours = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": json.dumps(configs),
        "batchnorm": "folded" if is_folded else "kept",
    }
    return {"license": "Apache-2.0"} | info | ours


def _checked_header(path: str | Path, needed: Kind) -> Header:
    """The header of a file of ours that holds at least the kind that is needed."""
    header = read_header(path)
    metadata, path = header.metadata, shown_path(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is {describe(list(header.tensors))}; a Text2Layer checkpoint, with our metadata in it, is needed"
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} is a Text2Layer checkpoint of version {shown_path(metadata.get('version'))}, this program reads "
            f"version {VERSION}"
        )
    if metadata.get("kind") not in (needed, "text2layer"):
        whole = "UNet, text encoder and autoencoder together" if needed == "text2layer" else f"an {needed}"
        raise ValueError(f"{path} holds only this part of a model: {shown_path(metadata.get('kind'))}; needed: {whole}")
    return header


def _trained_size(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get("size", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) in SIZES else None


def _config(path: str | Path, metadata: dict[str, str], part: str, cls: type) -> Any:
    try:
        configs = parse_json(metadata.get("config", ""), "it")
        if not isinstance(configs, dict) or not isinstance(configs.get(part), dict):
            raise ValueError(f"it has no config for the {part}")
        return config_from_dict(cls, configs[part])
    except ValueError as error:
        raise ValueError(f"{shown_path(path)} has a broken config in its metadata: {error}") from error


def _latent_rgb(path: str | Path, metadata: dict[str, str], channels: int) -> tuple[Any, Any]:
    if "latent_rgb_factors" not in metadata:
        return None, None
    try:
        factors, bias = (parse_json(metadata[f"latent_rgb_{name}"], name) for name in ("factors", "bias"))
        fits = torch.tensor(factors).shape == (channels, 3) and torch.tensor(bias).shape == (3,)
        fits = fits and bool(torch.tensor([*factors, bias]).isfinite().all())
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{shown_path(path)} has broken latent_rgb_factors in its metadata: {channels} x 3 and 3 numbers are needed"
        )
    return factors, bias


# ---- a file is measured before it is built


def _measured(path: str | Path, header: Header) -> ModelConfigs:
    """The configs of a whole model, whose UNet and text encoder are in the file as they say. Raises ValueError else."""
    classes = get_type_hints(ModelConfigs)
    configs = ModelConfigs(**{part: _config(path, header.metadata, part, cls) for part, cls in classes.items()})
    parts = {UNET: unet_shapes(configs.unet), TEXT_ENCODER: text_encoder_shapes(configs.text_encoder)}
    expected: Shapes = {prefix + name: entry for prefix, shapes in parts.items() for name, entry in shapes.items()}
    others = {name: entry for name, entry in header.tensors.items() if not name.startswith(AUTOENCODER)}
    check_fits(expected, others, shown_path(path))
    return configs


def _measured_autoencoder(
    path: str | Path, header: Header, config: AutoencoderConfig, operations: Any = nn
) -> Autoencoder:
    """The autoencoder of a file's config, its weights still to come. Raises ValueError unless the file has them."""
    autoencoder, prefix = _on_meta(build_autoencoder, config, operations), _prefix(header)
    if header.metadata.get("batchnorm") != "kept":
        autoencoder.fold_batchnorm()
    found = {name: entry for name, entry in header.tensors.items() if name.startswith(prefix)}
    expected = {prefix + name: x for name, x in autoencoder.state_dict().items()}
    check_fits(expected, _without_flat_input(found, prefix, autoencoder), shown_path(path))
    return _allocated(autoencoder)


def _prefix(header: Header) -> str:
    return "" if header.metadata["kind"] == "autoencoder" else AUTOENCODER


def _on_meta(build: Callable[..., Network], *args: Any) -> Network:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build(*args)


def _allocated(network: Network) -> Network:
    """The same with memory for its weights, which must all be filled."""
    held = network.state_dict().keys()
    assert all(name in held for name, _ in network.named_buffers()), "a buffer would be left without values"
    return network.to_empty(device="cpu")


# ---- tensors


def _without_flat_input(tensors: dict[str, Found], prefix: str, autoencoder: Autoencoder) -> dict[str, Found]:
    """Without the input for ordinary pictures where it is derived (`flat_input`) and not the network's own."""
    derived = {f"{prefix}{name}" for name in FLAT_INPUT if name not in autoencoder.state_dict()}
    return {name: x for name, x in tensors.items() if name not in derived}


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def as_dtype(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in another precision. Raises ValueError for those that it cannot hold."""
    cast = {name: x.detach().to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    if broken := [name for name, x in cast.items() if x.is_floating_point() and not x.isfinite().all()]:
        raise ValueError(
            f"{len(broken)} weights are not finite as {dtype}, {broken[0]} among them; nothing was written"
        )
    return cast
