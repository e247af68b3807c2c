"""Several data sets are one sequence, each as often as is wanted, and their identity is that of all of them."""

from pathlib import Path

import pytest
import torch

from t2l.data.crops import CropBatches, CropConfig
from t2l.data.example import Example
from t2l.data.latents import Latents, cache_latents
from t2l.data.several import Repeated, SeveralShards, as_data, open_shards
from t2l.data.shards import Shards, write_shard
from t2l.layers import Layers
from t2l.training.identity import mark_of


@pytest.fixture
def folders(tmp_path):
    for name, numbers in {"a": range(3), "b": range(10, 12)}.items():
        examples = []
        for number in numbers:
            pixels = torch.rand(1, 7, 16, 16, generator=torch.Generator().manual_seed(number))
            examples.append(Example(f"k{number}", Layers.from_stacked(pixels), caption=f"{name} {number}"))
        write_shard(tmp_path / name, 0, examples)
    return tmp_path / "a", tmp_path / "b"


def captions(shards):
    return [shards.metadata(i)["caption"] for i in range(len(shards))]


def test_sets_lie_one_after_the_other_and_come_as_often_as_is_wanted(folders):
    a, b = map(Shards, folders)
    shards = SeveralShards([Repeated(folders[0]), Repeated(folders[1], 3)])
    assert captions(shards) == captions(a) + 3 * captions(b)
    assert torch.equal(shards[-1].layers.mask, b[1].layers.mask) and shards[3].caption == "b 10"
    assert [picture.tobytes() for picture in shards.pictures(4)] == [picture.tobytes() for picture in b.pictures(1)]
    assert shards.key(0) != shards.key(3) and shards.key(3) == shards.key(5)
    with pytest.raises(IndexError, match="there are 9 examples in 2 data sets, got index 9"):
        shards[9]


def test_an_epoch_of_crops_holds_every_picture_as_often_as_its_set_comes(folders):
    shards = SeveralShards([Repeated(folders[0]), Repeated(folders[1], 3)])
    config = CropConfig(batch_size=9, crop=16, crops_per_example=1, rescale=0, flat=0)
    batch = CropBatches(shards, config, seed=0)[0]
    masks = [shards[i].layers.mask for i in range(5)]
    found = [
        sum(
            torch.equal(piece[6:].float() / 255, m[0]) or torch.equal(piece[6:].flip(-1).float() / 255, m[0])
            for piece in batch
        )
        for m in masks
    ]
    assert found == [1, 1, 1, 3, 3]


def test_one_folder_named_alone_is_that_folder(folders):
    data = as_data([Repeated(folders[0])])
    assert data == folders[0] and isinstance(open_shards(data), Shards)
    assert isinstance(open_shards(as_data([Repeated(folders[0], 2)])), SeveralShards)


def test_other_sets_another_order_and_other_repeats_are_other_data(folders):
    a, b = map(Repeated, folders)
    ways = [[a, b], [b, a], [a, Repeated(b.folder, 2)], [a]]
    assert len({mark_of(way) for way in ways}) == 4 and mark_of([a, b]) == mark_of([a, b])
    assert len({SeveralShards(way).digest() for way in ways}) == 4
    write_shard(folders[1], 1, [Example("k99", Layers.from_stacked(torch.rand(1, 7, 16, 16)), caption="new")])
    assert mark_of([a, b]) not in {mark_of([b, a])} and SeveralShards([a, b]).digest() != SeveralShards([b, a]).digest()


def test_a_cache_of_several_sets_holds_them_all_and_refuses_others(folders, tmp_path):
    def encode(layers):
        mean = layers.stacked[..., ::8, ::8]
        return mean, mean.square()

    (tmp_path / "m.safetensors").write_bytes(b"weights")
    data = [Repeated(folders[0]), Repeated(folders[1], 2)]
    cache_latents(encode, tmp_path / "m.safetensors", data, tmp_path / "cache", size=16)
    cached = Latents(tmp_path / "cache")
    assert len(cached) == 7 and torch.equal(cached.read(torch.tensor([3]))[0], cached.read(torch.tensor([5]))[0])
    with pytest.raises(ValueError, match="holds a cache of something else"):
        cache_latents(encode, tmp_path / "m.safetensors", data[:1], tmp_path / "cache", size=16)


@pytest.mark.parametrize(
    ("text", "folder", "times"),
    [("a", "a", 1), ("a:3", "a", 3), ("C:\\data:2", "C:\\data", 2), ("x/y z:10", "x/y z", 10), ("a:b", "a:b", 1)],
)
def test_a_folder_and_how_often_it_comes_are_one_word(text, folder, times):
    assert Repeated.parse(text) == Repeated(Path(folder), times)


def test_a_folder_that_is_called_so_is_meant_itself(tmp_path):
    (tmp_path / "a:3").mkdir()
    assert Repeated.parse(str(tmp_path / "a:3")) == Repeated(tmp_path / "a:3")
    with pytest.raises(ValueError, match="comes from 1 to 1,000,000 times an epoch, got 0 for a"):
        Repeated.parse("a:0")
