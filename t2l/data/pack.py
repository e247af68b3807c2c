"""A folder of layered pictures -> shards to train on.

    OUT/train, OUT/validation         shards, and beside each NUMBER.report.json: what was packed and what was not
    OUT/config.json, pictures.jsonl   what the folder was begun with; which picture has which key and lies where
    OUT/skipped.txt, OUT/notes.txt    a line for every picture that could not be used; that looks wrong, or is not shown
                                      as its editor does
    OUT/sheet.jpg                     some of the pictures as they were packed, those that look wrong first

The bytes do not depend on the number of processes. The same command goes on after the last finished shard, packs a
shard again whose pictures or captions changed, and new pictures into new shards: none goes from train to validation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..budget import as_text, parse_json, read_object, read_text, shown_path
from ..config import config_to_dict
from ..io.atomic import remove_partials, write_whole
from ..io.picture_file import BROKEN
from .claim import CONFIG, digest_files, disk_error, file_times, find_differences, other_pictures, write_lines
from .example import Example, training_captions, words_of
from .faults import LONG_CAPTION, SHORT_NAMES, count_faults
from .folder import find_sources
from .layer_sources import SMALLEST, Source, read_layers
from .report import write_sheet
from .shards import shard_is_finished, write_shard
from .workers import run_jobs, tell

EVERY = 10.0  # seconds between two lines on one shard
MOST_TOKENS = 77  # that CLIP reads of a caption, its start and end among them
MAY_DIFFER = {"processes", "validation", "pictures", "digest"}  # in config.json, of a folder that goes on
CountTokens = Callable[[Sequence[str]], Sequence[int]]  # captions -> CLIP's tokens of each, start and end among them
Progress = Callable[[str], None]
SPLITS = ("train", "validation")
PLAN = "pictures.jsonl"


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a folder of layered pictures is packed."""

    seed: int = 0  # draws which pictures are kept back
    size: int = 1024  # pixels of the shorter side; larger pictures are scaled down, smaller ones stay as they are
    validation: int = 0  # pictures that are kept back for --validation, not to be trained on
    shard_size: int = 1000  # pictures a shard
    foreground_layer: str = ""  # of a layer file, which layer or group is the foreground; "" = as layer_sources.py says
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
    faults: str = ""  # how many look wrong, and how: "2 with a mask that looks inverted"


@dataclass(frozen=True)
class Job:
    """One shard."""

    directory: Path
    number: int
    sources: tuple[tuple[str, Source], ...]  # with their keys
    size: int

    def __hash__(self) -> int:
        return hash((self.directory, self.number))

    @property
    def name(self) -> str:
        return f"{self.directory.name}/{self.number:06d}.tar"

    @property
    def report(self) -> Path:
        return self.directory / f"{self.number:06d}.report.json"

    @property
    def is_finished(self) -> bool:
        return shard_is_finished(self.directory, self.number) and self.report.is_file()

    def is_stale(self) -> bool:
        """Whether a picture was repainted since the shard was made, even at the same file size, or a caption changed.

        Files are read again only where their times differ.
        """
        report = read_report(self.report)
        if report["texts"] != self.texts():
            return True
        return report["times"] != self.digest(file_times) and report["content"] != self.digest(Path.read_bytes)

    def texts(self) -> str:
        """A hash of all captions."""
        texts = [[key, source.texts] for key, source in self.sources]
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()

    def digest(self, of: Callable[[Path], bytes]) -> str:
        """A hash of something of every file of the shard."""
        files = ((f"{key} {part}", path) for key, source in self.sources for part, path in sorted(source.files.items()))
        return digest_files(files, of)

    def packed(self) -> list[Source]:
        """The pictures that are in the finished shard, in its order."""
        if read_report(self.report)["packed"] == len(self.sources):
            return [source for _, source in self.sources]
        keys = {row["key"] for row in read_index(self.directory, self.number)}
        return [source for key, source in self.sources if key in keys]


def read_report(path: Path) -> dict[str, Any]:
    """What a shard's report says. Raises ValueError for a damaged one."""
    report = read_object(path, "the report of a shard")
    lists, hashes = (
        [report.get(name) for name in names] for names in (("skipped", "notes"), ("times", "content", "texts"))
    )
    if type(report.get("packed")) is not int or not all(map(_are_texts, [*lists, hashes])):
        raise ValueError(f"{path} is damaged; delete it and run the same command again")
    return report


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(line, str) for line in found)


