"""What a training of a UNet takes: parameters and floating-point operations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2l.model.autoencoder import latent_size
from t2l.model.text2layer import Text2Layer
from t2l.model.tokenizer import MAX_TOKENS
from t2l.model.unet import Conditioned, config_of_unet


def operations(snapshot: Path) -> tuple[int, int]:
    """Parameters, and operations of one sample in a training step, of a checkpoint's UNet and text encoder.

    Two operations per multiply-add of convolutions and products; a step goes forward once and back twice as long.
    """
    model = Text2Layer.load(snapshot)
    network = Conditioned(model.unet, model.text_encoder)
    size = latent_size(model.trained_size, model.trained_size, model.autoencoder.config.downscale)
    latents = torch.zeros(1, config_of_unet(model.unet).in_channels, *size)
    step, words = torch.zeros(1, dtype=torch.long), torch.zeros(1, MAX_TOKENS, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # the counter knows products, not the CPU's attention
        network(latents, step, words)
    return sum(parameter.numel() for parameter in network.parameters()), 3 * counter.get_total_flops()
