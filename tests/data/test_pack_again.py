"""A packed folder goes on: what changed is packed again, what is new is added, and nothing else moves."""

import json
import os
import shutil

import pytest
from PIL import Image

from t2l.data import pack as room
from t2l.data.pack import PackConfig, pack
from t2l.data.shards import Shards
from tests.data.test_pack import ONE, as_bytes, contents, picture, write_set

THREE = PackConfig(processes=1, shard_size=3, validation=2)
SHARDS = (".tar", ".jsonl")


def write_many(folder, numbers):
    for number in numbers:
        write_set(folder, f"p{number}", f"a cup {number}", foreground=picture((20 * number, 0, 0)))


def again(config, folder, out):
    """Pack, and what was said."""
    said = []
    return pack(config, folder, out, None, said.append), said


def names(out):
    """The pictures of each split by their keys."""
    return {
        split: {found.key(i): found.metadata(i)["sources"][0] for i in range(len(found))}
        for split in ("train", "validation")
        for found in [Shards(out / split)]
    }


def shards(out):
    return {name: data for name, data in contents(out).items() if name.endswith(SHARDS) and "/" in name}


def test_a_picture_repainted_at_the_same_size_is_packed_again_and_one_only_touched_is_not(tmp_path):
    """Names, sizes and captions were compared, so that the shard went on holding the picture from before."""
    (tmp_path / "in").mkdir()
    for part, colour in {"foreground": "red", "background": "blue", "mask": "white"}.items():
        (tmp_path / "in" / f"x.{part}.bmp").write_bytes(as_bytes(picture(colour), "bmp"))
    (tmp_path / "in" / "x.txt").write_text("a thing")
    pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    os.utime(tmp_path / "in" / "x.foreground.bmp", (1, 1))
    assert not again(ONE, tmp_path / "in", tmp_path / "out")[1]
    (tmp_path / "in" / "x.foreground.bmp").write_bytes(as_bytes(picture("lime"), "bmp"))
    said = again(ONE, tmp_path / "in", tmp_path / "out")[1]
    assert said[0].startswith("train/000000.tar is out of date, for one of its pictures or captions was changed")
    found = Shards(tmp_path / "out" / "train")[0].layers.foreground[0, :, 30, 30]
    assert found[1] > 0.9 and found[0] < 0.1


def repaint(folder):
    picture((9, 200, 9)).save(folder / "p4.foreground.png")


def say_otherwise(folder):
    (folder / "p4.txt").write_text("a mug")


def give_a_mask(folder):
    Image.new("L", (72, 64), 77).save(folder / "p4.mask.png")


def break_it(folder):
    (folder / "p4.foreground.png").write_bytes(b"")


@pytest.mark.parametrize("change", [repaint, say_otherwise, give_a_mask, break_it])
def test_what_changed_is_packed_again_in_its_shard_alone_and_ends_as_if_packed_anew(change, tmp_path):
    write_many(tmp_path / "in", range(8))
    pack(THREE, tmp_path / "in", tmp_path / "out", None, str)
    before = {name: os.stat(tmp_path / "out" / name).st_mtime_ns for name in shards(tmp_path / "out")}
    change(tmp_path / "in")
    _, said = again(THREE, tmp_path / "in", tmp_path / "out")
    assert len([line for line in said if "out of date" in line]) == 1 and said[-1].endswith("(1 of 1)")
    touched = {name for name, time in before.items() if os.stat(tmp_path / "out" / name).st_mtime_ns != time}
    assert len({name.split(".")[0] for name in touched}) == 1
    pack(THREE, tmp_path / "in", tmp_path / "new", None, str)
    assert shards(tmp_path / "out") == shards(tmp_path / "new")
    assert not again(THREE, tmp_path / "in", tmp_path / "out")[1]


def test_a_picture_that_was_mended_comes_into_its_shard(tmp_path):
    write_many(tmp_path / "in", range(3))
    good = (tmp_path / "in" / "p1.mask.png").read_bytes()
    (tmp_path / "in" / "p1.mask.png").write_bytes(b"")
    assert pack(ONE, tmp_path / "in", tmp_path / "out", None, str).skipped == 1
    (tmp_path / "in" / "p1.mask.png").write_bytes(good)
    found = pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    assert (found.train, found.skipped) == (3, 0) and not (tmp_path / "out" / "skipped.txt").exists()


def test_a_broken_picture_may_be_taken_away(tmp_path):
    write_many(tmp_path / "in", range(3))
    (tmp_path / "in" / "p1.mask.png").write_bytes(b"")
    pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    before = shards(tmp_path / "out")
    for path in (tmp_path / "in").glob("p1.*"):
        path.unlink()
    assert pack(ONE, tmp_path / "in", tmp_path / "out", None, str).skipped == 0
    assert shards(tmp_path / "out") == before


