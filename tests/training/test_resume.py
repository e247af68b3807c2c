"""What stops a run, and that it goes on: kills, full disks, dead workers, other processes."""

import json
import random
import resource
import time
from dataclasses import replace

import psutil
import pytest
import torch

from t2l.data.crops import crop_batches
from t2l.data.shards import Shards
from t2l.io.checkpoint import read_tensors
from t2l.model.text2layer import Text2Layer
from t2l.training.configs import UNetTrainConfig
from t2l.training.train_autoencoder import train_autoencoder
from t2l.training.train_unet import train_unet
from tests.training.run_training import Launched, write_what_is_raised

TRAIN = {"autoencoder": train_autoencoder, "unet": train_unet}


def kill_at_a_random_moment(launched, log, draw):
    """SIGKILL to every process of a run, in one of the steps after it logged the next line."""
    seen = None
    while launched.alive:
        lines = log.read_text().count("\n") if log.exists() else 0
        if seen is not None and lines > seen:
            break
        seen = lines if seen is None else min(seen, lines)  # resuming drops lines first
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.2))
    launched.kill()


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def same(one, other):
    """Whether two tensors, or nested states, are the same to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_a_run_killed_five_times_ends_as_an_unbroken_one(name, count, request, tmp_path):
    config = replace(request.getfixturevalue(f"{name}_config"), num_steps=20)
    source = request.getfixturevalue("shards" if name == "autoencoder" else "latents")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    Launched(count, TRAIN[name], config, source, unbroken).wait()
    draw = random.Random(count)
    for _ in range(5):
        kill_at_a_random_moment(Launched(count, TRAIN[name], config, source, broken), broken / "stats.jsonl", draw)
    Launched(count, TRAIN[name], config, source, broken).wait()
    states = [torch.load(run / "state.pt", weights_only=True) for run in (unbroken, broken)]
    assert same(*states)
    assert same(*(read_tensors(run / "snapshot.safetensors")[0] for run in (unbroken, broken)))
    logged = [[(row["step"], row.get("total", row.get("loss"))) for row in stats(run)] for run in (unbroken, broken)]
    assert logged[0] == logged[1]
    assert not list(broken.glob(".*.partial"))


def test_a_state_of_another_number_of_processes_is_refused_or_allowed(unet_config, latents, tmp_path):
    config = replace(unet_config, num_steps=2)
    train_unet(config, latents, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(state | {"processes": 4}, tmp_path / "state.pt")
    with pytest.raises(
        ValueError, match="was trained by 4 processes and there are 1 now; start 4, or add --any-processes"
    ):
        train_unet(config, latents, tmp_path)
    train_unet(config, latents, tmp_path, any_processes=True)


def test_a_folder_of_an_older_version_goes_on(unet_config, latents, tmp_path):
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    del before["gradient_accumulation_steps"], before["diffusion"]["beta_end"]
    was_called = {new: old for old, new in UNetTrainConfig.OLD_NAMES.items()}
    path.write_text(json.dumps({was_called.get(name, name): value for name, value in before.items()}))
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    with pytest.raises(ValueError, match="belongs to another config: gradient_accumulation_steps differ"):
        train_unet(replace(unet_config, num_steps=1, gradient_accumulation_steps=2), latents, tmp_path)
    assert set(json.loads(path.read_text())) & UNetTrainConfig.OLD_NAMES.keys() == set()


def test_a_disk_that_fills_during_a_state_keeps_the_one_before(unet_config, latents, tmp_path):
    train_unet(replace(unet_config, num_steps=4), latents, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "config.json").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(
            OSError, match="the state of step 6 cannot be written, is the disk full.* make room and run"
        ):
            train_unet(unet_config, latents, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "state.pt").read_bytes() == before
    Text2Layer.load(tmp_path / "snapshot.safetensors")
    train_unet(unet_config, latents, tmp_path)
    assert [row["step"] for row in stats(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_dies_is_a_sentence(autoencoder_config, shards, tmp_path):
    config = replace(autoencoder_config, num_steps=10_000, save_every=10_000, num_workers=1)
    said, run = tmp_path / "said", tmp_path / "run"
    launched = Launched(1, write_what_is_raised, said, train_autoencoder, config, shards, run)
    while launched.alive and not (run / "stats.jsonl").exists():
        time.sleep(0.01)
    for worker in psutil.Process(launched.processes[0].pid).children():
        worker.kill()
    launched.wait()
    assert said.read_text().startswith("RuntimeError: a process that reads pictures died, perhaps for want of memory")
    assert "run the same command again to go on from the last state" in said.read_text()


def test_an_unreadable_picture_in_a_worker_is_the_sentence_it_is_without_one(autoencoder_config, shards, tmp_path):
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "000000.tar"
    broken.write_bytes(bytes(broken.stat().st_size))
    with pytest.raises(ValueError, match=r"^shard 000000.tar, key k-00000\d: its .* is unreadable"):
        list(crop_batches(Shards(tmp_path), autoencoder_config.data, 0, 0, 6, workers=1))


def test_snapshots_are_kept_at_the_steps_asked_for(autoencoder_config, unet_config, shards, latents, tmp_path):
    train_unet(replace(unet_config, keep_every=3), latents, tmp_path / "unet")
    train_autoencoder(replace(autoencoder_config, keep_every=3), shards, tmp_path / "autoencoder")
    for run in ("unet", "autoencoder"):
        kept = sorted(path.name for path in (tmp_path / run).glob("snapshot-*"))
        assert kept == ["snapshot-0000003.safetensors", "snapshot-0000006.safetensors"]
        assert (tmp_path / run / kept[-1]).read_bytes() == (tmp_path / run / "snapshot.safetensors").read_bytes()


def test_validation_is_logged_with_every_state_and_falls(autoencoder_config, unet_config, shards, latents, tmp_path):
    train_unet(replace(unet_config, num_steps=40, save_every=20), latents, tmp_path / "unet", validation=latents)
    config = replace(autoencoder_config, num_steps=40, save_every=20, lr=3e-3)
    train_autoencoder(config, shards, tmp_path / "autoencoder", validation=shards)
    for run in ("unet", "autoencoder"):
        rows = [row for row in stats(tmp_path / run) if "validation_loss" in row]
        assert [row["step"] for row in rows] == [20, 40]
        assert rows[1]["validation_loss"] < rows[0]["validation_loss"]


def test_tensorboard_gets_what_is_logged(unet_config, latents, tmp_path):
    pytest.importorskip("tensorboardX")
    train_unet(replace(unet_config, tensorboard=True), latents, tmp_path)
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"gradient_norm" in written and written.count(b"steps_per_second") == 6
