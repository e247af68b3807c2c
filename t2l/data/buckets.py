"""Aspect buckets: pictures of several shapes, each trained on at a size near its own, every batch of one shape.

The sizes are those of NovelAI's and kohya's buckets: sides that are multiples of a step, and at most a square's area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Layers

Size = tuple[int, int]  # height and width in pixels, as Layers.size
WIDEST = 2.0  # the longer side by the shorter one, at most
EPOCHS_KEPT = 2  # a batch seldom reaches back further


def aspect_buckets(size: int, step: int, widest: float = WIDEST) -> list[Size]:
    """The square of `size` and, for every shorter side, the longest that keeps its area, upright and lying.

    Raises ValueError when size is no multiple of step.
    """
    if size % step:
        raise ValueError(f"the size must be a multiple of the buckets' step, got {size} for {step}")
    shorter = range(step, size + 1, step)
    pairs = [(side, size * size // side // step * step) for side in shorter]
    return sorted({p for pair in pairs if pair[1] <= widest * pair[0] for p in (pair, pair[::-1])})


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest, by the logarithm, so that upright and lying pictures are alike."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))


def cover(layers: Layers, size: Size) -> Layers:
    """The largest piece around the centre that has the shape of `size`, at that size; nothing is squeezed.

    Cropped before it is resized: a strip of one pixel by ten thousand needs no memory.
    """
    if layers.size == size:
        return layers
    (height, width), stacked = layers.size, layers.stacked()
    piece = min(height, max(1, round(width * size[0] / size[1]))), min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - piece[0]) // 2, (width - piece[1]) // 2
    stacked = stacked[..., top : top + piece[0], left : left + piece[1]]
    return Layers.from_stacked(F.interpolate(stacked, size=size, mode="bilinear", antialias=True).clamp(0, 1))


class BucketOrder:
    """Item k is the pictures of step k's batch, (batch_size,) int64, all of one bucket; a pure function of k.

    Every epoch deals each picture once, in that epoch's order, to the batch that its bucket is filling; a batch that is full
    is the next step's. A batch that an epoch leaves unfilled is filled by the next one, so no picture is left out or dealt
    twice. With one bucket the batches are the slices of the orders laid end to end.

    buckets: (n,), the bucket of every picture, numbered from 0. permutation: epoch -> its order, (n,) int64.
    """

    def __init__(self, buckets: Tensor, batch_size: int, permutation: Callable[[int], Tensor]) -> None:
        self._buckets = buckets
        self._counts: list[int] = torch.bincount(buckets).tolist()
        self._batch_size = batch_size
        self._permutation = permutation
        self._epochs: dict[int, _Epoch] = {}

    def __getitem__(self, step: int) -> Tensor:
        epoch = step * self._batch_size // len(self._buckets)  # or later: steps come late by what waits in the buckets
        while self._steps_before(epoch + 1) <= step:
            epoch += 1
        bucket, number = self._epoch(epoch).batches[step - self._steps_before(epoch)]
        positions = torch.arange(number * self._batch_size, (number + 1) * self._batch_size)
        epochs, places = positions // self._counts[bucket], positions % self._counts[bucket]
        dealt = [self._epoch(e).pictures[bucket][places[epochs == e]] for e in epochs.unique().tolist()]
        return torch.cat(dealt)

    def _steps_before(self, epoch: int) -> int:
        return sum(epoch * count // self._batch_size for count in self._counts)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            order = self._permutation(epoch)
            places = [(self._buckets[order] == bucket).nonzero().flatten() for bucket in range(len(self._counts))]
            ends = [self._ends(epoch, bucket, of_bucket) for bucket, of_bucket in enumerate(places)]
            batches = [(bucket, number) for _, bucket, number in sorted(end for of_bucket in ends for end in of_bucket)]
            kept = {newest: self._epochs[newest] for newest in sorted(self._epochs)[1 - EPOCHS_KEPT :]}
            self._epochs = kept | {epoch: _Epoch([order[of_bucket] for of_bucket in places], batches)}
        return self._epochs[epoch]

    def _ends(self, epoch: int, bucket: int, places: Tensor) -> Iterator[tuple[int, int, int]]:
        """Where in an epoch's order the batches of a bucket become full, with the bucket and the batch's number in it."""
        before = epoch * len(places)  # dealt to this bucket by the epochs before
        numbers = range(before // self._batch_size, (before + len(places)) // self._batch_size)
        last = torch.tensor([(number + 1) * self._batch_size - 1 - before for number in numbers], dtype=torch.long)
        return zip(places[last].tolist(), repeat(bucket), numbers)


class _Epoch(NamedTuple):
    """One pass over all pictures."""

    pictures: list[Tensor]  # of every bucket, in the order they are dealt
    batches: list[tuple[int, int]]  # that become full in it, in this order: the bucket, the batch's number in it