def test_new_pictures_go_into_new_shards_and_the_others_keep_key_split_and_bytes(tmp_path):
    write_many(tmp_path / "in", range(3, 9))
    pack(THREE, tmp_path / "in", tmp_path / "out", None, str)
    before, splits = shards(tmp_path / "out"), names(tmp_path / "out")
    write_many(tmp_path / "in", [0, 1, 9])  # before, between and after them
    found, said = again(THREE, tmp_path / "in", tmp_path / "out")
    after = shards(tmp_path / "out")
    assert {name: after[name] for name in before} == before and not any("out of date" in line for line in said)
    assert found.train == 7 and found.validation == 2
    now = names(tmp_path / "out")
    assert splits["train"].items() <= now["train"].items() and splits["validation"] == now["validation"]
    assert {key: name for key, name in now["train"].items() if key >= "00000006"} == {
        "00000006": "p0",
        "00000007": "p1",
        "00000008": "p9",
    }


def test_more_are_kept_back_of_the_new_ones_alone(tmp_path):
    write_many(tmp_path / "in", range(6))
    pack(THREE, tmp_path / "in", tmp_path / "out", None, str)
    before = names(tmp_path / "out")
    write_many(tmp_path / "in", range(6, 9))
    config = PackConfig(processes=1, shard_size=3, validation=4)
    assert pack(config, tmp_path / "in", tmp_path / "out", None, str).validation == 4
    now = names(tmp_path / "out")
    assert before["train"].items() <= now["train"].items() and before["validation"].items() <= now["validation"].items()
    for wrong in (1, 5):
        config = PackConfig(processes=1, shard_size=3, validation=wrong)
        with pytest.raises(ValueError, match=f"validation must be from 4 to 4, got {wrong}: of the pictures that"):
            pack(config, tmp_path / "in", tmp_path / "out", None, str)


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_folder_that_grows_in_steps_ends_with_the_same_bytes_however_often_it_is_packed(
    broken_off, tmp_path, monkeypatch
):
    write_many(tmp_path / "in", range(4))
    for out in ("one", "two"):
        pack(THREE, tmp_path / "in", tmp_path / out, None, str)
    write_many(tmp_path / "in", range(4, 9))
    pack(THREE, tmp_path / "in", tmp_path / "one", None, str)
    if broken_off:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(room, "write_shard", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            pack(THREE, tmp_path / "in", tmp_path / "two", None, str)
    pack(THREE, tmp_path / "in", tmp_path / "two", None, str)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("name", ["texts", "content"])
def test_a_report_without_its_hashes_is_named(name, tmp_path):
    write_many(tmp_path / "in", range(2))
    pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    path = tmp_path / "out" / "train" / "000000.report.json"
    path.write_text(json.dumps({key: found for key, found in json.loads(path.read_text()).items() if key != name}))
    with pytest.raises(ValueError, match=r"000000.report.json is damaged; delete it"):
        pack(ONE, tmp_path / "in", tmp_path / "out", None, str)


def test_a_picture_that_is_gone_is_named_and_nothing_is_lost(tmp_path):
    write_many(tmp_path / "in", range(4))
    pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    before = contents(tmp_path / "out")
    (tmp_path / "in" / "p1.background.png").rename(tmp_path / "p1.background.png")
    with pytest.raises(ValueError, match=r"1 of which are gone .* \(first p1: has no background; .*\); put them back"):
        pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    assert contents(tmp_path / "out") == before
    shutil.move(tmp_path / "p1.background.png", tmp_path / "in")
    assert not again(ONE, tmp_path / "in", tmp_path / "out")[1]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "x", "name": "a", "split": "train", "shard": 0}', '{"key": 3}'])
def test_a_damaged_list_of_pictures_is_named(line, tmp_path):
    write_many(tmp_path / "in", range(2))
    pack(ONE, tmp_path / "in", tmp_path / "out", None, str)
    (tmp_path / "out" / "pictures.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"pictures.jsonl (is damaged|is not JSON)"):
        pack(ONE, tmp_path / "in", tmp_path / "out", None, str)


def test_progress_is_told_inside_a_shard(tmp_path, monkeypatch):
    write_many(tmp_path / "in", range(4))
    monkeypatch.setattr(room, "EVERY", 0.0)
    said = again(PackConfig(processes=1, shard_size=3), tmp_path / "in", tmp_path / "out")[1]
    assert "train/000000.tar: 2 of 3 pictures" in said and said[-1].endswith("(2 of 2)")


def test_the_sheet_has_the_same_bytes_and_shows_what_looks_wrong_first(tmp_path):
    write_many(tmp_path / "in", range(3))
    for out in ("one", "two"):
        pack(ONE, tmp_path / "in", tmp_path / out, None, str)
    assert (tmp_path / "one" / "sheet.jpg").read_bytes() == (tmp_path / "two" / "sheet.jpg").read_bytes()
    write_set(tmp_path / "in", "z", mask=picture(1, mode="L"), size=(72, 64))
    pack(ONE, tmp_path / "in", tmp_path / "one", None, str)
    with Image.open(tmp_path / "one" / "sheet.jpg") as one, Image.open(tmp_path / "two" / "sheet.jpg") as two:
        assert one.width > two.width


def test_a_data_set_may_lie_in_the_folder_it_is_packed_from(tmp_path):
    write_many(tmp_path, range(2))
    for _ in range(2):
        found, _ = again(ONE, tmp_path, tmp_path / "out")
        assert (found.train, found.skipped) == (2, 0)
