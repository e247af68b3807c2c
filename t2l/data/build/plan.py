"""Which pictures of a source go into which shard: OUT/plan.jsonl, one line a shard, read when it is worked on.

[split, number, [[picture's number, place], [picture's number, place, why it is not read], ...]]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pack import SPLITS
from ..shards import read_places
from .sources import Place, Source
from .stages import BuildConfig


@dataclass(frozen=True)
class Job:
    """One shard, and its line of the plan."""

    split: str
    number: int
    begin: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number:06d}"


@dataclass(frozen=True)
class Plan:
    jobs: tuple[Job, ...]
    pictures: int
    digest: str  # of what goes where


Row = tuple[int, Place, str]  # the picture's number in the source, its place, and why it is not read or ""


def write_plan(path: Path, source: Source, config: BuildConfig) -> Plan:
    """Scan the source and write the plan. Raises ValueError for more pictures kept back than there are."""
    kept_back = _draw_validation(source, config)
    jobs, digest, count, position = [], hashlib.sha256(), 0, 0
    waiting: dict[str, list[list[Any]]] = {split: [] for split in SPLITS}
    numbers = dict.fromkeys(SPLITS, 0)
    with path.open("wb") as file:

        def write(split: str) -> None:
            nonlocal position
            line = json.dumps([split, numbers[split], waiting[split]]).encode() + b"\n"
            file.write(line)
            digest.update(line)
            jobs.append(Job(split, numbers[split], position, len(line)))
            position += len(line)
            numbers[split] += 1
            waiting[split] = []

        for number, (place, reason) in enumerate(source.scan()):
            split = "validation" if number in kept_back else "train"
            waiting[split].append([number, place, reason] if reason else [number, place])
            count += 1
            if len(waiting[split]) == config.shard_size:
                write(split)
        for split in SPLITS:
            if waiting[split]:
                write(split)
    return Plan(tuple(jobs), count, digest.hexdigest())


def _draw_validation(source: Source, config: BuildConfig) -> set[int]:
    """The numbers of the pictures for validation. Counts the source only where some are asked for."""
    if not config.validation:
        return set()
    count = sum(1 for _ in source.scan())
    if config.validation >= count:
        raise ValueError(f"validation must leave pictures to train on, got {config.validation} of {count}")
    return set(np.random.default_rng(config.seed).choice(count, config.validation, replace=False).tolist())


def read_rows(path: Path, job: Job) -> Iterator[Row]:
    """The pictures of a shard."""
    _, _, rows = json.loads(read_places(path, {"": (job.begin, job.size)})[""])
    for number, place, *reason in rows:
        yield number, place, reason[0] if reason else ""
