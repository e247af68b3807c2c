"""Aspect buckets: pictures of several shapes, each trained on at a size near its own, every batch of one shape.

The sizes are those of NovelAI's and kohya's buckets: sides that are multiples of a step, and at most a square's area.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Layers
from .orders import shuffle_epochs, uniform

Size = tuple[int, int]  # height and width in pixels, as Layers.size
WIDEST = 2.0  # the longer side by the shorter one, at most


def aspect_buckets(size: int, step: int) -> list[Size]:
    """The square of `size` and, for every shorter side, the longest that keeps its area, upright and lying.

    Raises ValueError when size is no multiple of step.
    """
    if size % step:
        raise ValueError(f"the size must be a multiple of the buckets' step, got {size} for {step}")
    shorter = range(step, size + 1, step)
    pairs = [(side, size * size // side // step * step) for side in shorter]
    return sorted({p for pair in pairs if pair[1] <= WIDEST * pair[0] for p in (pair, pair[::-1])})


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest, by the logarithm, so that upright and lying pictures are alike."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))


def center_crop(layers: Layers, size: Size) -> Layers:
    """The largest piece around the centre that has the shape of `size`, at that size; nothing is squeezed."""
    return layers if layers.size == size else Layers.from_stacked(center_crop_stacked(layers.stacked, size))


def center_crop_stacked(stacked: Tensor, size: Size) -> Tensor:
    """The same of (N, C, H, W) floats in [0, 1], or 8 bits, which become such.

    Cropped before it is resized: a strip of one pixel by ten thousand needs no memory.
    """
    height, width = stacked.shape[-2:]
    piece = min(height, max(1, round(width * size[0] / size[1]))), min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - piece[0]) // 2, (width - piece[1]) // 2
    stacked = stacked[..., top : top + piece[0], left : left + piece[1]]
    pixels = stacked.float() / 255 if stacked.dtype == torch.uint8 else stacked
    if piece == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True).clamp(0, 1)


class BucketBatch(NamedTuple):
    """What a batch is made of."""

    bucket: int
    ranks: Tensor  # (batch_size,) int64: which of the bucket's pictures, numbered from 0 in the order of the data


class BucketOrder:
    """Item k is what step k's batch is made of, all of one bucket; a pure function of (seed, k), in constant memory.

    A bucket's batches are the slices of its own orders, one an epoch, laid end to end: no picture is left out or comes
    twice. How often a bucket comes is its share of the pictures, never off by a whole batch: each batch has an equal
    stretch of time and comes at a moment in it drawn from the seed. After batch_size epochs all are used up together.

    counts: how many pictures each bucket has, 1 or more.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, seed: int) -> None:
        self._counts = list(counts)
        self._batch_size = batch_size
        self._seed = seed

    def __getitem__(self, step: int) -> BucketBatch:
        bucket, number = self._batch(step)
        positions = np.arange(number * self._batch_size, (number + 1) * self._batch_size)
        return BucketBatch(
            bucket, torch.from_numpy(shuffle_epochs(positions, self._counts[bucket], self._seed, bucket))
        )

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches of it came before."""
        start = (step - len(self._counts)) * self._batch_size / sum(self._counts)  # at most `step` batches come earlier
        numbers = [self._before(start, bucket) for bucket in range(len(self._counts))]
        waiting = [(self._moment(bucket, number), bucket) for bucket, number in enumerate(numbers)]
        heapq.heapify(waiting)
        for _ in range(step - sum(numbers)):
            bucket = waiting[0][1]
            numbers[bucket] += 1
            heapq.heapreplace(waiting, (self._moment(bucket, numbers[bucket]), bucket))
        bucket = waiting[0][1]
        return bucket, numbers[bucket]

    def _before(self, moment: float, bucket: int) -> int:
        """How many of a bucket's batches come before a moment."""
        number = max(0, int(moment * self._counts[bucket] / self._batch_size) - 1)
        while self._moment(bucket, number) < moment:
            number += 1
        return number

    def _moment(self, bucket: int, number: int) -> float:
        """When a batch comes, in epochs."""
        return (number + uniform(number, self._seed, bucket)) * self._batch_size / self._counts[bucket]
