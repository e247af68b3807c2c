"""The layered autoencoder under ComfyUI's memory management, and its face as an ordinary VAE.

As core does for its own VAEs (comfy/sd.py): a ModelPatcher, load_models_gpu with an estimate, batches that fit, and
tiles when memory runs out all the same.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..t2l.budget import WHOLE_PIXELS
from ..t2l.layers import Layers
from ..t2l.model.autoencoder import Autoencoder, Decoded, pad_to_multiple
from ..t2l.model.text2layer import load_autoencoder, read_trained_size

LAYER_CHANNELS = 7
ENCODE_BYTES, DECODE_BYTES = 1767, 2178  # core's estimates per pixel and byte of dtype, for a VAE of width 128

TILES = 512, 64  # pixels along a side, and of the overlap, where a picture is too large to be taken whole
Result = TypeVar("Result")


class ManagedAutoencoder:
    """What travels on the T2L_AUTOENCODER socket: layers <-> latents, on ComfyUI's devices and in its dtypes."""

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).name
        self.trained_size = read_trained_size(path)  # pixels a side that its UNet paints best; None: it says none
        self.device = mm.vae_device()
        self.dtype = mm.vae_dtype(self.device, [torch.bfloat16, torch.float32])
        self.output_device = mm.intermediate_device()
        self.model = load_autoencoder(path, comfy.ops.manual_cast).fold_batchnorm().eval().to(self.dtype)
        if self.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # convolutions take a fifth less time; LOG.md 2026-11-24
        self.pictures = FlatPictures(self.model)  # one patcher for both faces: two would move weights under each other
        self.patcher = ModelPatcher(self.pictures, load_device=self.device, offload_device=mm.vae_offload_device())
        config = self.model.config
        if not config.has_layers:
            raise ValueError(
                f"{self.name} paints whole pictures, it has no layers; open it with Load Checkpoint, or choose one "
                "with layers"
            )
        self.downscale = config.downscale
        self.latent_channels = config.latent_channels
        self._decoded_channels = LAYER_CHANNELS + 3 * config.has_auxiliary
        passes = config.latent_channels // config.trunk_channels  # in one batch
        self._shows_progress = True
        self._relative_cost = passes * config.base_channels / 128 / config.patch**2

    def quietly(self) -> ManagedAutoencoder:
        """The same, for work inside another node's, whose bar shows the progress."""
        quiet = copy.copy(self)
        quiet._shows_progress = False
        return quiet

    def encode(self, layers: Layers) -> Tensor:
        """Layers -> latents (N, C, h, w), the mean of the posterior."""
        x = layers.stacked
        return self._whole_or_tiled(
            "encoding",
            layers.size,
            lambda: self._in_batches(self._encode, x, self._encode_memory(x.shape)),
            lambda: self.encode_tiled(layers, *TILES),
        )

    def decode(self, latents: Tensor) -> Decoded:
        """Latents -> layers of the latents' whole size, and the composite that was predicted beside them.

        An autoencoder without that head predicts none: the layers' own composite stands for it.
        """
        return self._whole_or_tiled(
            "decoding",
            [length * self.downscale for length in latents.shape[-2:]],
            lambda: _split_decoded(self._in_batches(self._decode, latents, self._decode_memory(latents.shape))),
            lambda: self.decode_tiled(latents, *TILES),
        )

    def encode_tiled(self, layers: Layers, tile: int, overlap: int) -> Tensor:
        """As `encode`, tile x tile pixels at a time; `overlap` in pixels."""
        x = pad_to_multiple(layers.stacked, self.downscale)
        self._load(self._encode_memory((1, LAYER_CHANNELS, tile, tile)))
        tiles, overlap = _tile_shapes(tile, self.downscale), self._on_grid(overlap) * self.downscale
        return self._tiled(self._encode, x, tiles, overlap, 1 / self.downscale, self.latent_channels)

    def decode_tiled(self, latents: Tensor, tile: int, overlap: int) -> Decoded:
        """As `decode`, tile x tile pixels at a time; `overlap` in pixels."""
        self._load(self._decode_memory((1, self.latent_channels, self._on_grid(tile), self._on_grid(tile))))
        tiles, overlap = _tile_shapes(self._on_grid(tile), 1), self._on_grid(overlap)
        decoded = self._tiled(self._decode, latents, tiles, overlap, self.downscale, self._decoded_channels)
        return _split_decoded(decoded.clamp(0, 1))

    def as_vae(self) -> comfy.sd.VAE:
        """An ordinary VAE over the same weights: decodes the composite, encodes a flat picture.

        Core's class knows no such network, so a VAE is made from one it knows, the smallest there is, and given ours.
        """
        vae = comfy.sd.VAE(sd=_smallest_known_vae(), device=self.device, dtype=self.dtype)
        vae.first_stage_model, vae.patcher = self.pictures, self.patcher
        vae.latent_channels = self.latent_channels
        vae.downscale_ratio = vae.upscale_ratio = self.downscale
        vae.output_channels = 3
        vae.process_input = lambda image: image * 2.0 - 1.0
        # In place, and returned: older cores take what it returns, newer ones its effect alone.
        vae.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        vae.memory_used_encode = lambda shape, dtype: self._encode_memory(shape)
        vae.memory_used_decode = lambda shape, dtype: self._decode_memory(shape)
        vae.size = mm.module_size(self.model)
        return vae

    def _encode(self, x: Tensor) -> Tensor:
        return self.model.encode(Layers.from_stacked(x)).mean

    def _decode(self, latents: Tensor) -> Tensor:
        decoded = self.model.decode(latents)
        parts = [decoded.layers.stacked, *([] if decoded.auxiliary is None else [decoded.auxiliary])]
        return torch.cat(parts, dim=1)

    def _whole_or_tiled(
        self, doing: str, size: Sequence[int], whole: Callable[[], Result], tiled: Callable[[], Result]
    ) -> Result:
        """Large pictures (height, width) go in tiles at once: a CPU never says that memory runs out."""
        if size[0] * size[1] > WHOLE_PIXELS.most:
            return tiled()
        try:
            return whole()
        except mm.OOM_EXCEPTION:
            logging.warning("Text2Layer: out of memory while %s layers, going on in tiles", doing)
        mm.soft_empty_cache()  # outside the except block, which holds on to what was allocated
        return tiled()

    def _in_batches(self, network: Callable[[Tensor], Tensor], x: Tensor, memory: float) -> Tensor:
        self._load(memory)
        count = max(1, int(mm.get_free_memory(self.device) / memory))
        parts, bar = [], self._bar(math.ceil(len(x) / count))
        for part in x.split(count):
            parts.append(self._run(network, part).to(self.output_device))
            if bar:
                bar.update(1)
        return torch.cat(parts)

    def _tiled(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        tiles: list[tuple[int, int]],
        overlap: int,
        upscale: float,
        channels: int,
    ) -> Tensor:
        """The mean over three shapes of tiles, as core does, so that no seam of one shape shows."""
        height, width = x.shape[-2:]
        steps = [comfy.utils.get_tiled_scale_steps(width, height, *tile, overlap) for tile in tiles]
        bar = self._bar(len(x) * sum(steps))
        passes = (
            comfy.utils.tiled_scale(
                x, lambda part: self._run(network, part), *tile, overlap, upscale, channels, self.output_device, bar
            )
            for tile in tiles
        )
        return sum(passes) / len(tiles)

    def _bar(self, total: int) -> comfy.utils.ProgressBar | None:
        return comfy.utils.ProgressBar(total) if self._shows_progress else None

    def _run(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        return network(x.to(self.device, self.dtype)).float()

    def _load(self, memory: float) -> None:
        mm.load_models_gpu([self.patcher], memory_required=memory)

    def _on_grid(self, pixels: int) -> int:
        return max(1, pixels // self.downscale)

    def _encode_memory(self, shape: tuple[int, ...]) -> float:
        return ENCODE_BYTES * self._relative_cost * shape[-2] * shape[-1] * mm.dtype_size(self.dtype)

    def _decode_memory(self, shape: tuple[int, ...]) -> float:
        pixels = shape[-2] * shape[-1] * self.downscale**2
        return DECODE_BYTES * self._relative_cost * pixels * mm.dtype_size(self.dtype)


class FlatPictures(nn.Module):
    """A layered autoencoder seen as an ordinary one: pictures in [-1, 1] <-> latents."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        return self.model.encode(Layers.flat((x + 1) / 2)).mean

    def decode(self, latents: Tensor) -> Tensor:
        channels = self.model.config.latent_channels
        if latents.shape[1] != channels:
            raise ValueError(
                f"VAE Decode: samples must have {channels} channels, got {latents.shape[1]}; connect the latent of a "
                "KSampler with the model of the same Text2Layer checkpoint"
            )
        decoded = self.model.decode(latents)
        picture = decoded.layers.composite() if decoded.auxiliary is None else decoded.auxiliary
        return 2 * picture - 1


def _split_decoded(decoded: Tensor) -> Decoded:
    """What `ManagedAutoencoder._decode` puts together, (N, 7 or 10, H, W)."""
    layers = Layers.from_stacked(decoded[:, :LAYER_CHANNELS])
    return Decoded(layers, decoded[:, LAYER_CHANNELS:] if decoded.shape[1] > LAYER_CHANNELS else layers.composite())


def _tile_shapes(tile: int, multiple: int) -> list[tuple[int, int]]:
    """Wide, high and square tiles, (width, height)."""
    half = max(multiple, tile // 2 // multiple * multiple)
    return [(half, 2 * tile), (2 * tile, half), (tile, tile)]


def _smallest_known_vae() -> dict[str, Tensor]:
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=4).state_dict()
