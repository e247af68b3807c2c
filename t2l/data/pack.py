"""A folder of layered pictures -> shards to train on.

    OUT/train, OUT/validation       shards, and beside each NUMBER.report.json: what was packed and what was not
    OUT/config.json                 what the folder was begun with; other options or pictures are refused
    OUT/skipped.txt, OUT/notes.txt  one line for every picture that could not be used, and for every one not shown as its editor does

The bytes do not depend on the number of processes. The same command goes on after the last finished shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..budget import read_object
from ..config import config_to_dict
from ..io.atomic import atomic_path
from ..io.picture_file import BROKEN
from .claim import claim, digest_files, disk_error, file_times, other_pictures, write_lines
from .example import Example
from .folder import SMALLEST, Source, find_sources, read_layers
from .shards import shard_is_finished, write_shard
from .workers import run_jobs

SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a folder of layered pictures is packed."""

    seed: int = 0  # draws which pictures are kept back
    size: int = 1024  # pixels of the shorter side; larger pictures are scaled down, smaller ones stay as they are
    validation: int = 0  # pictures that are kept back for --validation, not to be trained on
    shard_size: int = 1000  # pictures a shard
    processes: int = 2

    def __post_init__(self) -> None:
        least = {"size": SMALLEST, "validation": 0, "shard_size": 1, "processes": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be {bound} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Packed:
    """How many pictures ended where."""

    train: int
    validation: int
    skipped: int


@dataclass(frozen=True)
class Job:
    """One shard."""

    directory: Path
    number: int
    sources: tuple[tuple[str, Source], ...]  # with their keys
    size: int

    @property
    def report(self) -> Path:
        return self.directory / f"{self.number:06d}.report.json"

    @property
    def is_finished(self) -> bool:
        return shard_is_finished(self.directory, self.number) and self.report.is_file()

    def is_stale(self) -> bool:
        """Whether a picture was repainted since the shard was finished, also when its file kept its size.

        Files are read again only where their times differ. The first version wrote no digests: what it packed is taken as it is.
        """
        report = read_report(self.report)
        if "content" not in report or report.get("times") == self.digest(file_times):
            return False
        return report["content"] != self.digest(Path.read_bytes)

    def digest(self, of: Callable[[Path], bytes]) -> str:
        """A hash of something of every file of the shard."""
        files = ((f"{key} {part}", path) for key, source in self.sources for part, path in sorted(source.files.items()))
        return digest_files(files, of)


def read_report(path: Path) -> dict[str, Any]:
    """What a shard's report says. Raises ValueError for a damaged one."""
    report = read_object(path, "the report of a shard")
    if type(report.get("packed")) is not int or not all(_are_texts(report.get(name)) for name in ("skipped", "notes")):
        raise ValueError(f"{path} is damaged; delete it and run the same command again")
    return report


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(line, str) for line in found)


def pack(
    config: PackConfig,
    folder: Path,
    out: Path,
    captions: Path | None = None,
    progress: Callable[[str], None] = print,
    follow_links: bool = False,
) -> Packed:
    """Pack every layered picture under `folder` into shards under `out`, or what is missing of them.

    captions, follow_links: as `find_sources` takes them. progress: gets lines for people. Raises ValueError when nothing can be used and when
    `out` holds other pictures or was packed with other options, OSError with a sentence for a disk that is full, and what
    `find_sources` raises.
    """
    sources, skipped = find_sources(folder, captions, follow_links)
    if not sources:
        where = ""
        if not (out / "config.json").is_file():  # else the lines there are those of an earlier packing
            write_lines(out / "skipped.txt", skipped)
            where = f"; {out / 'skipped.txt'} says why of each" if skipped else ""
        raise ValueError(f"{folder} holds no layered picture with a caption, and {len(skipped)} other pictures{where}")
    if config.validation >= len(sources):
        raise ValueError(f"validation must leave pictures to train on, got {config.validation} of {len(sources)}")
    _claim(out, config, sources)
    jobs = _jobs(config, out, sources)
    unfinished = [job for job in jobs if not job.is_finished]
    if any(job.is_finished and job.is_stale() for job in jobs):
        raise other_pictures(out, ["digest"])

    def say(job: Job, done: int) -> None:
        progress(f"{job.directory.name}/{job.number:06d}.tar is packed ({done} of {len(unfinished)})")

    run_jobs(_pack_shard, unfinished, config.processes, say)
    reports = [(job.directory.name, read_report(job.report)) for job in jobs]
    skipped = sorted([*skipped, *(line for _, report in reports for line in report["skipped"])])
    write_lines(out / "skipped.txt", skipped)
    write_lines(out / "notes.txt", sorted(line for _, report in reports for line in report["notes"]))
    counts = {split: sum(report["packed"] for name, report in reports if name == split) for split in SPLITS}
    if not counts["train"]:
        raise ValueError(f"no picture in {folder} can be trained on; {out / 'skipped.txt'} says why of each")
    return Packed(**counts, skipped=len(skipped))


def _claim(out: Path, config: PackConfig, sources: Sequence[Source]) -> None:
    """Write down what is packed, or check that it is what `out` was begun with; processes may differ."""
    digest = hashlib.sha256()
    for source in sources:
        sizes = {part: path.stat().st_size for part, path in source.files.items()}
        digest.update(json.dumps([source.name, sizes, source.texts], sort_keys=True).encode())
    wanted = config_to_dict(replace(config, processes=1)) | {"pictures": len(sources), "digest": digest.hexdigest()}
    claim(out, wanted)


def _jobs(config: PackConfig, out: Path, sources: Sequence[Source]) -> list[Job]:
    """Who goes into which shard. A key is the picture's number in the whole folder."""
    kept_back = np.random.default_rng(config.seed).permutation(len(sources))[: config.validation]
    numbers = {"validation": sorted(int(i) for i in kept_back)}
    numbers["train"] = sorted(set(range(len(sources))) - set(numbers["validation"]))
    jobs = []
    for split in SPLITS:
        chosen = [(f"{i:08d}", sources[i]) for i in numbers[split]]
        for number, first in enumerate(range(0, len(chosen), config.shard_size)):
            part = tuple(chosen[first : first + config.shard_size])
            jobs.append(Job(out / split, number, part, config.size))
    return jobs


def _pack_shard(job: Job) -> None:
    torch.set_num_threads(1)  # the processes share the machine, and sums keep their order
    report: dict[str, Any] = {"packed": 0, "skipped": [], "notes": []}
    report |= {"times": job.digest(file_times), "content": job.digest(Path.read_bytes)}
    try:
        write_shard(job.directory, job.number, _examples(job, report))
        with atomic_path(job.report) as partial:  # last: a shard with a report is finished
            partial.write_text(json.dumps(report))
    except OSError as error:
        raise disk_error(job.directory / f"{job.number:06d}.tar", error) from error


def _examples(job: Job, report: dict[str, Any]) -> Iterator[Example]:
    """The pictures of a shard that can be used; counts them, and the others with their reasons, in the report."""
    for key, source in job.sources:
        try:
            layers, notes = read_layers(source, job.size)
        except BROKEN as error:  # whatever a decoder says: one picture does not end the run
            reason = str(error) if type(error) is ValueError else f"cannot be read ({type(error).__name__})"
            report["skipped"].append(f"{source.name}: {reason}")
            continue
        report["packed"] += 1
        report["notes"] += [f"{source.name}: {note}" for note in notes]
        yield Example(key, layers, sources=(source.name,), **source.texts)
