"""Labels of samples -> a quality filter, and how good it is on sources that it was not trained on.

    OUT/filter.safetensors      the neuron and its config
    OUT/report.json             figures on the held-out part
    OUT/curve.csv, curve.png    precision, recall and the share kept at every threshold
    OUT/features.safetensors    what the frozen network said of each sample; with more labels, only theirs are new

The features are computed once per sample; the neuron is trained on all of them at once, to the end, with no randomness.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import check_ranges, config_to_dict
from ..data.labels import REASONS, Label, is_held_out, read_labels
from ..data.shards import Shards
from ..evaluation.features import train_probe
from ..evaluation.metrics import area_under_curve, batches, kept_at
from ..io.atomic import atomic_path, write_whole
from ..io.checkpoint import read_tensors, write_tensors
from ..io.plot import write_curves
from ..model.efficientnet import load_lite0
from ..model.filters import BATCH, VIEWS, Filter, FilterConfig, Kind

LEAST_TRAINED, LEAST_HELD_OUT = 20, 5  # good ones, and as many bad ones
SAVED_EVERY = 512  # samples between two writings of the features
CURVE = 200  # thresholds from 0 to 1
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainFilterConfig:
    """How a filter is trained."""

    kind: Kind = "mask"
    views: tuple[str, ...] = FilterConfig.views  # of model/filters.VIEWS
    l2: float = 1.0  # weight of |w|^2 / 2 on standardised features
    steps: int = 100  # of L-BFGS, at most
    held_out: float = 0.25  # share of the sources that are kept for the figures and the threshold
    seed: int = 0  # draws them
    precision: float = 0.95  # the threshold is the lowest that keeps so many good ones among what it keeps
    trained_on: str = ""  # words for people, in the filter's file

    def __post_init__(self) -> None:
        check_ranges(self, l2=(0, 1e6), steps=(1, 100_000), held_out=(0.01, 0.9), precision=(0.5, 1))
        self.filter_config()  # which checks its views

    def filter_config(self) -> FilterConfig:
        """The config of a filter that is not trained yet."""
        return FilterConfig(kind=self.kind, views=self.views, trained_on=self.trained_on)


def train_filter(
    config: TrainFilterConfig, data: Path, labels: Sequence[Path], out: Path, progress: Progress
) -> dict[str, Any]:
    """Train a filter on labels of the shards in `data`, write what the module says into `out`, return the report.

    Raises FileNotFoundError, and ValueError with a sentence for too few labels or labels of other samples.
    """
    shards = Shards(data)
    rows = _label_rows(shards, read_labels(labels, config.kind), data)
    sides = {index: _side(shards, index, config) for index in rows}
    _check_enough(rows, sides, config)
    used = [index for index in rows if sides[index] is not None]
    judge = Filter(config.filter_config(), torch.empty(0), torch.empty(0), load_lite0())
    features = sample_features(judge, shards, used, out / "features.safetensors", progress)
    good, tested = (
        torch.tensor([bool(x) for x in which]) for which in ([rows[i].good for i in used], [sides[i] for i in used])
    )
    judge = _trained(judge, features[~tested], good[~tested], config)
    scores = judge.judge(features[tested])
    report = _report(scores, [rows[index] for index in used if sides[index]], config)
    report |= {"trained": int((~tested).sum()), "left_out": len(rows) - len(used)}
    figures = {name: round(report[name], 4) for name in ("auc", "auc_se", "precision", "recall")}
    judge.config = replace(judge.config, threshold=report["threshold"], figures=figures)
    judge.save(out / "filter.safetensors")
    _write_curve(out, scores, good[tested])
    write_whole(out / "report.json", json.dumps(report | {"config": config_to_dict(config)}, indent=2) + "\n")
    return report


def choose_threshold(scores: Tensor, good: Tensor, precision: float) -> float:
    """The lowest score of a good sample from which on at least `precision` of what is kept is good; where none is, the
    highest.

    scores: (N,), good: (N,) bool.
    """
    candidates = scores[good].unique()
    all_kept, good_kept = (len(x) - torch.searchsorted(x.sort().values, candidates) for x in (scores, scores[good]))
    enough = candidates[good_kept >= precision * all_kept]
    return float(enough[0] if len(enough) else candidates[-1])


def _label_rows(shards: Shards, said: dict[str, Label], data: Path) -> dict[int, Label]:
    rows = {index: said[key] for index in range(len(shards)) if (key := shards.key(index)) in said}
    if said and not rows:
        raise ValueError(
            f"none of the {len(said)} labels is of a sample in {data}; its keys are such as {shards.key(0)!r}"
        )
    return rows


def _side(shards: Shards, index: int, config: TrainFilterConfig) -> bool | None:
    sources = shards.metadata(index).get("sources") or [shards.key(index)]
    return is_held_out(sources, config.held_out, config.seed)


def _check_enough(rows: dict[int, Label], sides: dict[int, bool | None], config: TrainFilterConfig) -> None:
    """Raise ValueError for too few labels of one sort on one side."""
    parts = (False, LEAST_TRAINED, "to train on"), (True, LEAST_HELD_OUT, "whose sources are held out")
    for side, least, words in parts:
        good = [bool(label.good) for index, label in rows.items() if sides[index] is side]
        found = sum(good), len(good) - sum(good)
        if min(found) < least:
            raise ValueError(
                f"at least {least} good and {least} bad samples {words} are needed, got {found[0]} and {found[1]}; "
                f"label more with `t2l label --kind {config.kind}`"
            )


def sample_features(judge: Filter, shards: Shards, used: Sequence[int], cache: Path, progress: Progress) -> Tensor:
    """What a filter's network says of some samples, (N, D): from the cache file, or computed and put there."""
    known = _read_cache(cache, shards.digest(), judge.config)
    missing = [index for index in used if index not in known]
    for done, indices in enumerate(batches(missing, BATCH), 1):
        known |= dict(zip(indices, _compute_features(judge, shards, indices), strict=True))
        if done * BATCH % SAVED_EVERY == 0 or done * BATCH >= len(missing):
            _write_cache(cache, known, shards.digest(), judge.config)
            progress(f"the network has seen {min(done * BATCH, len(missing))} of {len(missing)} samples")
    return torch.stack([known[index] for index in used])


