"""Data folders, shards and caches from strangers: skipped or refused in a sentence that names the file, and never a
crash.
"""

import json
import os
import re

import pytest
import torch
from PIL import Image

from t2l.data import pack as room
from t2l.data.cache_folder import read_about
from t2l.data.example import CAPTIONS, Example
from t2l.data.latents import Latents, cache_latents
from t2l.data.pack import PackConfig, pack
from t2l.data.shards import Shards, write_shard
from t2l.io.checkpoint import read_tensors, write_tensors
from t2l.layers import Layers

ONE = PackConfig(processes=1)


def write_set(folder, key, size=(72, 64)):
    folder.mkdir(exist_ok=True)
    mask = Image.new("L", size)
    mask.paste(255, (4, 4, 20, 20))
    for part, picture in (("foreground", "red"), ("background", "blue"), ("mask", mask)):
        picture = Image.new("RGB", size, picture) if isinstance(picture, str) else picture
        picture.save(folder / f"{key}.{part}.png", compress_level=1)
    (folder / f"{key}.txt").write_text("a cup")


def skipped(tmp_path, **options):
    """What is said of the pictures that were left out; the good one beside them is packed."""
    write_set(tmp_path / "in", "good")
    pack(ONE, tmp_path / "in", tmp_path / "out", progress=str, **options)
    assert Shards(tmp_path / "out" / "train").metadata(0)["sources"] == ["good"]
    path = tmp_path / "out" / "skipped.txt"
    return path.read_text().splitlines() if path.exists() else []


def example(number, size=16):
    pixels = torch.rand(1, 7, size, size, generator=torch.Generator().manual_seed(number))
    texts = {name: "x" for name in CAPTIONS}
    return Example(f"k{number}", Layers.from_stacked(pixels), **texts)


# ---- pack


def test_a_picture_too_long_for_a_shard_is_skipped_with_its_reason(tmp_path):
    write_set(tmp_path / "in", "long", (170_000, 64))
    assert skipped(tmp_path) == ["long: has 170,000 x 64 pixels; a shard holds 16,383 along a side, or less"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("x"), KeyError("y"), AssertionError("tile"), OSError(5, "no")]
)
def test_whatever_a_decoder_raises_does_not_end_the_run(error, tmp_path, monkeypatch):
    read = room.read_layers

    def failing(source, size):
        if source.name == "bad":
            raise error
        return read(source, size)

    monkeypatch.setattr(room, "read_layers", failing)
    write_set(tmp_path / "in", "bad")
    assert skipped(tmp_path) == [f"bad: cannot be read ({type(error).__name__})"]


def test_pipes_are_named_and_never_waited_for(tmp_path):
    write_set(tmp_path / "in", "a")
    (tmp_path / "in" / "a.mask.png").unlink()
    os.mkfifo(tmp_path / "in" / "a.mask.png")
    os.mkfifo(tmp_path / "in" / "a.json")
    assert "a.mask.png: is a pipe or a device, no file" in skipped(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"caption":' * 50_000, "a.json (is not JSON|has )"),
        ('{"caption": ' + "[" * 200 + "]" * 200 + "}", "a.json has lists or objects in more than 64 levels"),
        ('{"caption": ["' + "x" * 100_000 + '"]}', "has no text for caption in a.json, but "),
        ("x" * (2 << 20), "has a.json of more than 1,048,576 bytes, too large for a caption"),
    ],
)
def test_captions_without_end_are_a_short_reason(text, message, tmp_path):
    write_set(tmp_path / "in", "a")
    (tmp_path / "in" / "a.json").write_text(text)
    (line,) = skipped(tmp_path)
    assert line.startswith("a: ") and len(line) < 300
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1 of .*m.jsonl has"),
        ('{"file_name": 3, "text": "x"}', 'line 1 of .* needs "file_name" and "text", got {"?.file_name'),
        ('{"file_name": "' + "x" * 500_000 + '", "text": 1}', "line 1 of .* needs"),
        ("3", "line 1 of .* should hold an object and holds a number"),
        ("null", "line 1 of .* should hold an object and holds null"),
    ],
)
def test_a_captions_file_of_a_stranger_is_one_short_sentence(line, message, tmp_path):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message) as caught:
        skipped(tmp_path, captions=tmp_path / "m.jsonl")
    assert len(str(caught.value)) < 500


def test_a_captions_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="m.jsonl is a pipe or a device; the captions file must be an ordinary file"):
        skipped(tmp_path, captions=tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", ["config.json", "train/000000.report.json"])
@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"packed": "one"}', "{"])
def test_damaged_files_of_an_earlier_packing_are_named(name, text, tmp_path):
    skipped(tmp_path)
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(ValueError, match=r"(config|report)\.json|other pictures, captions or options"):
        skipped(tmp_path)