def pack(
    config: PackConfig,
    folder: Path,
    out: Path,
    captions: Path | None = None,
    progress: Progress = print,
    follow_links: bool = False,
    count_tokens: CountTokens | None = None,
) -> Packed:
    """Pack every layered picture under `folder` into shards under `out`, or what is missing of them.

    captions, follow_links: as `find_sources` takes them. progress: gets lines for people. count_tokens: finds captions
    that are too long. Raises ValueError when nothing can be used, when pictures that `out` holds are gone and when it
    was packed with other options, OSError with a sentence for a disk that is full, and what `find_sources` raises.
    """
    sources, skipped = find_sources(folder, captions, follow_links, exclude=out)
    if not sources:
        where = ""
        if not (out / CONFIG).is_file():  # else the lines there are those of an earlier packing
            write_lines(out / "skipped.txt", skipped)
            where = f"; {out / 'skipped.txt'} says why of each" if skipped else ""
        raise ValueError(f"{folder} holds no layered picture with a caption, and {len(skipped)} other pictures{where}")
    sources = [replace(source, layer=config.foreground_layer) for source in sources]
    jobs = _jobs(config, out, sources, skipped)
    unfinished = [job for job in jobs if not job.is_finished or _is_stale(job, progress)]

    def say(job: Job, done: int) -> None:
        progress(f"{job.name} is packed ({done} of {len(unfinished)})")

    for part in (out, *(out / split for split in SPLITS)):
        remove_partials(part)
    run_jobs(_pack_shard, unfinished, config.processes, say, progress)
    packed = _write_summary(out, jobs, skipped, _find_long_captions(jobs, count_tokens), bool(unfinished))
    if not packed.train:
        raise ValueError(f"no picture in {folder} can be trained on; {out / 'skipped.txt'} says why of each")
    return packed


def _jobs(config: PackConfig, out: Path, sources: Sequence[Source], skipped: Sequence[str]) -> list[Job]:
    """The shards, which are written down with the options. Raises ValueError when `out` was begun with others."""
    about = _options_of(config, sources)
    differing = find_differences(out, about, config_to_dict(PackConfig()))
    places = read_plan(out)
    if other := [name for name in differing if name not in MAY_DIFFER or name == "digest" and not places]:
        raise other_pictures(out, other)
    names = [source.name for source in sources]
    places = extend_plan(places, names, config.seed, config.validation, config.shard_size)
    jobs = _make_jobs(config, out, sources, places, skipped)
    write_whole(out / CONFIG, json.dumps(about, indent=2))
    write_plan(out, places)
    return jobs


def _options_of(config: PackConfig, sources: Sequence[Source]) -> dict[str, object]:
    """What config.json holds; the number of processes changes nothing."""
    digest = hashlib.sha256()
    for source in sources:
        sizes = {part: path.stat().st_size for part, path in source.files.items()}
        digest.update(json.dumps([source.name, sizes, source.texts], sort_keys=True).encode())
    return config_to_dict(replace(config, processes=1)) | {"pictures": len(sources), "digest": digest.hexdigest()}


def _make_jobs(
    config: PackConfig, out: Path, sources: Sequence[Source], places: Sequence[Place], skipped: Sequence[str]
) -> list[Job]:
    """The shards by their pictures. Raises ValueError when one that a shard holds is gone."""
    named = {source.name: source for source in sources}
    jobs: list[Job] = []
    gone: list[str] = []
    for (split, number), inside in group_by_shard(places).items():
        there = tuple((place.key, named[place.name]) for place in inside if place.name in named)
        job = Job(out / split, number, there, config.size)
        if len(there) < len(inside) and job.is_finished:
            packed = {row["key"] for row in read_index(job.directory, number)}
            gone += [place.name for place in inside if place.name not in named and place.key in packed]
        jobs.append(job)
    if gone:
        why = next((line for line in skipped if line.startswith(f"{gone[0]}: ")), f"{gone[0]}: is not in the folder")
        raise ValueError(
            f"{out} was begun with other pictures, {len(gone)} of which are gone or cannot be used any more "
            f"(first {why}); put them back, choose another folder or delete it"
        )
    return jobs


