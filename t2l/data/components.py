"""The pieces of a mask that hang together, by rows of it: no loop over pixels, and memory for its edges alone."""

from __future__ import annotations

import numpy as np


def component_areas(mask: np.ndarray) -> np.ndarray:
    """The pixels of every connected piece of a mask (H, W) of truth values, 8 neighbours a pixel; in the order of their tops.

    Rows are cut into runs, runs that touch are joined by union-find (Wu, Otoo and Suzuki 2009, "Optimizing two-pass
    connected-component labeling algorithms"), all of them at once.
    """
    stride = mask.shape[1] + 2  # a column of nothing on either side: no run goes on in the next row
    flat = np.pad(mask.astype(bool), ((0, 0), (1, 1))).ravel()
    starts, ends = np.flatnonzero(np.diff(flat.view(np.int8), prepend=np.int8(0))).reshape(-1, 2).T
    first = np.searchsorted(ends, starts + stride)  # of the next row's runs, those that touch: one pixel askew counts
    touching = np.maximum(np.searchsorted(starts, ends + stride, side="right") - first, 0)
    one = np.repeat(np.arange(len(starts)), touching)
    other = np.arange(len(one)) - np.repeat(np.cumsum(touching) - touching, touching) + first[one]
    areas = np.bincount(_roots(len(starts), one, other), weights=ends - starts)
    return areas[areas > 0].astype(np.int64)


def _roots(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest number of everything that is joined with each of 0 .. count - 1. one, other: the pairs that are."""
    roots = np.arange(count)
    while (apart := roots[one] != roots[other]).any():
        a, b = roots[one[apart]], roots[other[apart]]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(roots[roots], roots):
            roots = roots[roots]
    return roots
