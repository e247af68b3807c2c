"""`t2l pack` and `t2l stats` as people call them, and training on several of their folders."""

import json

import pytest
from PIL import Image

from t2l import cli
from t2l.compositing.stack import Stack
from t2l.data.shards import Shards
from t2l.io.layer_file import save_layer_file
from tests.data.test_pack import picture
from tests.data.test_pack_layers import CUP, SIGN, SKY, layer
from tests.data.test_pack_names import write_files


def t2l(capsys, *words, code=0):
    """What a command says on stderr, line by line."""
    assert cli.main([str(word) for word in words]) == code
    return capsys.readouterr().err.splitlines()


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_files(tmp_path / "in", [f"{part}/{number}.png" for part in ("fg", "bg", "mask")], None)
    rows = "".join(f"bg\\{number}.png,a cup {number}\r\n" for number in range(3))
    (tmp_path / "in" / "metadata.csv").write_text("\ufefffile_name,text\r\n" + rows, "utf-8", newline="")
    return tmp_path / "in"


def test_folders_of_parts_with_a_csv_of_windows_become_shards_and_a_sheet(folder, tmp_path, capsys):
    said = t2l(capsys, "pack", folder, "--out", tmp_path / "out", "processes=1")
    assert said[-1] == "3 pictures to train on, 0 for validation, 0 skipped"
    assert Shards(tmp_path / "out" / "train")[2].caption == "a cup 2"
    with Image.open(tmp_path / "out" / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > 3 * 160


def test_faults_are_one_line_with_their_numbers(folder, tmp_path, capsys):
    Image.new("L", (72, 64), 1).save(folder / "mask" / "0.png")
    (folder / "1.txt").write_text("cup " * 90)
    said = t2l(capsys, "pack", folder, "--out", tmp_path / "out", "processes=1")
    wrong = "1 with a mask that never exceeds 1/255, 1 with more than 77 tokens of caption"
    assert said[-1].startswith(f"t2l: note: {wrong}; {tmp_path / 'out' / 'notes.txt'} says which")


def test_a_shard_that_is_out_of_date_is_named_and_packed_again(folder, tmp_path, capsys):
    command = ("pack", folder, "--out", tmp_path / "out", "processes=1")
    t2l(capsys, *command)
    picture("lime").save(folder / "fg" / "1.png")
    said = t2l(capsys, *command)
    assert said[0].startswith("train/000000.tar is out of date") and said[1] == "train/000000.tar is packed (1 of 1)"
    assert Shards(tmp_path / "out" / "train")[1].layers.foreground[0, 1].mean() > 0.9
    assert len(t2l(capsys, *command)) == 1


def test_a_layer_is_chosen_by_its_name(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    stack = (layer("sky", SKY), layer("1.0", CUP, (20, 20, 50, 50)), layer("sign", SIGN, (0, 0, 9, 9)))
    save_layer_file(Stack(64, 72, stack), tmp_path / "in" / "a.psd")
    (tmp_path / "in" / "a.txt").write_text("a cup")
    t2l(capsys, "pack", tmp_path / "in", "--out", tmp_path / "out", "--layer", "1.0", "processes=1")
    found = Shards(tmp_path / "out" / "train")[0].layers
    assert found.mask.sum() == 900 and found.background[0, 2, 2, 2] < 0.2
    said = t2l(capsys, "pack", tmp_path / "in", "--out", tmp_path / "out", "--layer", "sign", "processes=1", code=2)
    assert "options (foreground_layer differ)" in said[-1]


def test_stats_write_a_page_and_numbers_beside_the_shards(folder, tmp_path, capsys):
    t2l(capsys, "pack", folder, "--out", tmp_path / "out", "--validation", 1, "processes=1")
    assert t2l(capsys, "stats", tmp_path / "out")[-1] == "3 pictures; the median caption has 5 tokens"
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["splits"] == {"train": 2, "validation": 1} and found["mask_pieces"]["0.5"] == {"1": 3}
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert "there are no shards" in t2l(capsys, "stats", tmp_path / "in", code=2)[-1]


def test_several_data_sets_are_trained_on_and_others_refused(folder, tmp_path, capsys):
    for name in ("a", "b"):
        t2l(capsys, "pack", folder, "--out", tmp_path / name, "processes=1")
    model = {
        "base_channels": 32,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "norm": "none",
        "head_channels": 8,
    }
    config = {
        "model": model,
        "data": {"batch_size": 2, "crop": 16},
        "steps": 1,
        "workers": 0,
        "loss": {"adversarial": 0, "lpips": 0},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    a, b = tmp_path / "a" / "train", tmp_path / "b" / "train"
    held_out = ("--validation", a, "--validation", b)
    command = ("train-autoencoder", tmp_path / "c.json", "--run", tmp_path / "run", *held_out, "--device", "cpu")
    t2l(capsys, *command, "--data", a, "--data", f"{b}:3")
    t2l(capsys, *command, "--data", a, "--data", f"{b}:3")
    said = t2l(capsys, *command, "--data", a, "--data", f"{b}:2", code=2)
    assert "was trained with another --data, which is another one now" in said[-1]
