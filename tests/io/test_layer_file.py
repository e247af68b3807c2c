import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2l.compositing.stack import Stack
from t2l.io.file_name import clean_prefix
from t2l.io.layer_file import open_layer_file, save_layer_file, save_png_set
from t2l.layers import Layers
from tests.io.conftest import noise, varied_stack

ROOT = Path(__file__).resolve().parents[2]


def two_layers() -> Stack:
    return Stack.from_layers(Layers.from_stacked(noise(1, 7, 24, 32)))


def test_a_png_set_holds_the_layers_their_mask_and_what_is_seen(tmp_path):
    stack = two_layers()
    paths = {p.stem.removeprefix("a_"): open_layer_file(p).stack.layers[0] for p in save_png_set(stack, tmp_path, "a")}
    assert list(paths) == ["foreground", "background", "mask", "cutout", "composite"]
    assert torch.equal(paths["foreground"].image, stack.layers[1].image)
    assert torch.equal(paths["background"].image, stack.layers[0].image)
    assert torch.equal(paths["cutout"].mask, stack.layers[1].mask)
    assert torch.equal(paths["mask"].image[:1], stack.layers[1].mask)
    assert (paths["composite"].image - stack.composite()).abs().max() <= 0.5001 / 255


def test_visible_colours_of_a_cutout_go_on_under_alpha_0(tmp_path):
    """Red on the left, and black where nothing shows: a reader that blends across the edge must not find the black."""
    layer = two_layers().layers[1]
    layer.image[:], layer.mask[:] = 0, 0
    layer.image[0, :, :16], layer.mask[:, :, :16] = 1, 1
    save_png_set(Stack(24, 32, (two_layers().layers[0], layer)), tmp_path, "a")
    cutout = np.array(Image.open(tmp_path / "a_cutout.png"))
    assert (cutout[:, 16:, 3] == 0).all() and (cutout[..., :3] == [255, 0, 0]).all()


def test_more_than_two_layers_are_written_one_by_one_too(tmp_path):
    names = [path.name for path in save_png_set(varied_stack(), tmp_path, "a")]
    assert names[4:] == [
        "a_layer01-background.png",
        "a_layer02-Stra-e.png",
        "a_layer03-off-the-canvas.png",
        "a_layer04-top.png",
        "a_composite.png",
    ]
    assert {Image.open(tmp_path / name).size for name in names} == {(60, 40)}


def test_dropping_a_png_on_comfyui_gives_the_graph_back(tmp_path):
    texts = {"prompt": json.dumps({"1": {}}), "workflow": json.dumps({"nodes": []})}
    for path in save_png_set(two_layers(), tmp_path, "a", texts):
        assert Image.open(path).text == texts


@pytest.mark.parametrize("name", ["a.psd", "a.ora"])
def test_the_ending_says_the_format(tmp_path, name):
    save_layer_file(two_layers(), tmp_path / name)
    assert len(open_layer_file(tmp_path / name).stack.layers) == 2


def test_what_cannot_be_written_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(ValueError, match="written as .psd or .ora, got a file name that ends in '.tiff'"):
        save_layer_file(two_layers(), tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="OpenRaster is written with 8 bits per channel, got 16; save as PSD for 16"):
        save_layer_file(two_layers(), tmp_path / "a.ora", depth=16)
    assert not list(tmp_path.iterdir())


WRITE = """
import resource, sys
from pathlib import Path
from t2l.io.layer_file import save_layer_file, save_png_set
from tests.io.conftest import varied_stack
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for write in (
    lambda: save_layer_file(varied_stack(), folder / "a.psd"),
    lambda: save_layer_file(varied_stack(), folder / "a.ora"),
    lambda: save_png_set(varied_stack(), folder, "a"),
):
    try:
        write()
    except OSError as error:
        print(error)
"""


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    """A limit of 4 kB for the size of a file stands for the full disk."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT).stdout.splitlines()
    assert len(said) == 3 and all(line.endswith("cannot be written: File too large") for line in said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.psd", "a.ora"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=f"file/{name} cannot be written"):
        save_layer_file(two_layers(), tmp_path / "file" / name)


@pytest.mark.parametrize(
    ("typed", "clean"),
    [
        ("text2layer/layers", "text2layer/layers"),
        ("a: b*c?.psd", "a-b-c-.psd"),
        ("\u732b/Stra\u00dfe", "\u732b/Stra\u00dfe"),
        ("\U0001f600 cat", "cat"),
        ("\U0001f600", "layers"),
        ("con", "_con"),
        ("LPT1.psd", "_LPT1.psd"),
        (".hidden/./name.", "hidden/name"),
        ("a\\b", "a/b"),
        ("", "layers"),
        ("%width%_%year%", "%width%_%year%"),
        ("x" * 300, "x" * 120),
        ("\u732b" * 300, "\u732b" * 40),
        ("line\nbreak\x00", "line-break"),
    ],
)
def test_any_name_becomes_one_that_every_system_can_hold(typed, clean):
    assert clean_prefix(typed) == clean


@pytest.mark.parametrize("typed", ["../a", "a/../../b", "/etc/a", "\\\\server\\a", "C:\\a", "c:/a"])
def test_a_name_outside_of_the_folder_is_refused(typed):
    with pytest.raises(ValueError, match="must stay inside the output folder, got .*write a name, or folder/name"):
        clean_prefix(typed)


# ---- 500 damaged files


def damaged(data: bytes, generator: torch.Generator) -> bytes:
    """A file with some bytes changed, a length blown up, a piece cut out or repeated, or the end missing."""

    def pick(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    result, kind = bytearray(data), pick(5)
    head = len(result) if pick(2) else min(len(result), 600)  # half of the damage where the structure is
    start = pick(head)
    if kind == 0:
        for _ in range(1 + pick(8)):
            result[pick(head)] = pick(256)
    elif kind == 1:
        result[start : start + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x75\x30", b"\0\0\0\0"][
            pick(4)
        ]
    elif kind == 2:
        del result[start : start + 1 + pick(64)]
    elif kind == 3:
        result[start:start] = result[start : start + 1 + pick(64)]
    else:
        del result[start:]
    return bytes(result)


@pytest.mark.parametrize("ending", ["psd", "ora"])
def test_500_damaged_files_are_read_or_refused_with_little_time_and_memory(tmp_path, ending):
    stack, generator = varied_stack(), torch.Generator().manual_seed(0)
    originals = []
    for i, options in enumerate([{}, {"mask_as": "transparency"}] + ([{"depth": 16}] if ending == "psd" else [])):
        save_layer_file(stack, tmp_path / f"{i}.{ending}", **options)
        originals.append((tmp_path / f"{i}.{ending}").read_bytes())
    path, before, slowest, refused = tmp_path / f"x.{ending}", peak_memory(), 0.0, 0
    for i in range(250):
        path.write_bytes(damaged(originals[i % len(originals)], generator))
        start = time.process_time()
        try:
            open_layer_file(path).stack.composite()
        except ValueError as error:
            refused += 1
            assert f"x.{ending}" in str(error), "the file is named"
        slowest = max(slowest, time.process_time() - start)
    assert refused > 50 and slowest < 5 and peak_memory() - before < 1 << 30


def peak_memory() -> int:
    """Bytes, the most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
