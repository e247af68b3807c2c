"""One run on several processes, in several parts, at other precisions: the same batches, the same weights."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2l.config import config_to_dict
from t2l.data.batches import LatentBatches
from t2l.data.crops import CropBatches
from t2l.data.latents import Latents
from t2l.data.shards import Shards
from t2l.io.checkpoint import read_tensors
from t2l.model.tokenizer import Tokenizer
from t2l.training.losses import LossWeights
from t2l.training.processes import Processes
from t2l.training.train_autoencoder import train_autoencoder
from t2l.training.train_unet import train_unet
from tests.training.run_training import Launched, batchnorm_and_batch, normalize_a_share, train_a_discriminator

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"autoencoder": train_autoencoder, "unet": train_unet}
EPS = 1e-4  # where a gradient is zero but for rounding, Adam's own 1e-8 would turn the rounding into steps of size lr


def weights(run):
    state = torch.load(run / "state.pt", weights_only=True)
    parts = {"model", "ema", "discriminator"} & state.keys()
    return {f"{part}.{name}": x for part in parts for name, x in state[part].items()}


def losses(run):
    return [json.loads(line).get("total", json.loads(line).get("loss")) for line in open(run / "stats.jsonl")]


def assert_close(one, other, atol=1e-5):
    assert losses(one) == pytest.approx(losses(other), rel=max(atol, 1e-6))  # logged in float32
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def exact(config, **values):
    return replace(config, precision="fp32", adam_eps=EPS, **values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_two_processes_train_what_one_trains(name, request, tmp_path):
    """For some steps: sooner or later rounding turns the sign of a pixel's difference, and with it L1's gradient."""
    config = exact(request.getfixturevalue(f"{name}_config"), num_steps=3)
    source = request.getfixturevalue("shards" if name == "autoencoder" else "latents")
    for count in (1, 2):
        Launched(count, TRAIN[name], config, source, tmp_path / str(count)).wait()
    assert_close(tmp_path / "1", tmp_path / "2")


def test_batchnorm_over_two_processes_is_batchnorm_of_the_whole_batch(tmp_path):
    Launched(2, normalize_a_share, tmp_path).wait()
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    norm, x, factor = batchnorm_and_batch()
    y = norm(x.requires_grad_())
    (y * factor).sum().backward()
    torch.testing.assert_close(torch.cat([share["y"] for share in shares]), y.detach())
    torch.testing.assert_close(torch.cat([share["x"] for share in shares]), x.grad)
    for share in shares:
        torch.testing.assert_close(share["gradients"], [norm.weight.grad, norm.bias.grad])
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(share["norm"][f"0.{name}"], value)


def test_a_discriminator_on_two_processes_learns_what_it_learns_on_one(tmp_path):
    for count in (1, 2):
        Launched(count, train_a_discriminator, tmp_path / f"{count}.pt").wait()
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_without_rounding_two_processes_train_what_one_trains(name, request, tmp_path):
    """With LPIPS and discriminator too: nothing but rounding grows, in L1's sign and in BatchNorm of flat pictures."""
    config = replace(request.getfixturevalue(f"{name}_config"), precision="fp64", num_steps=8, save_every=8)
    if name == "autoencoder":
        config = replace(config, loss=LossWeights(adversarial_start=2), scale_equivariance=0)  # LPIPS needs 24 pixels
    source = request.getfixturevalue("shards" if name == "autoencoder" else "latents")
    for count in (1, 2):
        Launched(count, TRAIN[name], config, source, tmp_path / str(count)).wait()
    assert_close(tmp_path / "1", tmp_path / "2", 1e-9)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(accumulate, unet_config, latents, tmp_path):
    config = exact(unet_config, num_steps=4)
    train_unet(config, latents, tmp_path / "whole")
    train_unet(replace(config, gradient_accumulation_steps=accumulate), latents, tmp_path / "parts")
    assert_close(tmp_path / "whole", tmp_path / "parts")


