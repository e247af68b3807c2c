"""Both training loops: the loss falls, the snapshot is usable, bad steps and folders are refused."""

import copy
import json
import time
from dataclasses import replace

import pytest
import torch

from t2l.data.batches import LatentBatches
from t2l.data.crops import crop_batches, pixels_from_bytes
from t2l.data.latents import Latents
from t2l.data.shards import Shards
from t2l.layers import Layers
from t2l.model.text2layer import Text2Layer, load_autoencoder
from t2l.model.tokenizer import Tokenizer
from t2l.training import train_autoencoder as autoencoder_room
from t2l.training import train_unet as unet_room
from t2l.training.loop import Meter, TrainingStopped, learning_rate, update_ema
from t2l.training.losses import LossWeights
from t2l.training.processes import Processes
from t2l.training.train_autoencoder import train_autoencoder
from t2l.training.train_unet import train_unet
from t2l.training.update import Guard


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def test_the_autoencoder_learns_its_pictures(autoencoder_config, shards, tmp_path):
    config = replace(autoencoder_config, num_steps=60, lr=3e-3, scale_equivariance=0.0)
    train_autoencoder(config, shards, tmp_path)
    rows = stats(tmp_path)
    assert rows[-1]["total"] < 0.6 * rows[0]["total"]


def test_all_losses_at_once_train_the_discriminator_too(autoencoder_config, shards, tmp_path):
    pytest.importorskip("stlpips_pytorch")
    loss = LossWeights(lpips=0.5, adversarial=0.5, adversarial_start=1)
    data = replace(autoencoder_config.data, crop=64)
    train_autoencoder(
        replace(autoencoder_config, loss=loss, data=data, scale_equivariance=0.0, num_steps=3), shards, tmp_path
    )
    rows = stats(tmp_path)
    assert rows[0]["discriminator"] == 0 and rows[-1]["discriminator"] > 0
    assert "foreground_lpips" in rows[-1]


def test_scaled_latents_of_a_finished_autoencoder_have_unit_variance(autoencoder_config, shards, tmp_path):
    model = load_autoencoder(train_autoencoder(autoencoder_config, shards, tmp_path))
    batches = crop_batches(Shards(shards), autoencoder_config.data, 1, 0, 64, 0)
    with torch.no_grad():
        means = torch.cat([model.encode(Layers.from_stacked(pixels_from_bytes(batch))).mean for batch in batches])
    scaled = means * model.config.latent_scale
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.02, atol=0)
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.02)


def test_a_frozen_encoder_keeps_its_latents(autoencoder_config, shards, tmp_path):
    first = train_autoencoder(autoencoder_config, shards, tmp_path / "first")
    frozen = replace(autoencoder_config, freeze_encoder=True, scale_equivariance=0.0)
    second = train_autoencoder(frozen, shards, tmp_path / "second", init=first)
    before, after = load_autoencoder(first).state_dict(), load_autoencoder(second).state_dict()
    kept = [name for name in before if name.startswith(("encoder", "quant_conv", "post_quant_conv"))]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["decoder.conv_in.weight"], after["decoder.conv_in.weight"])


def test_noise_on_latents_is_a_share_of_their_size_and_adds_to_the_posteriors_own(autoencoder_config, monkeypatch):
    trainer = autoencoder_room.AutoencoderTask(replace(autoencoder_config, latent_noise=0.5), Processes())
    layers = Layers.from_stacked(torch.rand(4, 7, 32, 32))
    decoded = []
    monkeypatch.setattr(trainer.model, "decode", lambda latents, clamp: decoded.append(latents))
    network = autoencoder_room.Reconstruction(trainer.model)
    noise, extra = trainer._noise(layers, 3)
    with torch.no_grad():
        posterior, _ = network(layers, noise, extra, False)
        network(layers, noise, torch.zeros_like(extra), False)
    added = extra.flatten() * posterior.mean.square().mean(dim=(1, 2, 3)).sqrt()
    std = (posterior.std.square() + added.square().view(-1, 1, 1, 1)).sqrt()
    torch.testing.assert_close(decoded[0], posterior.mean + std * noise)
    torch.testing.assert_close(decoded[1], posterior.mean + posterior.std * noise)
    shares = torch.cat([trainer._noise(layers, step)[1] for step in range(100)])
    assert shares.min() >= 0 and 0.4 < shares.square().mean().sqrt() < 0.6  # 0.5 |n|, n ~ N(0, 1)