def _is_stale(job: Job, progress: Progress) -> bool:
    if not job.is_stale():
        return False
    progress(f"{job.name} is out of date, for one of its pictures or captions was changed: it is packed again")
    return True


def _find_long_captions(jobs: Sequence[Job], count_tokens: CountTokens | None) -> list[str]:
    """A line for every packed picture with a caption that is not read to its end."""
    if count_tokens is None:
        return []
    lines = []
    for job in jobs:
        long = [
            (source.name, text)
            for source in job.packed()
            for text in dict.fromkeys(training_captions(source.texts))
            if len(text.encode(errors="replace")) > MOST_TOKENS - 2  # one a byte at most
        ]
        counts = count_tokens([text for _, text in long])
        too_long = dict.fromkeys(name for (name, _), count in zip(long, counts, strict=True) if count > MOST_TOKENS)
        lines += [f"{name}: {LONG_CAPTION}" for name in too_long]
    return lines


def _write_summary(
    out: Path, jobs: Sequence[Job], skipped: Sequence[str], too_long: Sequence[str], is_new: bool
) -> Packed:
    """The files for people, and what is in them."""
    reports = {job: read_report(job.report) for job in jobs}
    skipped = sorted([*skipped, *(line for report in reports.values() for line in report["skipped"])])
    notes = sorted([*too_long, *(line for report in reports.values() for line in report["notes"])])
    write_lines(out / "skipped.txt", skipped)
    write_lines(out / "notes.txt", notes)
    train = [job for job in jobs if job.directory.name == "train"]
    counts = {"train": sum(reports[job]["packed"] for job in train)}
    counts["validation"] = sum(report["packed"] for report in reports.values()) - counts["train"]
    if counts["train"] and (is_new or not (out / "sheet.jpg").is_file()):
        write_sheet(out / "sheet.jpg", out / "train", _mark_pictures(train, notes))
    return Packed(**counts, skipped=len(skipped), faults=count_faults(notes))


def _mark_pictures(jobs: Sequence[Job], notes: Sequence[str]) -> dict[int, str]:
    """What looks wrong with which picture of a split, by its number in the shards."""
    named = [line.partition(": ")[::2] for line in notes]
    short = {fault: name.removeprefix("with ") for fault, name in SHORT_NAMES.items()}
    wrong = {name: f"{name}: {short[fault]}" for name, fault in named if fault in short}
    packed = [source.name for job in jobs for source in job.packed()]
    return {number: wrong[name] for number, name in enumerate(packed) if name in wrong}


def _pack_shard(job: Job) -> None:
    """Write a shard and its report. Raises OSError with a sentence for a full disk."""
    torch.set_num_threads(1)  # the processes share the machine, and sums keep their order
    report: dict[str, Any] = {"packed": 0, "skipped": [], "notes": []}
    report |= {"times": job.digest(file_times), "content": job.digest(Path.read_bytes), "texts": job.texts()}
    try:
        write_shard(job.directory, job.number, _examples(job, report))
        write_whole(job.report, json.dumps(report))  # last: a shard with a report is finished
    except OSError as error:
        raise disk_error(job.directory / f"{job.number:06d}.tar", error) from error


def _examples(job: Job, report: dict[str, Any]) -> Iterator[Example]:
    """The pictures of a shard that can be used; counts them, and the others with their reasons, in the report."""
    told = time.monotonic()
    for number, (key, source) in enumerate(job.sources):
        if time.monotonic() - told >= EVERY:
            tell(f"{job.name}: {number} of {len(job.sources)} pictures")
            told = time.monotonic()
        try:
            layers, notes = read_layers(source, job.size)
        except BROKEN as error:  # whatever a decoder says: one picture does not end the run
            reason = str(error) if type(error) is ValueError else f"cannot be read ({type(error).__name__})"
            report["skipped"].append(f"{source.name}: {reason}")
            continue
        report["packed"] += 1
        report["notes"] += [f"{source.name}: {note}" for note in notes]
        yield Example(key, layers, sources=(source.name,), **words_of(source.texts))


# ---- which picture has which key and lies in which shard


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
            f"validation must be from {validation - more} to {validation - more + len(new)}, got {validation}: of the "
            "pictures that are packed none goes from train to validation or back, and the others are too few"
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