def test_a_batch_of_pictures_in_parts_gives_the_weights_of_the_whole(autoencoder_config, shards, tmp_path):
    config = exact(
        autoencoder_config, num_steps=4, fold_batchnorm=True
    )  # BatchNorm's statistics would be each part's own
    train_autoencoder(config, shards, tmp_path / "whole")
    train_autoencoder(replace(config, gradient_accumulation_steps=2), shards, tmp_path / "parts")
    assert_close(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_checkpointing_changes_no_bit_of_the_weights(name, request, tmp_path):
    config = replace(request.getfixturevalue(f"{name}_config"), num_steps=2)
    source = request.getfixturevalue("shards" if name == "autoencoder" else "latents")
    TRAIN[name](config, source, tmp_path / "kept")
    TRAIN[name](replace(config, gradient_checkpointing=True), source, tmp_path / "again")
    kept, again = weights(tmp_path / "kept"), weights(tmp_path / "again")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_the_shares_of_a_batch_of_latents_are_the_batch(unet_config, latents):
    whole = LatentBatches(Latents(latents), unet_config.batches, 0.2, Tokenizer())[3]
    shares = [
        LatentBatches(Latents(latents), unet_config.batches, 0.2, Tokenizer(), part)[3]
        for part in (range(0, 2), range(2, 4))
    ]
    for name, field in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), field)


def test_the_shares_of_a_batch_of_crops_are_the_batch_and_read_only_their_pictures(autoencoder_config, shards):
    config, pictures = autoencoder_config.data, Shards(shards)
    whole = CropBatches(pictures, config, 0)[3]
    shares = [CropBatches(pictures, config, 0, part)[3] for part in (range(0, 1), range(1, 4))]
    assert torch.equal(torch.cat(shares), whole)
    read = []

    class Counted(Shards):
        def pictures(self, index):
            read.append(index)
            return super().pictures(index)

    CropBatches(Counted(shards), config, 0, range(0, 2))[3]
    assert len(read) == 1


def test_a_batch_that_cannot_be_divided_is_refused():
    assert list(Processes().local_indices(6, 3)) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(
        ValueError, match="batch_size must be a multiple of processes x gradient_accumulation_steps, got 6 for 1 x 4"
    ):
        Processes().local_indices(6, 4)


def test_fp16_finds_its_scale_and_keeps_it_in_the_state(unet_config, latents, tmp_path):
    train_unet(replace(unet_config, precision="fp16"), latents, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["scaler"]["scale"] > 0
    assert all(x.isfinite().all() for x in state["model"].values())


def test_8_bit_adam_without_its_package_is_a_sentence(unet_config, latents, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ImportError, match='"adamw8bit" needs the package bitsandbytes: pip install bitsandbytes, or take'
    ):
        train_unet(replace(unet_config, optimizer="adamw8bit"), latents, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_model_spread_over_two_processes_trains_what_one_trains(accumulate, unet_config, latents, tmp_path):
    """Stopped and resumed on the way, so that the state in parts is read too."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    config = exact(unet_config, num_steps=4)
    Launched(1, train_unet, config, latents, tmp_path / "one").wait()
    spread, run = replace(config, sharding="fsdp", gradient_accumulation_steps=accumulate), tmp_path / "two"
    kill_after(Launched(2, train_unet, spread, latents, run), run / "state-0000002")
    Launched(2, train_unet, spread, latents, run).wait()
    assert [path.name for path in run.glob("state*")] == ["state-0000004"]
    dcp_to_torch_save(run / "state-0000004", run / "state.pt")
    assert_close(tmp_path / "one", run)
    assert_snapshots_close(tmp_path / "one", run)


def kill_after(launched, path):
    while launched.alive and not path.exists():
        time.sleep(0.002)
    launched.kill()


def assert_snapshots_close(one, other):
    ours, theirs = (read_tensors(run / "snapshot.safetensors")[0] for run in (one, other))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)  # fp16


def test_fp16_and_a_spread_model_are_refused_together(unet_config):
    with pytest.raises(ValueError, match='sharding "fsdp" goes with precision bf16 or fp32 .* got fp16 and adamw'):
        replace(unet_config, sharding="fsdp", precision="fp16")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
        ],
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    ],
    ids=["accelerate", "torchrun"],
)
def test_the_command_line_trains_on_processes_that_others_start(launcher, autoencoder_config, shards, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(replace(autoencoder_config, num_steps=2))))
    command = [
        "t2l",
        "train-autoencoder",
        str(tmp_path / "config.json"),
        "--data",
        str(shards),
        "--run",
        str(tmp_path / "run"),
    ]
    separator = ["--"] if "torch.distributed.run" in launcher else []  # torchrun takes --run for one of its own options
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    start = [sys.executable, "-m", launcher[0], *launcher[1:], "-m", *separator, *command]
    done = subprocess.run(start, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "run/snapshot.safetensors")]
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["processes"] == 2
