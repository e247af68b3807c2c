"""Autoencoders of the systems the paper compares CaT2I-AE with (Zhang et al. 2023, section 5), and how one is built.

Both are Stable Diffusion's own autoencoder of ordinary pictures, with its names (`encoder.conv_in`,
`decoder.conv_out`), so the same weights serve both. They encode and decode layers as LayeredAutoencoder does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Layers
from .autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Decoded,
    DecoderTrunk,
    Encoder,
    LayeredAutoencoder,
    Posterior,
    to_pixels,
)


def build_autoencoder(config: AutoencoderConfig, operations: Any = nn) -> Autoencoder:
    """The autoencoder of the config's layout, with random weights."""
    classes = {"joint": LayeredAutoencoder, "separate": SeparateAutoencoder, "composite": CompositeAutoencoder}
    return classes[config.layout](config, operations)


@torch.no_grad()
def standardized(model: Autoencoder, pictures: Iterable[Layers]) -> Autoencoder:
    """A copy of the model whose scaled latents have zero mean and unit variance per channel over the pictures."""
    model = copy.deepcopy(model).eval()
    means, squares = [], []
    for layers in pictures:
        mean = model.encode(layers).mean.double()
        means.append(mean.mean(dim=(0, 2, 3)))
        squares.append(mean.square().mean(dim=(0, 2, 3)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).sqrt()
    return model.standardize_latents(mean.float(), std.float())


def same_latents(one: Autoencoder, other: Autoencoder) -> bool:
    """Whether two autoencoders make the same latents, to float16."""
    encoders = [
        {name: x.half() for name, x in network.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
        for network in (one, other)
    ]
    ours, theirs = encoders
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


class PictureEncoder(Encoder):
    """Ordinary pictures in [-1, 1] (N, 3, H, W) -> moments (N, 2 trunk_channels, H / downscale, W / downscale)."""

    first_name, in_channels = "conv_in", 3


class PictureDecoder(DecoderTrunk):
    """Latents after post_quant_conv -> ordinary pictures in [-1, 1] (N, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig, operations: Any) -> None:
        super().__init__(config, operations)
        self.conv_out = operations.Conv2d(self.width, 3 * config.patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv_out(self.features(x)), self.patch)


class PictureAutoencoder(Autoencoder):
    """Stable Diffusion's autoencoder (Rombach et al. 2022): what the two systems below share."""

    def __init__(self, config: AutoencoderConfig, operations: Any = nn) -> None:
        super().__init__(config, PictureEncoder(config, operations), PictureDecoder(config, operations), operations)

    def last_layers(self) -> dict[str, Tensor]:
        return dict.fromkeys(("foreground", "background", "composed"), self.decoder.conv_out.weight)


class SeparateAutoencoder(PictureAutoencoder):
    """SD-AE-UNet's: z = concat(g(F), g(B), g(m)) along channels, the mask repeated to three; back, it is the mean."""

    def encode(self, layers: Layers) -> Posterior:
        mask = layers.mask.expand(-1, 3, -1, -1)
        posterior = self._posterior(torch.cat([layers.foreground, layers.background, mask]))
        return Posterior(*(torch.cat(moment.chunk(3), dim=1) for moment in (posterior.mean, posterior.logvar)))

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, clamp: bool = True) -> Decoded:
        pictures = self.decoder(self.post_quant_conv(torch.cat(latents.chunk(3, dim=1))))
        foreground, background, mask = to_pixels(pictures, size, clamp).chunk(3)
        return Decoded(Layers(foreground, background, mask.mean(dim=1, keepdim=True)), None)

    def standardize_latents(self, mean: Tensor, std: Tensor) -> Autoencoder:
        """As Autoencoder's, for foreground, background and mask taken together: they share one encoder."""
        means, variances = (x.view(3, -1) for x in (mean, std.square()))
        pooled = means.mean(dim=0)
        return super().standardize_latents(pooled, (variances + means.square()).mean(dim=0).sub(pooled.square()).sqrt())


class CompositeAutoencoder(PictureAutoencoder):
    """SD-LAION-L2I's: only the composed picture goes in, and it comes back as a flat one, F = B = I and m = 1/2."""

    def encode(self, layers: Layers) -> Posterior:
        return self._posterior(layers.composite())

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, clamp: bool = True) -> Decoded:
        picture = to_pixels(self.decoder(self.post_quant_conv(latents)), size, clamp)
        return Decoded(Layers.flat(picture), picture)
