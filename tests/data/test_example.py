"""Examples and the files they are stored as."""

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from t2l.data.example import PICTURES, Example, decode_example, encode_example
from t2l.layers import Layers


def example(key: str = "a", size: int = 32) -> Example:
    ramp = torch.linspace(0, 1, size).expand(1, 3, size, size)
    mask = torch.arange(size * size).remainder(256).view(1, 1, size, size) / 255
    texts = {"caption": "a red cup on a table", "foreground_caption": "a red cup", "background_caption": "on a table"}
    layers = Layers(ramp, ramp.flip(-1).mT.contiguous(), mask)
    labels = {"thing": "cup", "place": "table", "colour": "red"}
    return Example(key, layers, labels=labels, sources=("x/cup.png",), **texts)


def as_file(kind: str, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, kind)
    return buffer.getvalue()


def test_the_mask_comes_back_exactly_and_colours_closely():
    before = example()
    after = decode_example("a", encode_example(before))
    assert torch.equal((after.layers.mask * 255).round(), (before.layers.mask * 255).round())
    assert (after.layers.foreground - before.layers.foreground).abs().mean() < 0.01
    assert (after.layers.background - before.layers.background).abs().mean() < 0.01


def test_every_word_comes_back():
    before = example()
    after = decode_example("a", encode_example(before))
    assert replace(after, layers=before.layers).__dict__ == before.__dict__


def test_any_label_comes_back_and_those_that_the_first_version_asks_for_are_always_written():
    before = replace(example(), labels={"season": "winter"})
    files = encode_example(before)
    assert decode_example("a", files).labels == before.labels
    assert json.loads(files["json"]).items() >= {"thing": "", "place": "", "colour": None, "season": "winter"}.items()


def test_a_label_is_not_called_as_something_else_in_the_json():
    with pytest.raises(ValueError, match="a label needs another name than sources"):
        encode_example(replace(example(), labels={"sources": "x"}))


def test_the_same_example_gives_the_same_bytes():
    assert encode_example(example()) == encode_example(example())


@pytest.mark.parametrize("name", [*PICTURES, "json"])
def test_a_missing_file_is_named(name):
    files = encode_example(example())
    del files[name]
    with pytest.raises(ValueError, match=f"there is no {name}"):
        decode_example("a", files)


@pytest.mark.parametrize("name", [*PICTURES, "json"])
def test_an_unreadable_file_is_named(name):
    files = encode_example(example()) | {name: b"not a file"}
    with pytest.raises(ValueError, match=f"its {name} is unreadable"):
        decode_example("a", files)


def test_a_truncated_mask_is_named():
    files = encode_example(example())
    files["mask.png"] = files["mask.png"][:-40]
    with pytest.raises(ValueError, match="its mask.png is unreadable"):
        decode_example("a", files)


def test_a_picture_of_another_size_is_named_with_both_sizes():
    files = encode_example(example()) | {"background.webp": as_file("webp", 48)}
    with pytest.raises(ValueError, match="foreground.webp 32 x 32, background.webp 48 x 48, mask.png 32 x 32"):
        decode_example("a", files)


def test_a_caption_that_is_not_there_is_named():
    files = encode_example(example()) | {"json": b'{"caption": "a cup"}'}
    with pytest.raises(ValueError, match="its json has no foreground_caption, background_caption$"):
        decode_example("a", files)


def test_scores_and_licences_travel_with_a_picture_and_leave_others_as_they_were():
    plain = example()
    judged = replace(plain, scores={"mask": 0.75}, licences=("CC0-1.0",))
    stored = encode_example(judged)
    assert decode_example("a", stored).scores == {"mask": 0.75}
    assert decode_example("a", stored).licences == ("CC0-1.0",)
    assert b"scores" not in encode_example(plain)["json"]


@pytest.mark.parametrize(
    "extra", [{"scores": {"mask": "good"}}, {"scores": [1]}, {"licences": "CC0"}, {"licences": [1]}]
)
def test_scores_and_licences_of_other_kinds_are_refused_in_words(extra):
    files = encode_example(example())
    files["json"] = json.dumps(json.loads(files["json"]) | extra).encode()
    with pytest.raises(ValueError, match="its json has"):
        decode_example("a", files)
