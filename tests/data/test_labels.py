import json
import subprocess
import sys

import pytest

from t2l.data.labels import Label, LabelFile, is_held_out, read_labels


def add(path, *labels, kind="mask"):
    with LabelFile(path, kind) as file:
        for key, good, *reason in labels:
            file.add(Label(key=key, kind=kind, good=good, reason=reason[0] if reason else ""))


def found(path, kind="mask"):
    return {key: label.good for key, label in read_labels(path, kind).items()}


def test_labels_come_back_and_the_last_word_counts(tmp_path):
    path = tmp_path / "labels.jsonl"
    add(path, ("a", True), ("b", False, "small"))
    add(path, ("a", False), ("c", True))
    assert found(path) == {"b": False, "a": False, "c": True}


def test_the_kinds_share_a_file_and_do_not_meet(tmp_path):
    path = tmp_path / "labels.jsonl"
    add(path, ("a", True))
    add(path, ("a", False, "object"), kind="inpainting")
    assert found(path) == {"a": True} and found(path, "inpainting") == {"a": False}


def test_what_was_taken_back_is_no_label_and_can_be_said_again(tmp_path):
    path = tmp_path / "labels.jsonl"
    with LabelFile(path, "mask") as file:
        file.add(Label(key="a", kind="mask", good=True))
        file.add(Label(key="b", kind="mask", good=True))
        assert file.take_back().key == "b" and file.take_back().key == "a" and file.take_back() is None
        file.add(Label(key="b", kind="mask", good=False))
    assert found(path) == {"b": False}


def test_what_a_kill_cut_off_is_lost_and_nothing_else(tmp_path):
    """At every byte of the last line."""
    path = tmp_path / "labels.jsonl"
    add(path, ("a", True), ("b", False))
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for length in range(start, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert found(path) == {"a": True}
        add(path, ("c", True))
        assert found(path) == {"a": True, "c": True}


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "labels.jsonl"
    add(path, ("a", True))
    path.write_bytes(path.read_bytes().rstrip())
    add(path, ("b", True))
    assert found(path) == {"a": True, "b": True}


def test_two_labellers_do_not_write_one_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    code = f"from pathlib import Path; from t2l.data.labels import LabelFile; LabelFile(Path({str(path)!r}), 'mask')"
    with LabelFile(path, "mask"):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is being written by another `t2l label`; give this one a file of its own with --out" in result.stderr
    add(path, ("a", True))  # the first has ended


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("{}", "line 1: a label has key, kind and good"),
        ("nonsense", "line 1: it is not JSON"),
        ('{"key": "a", "kind": "mask", "good": 1}', "good must be true, false or null, got 1"),
        (
            '{"key": "a", "kind": "mask", "good": false, "reason": "cohesion"}',
            "reason must be one of incomplete, background, small",
        ),
        ('{"key": "a", "kind": "mask", "good": true, "reason": "small"}', "only a bad sample has a reason"),
        ('{"key": 1, "kind": "mask", "good": true}', "needs a key and a kind"),
        ('{"key": "a", "kind": ["mask"], "good": true}', "needs a key and a kind"),
    ],
)
def test_what_is_no_label_is_named_with_its_line(tmp_path, line, sentence):
    path = tmp_path / "labels.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=sentence):
        read_labels(path, "mask")


def test_a_file_of_something_else_is_left_as_it_is(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("apple,1\npear,2\n")
    with pytest.raises(ValueError, match=r"prices.csv, line 1: it is not JSON"):
        LabelFile(path, "mask")
    assert path.read_text() == "apple,1\npear,2\n"


def test_a_source_is_held_out_always_or_never():
    sides = {name: is_held_out([name]) for name in map(str, range(400))}
    assert 70 < sum(sides.values()) < 130 and sides == {name: is_held_out([name, name]) for name in sides}
    kept, trained = (next(name for name, side in sides.items() if side is wanted) for wanted in (True, False))
    assert is_held_out([kept, trained]) is None


def test_a_label_is_one_line_of_json(tmp_path):
    add(tmp_path / "labels.jsonl", ("naïve\nkey", True))
    (line,) = (tmp_path / "labels.jsonl").read_text().splitlines()
    assert json.loads(line) == {"good": True, "key": "naïve\nkey", "kind": "mask", "reason": ""}
