"""What one worker does with one shard: first the hashes of its pictures, later the shard itself.

A shard is the unit of restart: written under other names and then renamed, its report last.

    OUT/hashes/SPLIT-NUMBER.npy           numbers and hashes of what can be used, (N, 2) int64
    OUT/hashes/duplicates.npy             what looks like a picture that came before, and which, (D, 2) int64
    OUT/SPLIT/NUMBER.tar, .jsonl          the shard
    OUT/SPLIT/NUMBER.report.json          what was kept and dropped, with the reasons, and a digest of what was read
    OUT/dropped/SPLIT/NUMBER.tar, .jsonl  some of what was dropped, to be looked at
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...budget import read_object
from ...io.atomic import atomic_path, write_whole
from ...layers import Layers
from ..ahead import read_ahead
from ..claim import digest_files, disk_error, file_times, other_pictures
from ..example import Example
from ..shards import shard_is_finished, write_shard
from ..workers import tell
from .plan import Job, Row, read_rows
from .sources import Record, Source
from .stages import (
    BuildConfig,
    Deduplicate,
    Dropped,
    Item,
    ModelFactory,
    Sample,
    Stage,
    group_batches,
    model_stages,
    reading_stages,
    run_stages,
)

EVERY = 10.0  # seconds between two lines on one shard
AHEAD = 2  # batches that are decoded before the models ask for them, and batches that wait to be written


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to know. It travels to other processes and is compared there."""

    out: Path
    config: BuildConfig
    source: Source
    factory: ModelFactory

    @property
    def plan(self) -> Path:
        return self.out / "plan.jsonl"

    @property
    def duplicates(self) -> Path:
        return self.out / "hashes" / "duplicates.npy"

    def hashes(self, job: Job) -> Path:
        return self.out / "hashes" / f"{job.split}-{job.number:06d}.npy"

    def report(self, job: Job) -> Path:
        return self.out / job.split / f"{job.number:06d}.report.json"

    def is_finished(self, job: Job) -> bool:
        return shard_is_finished(self.out / job.split, job.number) and self.report(job).is_file()


@dataclass
class Report:
    """What became of the pictures of one shard, as JSON beside it."""

    kept: list[dict[str, str]] = field(default_factory=list)  # key, name, source, licence, sha256 of the file
    dropped: list[dict[str, Any]] = field(default_factory=list)  # number, name, stage, reason
    shown: list[str] = field(default_factory=list)  # why those in OUT/dropped were dropped, in their order
    content: str = ""  # a hash of every file that was read, and of what is said of it
    times: str = ""  # a hash of sizes and times of the files

    def keep(self, sample: Sample) -> None:
        record = sample.record
        names = {"key": sample.key, "name": record.name, "source": record.source}
        self.kept.append(names | {"licence": record.licence, "sha256": record.sha256})

    def drop(self, item: Dropped) -> None:
        self.dropped.append({name: getattr(item, name) for name in ("number", "name", "stage", "reason")})

    def show(self, item: Dropped, most: int) -> bool:
        """Whether a dropped picture is one of the first of its stage, which are kept to be looked at."""
        is_shown = sum(reason.startswith(f"{item.stage}: ") for reason in self.shown) < most
        self.shown += [f"{item.stage}: {item.reason}"] * is_shown
        return is_shown


def read_report(path: Path) -> Report:
    found = read_object(path, "the report of a shard")
    kinds = {"kept": list, "dropped": list, "shown": list, "content": str, "times": str}
    if found.keys() != kinds.keys() or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is damaged; delete it and run the same command again")
    return Report(**found)


def build_shard(recipe: Recipe, job: Job) -> None:
    """Write one shard and its report. Raises OSError with a sentence for a full disk."""
    stages = _stages(recipe)
    reading = _Reading(recipe, job)
    report, shown = Report(), list[Sample]()
    try:
        write_shard(recipe.out / job.split, job.number, _examples(recipe, reading, stages, report, shown))
        _write_shown(recipe, job, shown)
        report.times, report.content = _hash_file_times(recipe, job), reading.digest.hexdigest()
        write_whole(recipe.report(job), json.dumps(vars(report)))  # last: a shard with a report is finished
    except OSError as error:
        raise disk_error(recipe.out / f"{job.name}.tar", error) from error


def hash_shard(recipe: Recipe, job: Job) -> None:
    """Write down what the pictures of one shard look like, those that can be used."""
    items = (run_stages(reading_stages(recipe.config), [item])[0] for item in _Reading(recipe, job))
    found = [(item.number, item.hash) for item in items if isinstance(item, Sample)]
    with atomic_path(recipe.hashes(job)) as partial, partial.open("wb") as file:
        np.save(file, np.array(found, np.int64).reshape(-1, 2), allow_pickle=False)


