"""Which picture of a folder has which key and lies in which shard: written down, so that a folder may grow.

    OUT/pictures.jsonl    a line for every picture, {"key", "name", "split", "shard"}, in the order of the keys

What is in it stays: pictures that come later get keys and shards of their own, and none goes from train to validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..budget import as_text, parse_json, read_text, shown_path
from ..io.atomic import write_whole

SPLITS = ("train", "validation")
PLAN = "pictures.jsonl"


class Place(NamedTuple):
    """Where a picture is packed."""

    key: str
    name: str  # as Source has it
    split: str
    shard: int


def read_plan(out: Path) -> list[Place]:
    """What a folder says of its pictures; nothing where it does not. Raises ValueError for a damaged file."""
    path = out / PLAN
    return [_place(line, path) for line in read_text(path, "the list").splitlines()] if path.is_file() else []


def _place(line: str, path: Path) -> Place:
    row = parse_json(line, shown_path(path))
    place = Place._make(row.get(name) for name in Place._fields) if isinstance(row, dict) else None
    kinds = [] if place is None else [type(x) for x in place]
    if place is None or kinds != [str, str, str, int] or place.split not in SPLITS or not place.key.isdigit():
        raise ValueError(f"{shown_path(path)} is damaged; choose another folder or delete this one")
    return place


def write_plan(out: Path, places: Sequence[Place]) -> None:
    write_whole(out / PLAN, "".join(json.dumps(place._asdict()) + "\n" for place in places))


def extend_plan(
    places: Sequence[Place], names: Sequence[str], seed: int, validation: int, shard_size: int
) -> list[Place]:
    """The places with one more for every new name. validation: how many pictures are kept back in all.

    Raises ValueError where the new pictures are too few for that.
    """
    known = {place.name for place in places}
    new = [name for name in names if name not in known]
    more = validation - sum(place.split == "validation" for place in places)
    if not places and validation >= len(new):
        raise ValueError(f"validation must leave pictures to train on, got {validation} of {len(new)}")
    if not 0 <= more <= len(new):
        raise ValueError(
            f"validation must be from {validation - more} to {validation - more + len(new)}, got {validation}: of the pictures "
            "that are packed none goes from train to validation or back, and the others are too few"
        )
    first = int(places[-1].key) + 1 if places else 0
    drawn = np.random.default_rng([seed, first] if first else seed).permutation(len(new))[:more]
    split = ["train"] * len(new)
    for number in drawn:
        split[number] = "validation"
    shards = {name: _next_shards(places, name, shard_size) for name in SPLITS}
    return [
        *places,
        *(Place(f"{first + i:08d}", name, split[i], next(shards[split[i]])) for i, name in enumerate(new)),
    ]


def group_by_shard(places: Sequence[Place]) -> dict[tuple[str, int], list[Place]]:
    """The places of every shard, by split and number."""
    found: dict[tuple[str, int], list[Place]] = {}
    for place in places:
        found.setdefault((place.split, place.shard), []).append(place)
    return {shard: found[shard] for shard in sorted(found)}


def _next_shards(places: Sequence[Place], split: str, shard_size: int) -> Iterator[int]:
    """The shard of each new picture of a split."""
    number = max((place.shard for place in places if place.split == split), default=-1) + 1
    while True:
        yield from [number] * shard_size
        number += 1


def read_index(directory: Path, shard: int) -> list[dict[str, Any]]:
    """The lines of a shard's index, one a picture; nothing where there is none."""
    path = directory / f"{shard:06d}.jsonl"
    lines = as_text(path.read_bytes(), path.name).splitlines()[1:] if path.is_file() else []
    return [parse_json(line, path.name) for line in lines]