def _compute_features(judge: Filter, shards: Shards, indices: Sequence[int]) -> Iterator[Tensor]:
    """Features of some samples; pictures of one size go together."""
    for index in indices:
        layers = shards[index].layers
        pictures = layers.composite() if judge.config.kind == "mask" else layers.background
        yield judge.features(pictures, layers.mask)[0]


def _read_cache(path: Path, digest: str, config: FilterConfig) -> dict[int, Tensor]:
    if not path.is_file():
        return {}
    tensors, metadata = read_tensors(path)
    if metadata != _identity(digest, config):
        return {}
    return dict(zip(tensors["rows"].tolist(), tensors["features"], strict=True))


def _write_cache(path: Path, known: dict[int, Tensor], digest: str, config: FilterConfig) -> None:
    rows = sorted(known)
    tensors = {"rows": torch.tensor(rows), "features": torch.stack([known[row] for row in rows])}
    write_tensors(path, tensors, _identity(digest, config))


def _identity(digest: str, config: FilterConfig) -> dict[str, str]:
    """What the features depend on."""
    return {"data": digest, "kind": config.kind, "views": json.dumps([(name, VIEWS[name]) for name in config.views])}


def _trained(judge: Filter, features: Tensor, good: Tensor, config: TrainFilterConfig) -> Filter:
    """The filter with its neuron trained: logistic regression, its standardisation folded into the weights."""
    probe = train_probe(features, ["good" if x else "bad" for x in good.tolist()], config.l2, config.steps)
    weight = (probe.weight[1] - probe.weight[0]) / probe.std  # of two classes, bad and good by the alphabet
    bias = probe.bias[1] - probe.bias[0] - (weight * probe.mean).sum()
    return Filter(judge.config, weight, bias, judge.network)


def _report(scores: Tensor, labels: Sequence[Label], config: TrainFilterConfig) -> dict[str, Any]:
    """What a filter does on the held-out part, at the threshold that is chosen there."""
    good = torch.tensor([bool(label.good) for label in labels])
    threshold = choose_threshold(scores, good, config.precision)
    area, error = area_under_curve(scores, good)
    found = {"auc": area, "auc_se": error, "threshold": threshold} | kept_at(scores, good, threshold)
    bad_kept = {}
    for reason in ("", *REASONS[config.kind]):
        kept = [
            bool(x >= threshold)
            for x, said in zip(scores, labels, strict=True)
            if not said.good and said.reason == reason
        ]
        if kept:
            bad_kept[reason or "no reason"] = f"{sum(kept)} of {len(kept)}"
    return found | {"held_out": len(good), "held_out_good": int(good.sum()), "bad_kept": bad_kept}


def _write_curve(out: Path, scores: Tensor, good: Tensor) -> None:
    rows = [{"threshold": i / CURVE} | kept_at(scores, good, i / CURVE) for i in range(CURVE + 1)]
    with atomic_path(out / "curve.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if math.isnan(x) else f"{x:.6g}" for name, x in row.items()} for row in rows)
    lines = {
        name: [(row["threshold"], row[name]) for row in rows if not math.isnan(row[name])]
        for name in ("precision", "recall", "kept")
    }
    write_curves({"held-out part": lines}, out / "curve.png", "threshold")
