"""What training needs of a card: the configs for cards fit them, and what is counted is what is there."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2l.config import load_config
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
CARDS = {"24gb-autoencoder": (1, 22), "24gb-unet": (1, 22), "8x80gb-autoencoder": (8, 76), "8x80gb-unet": (8, 76)}
PIXELS = {"8x80gb-unet": 256}  # behind the latents


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("training_memory", ROOT / "benchmarks" / "training_memory.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def read(name):
    kind = UNetTrainConfig if "unet" in name else AutoencoderTrainConfig
    return load_config(kind, ROOT / "configs" / f"{name}.json")


def batch_size_of(config):
    return config.batch_size if isinstance(config, UNetTrainConfig) else config.data.batch_size


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_batches_of_configs_for_cards_are_spread_evenly(name, processes):
    config = read(name)
    assert batch_size_of(config) % (processes * config.gradient_accumulation_steps) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_configs_for_cards_fit_them(name, tool):
    processes, limit = CARDS[name]
    memory = tool.counted(read(name), processes, PIXELS.get(name, 512))
    assert memory.peak <= limit * GIB
    assert memory.weights + memory.gradients + memory.moments + memory.ema < memory.peak


def test_a_storage_counts_once_for_as_long_as_it_lives(tool):
    with tool.Allocations() as allocations:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        assert allocations.now == 4000
        z = y + 1
        assert allocations.now == 4000 + 3200
        del x
        assert allocations.now == 4000 + 3200  # y still looks at it
        del y, z
        assert allocations.now == 0 and allocations.most == 4000 + 3200


def test_what_a_network_keeps_for_its_backward_pass_by_hand(tool):
    with tool.Allocations() as allocations:
        layers = torch.nn.Sequential(
            torch.nn.Linear(64, 64, bias=False), torch.nn.ReLU(), torch.nn.Linear(64, 1, bias=False)
        )
        weights = allocations.now
        assert weights == 4 * (64 * 64 + 64)
        x = torch.zeros(1000, 64)
        y = layers(x)
        assert (
            allocations.now == weights + 4 * (1000 * 64 + 2 * 1000 * 64 + 1000) - 4 * 1000 * 64
        )  # ReLU keeps its result alone
        y.sum().backward()
        del x, y
        assert allocations.now == 2 * weights  # and the gradients


@pytest.fixture
def small(tool):
    """A UNet's training whose activations outweigh its weights."""
    config = read("paper-unet")
    unet = replace(
        config.unet, base_channels=32, num_heads=2, channel_multipliers=(1, 1), attention_levels=(1,), num_res_blocks=1
    )
    text = replace(config.text_encoder, num_layers=1, token_ids=(1,))
    return replace(config, unet=unet, text_encoder=text, batch_size=8, precision="bf16")


@pytest.mark.slow
def test_checkpointing_parts_and_small_moments_save_memory_and_several_cards_share_the_batch(tool, small):
    whole = tool.counted(small, size=256)
    assert tool.counted(replace(small, gradient_checkpointing=True), size=256).work < 0.7 * whole.work
    assert tool.counted(replace(small, gradient_accumulation_steps=4), size=256).work < 0.5 * whole.work
    assert tool.counted(replace(small, optimizer="adamw8bit"), size=256).moments < 0.4 * whole.moments
    assert tool.counted(small, processes=4, size=256).peak < whole.peak
    assert tool.counted(replace(small, precision="fp32"), size=256).work > whole.work


def test_a_batch_that_is_not_spread_evenly_is_refused(tool, small):
    with pytest.raises(ValueError, match="a batch of 8 is not spread evenly over 3 processes in 1 parts"):
        tool.counted(small, processes=3)


@pytest.mark.slow
def test_checkpointing_computes_more_and_a_sample_costs_the_same_in_every_batch(tool, small):
    flops = tool.flops_of(small, 256)
    assert flops == tool.flops_of(replace(small, batch_size=2), 256)
    assert 1.1 * flops < tool.flops_of(replace(small, gradient_checkpointing=True), 256) < 1.5 * flops


@pytest.mark.slow
def test_both_trainings_of_the_recipe_for_a_card_of_80_gb_leave_half_of_it_free(tool):
    for stage in ("autoencoder", "unet"):
        assert tool.counted(tool.load(ROOT / "recipes" / f"gpu.toml:{stage}", []), size=256).peak < 40e9
