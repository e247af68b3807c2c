"""Files of strangers: each ends in success or in one sentence that names it, within 5 s and a gigabyte, and starts
nothing.

`make fuzz N=1000 SEED=7` tries as many of each kind; N and SEED are FUZZ_N and FUZZ_SEED in the environment. Files that
were found are kept where FUZZ_KEEP says.
"""

import io
import logging
import os
import random
import shutil
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2l.budget import LAYER_PIXELS
from t2l.compositing.stack import Layer, Stack
from t2l.data.example import Example
from t2l.data.pack import PackConfig, pack
from t2l.data.shards import Shards, write_shard
from t2l.io.file_name import clean_prefix
from t2l.io.layer_file import open_layer_file, save_layer_file
from t2l.io.layer_nodes import Account, Group
from t2l.io.layer_tree import plain_layers
from t2l.layers import Layers
from t2l.model.about import about
from t2l.model.text2layer import load_autoencoder, read_parts
from tests.fuzz import files
from tests.fuzz.trial import run, run_afresh
from tests.io.conftest import varied_stack
from tests.model.test_text2layer import tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="every file gets a fork of its own")]
N, SEED = int(os.environ.get("FUZZ_N", 60)), int(os.environ.get("FUZZ_SEED", 0))
SEEDS = [int(x) for x in os.environ["FUZZ_SEEDS"].split(",")] if "FUZZ_SEEDS" in os.environ else range(SEED, SEED + N)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Good files of each kind, as bytes."""
    folder, stack = tmp_path_factory.mktemp("good"), varied_stack()
    save_layer_file(stack, folder / "8.psd", 8, "layer mask")
    save_layer_file(stack, folder / "16.psd", 16, "transparency")
    save_layer_file(stack, folder / "a.ora")
    tiny().save(folder / "a.safetensors", torch.float32)
    layers = Layers(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64).round())
    write_shard(folder / "shards", 0, [Example(f"{i}", layers, "a cat", "a", "b", {"thing": "c"}) for i in range(3)])
    data = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shard = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    return {
        "psd": [data["8.psd"], data["16.psd"]],
        "ora": [data["a.ora"]],
        "checkpoint": [data["a.safetensors"]],
        "shards": [shard],
        "pictures": [{**layered_pictures(), "b.psd": data["8.psd"], "b.txt": b"a cat", "c.ora": data["a.ora"]}],
    }


def layered_pictures():
    """A picture to pack: foreground, background and mask, and its caption."""
    found = {}
    for name, mode in (("foreground", "RGB"), ("background", "RGB"), ("mask", "L")):
        data = io.BytesIO()
        Image.linear_gradient("L").resize((80, 70)).convert(mode).save(data, "png")
        found[f"a.{name}.png"] = data.getvalue()
    return found | {"a.json": b'{"caption": "a cat", "foreground_caption": "a", "sources": ["x"]}'}


def read_layers(path):
    """The bytes that it takes, by SECURITY.md."""
    file = open_layer_file(path)
    canvas = file.stack.composite().shape[1] * file.stack.width
    return 20 * file.held + 16 * canvas + 2 * path.stat().st_size + (128 << 20)


def read_checkpoint(path):
    for read in (about, read_parts, load_autoencoder):
        read(path)


def read_shards(path):
    shards = Shards(path)
    for i in range(len(shards)):
        shards[i]


def pack_pictures(path):
    pack(PackConfig(processes=1, size=256), path, path.parent / "packed", progress=lambda line: None)


READERS = {
    "psd": read_layers,
    "ora": read_layers,
    "checkpoint": read_checkpoint,
    "shards": read_shards,
    "pictures": pack_pictures,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_file_of_a_stranger_ends_in_success_or_in_one_sentence(good, tmp_path, kind):
    found, ends = {}, {"success": 0, "sentence": 0}
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = getattr(files, kind)(good[kind], folder, random.Random(f"{kind} {seed}"))
        outcome = run(lambda path=path: READERS[kind](path), folder)
        name = "000000" if kind == "shards" and outcome.sentence and "000000" in outcome.sentence else path.name
        ends["success" if outcome.sentence is None else "sentence"] += 1
        if faults := outcome.faults(name):
            found[seed] = "; ".join(faults)
            logging.warning("%s %s: %s", kind, seed, found[seed])
            keep(path, f"{kind}-{seed}")
        shutil.rmtree(folder)
    logging.warning("%s: %s", kind, ends)
    assert not found, "\n".join(f"{kind} {seed}: {faults}" for seed, faults in found.items())


def keep(path, name):
    """What was found, for those who look into it."""
    if target := os.environ.get("FUZZ_KEEP"):
        os.makedirs(target, exist_ok=True)
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, os.path.join(target, f"{name}-{path.name}"), **({"symlinks": True} if path.is_dir() else {}))


@given(st.text(max_size=300))
def test_no_prefix_of_a_file_name_leads_out_of_its_folder(prefix):
    try:
        cleaned = clean_prefix(prefix)
    except ValueError as refusal:
        assert "must stay inside the output folder" in str(refusal)
        return
    parts = cleaned.split("/")
    assert all(part and part != ".." and len(part.encode()) <= 121 and not part.startswith(".") for part in parts)
    assert not {"\0", "\\", ":", "\n"} & set(cleaned)


def test_a_fork_tells_what_happened(tmp_path):
    def crash():
        os._exit(3)

    def write():
        (tmp_path.parent / "elsewhere").write_text("x")

    assert run(lambda: None, tmp_path).faults("x") == []
    assert "crash" in run(crash, tmp_path).faults("x")[0]
    assert "elsewhere" in run(write, tmp_path).faults("x")[0]
    assert "2048 MB" not in run(lambda: bytearray(1 << 20), tmp_path).faults("x")
    assert "MB" in run(lambda: bytearray(b"x") * (3 << 29), tmp_path).faults("x")[0]
    assert "ZeroDivisionError" in run(lambda: 1 / 0, tmp_path).faults("x")[0]
    assert "MB" in run(lambda: len(bytearray(b"x") * (300 << 20)) // 3, tmp_path).faults("x")[0]


SIDE = 4000


def flat(mode="normal", **look):
    """A layer of one colour that fills the canvas: of a few bytes in a file."""
    return Layer(image=torch.full((3, SIDE, SIDE), 0.5), mask=torch.full((1, SIDE, SIDE), 0.5), blend_mode=mode, **look)


@pytest.mark.parametrize("ending", [".psd", ".ora"])
@pytest.mark.parametrize("modes", [["hue"], ["normal", "luminosity", "color dodge"]])
def test_a_layer_file_takes_the_memory_that_is_promised(tmp_path, modes, ending):
    """Also where its blend modes have many steps."""
    path = tmp_path / f"a{ending}"
    run(lambda: save_layer_file(Stack(SIDE, SIDE, tuple(flat(mode) for mode in modes)), path), tmp_path)
    outcome = run_afresh(partial(read_layers, path), tmp_path)
    assert outcome.sentence is None and not outcome.faults("a.psd") and outcome.memory > 16 * len(modes) * SIDE**2


def nested(depth):
    """Groups in one another, each faded, each of which needs what lies below it."""
    upper = flat("multiply"), flat("screen")
    inner = upper if depth == 0 else (nested(depth - 1), *upper)
    return Group(children=inner, pass_through=True, opacity=0.5)


@pytest.mark.parametrize("depth", [0, 1, 30])
def test_groups_in_groups_take_the_memory_that_is_promised_or_are_refused(tmp_path, depth):
    group = nested(min(depth, 1)) if depth < 2 else Group(children=(nested(0),) * depth)

    def merge():
        account = Account("a.psd")
        layers = plain_layers([flat(), group], SIDE, SIDE, account)
        Stack(SIDE, SIDE, tuple(layers)).composite()
        return 20 * account.held + 16 * SIDE**2 + (128 << 20)

    outcome = run(merge, tmp_path, limit=120)
    outcome.seconds = 0  # it is work
    if outcome.sentence:  # groups are counted as they are merged: up to the limit
        outcome.needed = 20 * LAYER_PIXELS.most + 16 * SIDE**2 + (128 << 20)
    assert not outcome.faults("a.psd")
    assert (outcome.sentence is None) == (depth < 2)
