"""`t2l generate --keep-background` and `--keep-foreground`: the kept layer comes out as it was, or one sentence."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from t2l import cli
from tests.model.test_text2layer import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny checkpoint, a photograph, a cut-out and masks of 96 x 64."""
    folder, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    torch.manual_seed(0)
    tiny().save(folder / "tiny.safetensors", torch.float32)
    photo = Image.fromarray(generator.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    photo.save(folder / "photo.png")
    cutout = photo.convert("RGBA")
    alpha = Image.new("L", photo.size)
    alpha.paste(255, (30, 10, 60, 50))
    cutout.putalpha(alpha)
    cutout.save(folder / "cutout.png")
    alpha.save(folder / "mask.png")
    Image.new("L", photo.size).save(folder / "black.png")
    Image.new("L", (95, 64), 255).save(folder / "other.png")
    return folder


def run(files, out, *options):
    arguments = ["--checkpoint", files / "tiny.safetensors", "--out", out, "--steps", 2, *options]
    return cli.main(["generate", "a cat", *map(str, arguments)])


def pictures(folder, part):
    (path,) = folder.glob(f"*_{part}.png")
    return np.array(Image.open(path))


def test_a_kept_background_of_the_size_that_is_drawn_comes_out_bit_for_bit(files, tmp_path):
    assert run(files, tmp_path, "--keep-background", files / "photo.png", "--size", "96x64") == 0
    assert np.array_equal(pictures(tmp_path, "background"), np.array(Image.open(files / "photo.png")))


@pytest.mark.parametrize("mask", [None, "mask.png"])
def test_a_kept_foreground_and_its_mask_come_out_bit_for_bit_where_it_shows(files, tmp_path, mask):
    given = ["--keep-foreground", files / ("cutout.png" if mask is None else "photo.png")]
    given += [] if mask is None else ["--keep-mask", files / mask]
    assert run(files, tmp_path, *given, "--size", "96x64") == 0
    shown = np.array(Image.open(files / "mask.png"))
    assert np.array_equal(pictures(tmp_path, "mask"), shown)
    photo = np.array(Image.open(files / "photo.png"))
    assert np.array_equal(pictures(tmp_path, "foreground")[shown == 255], photo[shown == 255])


def test_without_a_size_a_kept_picture_is_drawn_in_its_own_shape(files, tmp_path):
    assert run(files, tmp_path, "--keep-background", files / "photo.png") == 0
    height, width = pictures(tmp_path, "background").shape[:2]
    assert abs(width / height - 1.5) < 0.1 and abs(width * height / 256**2 - 1) < 0.1


def test_a_kept_picture_of_another_shape_is_cut_and_that_is_said(files, tmp_path, capsys):
    assert run(files, tmp_path, "--keep-background", files / "photo.png", "--size", 64) == 0
    assert "kept picture of 96 x 64 is cut in the middle to the shape of 64 x 64" in capsys.readouterr().err
    middle = np.array(Image.open(files / "photo.png"))[:, 16:80]
    assert np.array_equal(pictures(tmp_path, "background"), middle)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep-background", "photo.png", "--keep-foreground", "cutout.png"], "leave nothing to paint"),
        (["--keep-mask", "mask.png"], "--keep-mask says where a kept foreground is; give --keep-foreground too"),
        (["--keep-foreground", "photo.png"], "photo.png covers all of the picture"),
        (["--keep-foreground", "photo.png", "--keep-mask", "black.png"], "black.png shows nothing of the foreground"),
        (["--keep-foreground", "photo.png", "--keep-mask", "other.png"], "must be as large as .*96 x 64, got 95 x 64"),
        (["--keep-background", "tiny.safetensors"], "tiny.safetensors"),
        (["--keep-background", "none.png"], "none.png"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence_and_nothing_is_written(files, tmp_path, capsys, options, sentence):
    named = [str(files / word) if "." in word else word for word in options]
    assert run(files, tmp_path / "out", *named) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("t2l: ") and re.search(sentence, line)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
