"""docs/tables.md: the paper's table and ours side by side, and whether ours decides the paper's orderings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

from t2l.training.recipe import Recipe

from .cost import operations

PAPER = {  # Table 1 and 3: FID on LL2I-E, CLIP, mask IOU by ICON, by people
    "CaT2I-AE-SD": (10.51, 0.251, 0.885, 0.799),
    "CaT2I-AE-SD-no-sup": (13.84, 0.241, 0.904, 0.851),
    "SD-AE-UNet": (18.53, 0.219, 0.779, 0.766),
    "SD-AE-UNet-ft": (20.15, 0.234, 0.670, 0.681),
    "SD-LAION-L2I": (11.80, 0.250, None, None),
    "CaT2I-AE-SD-512": (7.54, 0.261, None, None),
    "CaT2I-AE-SD-U": (13.82, 0.234, None, 0.736),
}
FIGURES = {  # in figures.json -> in the table
    "fid_equal": "FID",
    "foreground_top1": "things",
    "background_top1": "places",
    "mask_iou_segmenter": "IOU, judge",
}


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """Something the paper's table says: one system's figure is lower (or higher) than another's."""

    better: str
    worse: str
    figure: str
    lower: bool = True


ORDERINGS = (
    Ordering(better="CaT2I-AE-SD", worse="SD-AE-UNet", figure="fid_equal"),
    Ordering(better="CaT2I-AE-SD", worse="SD-AE-UNet-ft", figure="fid_equal"),
    Ordering(better="CaT2I-AE-SD", worse="CaT2I-AE-SD-no-sup", figure="fid_equal"),
    Ordering(better="CaT2I-AE-SD-no-sup", worse="CaT2I-AE-SD", figure="mask_iou_segmenter", lower=False),
    Ordering(better="CaT2I-AE-SD", worse="CaT2I-AE-SD-U", figure="fid_equal"),
    Ordering(better="CaT2I-AE-SD-512", worse="CaT2I-AE-SD", figure="fid_equal"),
)
HEAD = "CaT2I-AE-SD-head"
Found = Mapping[str, Sequence[Mapping[str, Any]]]  # system -> its generation figures, one for each seed


def write_page(run: Path, recipe: Recipe, systems: Sequence[str], prompts: int) -> str:
    """The page as Markdown, from the figures.json of every system and seed under the run folder.

    Systems may have different numbers of seeds, two at least.
    """
    found = {system: [_read(path) for path in sorted(run.glob(f"seed-*/{system}/figures.json"))] for system in systems}
    generated = {system: [figures["generation"] for figures in each] for system, each in found.items()}
    names = {stage.name: stage.config.system for stage in recipe.stages if stage.command == "train-unet"}
    parts = [
        INTRODUCTION.format(prompts=prompts),
        main_table(generated, names),
        orderings(generated),
        conflict(generated),
        heads_table(_read(run / "heads.json")),
        cost_table(run / "seed-0", recipe, systems),
    ]
    return "\n\n".join(parts) + "\n"


def main_table(found: Found, names: Mapping[str, str]) -> str:
    """A row for every system, the paper's figures first."""
    headings = [
        "system",
        "paper: FID",
        "CLIP",
        "IOU, ICON",
        "IOU, people",
        "our seeds",
        *(f"ours: {name}" if i == 0 else name for i, name in enumerate(FIGURES.values())),
    ]
    rows = []
    for system, seeds in found.items():
        paper = ["-" if value is None else f"{value:g}" for value in PAPER.get(system, (None,) * 4)]
        ours = [_cell([figures.get(name) for figures in seeds]) for name in FIGURES]
        rows.append([names[system], *paper, str(len(seeds)), *ours])
    looked_at = next(iter(found.values()))[0]  # the same real pictures by every system and seed
    real = (
        "fid_equal_real",
        "foreground_top1_real",
        "background_top1_real",
        "mask_iou_segmenter_real",
    )
    rows.append(["real pictures", *["-"] * 5, *(_cell([looked_at.get(name)]) for name in real)])
    return "## The systems\n\n" + _table(headings, rows)


def orderings(found: Found) -> str:
    """What becomes of each ordering of the paper at two standard errors."""
    headings = ["the paper says", "difference", "standard error", "verdict"]
    rows = []
    for ordering in ORDERINGS:
        difference, error = compare(found, ordering.better, ordering.worse, ordering.figure)
        better = -difference if ordering.lower else difference
        figure = f"{'lower' if ordering.lower else 'higher'} {FIGURES[ordering.figure]}"
        says = f"{ordering.better} has the {figure} than {ordering.worse}"
        found_here = verdict(better, error, spread_of_seeds(found, ordering.figure))
        rows.append([says, f"{difference:+.3g}", f"{error:.2g}", found_here])
    return f"## The paper's orderings\n\n{DECIDED}\n\n" + _table(headings, rows)


def conflict(found: Found) -> str:
    """The new head beside the auxiliary head (FID) and beside none (mask IOU)."""
    headings = ["the new head", "difference", "standard error", "worse at two standard errors"]
    rows = []
    for other, figure, lower in (
        ("CaT2I-AE-SD", "fid_equal", True),
        ("CaT2I-AE-SD-no-sup", "mask_iou_segmenter", False),
    ):
        difference, error = compare(found, HEAD, other, figure)
        worse = difference > 2 * error if lower else difference < -2 * error
        rows.append(
            [f"{FIGURES[figure]} beside {other}", f"{difference:+.3g}", f"{error:.2g}", "yes" if worse else "no"]
        )
    return f"## The conflict of picture and mask\n\n{CONFLICT}\n\n" + _table(headings, rows)


