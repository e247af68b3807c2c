"""What a data set of shards is like: the paper's statistics of LAION-L2I (section 3), and its pictures' sources.

Masks are counted at thresholds: how much of the picture they cover, and how many connected pieces they have (8
neighbours), without those under 100 pixels of a picture of 512 x 512, as the paper has them, or as much of another
size. One picture at a time is in memory, and of all of them counts alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from torch.utils.data import Dataset

from ..budget import read_object
from .ahead import explain_worker_death, read_in_workers
from .several import Repeated, SeveralShards

SPLITS = ("train", "validation", "test")
AREA_AT = (0.3, 0.5, 0.7, 0.9)  # of a mask
PIECES_AT = (0.5, 0.9)
SMALLEST_PIECE, OF_PIXELS = 100, 512 * 512
BINS = 20  # of a histogram from 0 to 1
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MOST_TOKENS = 77  # that CLIP reads
MOST_NAMES = 200  # of sources, licences and sizes, the commonest of those that come first; the rest is counted together
REST, NO_FOLDER = "others", "files in no folder"
CountTokens = Callable[[Sequence[str]], Sequence[int]]


class Measured(NamedTuple):
    """What is counted of one picture."""

    size: str  # "512 x 512", width first
    areas: tuple[float, ...]  # the share of the picture above each of AREA_AT
    pieces: tuple[int, ...]  # at each of PIECES_AT
    metadata: dict[str, Any]


class _Measuring(Dataset):
    def __init__(self, shards: SeveralShards) -> None:
        self.shards = shards

    def __getitem__(self, number: int) -> Measured:
        mask = np.asarray(self.shards.mask(number))
        areas = tuple(float((mask > 255 * at).mean()) for at in AREA_AT)
        size = f"{mask.shape[1]} x {mask.shape[0]}"
        return Measured(
            size, areas, tuple(count_pieces(mask > 255 * at) for at in PIECES_AT), self.shards.metadata(number)
        )


def count_pieces(mask: np.ndarray) -> int:
    """How many connected pieces a mask (H, W) has, without the small ones."""
    return int((component_areas(mask) * OF_PIXELS >= SMALLEST_PIECE * mask.size).sum())


def component_areas(mask: np.ndarray) -> np.ndarray:
    """The pixels of every connected piece (8 neighbours) of a mask (H, W) of truth values, in the order of their tops.

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


class Histogram:
    """Counts of numbers from 0 to 1 in equal bins; 1 is in the last one."""

    def __init__(self) -> None:
        self.counts, self.total, self.least, self.most = [0] * BINS, 0.0, float("inf"), float("-inf")

    def add(self, value: float) -> None:
        self.counts[min(BINS - 1, max(0, int(value * BINS)))] += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def summary(self) -> dict[str, Any]:
        """For JSON; of one number or more."""
        return {"counts": self.counts, "mean": self.total / sum(self.counts), "min": self.least, "max": self.most}


