"""Shards: what is written is read, in an order that can be resumed, and damage is named."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from t2l.data.ahead import read_in_workers
from t2l.data.example import Example
from t2l.data.orders import shuffle_epochs
from t2l.data.shards import Shards, shard_is_finished, write_shard
from t2l.layers import Layers


def example(number: int, size: int = 16) -> Example:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.rand(1, 7, size, size, generator=generator)
    layers = Layers.from_stacked((pixels * 255).round() / 255)
    texts = {"caption": f"cup {number}", "foreground_caption": "a cup", "background_caption": "on a table"}
    return Example(f"train-{number:06d}", layers, labels={"thing": "cup", "place": "table"}, **texts)


@pytest.fixture
def folder(tmp_path):
    """Three shards of 4, 4 and 3 examples."""
    for number, count in enumerate((4, 4, 3)):
        write_shard(tmp_path, number, (example(4 * number + i) for i in range(count)))
    return tmp_path


def test_every_example_comes_back_in_its_place(folder):
    shards = Shards(folder)
    assert len(shards) == 11
    for number in range(11):
        assert shards[number].key == shards.key(number) == f"train-{number:06d}"
        assert shards.metadata(number)["caption"] == shards[number].caption == f"cup {number}"
        torch.testing.assert_close(shards[number].layers.mask, example(number).layers.mask)


def test_negative_indices_count_from_the_end_and_others_are_refused(folder):
    shards = Shards(folder)
    assert shards[-1].key == "train-000010"
    assert shards[-11].key == "train-000000"
    with pytest.raises(IndexError, match="11 examples"):
        shards[11]


def test_a_shard_is_an_ordinary_tar_in_webdataset_layout(folder):
    with tarfile.open(folder / "000000.tar") as tar:
        names = tar.getnames()
        text = json.loads(tar.extractfile("train-000000.json").read())
    assert names[:4] == [f"train-000000.{x}" for x in ("foreground.webp", "background.webp", "mask.png", "json")]
    assert text["caption"] == "cup 0"


def test_the_same_examples_give_the_same_bytes(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("again")
    write_shard(other, 0, (example(i) for i in range(4)))
    for name in ("000000.tar", "000000.jsonl"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_the_middle_of_an_epoch_gives_the_same_sequence(folder, workers):
    order = shuffle_epochs(np.arange(11), 11, seed=0).tolist()
    read = read_in_workers(Shards(folder), order[5:], workers)
    assert [item.key for item in read] == [Shards(folder).key(i) for i in order[5:]]


def test_neighbours_in_an_epoch_come_from_all_shards():
    """A folder that is sorted by class does not train its classes one after the other."""
    shard_of = shuffle_epochs(np.arange(100_000), 100_000, seed=1) // 1000
    assert all(len(set(shard_of[first : first + 32])) > 20 for first in range(0, 3200, 32))


def test_what_is_decoded_is_what_the_layers_are(folder):
    for number in range(3):
        pixels = [np.array(picture).reshape(16, 16, -1) for picture in Shards(folder).pictures(number)]
        stacked = torch.from_numpy(np.concatenate(pixels, axis=2)).permute(2, 0, 1)[None]
        assert torch.equal(stacked.float() / 255, Shards(folder)[number].layers.stacked)


def test_any_number_of_shards_is_read_with_no_file_left_open(tmp_path):
    for number in range(40):
        write_shard(tmp_path, number, [example(number)])
    shards, before = Shards(tmp_path), len(os.listdir("/proc/self/fd"))
    assert [shards[i].key for i in range(40)] == [f"train-{i:06d}" for i in range(40)]
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_open_reader_travels_to_another_process(folder):
    shards = Shards(folder)
    shards[0]
    assert pickle.loads(pickle.dumps(shards))[5].key == "train-000005"
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(shards.key, (5,)) == "train-000005"


def test_a_reader_keeps_the_captions_of_a_few_shards(tmp_path):
    """57 million pictures (the paper's) would otherwise need 160 GB in every process."""
    for number in range(64):
        write_shard(tmp_path, number, [replace(example(number), caption="cup " * 25_000)])
    tracemalloc.start()
    shards = Shards(tmp_path)
    assert all(shards.key(i) == f"train-{i:06d}" for i in range(64))
    assert tracemalloc.get_traced_memory()[0] < 64 * 100_000 / 2
    tracemalloc.stop()


def test_a_killed_writer_leaves_no_shard(tmp_path):
    def interrupted():
        yield example(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 0, interrupted())
    assert not shard_is_finished(tmp_path, 0)
    write_shard(tmp_path, 0, [example(0)])
    assert shard_is_finished(tmp_path, 0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000000.jsonl", "000000.tar"]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no shards .* in {tmp_path}"):
        Shards(tmp_path)


def test_shards_without_a_picture_are_named(tmp_path):
    write_shard(tmp_path, 0, [])
    with pytest.raises(ValueError, match="the shards in .* hold no pictures"):
        Shards(tmp_path)


def test_a_shard_without_an_index_is_named(folder):
    (folder / "000001.jsonl").unlink()
    with pytest.raises(ValueError, match="shard 000001.tar has no index 000001.jsonl; delete this shard"):
        Shards(folder)


def test_an_index_that_was_cut_short_is_named(folder):
    index = folder / "000001.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="000001.jsonl should list 4 examples and lists 3"):
        Shards(folder)[5]


@pytest.mark.parametrize(
    "text", ["", "{}\n", "not json\n", '[1]\n{"key": "a"}\n', '{"bytes": 20480, "count": 1}\n{"key": 1}\n']
)
def test_an_unreadable_index_is_named(folder, text):
    (folder / "000001.jsonl").write_text(text)
    with pytest.raises(ValueError, match="index 000001.jsonl of shard 000001.tar is unreadable"):
        Shards(folder)[4]


def test_a_truncated_shard_is_named_with_its_sizes(folder):
    path = folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ValueError, match="shard 000002.tar should have [0-9]+ bytes and has [0-9]+"):
        Shards(folder)


def test_a_shard_that_shrinks_while_it_is_read_is_named(folder):
    shards = Shards(folder)
    path = folder / "000002.tar"
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(ValueError, match="shard 000002.tar, key train-000010: the file ends [0-9]+ bytes early"):
        shards[10]


def test_a_damaged_picture_is_named_with_shard_and_key(folder):
    path, members = folder / "000000.tar", json.loads((folder / "000000.jsonl").read_text().splitlines()[2])["members"]
    offset, size = members["background.webp"]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    assert Shards(folder)[0].key == "train-000000"
    with pytest.raises(
        ValueError, match="shard 000000.tar, key train-000001: its background.webp is unreadable.*delete"
    ):
        Shards(folder)[1]


def test_a_caption_without_its_picture_is_named(folder):
    index = folder / "000000.jsonl"
    head, *rows = [json.loads(line) for line in index.read_text().splitlines()]
    del rows[0]["members"]["mask.png"]
    index.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))
    with pytest.raises(ValueError, match="key train-000000: there is no mask.png"):
        Shards(folder)[0]


def test_a_row_of_the_index_points_at_the_bytes_of_the_tar(folder):
    row = json.loads((folder / "000001.jsonl").read_text().splitlines()[3])
    data = (folder / "000001.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for suffix, (offset, size) in row["members"].items():
            assert tar.extractfile(f"{row['key']}.{suffix}").read() == data[offset : offset + size]
