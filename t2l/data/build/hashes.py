"""Which pictures look alike: a perceptual hash of 64 bits, and which of many are like one that came before.

The rule: a picture is a duplicate when any picture before it in the source differs by so many bits or fewer, whether or
not that one is a duplicate itself. So neither the order of work nor the number of processes matters.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8  # pixels that are looked at along each side, and frequencies of them that are kept
FREQUENCIES = np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1)
COSINES = np.round(1024 * np.cos(np.pi * FREQUENCIES / (2 * SIDE))).astype(np.int64)  # whole: the same on every machine
BITS_SET = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
PART = 20_000_000  # hashes that are sorted at once: 640 MB


def perceptual_hash(image: Image.Image) -> int:
    """The hash of an RGB picture, signed 64 bits: which low frequencies of its grey are above their median (pHash)."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int64)
    low = (COSINES @ grey @ COSINES.T).ravel()
    return int(np.packbits(low > np.median(low[1:])).view(">i8")[0])


def find_duplicates(numbers: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Pictures that look like one before them, and that one: (D, 2) int64, sorted. numbers: (N,), rising; hashes: (N,).

    Hashes `distance` bits apart share one of distance + 1 bands; only those are compared. Of several, the first.
    """
    first = np.arange(len(hashes))
    for band in _bands(hashes.view(np.uint64), distance + 1):
        parts = max(1, -(-len(band) // PART))
        for part in range(parts):
            chosen = np.flatnonzero(band % np.uint64(parts) == part) if parts > 1 else np.arange(len(band))
            order = chosen[np.argsort(band[chosen], kind="stable")]
            _compare(band, hashes.view(np.uint64), order, distance, first)
    late = np.flatnonzero(first < np.arange(len(hashes)))
    return np.stack([numbers[late], numbers[first[late]]], axis=1).astype(np.int64)


def _bands(hashes: np.ndarray, count: int) -> list[np.ndarray]:
    """The bits of the hashes in `count` pieces, each as numbers."""
    edges = [64 * band // count for band in range(count + 1)]
    return [
        (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def _compare(band: np.ndarray, hashes: np.ndarray, order: np.ndarray, distance: int, first: np.ndarray) -> None:
    """Put the earliest picture that each is like into `first`. order: rows sorted by band, rising within one."""
    step = 1
    while len(order) > step:
        same = band[order[step:]] == band[order[:-step]]
        if not same.any():
            return
        later, earlier = order[step:][same], order[:-step][same]
        alike = _bits_set(hashes[later] ^ hashes[earlier]) <= distance
        np.minimum.at(first, later[alike], earlier[alike])
        step += 1


def _bits_set(values: np.ndarray) -> np.ndarray:
    return BITS_SET[values.view(np.uint16).reshape(-1, 4)].sum(axis=1)
