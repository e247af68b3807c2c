"""Draw composites, plant faults, train both shipped filters, and tell how good they are on sources that they never saw.

    python -m recipes.filters.train --out out/filters [--downloads demo-data/downloads] [--photos FOLDER]

    OUT/KIND                shards of both parts, labels.jsonl, and what t2l train-filter writes
    OUT/KIND-photos         with --photos: photographed cut-outs before photographs, to test on alone
    OUT/figures.json        the figures of models/README.md
    models/KIND-filter.safetensors

--photos: an unpacked tuxpaint-stamps-default, plasma-workspace-wallpapers and mate-backgrounds (Debian; GPL-2, so never
trained on). The same command goes on after the last finished shard.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from t2l.data.example import Example
from t2l.data.labels import Label
from t2l.data.shards import Shards, shard_is_finished, write_shard
from t2l.data.workers import run_jobs
from t2l.evaluation.metrics import area_under_curve, kept_at
from t2l.labelling.train_filter import TrainFilterConfig, sample_features, train_filter
from t2l.model.filters import SHIPPED, load_filter

from ..demo.sources import fetch_sources
from .composites import KINDS, Draughtsman, Material, demo_material, photo_material

SHARD = 400  # samples
PLANTED = 0.3  # share of faulty samples in the set that the filters clean
DRAWS = 200  # of such a set
TRAINED_ON = (
    "planted faults in composites of Fluent Emoji, Sweet Home 3D and Open Clip Art "
    "before pmndrs panoramas, Lomiri photographs and drawn scenes"
)
Job = tuple[str, int]  # part and number of a shard in it


def main() -> None:
    """Everything, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, default=Path("demo-data/downloads"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="samples of each kind")
    parser.add_argument("--held-out", type=int, default=800)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    fetch_sources(args.downloads, print)
    counts = {"train": args.train, "held": args.held_out}
    draw(counts, partial(demo_material, args.downloads), args.out, args.processes, "")
    if args.photos:
        share = args.photos / "usr/share"
        draw(
            {"photos": 400},
            partial(photo_material, share / "tuxpaint/stamps", share),
            args.out,
            args.processes,
            "-photos",
        )
    figures = {kind: train(kind, args.out) for kind in KINDS}
    figures["together"] = clean(args.out, "", "held")
    if args.photos:
        figures |= {f"{kind} on photos": judged(kind, args.out / f"{kind}-photos") for kind in KINDS}
        figures["together on photos"] = clean(args.out, "-photos", "photos")
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def draw(counts: dict[str, int], material: Callable[[], Material], out: Path, processes: int, suffix: str) -> None:
    """The shards of some parts, all parts of a kind in one folder."""
    jobs = [(part, number) for part, count in counts.items() for number in range(-(-count // SHARD))]
    places = {job: place for place, job in enumerate(jobs)}
    missing = [
        job for job in jobs if not all(shard_is_finished(out / f"{kind}{suffix}", places[job]) for kind in KINDS)
    ]
    run_jobs(
        partial(_draw, material, out, suffix, places), missing, processes, lambda job, done: print(*job, "is drawn")
    )
    for kind in KINDS:
        _label(out / f"{kind}{suffix}", kind)


def _draw(material: Callable[[], Material], out: Path, suffix: str, places: dict[Job, int], job: Job) -> None:
    torch.set_num_threads(1)
    part, number = job
    draughtsman = Draughtsman(material(), part)
    examples: dict[str, list[Example]] = {kind: [] for kind in KINDS}
    for index in range(number * SHARD, (number + 1) * SHARD):  # by turns, for both kinds share a composite
        for kind in KINDS:
            examples[kind].append(draughtsman.example(kind, index))
    for kind in KINDS:
        write_shard(out / f"{kind}{suffix}", places[job], examples[kind])


def _label(folder: Path, kind: str) -> None:
    """labels.jsonl, from the faults that the captions name."""
    shards = Shards(folder)
    lines = []
    for index in range(len(shards)):
        fault = shards.metadata(index)["caption"]
        label = Label(key=shards.key(index), kind=kind, good=fault == "good", reason=KINDS[kind].get(fault, ""))
        lines.append(json.dumps(vars(label), sort_keys=True) + "\n")
    (folder / "labels.jsonl").write_text("".join(lines))


def train(kind: str, out: Path) -> dict[str, object]:
    """The filter of a kind into models/, and its figures on the held-out part."""
    config = TrainFilterConfig(kind=kind, precision=0.97, trained_on=TRAINED_ON)
    folder = out / kind
    report = train_filter(config, folder, [folder / "labels.jsonl"], folder, print)
    (SHIPPED / f"{kind}-filter.safetensors").write_bytes((folder / "filter.safetensors").read_bytes())
    return report


def scores_of(kind: str, folder: Path, part: str) -> tuple[torch.Tensor, list[str]]:
    """What the shipped filter says of the samples of a part, and their faults, in their order."""
    shards, judge = Shards(folder), load_filter(kind)
    indices = [i for i in range(len(shards)) if shards.key(i).startswith(part)]
    features = sample_features(judge, shards, indices, folder / "features.safetensors", print)
    return judge.judge(features), [shards.metadata(index)["caption"] for index in indices]


def judged(kind: str, folder: Path) -> dict[str, object]:
    """The figures of the shipped filter, at its own threshold, on samples it has nothing to do with."""
    scores, faults = scores_of(kind, folder, "")
    good = torch.tensor([fault == "good" for fault in faults])
    threshold = load_filter(kind).config.threshold
    area, error = area_under_curve(scores, good)
    by_fault = {}
    for fault in sorted(set(faults) - {"good"}):
        there = torch.tensor([found == fault for found in faults])
        by_fault[fault] = f"{int((scores[there] >= threshold).sum())} of {int(there.sum())} kept"
    return {"auc": area, "auc_se": error} | kept_at(scores, good, threshold) | {"faults": by_fault}


def clean(out: Path, suffix: str, part: str) -> dict[str, float]:
    """The paper's filter result in miniature: a set of which PLANTED have a bad mask or a bad fill, through both
    filters.

    Drawn DRAWS times from the samples of a part; means, and standard deviations from draw to draw.
    """
    passes, goods = {}, {}
    for kind in KINDS:
        scores, faults = scores_of(kind, out / f"{kind}{suffix}", part)
        passes[kind] = (scores >= load_filter(kind).config.threshold).numpy()
        goods[kind] = np.array([fault == "good" for fault in faults])
    rng = np.random.default_rng(0)
    found = [_cleaned(passes, goods, rng) for _ in range(DRAWS)]
    shares = {name: [row[name] for row in found] for name in found[0]}
    return {name: float(np.mean(x)) for name, x in shares.items()} | {
        f"{name}_sd": float(np.std(x)) for name, x in shares.items()
    }


def _cleaned(passes: dict[str, np.ndarray], goods: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, float]:
    """One set: every sample has a mask and a fill, of which at most one is bad."""

    def pick(kind: str, good: Sequence[bool]) -> np.ndarray:
        pools = {state: np.flatnonzero(goods[kind] == state) for state in (True, False)}
        return np.array([passes[kind][rng.choice(pools[bool(state)])] for state in good])

    which = rng.choice(3, len(goods["mask"]), p=(1 - PLANTED, PLANTED / 2, PLANTED / 2))  # good, bad mask, bad fill
    kept = pick("mask", which != 1) & pick("inpainting", which != 2)
    bad = which > 0
    return {
        "faulty_before": bad.mean(),
        "faulty_after": (kept & bad).sum() / max(1, kept.sum()),
        "good_kept": kept[~bad].mean(),
    }


if __name__ == "__main__":
    main()
