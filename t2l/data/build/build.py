"""Flat pictures with captions -> layered shards to train on.

    OUT/train, OUT/validation       shards, and beside each NUMBER.report.json: what was kept and what was dropped
    OUT/config.json                 what the folder was begun with; other options, models or pictures are refused
    OUT/ledger.csv                  every picture that was kept, with its source and licence
    OUT/dropped.csv                 every picture that was not, with the reason
    OUT/dataset.json                how many of each
    OUT/kept.jpg, OUT/dropped.jpg   some of each, to be looked at
    OUT/plan.jsonl, OUT/hashes      which pictures go where, and what they look like

The shards' bytes do not depend on the engine or the number of workers. The same command resumes after the last shard.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...config import config_to_dict
from ...io.atomic import atomic_path, remove_partials, write_whole
from ...io.image import contact_sheet, to_image
from ...layers import Layers
from ..cache_folder import evenly_spaced
from ..claim import claim, other_pictures
from ..pack import SPLITS
from ..report import PICTURES, save_sheet
from ..shards import Shards
from .engines import Engine, run_shards
from .hashes import find_duplicates
from .opening import open_source
from .plan import Job, Plan, write_plan
from .stages import BuildConfig, ModelFactory
from .worker import Recipe, build_shard, hash_shard, is_stale, read_report

KEPT = ("key", "split", "name", "source", "licence", "sha256")
DROPPED = ("number", "split", "name", "stage", "reason")
UNKNOWN = "unknown"  # licence


@dataclass(frozen=True)
class Built:
    """How many pictures ended where, and the dropped by what dropped them."""

    train: int
    validation: int
    dropped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = f"kept {self.train:,} pictures to train on" + f" and {self.validation:,} for validation" * bool(
            self.validation
        )
        reasons = ", ".join(f"{stage} {count:,}" for stage, count in sorted(self.dropped.items(), key=lambda x: -x[1]))
        return f"{kept}, dropped {sum(self.dropped.values()):,}" + f": {reasons}" * bool(reasons)


def build(
    config: BuildConfig,
    source: Path,
    out: Path,
    factory: ModelFactory,
    workers: int = 1,
    engine: Engine = "local",
    cards: float = 0,
    follow_links: bool = False,
    progress: Callable[[str], None] = print,
) -> Built:
    """Build the data set of a source under `out`, or what is missing of it.

    cards: that Ray lends to each worker. follow_links: also pictures outside of the source's folder. progress: gets
    lines for people. Raises ValueError when nothing can be used and when `out` was begun with something else, OSError
    with a sentence for a full disk, and what `open_source` and `run_shards` raise.
    """
    recipe = Recipe(out, config, open_source(source, follow_links, out), factory)
    plan = _claim_plan(recipe)
    unfinished = [job for job in plan.jobs if not recipe.is_finished(job)]
    if any(recipe.is_finished(job) and is_stale(recipe, job) for job in plan.jobs):
        raise other_pictures(out, ["digest"])
    if unfinished:
        run = partial(run_shards, engine, workers=workers, cards=cards, listen=progress)
        _find_duplicates(recipe, plan, run, progress)
        for folder in (out, recipe.duplicates.parent, *(out / split for split in SPLITS)):
            remove_partials(folder)
        run(
            work=partial(build_shard, recipe),
            jobs=unfinished,
            report=_say_what_is_done(progress, "is built", len(unfinished)),
        )
    built = Built(*write_summary(recipe, plan))
    if unfinished:
        write_sheets(recipe, plan)
    if not built.train:
        raise ValueError(f"no picture of {source} can be trained on; {out / 'dropped.csv'} says why of each")
    return built


def _claim_plan(recipe: Recipe) -> Plan:
    """The plan, when `out` is free or was begun with the same one."""
    models = recipe.factory.identity()  # a model that is not there is told of before anything is written
    with atomic_path(recipe.plan) as partial_path:
        plan = write_plan(partial_path, recipe.source, recipe.config)
        if not plan.pictures:
            raise ValueError(
                "the source holds no pictures; a folder, a table that names some or WebDataset shards are taken"
            )
        wanted = config_to_dict(recipe.config) | {"source": recipe.source.identity(), "models": models}
        claim(recipe.out, wanted | {"pictures": plan.pictures, "digest": plan.digest})
    return plan


def _say_what_is_done(progress: Callable[[str], None], what: str, count: int) -> Callable[[Job, int], None]:
    return lambda job, done: progress(f"{job.name} {what} ({done} of {count})")


def _find_duplicates(recipe: Recipe, plan: Plan, run: Callable[..., None], progress: Callable[[str], None]) -> None:
    """Look at every picture once, then decide: that no shard waits for another when it is built."""
    if not recipe.config.deduplicate or recipe.duplicates.is_file():
        return
    jobs = [job for job in plan.jobs if not recipe.hashes(job).is_file()]
    run(
        work=partial(hash_shard, recipe),
        jobs=jobs,
        cards=0,
        report=_say_what_is_done(progress, "is looked through", len(jobs)),
    )
    found = np.concatenate([np.load(recipe.hashes(job), allow_pickle=False) for job in plan.jobs])
    found = found[np.argsort(found[:, 0])]
    pairs = find_duplicates(found[:, 0], np.ascontiguousarray(found[:, 1]), recipe.config.hash_distance)
    with atomic_path(recipe.duplicates) as partial_path, partial_path.open("wb") as file:
        np.save(file, pairs, allow_pickle=False)


def write_summary(recipe: Recipe, plan: Plan) -> tuple[int, int, dict[str, int]]:
    """ledger.csv, dropped.csv and dataset.json from the reports, of which one at a time is in memory.

    Returns how many are kept to train on and for validation, and the dropped by what dropped them.
    """
    kept, dropped, licences = Counter[str](), Counter[str](), Counter[str]()
    with _table(recipe.out / "ledger.csv", KEPT) as keep, _table(recipe.out / "dropped.csv", DROPPED) as drop:
        for job in sorted(plan.jobs, key=lambda job: job.name):
            report = read_report(recipe.report(job))
            for row in report.kept:
                keep(row | {"split": job.split})
            for row in report.dropped:
                drop(row | {"split": job.split})
            kept[job.split] += len(report.kept)
            dropped.update(row["stage"] for row in report.dropped)
            licences.update(row["licence"] or UNKNOWN for row in report.kept)
    counts = {"kept": kept, "dropped": dropped, "licences": licences}
    summary = {name: dict(sorted(of.items())) for name, of in counts.items()}
    write_whole(recipe.out / "dataset.json", json.dumps(summary, indent=2) + "\n")
    return kept["train"], kept["validation"], dict(dropped)


@contextmanager
def _table(path: Path, columns: tuple[str, ...]) -> Iterator[Callable[[dict[str, Any]], object]]:
    """A CSV file that is there when it is whole; what is called adds a row."""
    with (
        atomic_path(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        rows.writeheader()
        yield rows.writerow


def write_sheets(recipe: Recipe, plan: Plan) -> None:
    """kept.jpg, and dropped.jpg with a reason over each picture; nothing where there are none."""
    for folder, name in ((recipe.out / "train", "kept.jpg"), (recipe.out / "dropped" / "train", "dropped.jpg")):
        try:
            shards = Shards(folder)
        except (FileNotFoundError, ValueError):  # no shards, or none with a picture
            continue
        numbers = evenly_spaced(len(shards), PICTURES)
        reasons = _reasons(recipe, plan, set(numbers)) if name == "dropped.jpg" else {}
        titles = [reasons.get(number) or shards.metadata(number)["caption"] for number in numbers]
        save_sheet(contact_sheet((_seen(shards[number].layers) for number in numbers), titles), recipe.out / name)


def _seen(layers: Layers) -> Layers | Image.Image:
    """Layers as they are, but for a picture that was dropped before it had any."""
    is_flat = bool(layers.mask.amin() == layers.mask.amax())
    return to_image(layers.composite()[0]) if is_flat else layers


def _reasons(recipe: Recipe, plan: Plan, numbers: set[int]) -> dict[int, str]:
    """Why pictures in OUT/dropped/train were dropped, by their numbers there."""
    reasons, place = {}, 0
    for job in plan.jobs:
        for reason in read_report(recipe.report(job)).shown if job.split == "train" else ():
            if place in numbers:
                reasons[place] = reason
            place += 1
    return reasons