def test_a_file_beyond_the_budget_is_skipped_without_being_read(tmp_path):
    write_set(tmp_path / "in", "a")
    os.truncate(tmp_path / "in" / "a.mask.png", 1 << 40)
    assert skipped(tmp_path)[0].startswith("a: has a.mask.png of 1,099,511,627,776 bytes; at most 536,870,912 bytes")


# ---- shards

ROW = json.dumps({"key": "k0", "members": {}, "metadata": {}})
HEADS = {
    "number as text": '{"bytes": "9", "count": 1}',
    "infinite": '{"bytes": Infinity, "count": 1}',
    "no object": "[1, 2]",
    "null": "null",
    "deep": "[" * 100_000,
    "many": '{"bytes": BYTES, "count": 1000000000000}',
    "below 0": '{"bytes": BYTES, "count": -1}',
    "long": " " * (3 << 20),
    "no UTF-8": "\udcff{",
}


@pytest.mark.parametrize("case", HEADS)
def test_the_first_line_of_an_index_is_checked(case, tmp_path):
    write_shard(tmp_path, 0, [example(0)])
    size = (tmp_path / "000000.tar").stat().st_size
    text = HEADS[case].replace("BYTES", str(size)) + "\n" + ROW + "\n"
    (tmp_path / "000000.jsonl").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match="000000.*(is unreadable|cannot hold|should have)") as caught:
        Shards(tmp_path)
    assert len(str(caught.value)) < 400 and "codec" not in str(caught.value)


ROWS = {
    "key": {"key": 3},
    "members as list": {"members": [1]},
    "members as text": {"members": "mask.png"},
    "place": {"members": {"mask.png": [0, "9"]}},
    "one number": {"members": {"mask.png": [0]}},
    "no numbers": {"members": {"mask.png": []}},
    "three numbers": {"members": {"mask.png": [0, 1, 2]}},
    "below 0": {"members": {"mask.png": [-5, 9]}},
    "far": {"members": {"mask.png": [0, 2**40]}},
    "huge": {"members": {"mask.png": [10**40, 1]}},
    "metadata": {"metadata": 3},
    "caption": {"metadata": {"caption": 3}},
    "hash": {"sha256": 3},
}


@pytest.mark.parametrize("case", ROWS)
def test_every_line_of_an_index_is_checked(case, tmp_path):
    write_shard(tmp_path, 0, [example(0)])
    index = tmp_path / "000000.jsonl"
    head, row = index.read_text().splitlines()
    index.write_text(head + "\n" + json.dumps(json.loads(row) | ROWS[case]) + "\n")
    with pytest.raises(ValueError, match="the index 000000.jsonl of shard 000000.tar is unreadable(?!.*unpack)"):
        Shards(tmp_path)[0]


@pytest.mark.parametrize("metadata", [{"sources": 3}, {"sources": [1]}, {"colour": [1]}])
def test_sources_and_colours_are_texts(metadata, tmp_path):
    write_shard(tmp_path, 0, [example(0)])
    index = tmp_path / "000000.jsonl"
    head, text = index.read_text().splitlines()
    row = json.loads(text)
    row["metadata"] |= metadata
    index.write_text(head + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="has sources, licences or a colour that are no texts"):
        Shards(tmp_path).metadata(0)


def test_a_place_beyond_the_shard_takes_no_memory(tmp_path):
    write_shard(tmp_path, 0, [example(0)])
    index = tmp_path / "000000.jsonl"
    head, text = index.read_text().splitlines()
    row = json.loads(text)
    row["members"]["mask.png"] = [0, 2**31 - 1]
    index.write_text(head + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="shard 000000.tar, key k0: the file ends [0-9]+ bytes early"):
        Shards(tmp_path)[0]


@pytest.mark.parametrize("ending", ["tar", "jsonl"])
def test_a_shard_that_is_a_pipe_is_not_waited_for(ending, tmp_path):
    write_shard(tmp_path, 0, [example(0)])
    (tmp_path / f"000000.{ending}").unlink()
    os.mkfifo(tmp_path / f"000000.{ending}")
    with pytest.raises(ValueError, match="000000"):
        Shards(tmp_path)


# ---- caches


