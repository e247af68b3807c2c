"""The one loop: what it saves and when, what people ask of it while it runs, what devices do to it, and that it never
waits.
"""

import json
import os
import signal
import time
from dataclasses import replace

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from t2l import cli
from t2l.data.crops import CropBatches
from t2l.data.latents import Latents
from t2l.data.shards import Shards
from t2l.io.checkpoint import read_metadata
from t2l.model.precision import computes_in_bf16
from t2l.model.text2layer import load_autoencoder
from t2l.training import fit
from t2l.training.loop import TrainingStopped
from t2l.training.losses import LossWeights, adaptive_weight
from t2l.training.processes import Processes
from t2l.training.train_autoencoder import AutoencoderTask, train_autoencoder
from t2l.training.train_unet import UNetTask, train_unet
from tests.training.run_training import Launched, write_what_is_raised

ADVERSARIAL = LossWeights(lpips=0, adversarial=0.5, adversarial_start=2)


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


class Waits(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a card would have to finish all that it was told."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["autoencoder", "adversarial", "unet"])
def test_a_step_reads_nothing_from_the_device(name, autoencoder_config, unet_config, shards, latents):
    if name == "unet":
        task = UNetTask(unet_config, Processes(), Latents(latents))
        batches = task.batches
    else:
        loss = replace(ADVERSARIAL, adversarial_start=0) if name == "adversarial" else autoencoder_config.loss
        data = replace(autoencoder_config.data, crop=64)
        config = replace(autoencoder_config, loss=loss, data=data, scale_equivariance=0.0)
        task = AutoencoderTask(config, Processes())
        batches = CropBatches(Shards(shards), data, 0)
    task.step(batches[0], 0)  # an optimiser's first step makes its state
    batch = batches[1]
    with Waits() as waits:
        task.step(batch, 1)
    assert waits.count == 0


def test_a_picture_that_cannot_be_drawn_ends_no_run(unet_config, latents, tmp_path):
    def fail(model, prompts, path):
        raise RuntimeError("Expected all tensors to be on the same device")

    said = []
    train_unet(unet_config, latents, tmp_path, sample=fail, tell=said.append)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6
    assert said[0].startswith("the sample of step 2 could not be drawn, the run goes on: RuntimeError: Expected all")


def test_own_prompts_are_drawn_in_place_of_captions(unet_config, latents, tmp_path):
    seen = []
    config = replace(unet_config, num_steps=2, sample_prompts=("a cup", "a spoon"))
    train_unet(config, latents, tmp_path, sample=lambda model, prompts, path: seen.append(prompts))
    assert seen == [["a cup", "a spoon"]]
    assert not (tmp_path / "samples/true.png").exists()


def test_the_same_pictures_are_reconstructed_at_every_save(autoencoder_config, shards, tmp_path):
    config = replace(autoencoder_config, lr=1e-12, lr_warmup_steps=0, fold_batchnorm=True)
    train_autoencoder(config, shards, tmp_path, validation=shards)
    drawn = [path.read_bytes() for path in sorted((tmp_path / "samples").iterdir())]
    assert len(drawn) == 3 and drawn[0] == drawn[1] == drawn[2]


def test_every_save_writes_a_snapshot_that_loads(autoencoder_config, shards, tmp_path, monkeypatch):
    steps, step = [], AutoencoderTask.step

    def watched(self, batch, number):
        path = tmp_path / "snapshot.safetensors"
        steps.append(read_metadata(path)["steps"] if path.exists() else None)
        return step(self, batch, number)

    monkeypatch.setattr(AutoencoderTask, "step", watched)
    load_autoencoder(train_autoencoder(autoencoder_config, shards, tmp_path))
    assert steps == [None, None, "2", "2", "4", "4"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_first_and_goes_on_as_if_it_had_not(sign, unet_config, latents, tmp_path):
    config = replace(unet_config, num_steps=60, save_every=60)
    run, said = tmp_path / "stopped", tmp_path / "said"
    launched = Launched(1, write_what_is_raised, said, train_unet, config, latents, run)
    while launched.alive and not (run / "stats.jsonl").exists():
        time.sleep(0.002)
    os.kill(launched.processes[0].pid, sign)
    launched.wait()
    step = torch.load(run / "state.pt", weights_only=True)["step"]
    assert (
        said.read_text()
        == f"KeyboardInterrupt: stopped after step {step} of 60; {run} holds its state and its snapshot"
    )
    assert read_metadata(run / "snapshot.safetensors")["steps"] == str(step)
    for folder in (run, tmp_path / "whole"):
        Launched(1, train_unet, config, latents, folder).wait()
    ours, theirs = (torch.load(f / "state.pt", weights_only=True)["model"] for f in (run, tmp_path / "whole"))
    assert 0 < step < 60 and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ctrl_c_on_a_terminal_reaches_the_readers_of_pictures_too_and_the_run_saves(
    autoencoder_config, shards, tmp_path
):
    config = replace(autoencoder_config, num_steps=10_000, save_every=10_000, num_workers=1)
    run, said = tmp_path / "run", tmp_path / "said"
    launched = Launched(1, write_what_is_raised, said, train_autoencoder, config, shards, run)
    while launched.alive and not (run / "stats.jsonl").exists():
        time.sleep(0.002)
    process = psutil.Process(launched.processes[0].pid)
    for one in [*process.children(), process]:
        one.send_signal(signal.SIGINT)
    launched.wait()
    assert said.read_text().startswith("KeyboardInterrupt: stopped after step ")
    assert load_autoencoder(run / "snapshot.safetensors")


def test_a_file_called_save_is_answered_with_a_state_and_a_snapshot(unet_config, latents, tmp_path, monkeypatch):
    config, step, found = replace(unet_config, save_every=6), UNetTask.step, []

    def watched(self, batch, number):
        found.append((tmp_path / "snapshot.safetensors").exists())
        if number == 2:
            (tmp_path / "save").touch()
        return step(self, batch, number)

    monkeypatch.setattr(UNetTask, "step", watched)
    train_unet(config, latents, tmp_path)
    assert found == [False] * 3 + [True] * 3
    assert not (tmp_path / "save").exists()


def test_what_changes_no_result_may_change_and_the_rest_with_a_word(unet_config, latents, tmp_path):
    config = replace(unet_config, num_steps=2)
    train_unet(config, latents, tmp_path)
    free = replace(
        config, log_every=2, save_every=1, keep_every=1, gradient_checkpointing=True, sample_prompts=("a cup",)
    )
    train_unet(free, latents, tmp_path)
    longer = replace(free, num_steps=4, lr=5e-4)
    with pytest.raises(
        ValueError, match="belongs to another config: lr, num_steps differ; .* or --accept-changes to go on"
    ):
        train_unet(longer, latents, tmp_path)
    train_unet(longer, latents, tmp_path, accept_changes=True)
    train_unet(longer, latents, tmp_path)  # from now on the new values are the run's
    assert [row["step"] for row in stats(tmp_path)] == [1, 2, 4]
    wider = replace(longer, unet=replace(config.unet, base_channels=64))
    with pytest.raises(ValueError, match="unet differ, which its state depends on; take another folder, with --init"):
        train_unet(wider, latents, tmp_path, accept_changes=True)


def test_other_data_and_another_start_are_refused(unet_config, autoencoder_config, latents, shards, tmp_path):
    start = train_unet(replace(unet_config, num_steps=1), latents, tmp_path / "start")
    run, config = tmp_path / "run", replace(unet_config, num_steps=2)
    train_unet(config, latents, run, init=start)
    moved = tmp_path / "elsewhere.safetensors"
    start.rename(moved)
    train_unet(config, latents, run, init=moved)  # the same file
    with pytest.raises(ValueError, match="with another --init, which is left out now; give the one it was begun with"):
        train_unet(config, latents, run)
    with pytest.raises(ValueError, match="with another --init, which is another one now"):
        train_unet(config, latents, run, init=run / "snapshot.safetensors")
    train_autoencoder(replace(autoencoder_config, num_steps=1), shards, tmp_path / "autoencoder")
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("000000.tar", "000000.jsonl"):
        (fewer / name).write_bytes((shards / name).read_bytes())
    with pytest.raises(ValueError, match="with another --data, which is another one now"):
        train_autoencoder(replace(autoencoder_config, num_steps=1), fewer, tmp_path / "autoencoder")


def test_a_folder_that_never_said_what_it_was_made_from_goes_on_and_says_it_then(unet_config, latents, tmp_path):
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    made_from = config.pop("made_from")
    path.write_text(json.dumps(config))
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    assert json.loads(path.read_text())["made_from"] == made_from


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nto"),
            "step 3 needs more memory than cpu has .*checkpointing",
        ),
        (RuntimeError("CUDA error: unspecified launch failure\nx"), "cpu failed in step 3 .* when it works again"),
    ],
)
def test_a_device_that_fails_is_a_sentence_and_the_run_goes_on(
    error, sentence, unet_config, latents, tmp_path, monkeypatch
):
    step = UNetTask.step

    def failing(self, batch, number):
        if number == 3:
            raise error
        return step(self, batch, number)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match=sentence) as raised:
        patch.setattr(UNetTask, "step", failing)
        train_unet(unet_config, latents, tmp_path)
    assert "\n" not in str(raised.value) and "run the same command again" in str(raised.value)
    train_unet(unet_config, latents, tmp_path)
    assert [row["step"] for row in stats(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_card_that_is_too_small_is_told_what_would_fit(unet_config, latents):
    task = UNetTask(unet_config, Processes(), Latents(latents))
    count = sum(p.numel() for p in task.model.parameters())
    fit.check_memory(task, 20 * count)  # weights, gradients, two moments, EMA of 4 bytes each
    with pytest.raises(ValueError, match=r"need 0.0 GiB and cpu has 0.0 GiB.*what would fit: optimizer=adamw8bit"):
        fit.check_memory(task, 20 * count - 1)
    with pytest.raises(
        ValueError, match="what would fit: sharding=fsdp on 3 such cards, lora_rank=64, a smaller model"
    ):
        fit.check_memory(task, 10 * count)


def test_a_device_that_is_not_there_is_a_sentence(unet_config, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device cuda is not there: torch sees no CUDA card"):
        train_unet(unet_config, latents, tmp_path, device="cuda")


def test_auto_is_bf16_only_where_a_card_has_it_in_hardware(monkeypatch):
    """Cards before Ampere emulate it, and are slower with it than with float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not computes_in_bf16(torch.device("cuda"), "auto")
    assert computes_in_bf16(torch.device("cuda"), "bf16")


def test_a_command_that_is_stopped_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt("stopped after step 3 of 6; run holds its state and its snapshot")

    monkeypatch.setattr("t2l.training.train_unet.train_unet", stopped)
    words = ["train-unet", "configs/demo-unet.json", "--latents", "my latents", "--run", str(tmp_path), "seed=1"]
    assert cli.main(words) == 130
    said = capsys.readouterr().err
    assert said.startswith(
        "t2l: stopped after step 3 of 6; run holds its state and its snapshot; go on with: t2l train-unet"
    )
    assert said.endswith(f"--latents 'my latents' --run {tmp_path} seed=1\n")


def test_the_discriminators_rate_warms_up_from_its_first_step_and_falls_with_the_other(autoencoder_config, shards):
    data = replace(autoencoder_config.data, crop=64)
    config = replace(
        autoencoder_config, loss=ADVERSARIAL, data=data, num_steps=10, lr_warmup_steps=3, scale_equivariance=0.0
    )
    task, batches, rates = AutoencoderTask(config, Processes()), CropBatches(Shards(shards), data, 0), []
    for step in range(10):
        task.step(batches[step], step)
        rates.append(task.discriminator_update.optimizer.param_groups[0]["lr"])
    assert rates[2:] == pytest.approx([min(1, (step - 1) / 3) * task.lr(step) for step in range(2, 10)])
    assert rates[9] < rates[4]


def test_kl_counts_as_much_where_latents_are_halved(autoencoder_config):
    task = AutoencoderTask(autoencoder_config, Processes())
    pixels = torch.rand(2, 7, 32, 32, generator=torch.Generator().manual_seed(0))
    target = task.layers(pixels)
    noise, extra = torch.zeros(2, 4, 16, 16), torch.zeros(2, 1, 1, 1)
    kl = [float(task._losses(target, noise, extra, halved, 0)[1]["kl"]) for halved in (False, True)]
    assert kl[0] == pytest.approx(kl[1]) and kl[0] > 0


def test_an_adaptive_weight_of_tiny_gradients_needs_fp16s_scale():
    weight = torch.full((4, 4), 0.5, requires_grad=True)

    def losses():
        half = (weight.half() @ torch.ones(4, 1).half()).float() * 1e-9  # gradients that float16 rounds to nothing
        return half.sum(), 2 * half.sum()

    scaler = torch.amp.GradScaler("cpu")
    exact = torch.autograd.grad(losses()[0].double() * 1e9, weight)[0].norm() * 1e-9
    found = adaptive_weight(*losses(), weight, scaled=scaler.scale)
    assert float(adaptive_weight(*losses(), weight)) == 0
    assert float(found) == pytest.approx(float(exact / (2 * exact + 1e-4)), rel=1e-2)


@pytest.mark.slow
def test_a_compiled_step_with_a_discriminator_is_the_plain_one(autoencoder_config, shards):
    loss = LossWeights(lpips=0, adversarial=0.5, adversarial_start=0)
    data = replace(autoencoder_config.data, crop=64)
    config = replace(autoencoder_config, loss=loss, data=data, scale_equivariance=0.0, precision="fp32", adam_eps=1e-4)
    values = []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = AutoencoderTask(replace(config, compile=compiled), Processes())
        batches = CropBatches(Shards(shards), data, 0)
        values.append([{k: float(v) for k, v in task.step(batches[i], i).values.items()} for i in range(2)])
    for plain, compiled, rel in zip(*values, (1e-3, 2e-2), strict=True):  # rounding grows in a discriminator
        assert plain == pytest.approx(compiled, rel=rel, abs=1e-4)