def heads_table(heads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """What each decoder makes of wrong latents."""
    names = {"mask_iou": "mask IOU", "mask_iou_segmenter": "IOU, judge", "composite_psnr": "PSNR, dB", "fid": "FID"}
    rows = []
    for head, noises in heads.items():
        for noise, figures in noises.items():
            cells = [_with_error(figures[name], figures.get(f"{name}_se")) for name in names]
            rows.append([head, noise, *cells])
    title = "### Every head that was tried, on latents with noise"
    return f"{title}\n\n{TRIED}\n\n" + _table(["head", "noise", *names.values()], rows)


def cost_table(run: Path, recipe: Recipe, systems: Sequence[str]) -> str:
    """What each UNet was trained with. An initial checkpoint's own training is not in it."""
    headings = ["system", "parameters, M", "steps", "pictures a step", "GFLOP a picture", "TFLOP in all"]
    rows = []
    for stage in map(recipe.stage, systems):
        parameters, flop = operations(run / stage.name / "snapshot.safetensors")
        steps, batch = stage.config.num_steps, stage.config.batch_size
        total = f"{flop * steps * batch / 1e12:.3g}"
        rows.append(
            [stage.config.system, f"{parameters / 1e6:.2f}", f"{steps:,}", str(batch), f"{flop / 1e9:.3g}", total]
        )
    return f"## What each UNet was trained with\n\n{COST}\n\n" + _table(headings, rows)


def compare(found: Found, one: str, other: str, figure: str) -> tuple[float, float]:
    """The difference of two systems' means over seeds, and its standard error from the spread of all systems' seeds."""
    values = [[seed[figure] for seed in found[system]] for system in (one, other)]
    error = spread_of_seeds(found, figure) * math.sqrt(sum(1 / len(each) for each in values))
    return mean(values[0]) - mean(values[1]), error


def spread_of_seeds(found: Found, figure: str) -> float:
    """The standard deviation between seeds of one system, from all that have the figure."""
    values = [[seed[figure] for seed in seeds] for seeds in found.values() if seeds[0].get(figure) is not None]
    squares = sum((len(each) - 1) * variance(each) for each in values)
    return math.sqrt(squares / sum(len(each) - 1 for each in values))


def verdict(better: float, error: float, spread: float) -> str:
    """better: by how much the system that the paper prefers is better here. Of n seeds each, the error's square would
    be 2 / n of the spread's; that is to be a quarter of better's.
    """
    if abs(better) > 2 * error:
        return "reproduced" if better > 0 else "reversed"
    needed = math.inf if better == 0 else math.ceil(8 * (spread / better) ** 2)
    return f"not decided; a difference of this size needs {needed} seeds"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return _with_error(mean(known), math.sqrt(variance(known)) if len(known) > 1 else None, 2)


def _with_error(value: float, error: float | None, digits: int = 1) -> str:
    """As many decimals as the error's digits need."""
    if not error:
        return f"{value:.4g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


INTRODUCTION = """# The paper's tables in miniature

`make tables` trains and scores every system of the paper in a world of 12 things in 8 places, 64 pixels wide, small
enough that they converge on one core each ([recipes/tables.toml](../recipes/tables.toml) says how), and writes this
page. Every figure is the mean over the seeds, of data order, weights and drawn noise, with the standard deviation
between them.

FID is by EfficientNet-Lite0 on pictures scaled to 128 pixels, {prompts} drawn against the real ones of their
captions. *Things* and *places* are the share of drawn pictures in which a classifier sees what was asked for. It
learnt from real ones, three quarters of them scaled to 64, 32 or 24 pixels and back: one that knows sharp pictures
alone takes softness for another thing (LOG.md). *IOU, judge* compares masks with those of a small network that learnt
from this world's true masks, in place of the paper's people; the row of real pictures says how well it knows them. In
place of ICON there is nothing: the shipped saliency network is blind to pictures this soft. On real ones its IOU with
the true mask is 0.98 at 128 pixels, and 0.12 once they were scaled to 64 and back (16 pictures)."""
DECIDED = """A difference is decided where it is more than two standard errors. The error comes from the spread between
seeds, which is taken to be the same for every system. Where it is not decided, the last column says how many seeds
of each would decide a difference of this size with this spread. Where some systems have a seed more than the others,
it was added for an ordering that was nearly decided (LOG.md), and that decides too easily.

Half of the unfiltered pictures have a planted fault: a mask that lacks a part of the thing, or the thing left in the
background as well. The second hardly changes the composite, so that FID says less of it than things and mask IOU do."""
CONFLICT = """The paper's auxiliary head predicts the whole picture beside the layers; it says that pictures gain by
it and masks lose. The new head gives the mask a last block of its own (`mask_block`), which the colours do not
share."""
TRIED = """Autoencoders of the first seed decode 256 real pictures that no system draws, with noise of so many standard
deviations on their latents. *Mask IOU* is with the true mask, *IOU, judge* with what the judge finds in the decoded
picture. All have as many steps.

- `joint`: the paper's auxiliary head. `no-sup`: none.
- `head`: the mask's own last block, and the auxiliary head.
- `head-stop`: the auxiliary head's gradient trains the last block and nothing before it.
- `head-recompose`: no auxiliary head; the layers are asked to give the picture. `head-both`: that beside the auxiliary
  head.
- `head-decay`: the auxiliary head for the first half of the steps, and none for the second."""
COST = """(512) went on from the UNet of CaT2I-AE-SD, (ft) from that of SD-LAION-L2I. What those took is not in the rows
of what went on from them."""
