"""What people and disks do to a run: one sentence each, and the same folder goes on."""

import errno
import os
import pickle
import resource
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from t2l.io import atomic
from t2l.io.checkpoint import read_metadata
from t2l.model.text2layer import load_autoencoder
from t2l.training import sharded
from t2l.training.loop import TrainingStopped
from t2l.training.processes import Processes
from t2l.training.run import Run
from t2l.training.train_autoencoder import AutoencoderTask, train_autoencoder
from t2l.training.train_unet import train_unet

TRAIN = {"autoencoder": train_autoencoder, "unet": train_unet}


def checkpoint(kind, path):
    """A file that no run can start from."""
    names = {
        "a Stable Diffusion XL checkpoint": "conditioner.embedders.0.transformer.text_model.x",
        "a LoRA": "lora_unet_down_blocks_0.lora_up.weight",
    }
    save_file({names.get(kind, "model.diffusion_model.x"): torch.zeros(100)}, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if kind == "a pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    return path


@pytest.mark.parametrize("kind", ["a Stable Diffusion XL checkpoint", "a LoRA", "truncated", "a pickle"])
@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_a_base_checkpoint_of_another_kind_is_a_sentence_and_the_folder_takes_any_config(
    name, kind, request, shards, latents, tmp_path
):
    config, source = request.getfixturevalue(f"{name}_config"), {"autoencoder": shards, "unet": latents}[name]
    base, run = checkpoint(kind, tmp_path / "base.safetensors"), tmp_path / "run"
    with pytest.raises(ValueError, match=rf"base.safetensors is {kind}") as raised:
        TRAIN[name](config, source, run, init=base)
    assert "\n" not in str(raised.value)
    Run(run, replace(config, lr=config.lr / 2), Processes())  # nothing was trained, so nothing holds it to the first


@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_a_disk_that_fills_during_a_snapshot_costs_no_step(name, request, shards, latents, tmp_path, monkeypatch):
    """The snapshot of the last step once was never written, when the state before it had been."""
    config = replace(request.getfixturevalue(f"{name}_config"), num_steps=4)
    source = {"autoencoder": shards, "unet": latents}[name]
    sync, seen = atomic._sync, []

    def full(path):
        seen.append(path.name.startswith(".snapshot"))
        if seen[-1] and sum(seen) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    sentence = "the snapshot of step 4 cannot be written, is the disk full.*No space left on device.*make room and run"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=sentence):
        patch.setattr(atomic, "_sync", full)
        TRAIN[name](config, source, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2
    assert not list((tmp_path / "run").glob(".*.partial"))
    snapshot = TRAIN[name](config, source, tmp_path / "run")
    assert read_metadata(snapshot)["steps"] == "4"


def test_a_disk_that_fills_during_the_log_is_a_sentence(unet_config, tmp_path):
    run = Run(tmp_path, unet_config, Processes())
    (tmp_path / "stats.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="the log of step 7 cannot be written, is the disk full.*No space left on device"):
        run.log({"step": 7, "loss": 1.0})


def test_losses_that_are_not_numbers_stop_a_run_that_then_goes_on(autoencoder_config, shards, tmp_path, monkeypatch):
    config, step = replace(autoencoder_config, num_steps=10), AutoencoderTask.step

    def poisoned(self, batch, number):
        return step(self, batch * float("nan") if number >= 3 else batch, number)

    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingStopped, match="in 5 steps in a row, before or at step 8"),
    ):
        patch.setattr(AutoencoderTask, "step", poisoned)
        train_autoencoder(config, shards, tmp_path)
    snapshot = train_autoencoder(config, shards, tmp_path)
    assert all(bool(x.isfinite().all()) for x in load_autoencoder(snapshot).state_dict().values())


def test_the_folder_of_another_training_and_a_damaged_config_are_named(
    autoencoder_config, unet_config, shards, latents, tmp_path
):
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    with pytest.raises(ValueError, match="belongs to another config: .*class"):
        train_autoencoder(autoencoder_config, shards, tmp_path)
    for text, sentence in (
        ('{"steps":', "config.json is not JSON.*write the config of this run there"),
        ("[]", "must hold one JSON object, got a list"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            train_autoencoder(autoencoder_config, shards, tmp_path)


def test_a_whole_state_and_a_spread_one_are_not_taken_for_a_start(unet_config, latents, tmp_path):
    """One process once began again where several had stopped, and wrote over their snapshot and log."""
    train_unet(replace(unet_config, num_steps=2), latents, tmp_path)
    before, run = (tmp_path / "stats.jsonl").read_bytes(), Run(tmp_path, replace(unet_config, num_steps=2), Processes())
    with pytest.raises(ValueError, match="the state of one process, which several .* cannot go on from: start one"):
        run.load_state(dict)
    (tmp_path / "state.pt").rename(tmp_path / "state-0000002")
    with pytest.raises(ValueError, match="spread over several processes, which one cannot go on from: start as many"):
        run.load_state()
    assert (tmp_path / "stats.jsonl").read_bytes() == before


@pytest.fixture
def group(tmp_path):
    """A group of one process: what is spread needs one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_spread_state_that_cannot_be_written_or_read_is_a_sentence(group, unet_config, tmp_path):
    run = Run(tmp_path / "run", unet_config, Processes())
    run.save_state({"step": 2, "x": torch.ones(10_000)}, is_sharded=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="the state of step 4 cannot be written, is the disk full"):
            run.save_state({"step": 4, "x": torch.ones(10_000)}, is_sharded=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = sharded.load(lambda: {"step": 0, "x": torch.zeros(10_000)}, tmp_path / "run")
    assert found["step"] == 2 and bool((found["x"] == 1).all())
    (tmp_path / "run" / "state-0000002" / ".metadata").write_bytes(b"cut")
    with pytest.raises(ValueError, match="state-0000002 cannot be read .*remove it to start this run again"):
        sharded.load(lambda: {"step": 0, "x": torch.zeros(10_000)}, tmp_path / "run")