@pytest.fixture
def cache(tmp_path):
    def encode(layers):
        mean = layers.stacked[..., ::8, ::8]
        return mean, mean.square()

    write_shard(tmp_path / "data", 0, [example(number) for number in range(3)])
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    cache_latents(encode, tmp_path / "a.safetensors", tmp_path / "data", tmp_path / "cache", size=16)
    assert len(Latents(tmp_path / "cache")) == 3
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[]", "cache.json must hold one JSON object, got a list"),
        ("{", "cache.json is not JSON"),
        ('{"a":' * 100_000, "cache.json (is not JSON|has )"),
        ({"size": "16"}, "cache.json needs a whole number from 1 to .* for size, got '16'"),
        ({"files": 10**15}, "cache.json needs a whole number from 1 to 1,000,000 for files, got 1000000000000000"),
        ({"files": None}, "for files, got None"),
        ({"files": True}, "for files, got True"),
        ({"text": 3}, "for files, got None"),
        ({"text": {"files": -1}}, "for files, got -1"),
    ],
)
def test_what_a_cache_says_of_itself_is_checked(about, message, cache):
    text = about if isinstance(about, str) else json.dumps(read_about(cache) | about)
    (cache / "cache.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Latents(cache)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shapes", [3, ["16"], [16], ["axb"]])
def test_the_buckets_of_a_cache_are_checked(shapes, cache):
    (cache / "cache.json").write_text(json.dumps(read_about(cache) | {"buckets": shapes}))
    with pytest.raises(ValueError, match="cache.json must list its buckets as 192x320, got"):
        Latents(cache).sizes  # noqa: B018


@pytest.mark.parametrize(
    ("tensors", "captions", "message"),
    [
        ({"std": None}, None, "000000.safetensors needs mean and std of one shape"),
        ({"mean": torch.zeros(3)}, None, "needs mean and std of one shape"),
        ({"pictures": torch.tensor([0, 1, 9])}, None, "does not say whose latents it holds"),
        ({"pictures": torch.tensor([0, 0, 1])}, None, "does not say whose latents it holds"),
        ({"mean": None}, None, "does not say whose latents it holds"),
        (
            {"mean": torch.zeros(3, 7, 2, 2), "std": torch.zeros(3, 7, 2, 2).bool()},
            None,
            "needs mean and std of one shape",
        ),
        ({"pictures": torch.zeros(3)}, None, "does not say whose latents it holds"),
        (
            {"caption_places": torch.zeros(2, 3, dtype=torch.int64)},
            None,
            "the captions of the .* not those of its 3 pictures",
        ),
        (
            {"caption_places": torch.zeros(3, 1, dtype=torch.int64)},
            None,
            "the captions of the .* not those of its 3 pictures",
        ),
        ({"captions": torch.zeros(3)}, None, "the captions of the latent cache are not those of its 3 pictures"),
        ({"captions": None}, None, "its captions (is not JSON|are not JSON|has )"),
        ({}, "3", "000000.safetensors: its captions must be a list, got 3"),
        ({}, "[" * 100_000, "its captions (is not JSON|are not JSON|has )"),
        ({}, "[[1]]", "the captions of the latent cache are not those of its 3 pictures"),
        ({}, '[["a"], ["b", "c"], ["d"]]', "the captions of the latent cache are not those of its 3 pictures"),
    ],
)
def test_the_files_of_a_cache_are_checked(tensors, captions, message, cache):
    found, metadata = read_tensors(cache / "000000.safetensors")
    changed = {name: x.clone() for name, x in (found | tensors).items() if x is not None}
    if captions is not None:  # as the first version kept them
        changed, metadata = {name: x for name, x in changed.items() if "caption" not in name}, {"captions": captions}
    write_tensors(cache / "000000.safetensors", changed, metadata)
    with pytest.raises(ValueError, match=message):
        Latents(cache)


@pytest.mark.parametrize("places", [[0, 2**40, 2**41], [-1, 3, 4], [9, 3, 2], [0, 1, 10**6]])
def test_captions_that_lie_elsewhere_are_named_when_they_are_read(places, cache):
    found, metadata = read_tensors(cache / "000000.safetensors")
    changed = {name: x.clone() for name, x in found.items()}
    changed["caption_places"][1] = torch.tensor(places)
    write_tensors(cache / "000000.safetensors", changed, metadata)
    cached = Latents(cache)
    assert len(cached.captions[torch.tensor([0])][0]) == 2
    with pytest.raises(
        ValueError, match="000000.safetensors is damaged, it has no captions at the bytes .* to .*; make the"
    ):
        cached.captions[torch.tensor([1])]


def test_a_cache_that_shrinks_while_it_is_read_is_named(cache):
    cached, path = Latents(cache), cache / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        ValueError, match="000000.safetensors is damaged: the file ends [0-9]+ bytes early; make the cache"
    ):
        cached.read(torch.tensor([2]))