def is_stale(recipe: Recipe, job: Job) -> bool:
    """Whether a picture was repainted since its shard was finished. Files are read only where their times differ."""
    report = read_report(recipe.report(job))
    if report.times == _hash_file_times(recipe, job):
        return False
    reading = _Reading(recipe, job)
    for _ in reading:
        pass
    return report.content != reading.digest.hexdigest()


def _hash_file_times(recipe: Recipe, job: Job) -> str:
    rows = read_rows(recipe.plan, job)
    files = ((str(number), path) for number, place, _ in rows for path in recipe.source.files(place))
    return digest_files(files, file_times)


def _stages(recipe: Recipe) -> list[Stage]:
    """What follows the decoding."""
    duplicates = Deduplicate(recipe.duplicates)
    duplicates.setup()
    return [duplicates, *_set_up_models(recipe.config, recipe.factory)]


@lru_cache(1)
def _set_up_models(config: BuildConfig, factory: ModelFactory) -> list[Stage]:
    """The stages with models, set up once in this process."""
    torch.set_num_threads(1)  # the processes share the machine, and sums keep their order
    stages = model_stages(config, factory())
    for stage in stages:
        stage.setup()
    return stages


class _Reading:
    """The pictures of a shard as the source has them, one after another; a digest of all that was read."""

    def __init__(self, recipe: Recipe, job: Job) -> None:
        self.recipe, self.job, self.digest = recipe, job, hashlib.sha256()

    def __iter__(self) -> Iterator[Item]:
        for row in read_rows(self.recipe.plan, self.job):
            item = self._read(row)
            texts = [item.name] if isinstance(item, Dropped) else _describe(item.record)
            self.digest.update(json.dumps([item.number, *texts]).encode())
            yield item

    def _read(self, row: Row) -> Item:
        number, place, reason = row
        name = self.recipe.source.name(place)
        try:
            if reason:
                raise ValueError(reason)
            record = self.recipe.source.record(place)
        except ValueError as error:
            return Dropped(number, name, "source", str(error))
        sha256 = hashlib.sha256(record.data).hexdigest()
        return Sample(number, replace(record, sha256=sha256))


def _describe(record: Record) -> list[str]:
    return [record.name, record.sha256, record.caption, record.source, record.licence]


def _examples(
    recipe: Recipe, reading: _Reading, stages: list[Stage], report: Report, shown: list[Sample]
) -> Iterator[Example]:
    """What is kept of a shard, told to the report. Decoding is ahead of the models, they are ahead of the writing."""
    to_read, hashes = reading_stages(recipe.config), _read_hashes(recipe, reading.job)
    decoded = (_check_unchanged(recipe, hashes, run_stages(to_read, [item])[0]) for item in reading)
    batches = read_ahead(group_batches(decoded, recipe.config.batch_size), AHEAD)
    said_at = time.monotonic()
    for batch in read_ahead((run_stages(stages, batch) for batch in batches), AHEAD):
        if time.monotonic() - said_at >= EVERY:
            tell(f"{reading.job.name}: {len(report.kept)} pictures kept, {len(report.dropped)} dropped")
            said_at = time.monotonic()
        for item in batch:
            if isinstance(item, Sample):
                report.keep(item)
                yield _example(item)
                continue
            report.drop(item)
            if item.sample is not None and item.sample.picture is not None and report.show(item, recipe.config.shown):
                shown.append(item.sample)


def _read_hashes(recipe: Recipe, job: Job) -> dict[int, int] | None:
    """The hash of every picture of a shard, by its number; None where nobody asked for them."""
    path = recipe.hashes(job)
    return dict(np.load(path, allow_pickle=False).tolist()) if path.is_file() else None


def _check_unchanged(recipe: Recipe, hashes: dict[int, int] | None, item: Item) -> Item:
    """Raises ValueError for a picture that is another one than when duplicates were looked for."""
    if hashes is not None and (item.hash if isinstance(item, Sample) else None) != hashes.get(item.number):
        raise other_pictures(recipe.out, ["digest"])
    return item


def _example(sample: Sample) -> Example:
    """A sample as it is written; one without layers as a flat picture."""
    record, picture = sample.record, sample.picture
    assert picture is not None, "only what was decoded is written"
    layers = sample.layers
    if layers is None:
        flat = Layers.flat(picture)
        layers = flat if sample.mask is None else replace(flat, mask=sample.mask)
    licences = (record.licence,) if record.licence else ()
    return Example(
        sample.key,
        layers,
        record.caption,
        sources=(record.source or record.name,),
        licences=licences,
        scores=sample.scores,
    )


def _write_shown(recipe: Recipe, job: Job, shown: list[Sample]) -> None:
    if shown:
        write_shard(recipe.out / "dropped" / job.split, job.number, (_example(sample) for sample in shown))
