"""The end of a build: what was kept, from where and by which licence, and what was not and why."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...io.atomic import atomic_path
from .plan import Plan
from .worker import Recipe, read_report

KEPT = ("key", "split", "file", "source", "licence", "sha256")
DROPPED = ("number", "split", "file", "stage", "reason")
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
