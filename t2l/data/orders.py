"""Orders of pictures, computed from a seed and not stored.

An order is a keyed permutation of any length, in constant memory: a Feistel network over the smallest a x b places that
hold the length, with what falls beyond it sent through again (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). Whoever knows the key and a place knows what stands there, so that a run goes on in the middle of an epoch,
and a data set of any size takes no memory. Not made to keep secrets.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shuffle(places: np.ndarray, length: int, seed: int, epoch: int, group: int = 0) -> np.ndarray:
    """What stands at some places, (N,) below `length`, of an order of 0 .. length - 1, (N,) int64.

    A pure function of (seed, epoch, group, length). group: data sets that are ordered apart, such as buckets.
    """
    columns = math.isqrt(length - 1) + 1
    sides = np.uint64(columns), np.uint64(-(-length // columns))
    keys = _keys(ROUNDS, group, epoch, seed % 2**63)
    found = _shuffle(places.astype(np.uint64), sides, keys)
    while (beyond := found >= length).any():
        found[beyond] = _shuffle(found[beyond], sides, keys)
    return found.astype(np.int64)


def shuffle_epochs(positions: np.ndarray, length: int, seed: int, group: int = 0) -> np.ndarray:
    """What stands at some positions, (N,) from 0 up, of the orders of all epochs laid end to end; (N,) int64."""
    epochs, places = np.divmod(positions, length)
    found = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        found[epochs == epoch] = shuffle(places[epochs == epoch], length, seed, int(epoch), group)
    return found


def uniform(number: int, seed: int, group: int = 0) -> float:
    """A number in [0, 1) that belongs to `number`, for each seed and group another."""
    key = _keys(1, group, seed % 2**63)
    return float(_mixed(np.array([number], np.uint64) * GOLDEN ^ key)[0] >> np.uint64(11)) / 2**53


@lru_cache(maxsize=1024)
def _keys(count: int, *entropy: int) -> np.ndarray:
    return np.random.SeedSequence(entropy).generate_state(count, np.uint64)


def _shuffle(places: np.ndarray, sides: tuple[np.uint64, np.uint64], keys: np.ndarray) -> np.ndarray:
    """A permutation of the a x b places: row and column by turns move by a hash of the other."""
    a, b = sides
    row, column = np.divmod(places, b)
    for number, key in enumerate(keys):
        if number % 2:
            column = (column + _mixed(row * GOLDEN ^ key) % b) % b
        else:
            row = (row + _mixed(column * GOLDEN ^ key) % a) % a
    return row * b + column


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of 64 depends on all of x's: splitmix64's last steps (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
