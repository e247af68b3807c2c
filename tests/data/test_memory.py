"""A data set of 57 million pictures takes at most 200 MB in a process; here a fiftieth of it takes a fiftieth of that.

The whole of it: python benchmarks/feeding.py memory.
"""

import tracemalloc

import numpy as np
import pytest
import torch

from benchmarks.feeding import PICTURES, link_latents, link_shards
from t2l.data import shards as shards_room
from t2l.data.buckets import BucketOrder
from t2l.data.latents import Latents
from t2l.data.orders import shuffle_epochs
from t2l.data.shards import Shards

PART = 50


def read_shards(folder):
    shards = Shards(folder)
    for index in shuffle_epochs(np.arange(2500), len(shards), seed=0).tolist():
        assert shards.metadata(index)["caption"].startswith("a cup")
    return shards


def read_latents(folder):
    cached = Latents(folder)
    order = BucketOrder(cached.counts, 8, seed=0)
    for step in range(0, 10_000, 200):
        bucket, ranks = order[step]
        mean, std = cached.read_bucket(bucket, ranks)
        assert mean.shape == std.shape and len(cached.captions[cached.pictures(bucket, ranks)]) == 8
    return cached


@pytest.mark.parametrize(("link", "read"), [(link_shards, read_shards), (link_latents, read_latents)])
def test_a_fiftieth_takes_a_fiftieth(link, read, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_room, "LINES_KEPT", shards_room.LINES_KEPT // PART)  # it does not grow with the data
    folder = link(tmp_path / "data", PICTURES // PART)
    tracemalloc.start()
    found = read(folder)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) > 1_100_000 and taken < 200 * 2**20 / PART


def test_a_picture_of_a_cache_of_many_files_is_found_by_its_number(tmp_path):
    cached = Latents(link_latents(tmp_path / "data", 36, length=12))
    for bucket, count in enumerate(cached.counts):
        numbers = cached.pictures(bucket, torch.arange(count)).tolist()
        assert [cached._place(number) for number in numbers] == [(bucket, rank) for rank in range(count)]
