"""A toy of the whole training: twelve pictures, an autoencoder and a UNet of a few thousand weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from t2l.data.crops import CropConfig
from t2l.data.example import Example
from t2l.data.latents import cache_latents
from t2l.data.shards import write_shard
from t2l.diffusion import DiffusionConfig
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import save_autoencoder
from t2l.model.text_encoder import TextEncoderConfig
from t2l.model.unet import UNetConfig
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig
from t2l.training.losses import LossWeights

AUTOENCODER = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1, head_channels=8)


def example(number: int) -> Example:
    generator = torch.Generator().manual_seed(number)
    pixels = F.interpolate(torch.rand(1, 7, 6, 6, generator=generator), size=(64, 64), mode="bilinear")
    texts = {"foreground_caption": f"a cup {number % 4}", "background_caption": "on a table"}
    layers = Layers.from_stacked(pixels)
    return Example(
        f"k-{number:06d}", layers, caption="a cup on a table", labels={"thing": "cup", "place": "table"}, **texts
    )


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        write_shard(folder, number, [example(6 * number + i) for i in range(6)])
    return folder


@pytest.fixture(scope="session")
def latents(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    torch.manual_seed(0)
    autoencoder = LayeredAutoencoder(AUTOENCODER).eval()
    save_autoencoder(autoencoder, folder / "autoencoder.safetensors")

    @torch.no_grad()
    def encode(layers):
        posterior = autoencoder.encode(layers)
        return posterior.mean, posterior.std

    cache_latents(encode, folder / "autoencoder.safetensors", shards, folder / "cache", size=32, batch_size=4)
    return folder / "cache"


@pytest.fixture
def autoencoder_config() -> AutoencoderTrainConfig:
    return AutoencoderTrainConfig(
        model=AUTOENCODER,
        loss=LossWeights(lpips=0, adversarial=0),
        data=CropConfig(batch_size=4, crop=32),
        num_steps=6,
        lr=1e-3,
        lr_warmup_steps=2,
        scale_equivariance=0.3,
        num_workers=0,
        log_every=1,
        save_every=2,
    )


@pytest.fixture
def unet_config() -> UNetTrainConfig:
    widths = {"base_channels": 32, "channel_multipliers": (1, 2), "attention_levels": (1,)}
    return UNetTrainConfig(
        unet=UNetConfig(**widths, num_res_blocks=1, num_heads=2, conditioning_width=32),
        text_encoder=TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64),
        diffusion=DiffusionConfig(prediction="v"),
        num_steps=6,
        batch_size=4,
        lr=1e-3,
        lr_warmup_steps=2,
        log_every=1,
        save_every=2,
    )