class Names:
    """How often names come, of which only so many are kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        self.counts[name if name in self.counts or len(self.counts) < MOST_NAMES else REST] += 1

    def summary(self) -> dict[str, int]:
        """The commonest first."""
        return dict(sorted(self.counts.items(), key=lambda item: (item[0] == REST, -item[1], item[0])))


def find_splits(folder: Path) -> dict[str, Path]:
    """The folders of shards that a data set has, by the names of the splits; "" for a folder of shards itself.

    Raises FileNotFoundError when there are none.
    """
    if any(folder.glob("*.tar")):
        return {"": folder}
    found = {split: folder / split for split in SPLITS if any((folder / split).glob("*.tar"))}
    if not found:
        raise FileNotFoundError(
            f"there are no shards (000000.tar, ...) in {folder}, nor in train or validation below it"
        )
    return found


@explain_worker_death()
def statistics(folder: Path, count_tokens: CountTokens | None = None, workers: int = 0) -> dict[str, Any]:
    """Everything that is counted of a data set, as JSON values. count_tokens: CLIP's tokens of each caption.

    workers: processes that read. Raises FileNotFoundError, or ValueError that names the shard, for what cannot be read.
    """
    splits = find_splits(folder)
    shards = SeveralShards([Repeated(path) for path in splits.values()])
    areas, found_pieces = [Histogram() for _ in AREA_AT], [Counter[int]() for _ in PIECES_AT]
    words, tokens, scores = Counter[int](), Counter[int](), dict[str, Histogram]()
    sizes, sources, licences = Names(), Names(), Names()
    measured = read_in_workers(_Measuring(shards), range(len(shards)), workers)
    for some in iter(lambda: list(islice(measured, 256)), []):
        for one in some:
            for histogram, area in zip(areas, one.areas, strict=True):
                histogram.add(area)
            for counter, number in zip(found_pieces, one.pieces, strict=True):
                counter[number] += 1
            words[len(one.metadata["caption"].split())] += 1
            sizes.add(one.size)
            _count_origin(one.metadata, sources, licences, scores)
        if count_tokens is not None:
            tokens.update(count_tokens([one.metadata["caption"] for one in some]))
    too_long = sum(count for number, count in tokens.items() if number > MOST_TOKENS)
    return {
        "pictures": len(shards),
        "splits": {name: len(part) for name, part in zip(splits, shards.parts, strict=True) if name},
        "sizes": sizes.summary(),
        "mask_area": {str(at): histogram.summary() for at, histogram in zip(AREA_AT, areas, strict=True)},
        "mask_pieces": {str(at): _sorted_counts(counter) for at, counter in zip(PIECES_AT, found_pieces, strict=True)},
        "words": summarise_lengths(words),
        **({"tokens": summarise_lengths(tokens) | {"too_long": too_long}} if tokens else {}),
        "scores": {name: scores[name].summary() for name in sorted(scores)},
        "sources": sources.summary(),
        "licences": licences.summary(),
        **_read_dropped(folder),
    }


def _count_origin(metadata: dict[str, Any], sources: Names, licences: Names, scores: dict[str, Histogram]) -> None:
    """One picture's sources, by where they lie, its licences, and what judged it."""
    for source in dict.fromkeys(map(origin_of, metadata.get("sources", []))):
        sources.add(source)
    for licence in dict.fromkeys(metadata.get("licences", [])):
        licences.add(licence)
    for name, score in metadata.get("scores", {}).items():
        if math.isfinite(score) and (name in scores or len(scores) < MOST_NAMES):
            scores.setdefault(name, Histogram()).add(float(score))


def origin_of(source: str) -> str:
    """Where a source lies: the host of an address, the first folder of a path."""
    if "://" in source:
        try:
            return urlsplit(source).netloc or source.partition("://")[0]
        except ValueError:
            return "an address that is none"
    return source.partition("/")[0] if "/" in source else NO_FOLDER


def summarise_lengths(counter: Counter[int]) -> dict[str, Any]:
    """Percentiles (the smallest number that so many per cent do not exceed), mean, largest, the counts themselves."""
    total = sum(counter.values())
    return {
        "percentiles": {str(p): _percentile(counter, p * total / 100) for p in PERCENTILES},
        "mean": sum(number * count for number, count in counter.items()) / total,
        "max": max(counter),
        "counts": _sorted_counts(counter),
    }


def _percentile(counter: Counter[int], rank: float) -> int:
    seen = 0
    for number in sorted(counter):
        seen += counter[number]
        if seen >= rank:
            return number
    raise AssertionError("the ranks are those of the counted")


def _sorted_counts(counter: Counter[int]) -> dict[str, int]:
    return {str(number): counter[number] for number in sorted(counter)}


def _read_dropped(folder: Path) -> dict[str, Any]:
    """How many pictures a build dropped, and where, when it says so."""
    path = folder / "dataset.json"
    found = read_object(path, "what the build says").get("dropped") if path.is_file() else None
    if not isinstance(found, dict) or not all(type(count) is int for count in found.values()):
        return {}
    return {"dropped": {str(stage): found[stage] for stage in sorted(found)}}
