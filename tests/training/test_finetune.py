"""The shipped checkpoint goes on with somebody's own pictures and words, command by command, at the smallest size."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from t2l import cli
from t2l.cli.options import default_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200), "green": (40, 160, 60), "yellow": (220, 200, 50)}
PLACES = {"in the snow": (235, 240, 245), "in a forest": (30, 80, 30)}


def t2l(*argv: object) -> None:
    assert cli.main([str(word) for word in argv]) == 0


def paint(folder: Path) -> None:
    """A quokka of each colour in each place: two balls and an eye, of one's own making."""
    folder.mkdir()
    for number, (colour, place) in enumerate((c, p) for c in COLOURS for p in PLACES):
        rng, side = np.random.default_rng(number), 96
        noise = rng.normal(0, 6, (side, side, 3))
        background = np.clip(np.array(PLACES[place]) + noise, 0, 255).astype(np.uint8)
        foreground, mask = Image.new("RGB", (side, side), COLOURS[colour]), Image.new("L", (side, side))
        for x, y, r in ((40, 60, 26), (62, 34, 16)):
            ImageDraw.Draw(mask).ellipse([x - r, y - r, x + r, y + r], fill=255)
        ImageDraw.Draw(foreground).ellipse([64, 28, 70, 34], fill=(10, 10, 10))
        for name, picture in (("foreground", foreground), ("background", Image.fromarray(background)), ("mask", mask)):
            picture.save(folder / f"{number}.{name}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} quokka {place}")


@pytest.mark.slow
def test_the_shipped_checkpoint_learns_a_word_of_ones_own(tmp_path, capsys):
    shipped, prompt = default_checkpoint(), "a red quokka in the snow"
    draw = ("--size", 64, "--steps", 2, "--out", tmp_path / "drawn")
    assert cli.main(["generate", prompt, "--strict-words", *map(str, draw)]) == 2
    assert "this checkpoint was never trained on 'quokka'" in capsys.readouterr().err
    paint(tmp_path / "pictures")
    t2l("pack", tmp_path / "pictures", "--out", tmp_path / "data")
    latents = tmp_path / "latents"
    t2l("cache-latents", "--checkpoint", shipped, "--data", tmp_path / "data" / "train", "--out", latents, "--size", 64)
    config, run = ROOT / "configs" / "demo-unet-finetune.json", tmp_path / "run"
    quick = (
        "num_steps=60",
        "save_every=20",
        "log_every=20",
        "batch_size=8",
        "lr_warmup_steps=10",
        "lr=5e-4",
        "ema_decay=0.9",
    )
    t2l("train-unet", config, "--latents", latents, "--run", run, "--init", shipped, "--validation", latents, *quick)
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 3 and losses[2] < 0.9 * losses[0]
    t2l("export", "--run", run, "--out", tmp_path / "mine.safetensors")
    t2l("generate", prompt, "--checkpoint", tmp_path / "mine.safetensors", *draw)
    assert "never trained on" not in capsys.readouterr().err
