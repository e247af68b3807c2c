"""Both trainings on a card: every precision, compiled, with a discriminator, and at Stable Diffusion's size how
fast.
"""

import json
from dataclasses import replace

import pytest
import torch

from t2l.data.crops import CropConfig
from t2l.data.latents import Latents, cache_latents
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import save_autoencoder
from t2l.model.unet import UNetConfig
from t2l.training import train_autoencoder as autoencoder_training
from t2l.training.losses import LossWeights
from t2l.training.processes import Processes
from tests.gpu.conftest import seconds_each
from tests.training.conftest import autoencoder_config, latents, shards, unet_config  # noqa: F401
from tests.training.run_training import Launched

pytestmark = pytest.mark.gpu
NEEDS_DIFFUSERS = "needs diffusers, which this Python does not have"


def random_cache(shards, folder):  # noqa: F811
    """Latents of 512 px, of noise."""
    widths = {"base_channels": 32, "num_res_blocks": 1}
    save_autoencoder(LayeredAutoencoder(AutoencoderConfig(**widths)), folder / "autoencoder.safetensors")

    def encode(layers):
        return torch.randn(len(layers), 4, 64, 64), torch.rand(len(layers), 4, 64, 64)

    cache_latents(encode, folder / "autoencoder.safetensors", shards, folder / "cache", size=512, workers=0)
    return Latents(folder / "cache")


def losses(run, name):
    return [line[name] for line in map(json.loads, (run / "stats.jsonl").read_text().splitlines()) if name in line]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compile", [False, True])
def test_training_with_a_discriminator(autoencoder_config, shards, tmp_path, precision, compile):  # noqa: F811
    loss = LossWeights(lpips=0, adversarial=0.5, adversarial_start=0)
    changes = {"loss": loss, "data": CropConfig(batch_size=4, crop=64), "scale_equivariance": 0.0, "steps": 30}
    config = replace(autoencoder_config, precision=precision, compile=compile, save_every=15, **changes)
    autoencoder_training.train_autoencoder(config, shards, tmp_path, validation=shards)
    found = losses(tmp_path, "total")
    assert all(map(torch.isfinite, torch.tensor(found))) and losses(tmp_path, "validation_loss")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compile", [False, True])
def test_the_unet_trains_and_its_loss_falls(unet_config, latents, tmp_path, precision, compile):  # noqa: F811
    pytest.importorskip("diffusers", reason=NEEDS_DIFFUSERS)
    from t2l.training.train_unet import train_unet

    config = replace(unet_config, precision=precision, compile=compile, num_steps=60, save_every=30)
    train_unet(config, latents, tmp_path, validation=latents)
    found = losses(tmp_path, "loss")
    assert sum(found[-10:]) < sum(found[:10])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_a_unet_spread_over_two_cards_trains(unet_config, latents, tmp_path):  # noqa: F811
    pytest.importorskip("diffusers", reason=NEEDS_DIFFUSERS)
    from t2l.training.train_unet import train_unet

    Launched(
        2, train_unet, replace(unet_config, sharding="fsdp", precision="bf16"), latents, tmp_path, cards=True
    ).wait()
    assert (tmp_path / "snapshot.safetensors").is_file()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_how_fast_the_autoencoder_trains_at_stable_diffusions_size(figures, precision):
    loss, data = LossWeights(lpips=0, adversarial=0), CropConfig(batch_size=4, crop=256)
    config = autoencoder_training.AutoencoderTrainConfig(
        model=AutoencoderConfig(), loss=loss, data=data, precision=precision
    )
    task = autoencoder_training.AutoencoderTask(config, Processes("cuda"))
    pictures = torch.randint(256, (4, 7, 256, 256), dtype=torch.uint8)
    torch.cuda.reset_peak_memory_stats()
    figures[f"autoencoder training, 256 px, batch 4, {precision}: pictures/s"] = 4 / seconds_each(
        lambda: task.step(pictures, 0), 5
    )
    figures[f"the same: peak memory, GiB ({precision})"] = torch.cuda.max_memory_allocated() / 2**30


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_how_fast_the_unet_trains_at_stable_diffusions_size(figures, precision, shards, tmp_path):  # noqa: F811
    pytest.importorskip("diffusers", reason=NEEDS_DIFFUSERS)
    from t2l.training import train_unet as unet_training

    config = unet_training.UNetTrainConfig(unet=UNetConfig(), batch_size=8, num_steps=10, precision=precision)
    task = unet_training.UNetTask(config, Processes("cuda"), random_cache(shards, tmp_path))
    batch = task.batches[0]
    torch.cuda.reset_peak_memory_stats()
    figures[f"UNet training, 512 px, batch 8, {precision}: pictures/s"] = 8 / seconds_each(
        lambda: task.step(batch, 0), 5
    )
    figures[f"the same: peak memory, GiB ({precision}, UNet)"] = torch.cuda.max_memory_allocated() / 2**30