def test_the_unet_learns_and_its_snapshot_loads(unet_config, latents, tmp_path):
    seen = []
    config = replace(unet_config, num_steps=60, save_every=30)
    snapshot = train_unet(
        config, latents, tmp_path, sample=lambda model, prompts, path: seen.append((prompts, path.name))
    )
    rows = stats(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert seen == [(["a cup on a table"] * 4, f"00000{step}.png") for step in (30, 60)]
    assert (tmp_path / "samples/true.png").exists()
    model = Text2Layer.load(snapshot)
    assert model.info["steps"] == "60" and len(model.latent_rgb_factors) == 4
    assert set(model.text_encoder.config.token_ids) >= {49406, 49407}


def test_another_run_goes_on_from_a_snapshot(unet_config, latents, tmp_path):
    snapshot = train_unet(replace(unet_config, num_steps=30, save_every=30), latents, tmp_path / "first")
    train_unet(replace(unet_config, num_steps=1, lr=1e-9), latents, tmp_path / "second", init=snapshot)
    ours, theirs = (
        Text2Layer.load(p).unet.conv_in.weight for p in (snapshot, tmp_path / "second/snapshot.safetensors")
    )
    torch.testing.assert_close(ours, theirs)


def test_a_batch_is_a_function_of_seed_and_step(unet_config, latents):
    batches, again = (LatentBatches(Latents(latents), unet_config.batches, 0.18215, Tokenizer()) for _ in range(2))
    batches[0]
    for ours, theirs in zip(batches[7], again[7], strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(batches[7].noise, batches[8].noise)


def test_captions_are_dropped_and_words_unlearnt_at_the_rates_asked_for(unet_config, latents):
    config = replace(unet_config, batch_size=400, cond_drop_prob=0.25, unknown_word=0.1)
    batches = LatentBatches(Latents(latents), config.batches, 0.18215, Tokenizer())
    tokens = torch.cat([batches[step].text for step in range(5)])
    dropped = (tokens == batches.tokenize([""])).all(dim=1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.04)
    kept = tokens[~dropped]
    words = (kept < 49406).float().sum()
    assert (kept == 0).sum() / words == pytest.approx(0.1, abs=0.03)


def test_a_folder_of_another_config_is_refused(unet_config, latents, tmp_path):
    train_unet(replace(unet_config, num_steps=1), latents, tmp_path)
    with pytest.raises(ValueError, match="belongs to another config: lr, num_steps differ; take another folder"):
        train_unet(replace(unet_config, lr=1.0), latents, tmp_path)


def test_a_damaged_state_is_named_and_the_snapshot_stays(unet_config, latents, tmp_path):
    config = replace(unet_config, num_steps=2)
    train_unet(config, latents, tmp_path)
    (tmp_path / "state.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="state.pt cannot be read .* remove it to start this run again"):
        train_unet(config, latents, tmp_path)
    Text2Layer.load(tmp_path / "snapshot.safetensors")


def test_an_unfinished_latent_cache_names_the_command(latents, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no latent cache; make one with `t2l cache-latents`"):
        Latents(tmp_path)
    (tmp_path / "cache.json").write_text((latents / "cache.json").read_text())
    with pytest.raises(ValueError, match=r"unfinished, 1 of 1 files are missing \(first 000000.safetensors\)"):
        Latents(tmp_path)


def test_a_step_that_is_not_finite_is_skipped_and_counted(unet_config, latents, tmp_path, monkeypatch):
    draw = LatentBatches.__getitem__

    def poisoned(self, step):
        batch = draw(self, step)
        return batch._replace(latents=batch.latents * float("nan")) if step == 2 else batch

    monkeypatch.setattr(LatentBatches, "__getitem__", poisoned)
    snapshot = train_unet(unet_config, latents, tmp_path)
    assert stats(tmp_path)[-1]["skipped"] == 1
    assert Text2Layer.load(snapshot).unet.conv_in.weight.isfinite().all()


def test_a_step_that_is_not_finite_changes_nothing_not_even_what_the_discriminator_has_seen(autoencoder_config):
    loss = LossWeights(lpips=0, adversarial=0.5, adversarial_start=0)
    config = replace(autoencoder_config, loss=loss, scale_equivariance=0.0)
    trainer = autoencoder_room.AutoencoderTask(config, Processes())
    good = torch.rand(4, 7, 64, 64, generator=torch.Generator().manual_seed(0))
    bad = good * float("nan")
    trainer.step(good, 0)
    before = copy.deepcopy(trainer.state(1))
    assert not trainer.step(bad, 1).finite and trainer.update.guard.skipped == 1
    after = trainer.state(1)
    for part in ("model", "ema", "discriminator"):
        assert all(torch.equal(x, before[part][name]) for name, x in after[part].items())
    assert trainer.step(good, 1).values["discriminator"].isfinite()
    assert not torch.equal(trainer.discriminator.main[3].running_mean, before["discriminator"]["main.3.running_mean"])


def test_five_bad_steps_in_a_row_stop_the_run_with_a_sentence(unet_config, latents, tmp_path, monkeypatch):
    monkeypatch.setattr(unet_room, "add_noise", lambda *inputs: inputs[0] * float("inf"))
    with pytest.raises(TrainingStopped, match="not finite in 5 steps in a row, before or at step 5"):
        train_unet(unet_config, latents, tmp_path)


def test_four_bad_steps_and_a_good_one_do_not_stop_it_and_five_do():
    guard, no = Guard(torch.device("cpu")), torch.tensor(False)
    for step in range(15):
        guard.note(torch.tensor(step % 5 == 0), excused=no)
    guard.note(no, excused=~no)  # an overflow of fp16 says nothing about the run
    guard.check(16)
    assert guard.skipped == 13
    guard.note(no, excused=no)
    guard.note(~no, excused=no)
    with pytest.raises(TrainingStopped, match="5 steps in a row, before or at step 17"):
        guard.check(17)


def test_the_learning_rate_rises_linearly_and_falls_like_a_cosine():
    rates = [learning_rate(step, 110, 1.0, 10, floor=0.1) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1) and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)


def test_ema_is_a_weighted_mean_of_weights_and_of_the_statistics_that_belong_to_them():
    ema, model, yes = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2), torch.tensor(True)
    torch.nn.init.constant_(model.weight, 3.0)
    model.running_mean.fill_(4.0)
    model.num_batches_tracked.fill_(7)
    update_ema(ema, model, decay=0.75, step=1000, finite=yes)
    assert ema.weight.tolist() == pytest.approx([1.5, 1.5])
    assert ema.running_mean.tolist() == [1.0, 1.0] and ema.num_batches_tracked == 7
    before = copy.deepcopy(ema.state_dict())
    update_ema(ema, model, decay=0.75, step=1001, finite=~yes)
    assert all(torch.equal(x, before[name]) for name, x in ema.state_dict().items())


def test_the_meter_counts_the_time_spent_waiting_and_leaves_skipped_steps_out():
    def slow():
        for item in (1.0, 3.0, float("nan")):
            time.sleep(0.02)
            yield torch.tensor(item)

    meter = Meter()
    for item in meter.timed(slow()):
        meter.add({"item": item}, finite=item.isfinite())
    means = meter.flush()
    assert means["item"] == 2.0
    assert means["data_wait"] > 0.8
    meter.add({"item": torch.tensor(float("inf"))}, finite=torch.tensor(False))
    assert "item" not in meter.flush()
