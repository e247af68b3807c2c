"""The latent cache: it holds what the encoder says, whoever writes it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from t2l.data import latents as room
from t2l.data.example import Example
from t2l.data.latents import Latents, cache_latents
from t2l.data.shards import Shards, write_shard
from t2l.layers import Layers


def encode(layers):
    """A posterior that is easy to know: means of 8 x 8 pixels, and their squares as deviation."""
    mean = F.avg_pool2d(layers.stacked(), 8)
    return mean, mean.square()


def example(number):
    pixels = torch.rand(1, 7, 16, 16, generator=torch.Generator().manual_seed(number))
    texts = {
        name: f"{name} {number}" for name in ("caption", "foreground_caption", "background_caption", "thing", "place")
    }
    return Example(f"k{number}", Layers.from_stacked(pixels), **texts)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(room, "FILE_LENGTH", 3)
    write_shard(tmp_path / "data", 0, [example(number) for number in range(8)])
    (tmp_path / "autoencoder.safetensors").write_bytes(b"weights")
    return tmp_path / "data"


def cache(data, out, encode=encode, **share):
    cache_latents(encode, data.parent / "autoencoder.safetensors", data, out, size=16, batch_size=2, **share)


def test_the_cache_holds_what_the_encoder_says_of_every_picture(data, tmp_path):
    cache(data, tmp_path / "out")
    cached, shards = Latents(tmp_path / "out"), Shards(data)
    assert len(cached) == len(shards)
    for number in range(len(shards)):
        found = cached.read(torch.tensor([number]))
        assert all(torch.equal(x, y.half().float()) for x, y in zip(found, encode(shards[number].layers), strict=True))
        assert cached.texts[cached.ways[number, 0]] == shards[number].caption


@pytest.mark.parametrize("processes", [2, 5])
def test_several_processes_write_the_folder_that_one_writes(processes, data, tmp_path):
    cache(data, tmp_path / "one")
    for process in range(processes):
        cache(data, tmp_path / "several", process=process, processes=processes)
    one, several = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "several"))
    assert one == several


def test_the_same_call_goes_on_where_it_stopped(data, tmp_path):
    calls = []

    def stops(layers):
        calls.append(len(layers))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(layers)

    with pytest.raises(KeyboardInterrupt):
        cache(data, tmp_path / "out", stops)
    with pytest.raises(ValueError, match="unfinished, 2 of 3 files are missing"):
        Latents(tmp_path / "out")
    cache(data, tmp_path / "out", stops)
    assert sum(calls) == 2 + 1 + 2 + 1 + 2 + 1 + 2
    assert len(Latents(tmp_path / "out")) == 8
