"""The end of a build: what was kept, from where and by which licence, and what was not and why."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...io.atomic import atomic_path
from ...io.image import contact_sheet, to_image
from ...layers import Layers
from ..cache_folder import spread
from ..shards import Shards
from ..sheet import PICTURES, save_sheet
from .plan import Plan
from .worker import Recipe, read_report

KEPT = ("key", "split", "name", "source", "licence", "sha256")
DROPPED = ("number", "split", "name", "stage", "reason")
UNKNOWN = "unknown"  # licence


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
    with atomic_path(recipe.out / "dataset.json") as partial:
        partial.write_text(json.dumps({name: dict(sorted(of.items())) for name, of in counts.items()}, indent=2) + "\n")
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
        numbers = spread(len(shards), PICTURES)
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
