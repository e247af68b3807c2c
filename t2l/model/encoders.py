"""Frozen networks as plain functions: what a latent cache is made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layers import Layers
from .autoencoder import Autoencoder
from .device import DTYPES, place
from .precision import precision_context
from .text_encoder import TextEncoder
from .tokenizer import Tokenizer


def latent_encoder(
    network: Autoencoder, device: torch.device, dtype: str = "fp32"
) -> Callable[[Layers], tuple[Tensor, Tensor]]:
    """Layers -> mean and std of an autoencoder's posterior; moves the network to the device."""
    network = place(network, device, dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(layers: Layers) -> tuple[Tensor, Tensor]:
        with precision_context(device, "auto" if dtype == "fp32" else "fp32"):  # bf16: 0.5 % of the latents' spread
            posterior = network.encode(layers.to(device, DTYPES[dtype]))
        return posterior.mean, posterior.std

    return encode


def text_embedder(network: TextEncoder, device: torch.device, dtype: str = "fp32") -> Callable[[Sequence[str]], Tensor]:
    """Captions -> what the text encoder says of them; moves the network to the device."""
    tokenizer, network = Tokenizer(), place(network.eval(), device, dtype)

    @torch.inference_mode()
    def encode(captions: Sequence[str]) -> Tensor:
        return network(tokenizer(captions).to(device))

    return encode
