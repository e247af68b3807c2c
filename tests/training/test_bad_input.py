"""What people and disks do to a run: one sentence each, and the same folder goes on."""

import errno
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from t2l.data.crops import CropBatches
from t2l.io import atomic
from t2l.io.checkpoint import read_metadata
from t2l.model.text2layer import load_autoencoder
from t2l.training.loop import TrainingStopped
from t2l.training.processes import Processes
from t2l.training.run import Run
from t2l.training.train_autoencoder import train_autoencoder
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


@pytest.mark.parametrize(("name", "earlier"), [("autoencoder", 0), ("unet", 1)])
def test_a_disk_that_fills_during_a_snapshot_costs_no_step(
    name, earlier, request, shards, latents, tmp_path, monkeypatch
):
    """The snapshot of the last step once was never written, when the state before it had been."""
    config = replace(request.getfixturevalue(f"{name}_config"), steps=4)
    source = {"autoencoder": shards, "unet": latents}[name]
    sync, seen = atomic._sync, []

    def full(path):
        seen.append(path.name.startswith(".snapshot"))
        if seen[-1] and sum(seen) > earlier:
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
    config, read = replace(autoencoder_config, steps=10), CropBatches.__getitem__

    def poisoned(self, step):
        return read(self, step) * (float("nan") if step >= 3 else 1)

    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingStopped, match="in 5 steps in a row, the last at step 7"),
    ):
        patch.setattr(CropBatches, "__getitem__", poisoned)
        train_autoencoder(config, shards, tmp_path)
    snapshot = train_autoencoder(config, shards, tmp_path)
    assert all(bool(x.isfinite().all()) for x in load_autoencoder(snapshot).state_dict().values())


def test_the_folder_of_another_training_and_a_damaged_config_are_named(
    autoencoder_config, unet_config, shards, latents, tmp_path
):
    train_unet(replace(unet_config, steps=1), latents, tmp_path)
    with pytest.raises(ValueError, match="belongs to another config: .*class"):
        train_autoencoder(autoencoder_config, shards, tmp_path)
    for text, sentence in (('{"steps":', "config.json is damaged"), ("[]", "should hold a config and holds a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            train_autoencoder(autoencoder_config, shards, tmp_path)
