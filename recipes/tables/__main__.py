"""Train and score the paper's systems in a small world, and write docs/tables.md: python -m recipes.tables

The same command goes on where it was stopped. Seeds, the judge and the figures of the systems are worked at side by
side, one core each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from t2l.config import check_ranges
from t2l.data.workers import run_jobs, tell
from t2l.evaluation.drawing import EvaluateFiles
from t2l.evaluation.report import EvaluateConfig, evaluate
from t2l.generate import GenerateConfig
from t2l.io.atomic import write_whole
from t2l.model.device import pick_device
from t2l.training.recipe import Recipe, changed, load_recipe
from t2l.training.recipe_run import RecipeRun, run_recipe

from .heads import score_heads
from .judge import FILE as JUDGE
from .judge import train_judge
from .page import write_page

RECIPE = Path(__file__).resolve().parents[1] / "tables.toml"
LAST = "CaT2I-AE-SD-head"  # of what is trained with every seed; the first seed goes on with the other heads
JUDGED_SIZE = 128  # pixels along a side of what the judges see
SOFT = (1.0, 0.5, 0.25, 0.1875)  # the drawn pictures have 64 pixels and less detail: soft is not to mean another thing
DRAWN = GenerateConfig(num_steps=25, guidance_scale=2.0)  # 3 knows fewer things and more places (LOG.md)
TRAININGS = ("train-autoencoder", "train-unet")
Job = tuple[str, int]  # judge, train, a system or heads; the seed


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What is made, where and how."""

    run: Path
    seeds: int = 2
    processes: int = 2
    device: str = "auto"
    times: int | None = None  # the recipe's steps; None: 10 on a card, 1 without
    overrides: tuple[str, ...] = ()  # of the recipe, STAGE.name=value
    prompts: int = 768  # drawn with each system

    def __post_init__(self) -> None:
        check_ranges(self, seeds=(2, 100), processes=(1, 64), prompts=(4, 10**6))

    @property
    def data(self) -> Path:
        return self.run / "data"

    @property
    def judge(self) -> Path:
        return self.run / "judge"

    def folder(self, seed: int) -> Path:
        """Where everything of a seed lies."""
        return self.run / f"seed-{seed}"

    def recipe(self, seed: int) -> Recipe:
        """The recipe with every training begun from a seed, and as many times as long."""
        recipe = load_recipe(RECIPE, [*(f"{kind}.seed={seed}" for kind in TRAININGS), *self.overrides])
        times = self.times or (10 if pick_device(self.device).type == "cuda" else 1)
        trained = [stage for stage in recipe.stages if stage.command in TRAININGS]
        longer = [f"{stage.name}.num_steps={times * stage.config.num_steps}" for stage in trained]
        return changed(recipe, longer if times > 1 else ())


def main() -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tables", description=__doc__)
    shown = {"help": "default: %(default)s"}
    parser.add_argument("--run", type=Path, default=Path("runs/tables"), metavar="DIR", **shown)
    parser.add_argument("--page", type=Path, default=Path("docs/tables.md"), metavar="FILE", **shown)
    parser.add_argument("--seeds", type=int, default=2, metavar="N", **shown)
    parser.add_argument("--processes", type=int, default=2, metavar="N", **shown)
    parser.add_argument("--prompts", type=int, default=768, metavar="N", **shown)
    parser.add_argument("--device", default="auto", **shown)
    parser.add_argument("--times", type=int, metavar="N", help="the recipe's steps; default: 10 on a card, 1 without")
    parser.add_argument("overrides", nargs="*", metavar="STAGE.name=value", help="as of t2l train")
    options = vars(parser.parse_intermixed_args())
    page = options.pop("page")
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # of the processes that begin here
    try:
        make_tables(Tables(**options | {"overrides": tuple(options["overrides"])}), page)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"recipes.tables: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


def make_tables(tables: Tables, page: Path) -> None:
    """Everything from the data set to the page. Raises what training and evaluation raise."""
    recipe, seeds = tables.recipe(0), range(tables.seeds)
    run_recipe(recipe, tables.folder(0), tables.data, last="data", device=tables.device, tell=say)
    systems = [stage.name for stage in recipe.stages if stage.command == "train-unet"]
    train = [("judge", 0), *(("train", seed) for seed in seeds)]
    score = [("heads", 0), *((system, seed) for seed in seeds for system in systems)]  # the longest first
    for jobs in (train, score):
        run_jobs(partial(_work, tables), jobs, tables.processes, lambda job, done: None, say)
    write_whole(page, write_page(tables.run, recipe, systems, tables.prompts))


def _work(tables: Tables, job: Job) -> None:
    """One job, in a process of its own unless there is one alone."""
    torch.set_num_threads(1)
    (what, seed), begun = job, time.monotonic()
    if what == "judge":
        train_judge(tables.data / "train", tables.judge)
    elif what == "train":
        _train(tables, seed, LAST)
    elif what == "heads":
        _train(tables, seed, None)
        run = RecipeRun(tables.recipe(seed), tables.folder(seed), tables.data)
        score_heads(run, tables.judge / JUDGE, tables.run / "heads.json", tables.prompts)
    else:
        _score(tables, tables.folder(seed) / what, seed)
    tell(f"seed {seed}, {what} is done after {(time.monotonic() - begun) / 60:.0f} min")


def _train(tables: Tables, seed: int, last: str | None) -> None:
    """Every stage of the recipe up to one of them."""
    recipe, folder = tables.recipe(seed), tables.folder(seed)
    run_recipe(recipe, folder, tables.data, None, last, tables.device, lambda line: tell(f"seed {seed}, {line}"))


def _score(tables: Tables, system: Path, seed: int) -> None:
    """Write the figures of a system, in its folder, unless they are there."""
    figures, part = system / "figures.json", system / "figures.part"
    if figures.exists():
        return
    files = EvaluateFiles(segmenter=tables.judge / JUDGE, samples=system / "drawn.png")
    config = EvaluateConfig(
        prompts=tables.prompts,
        saliency_count=tables.prompts,  # that the judge looks at
        saliency_real_count=tables.prompts,
        judged_size=JUDGED_SIZE,
        probe_scales=SOFT,
        generation=replace(DRAWN, seed=100_000 * seed),
    )
    evaluate(system / "snapshot.safetensors", tables.data, part, config, files, split="test", device=tables.device)
    part.replace(figures)


def say(line: str) -> None:
    """A line for people, with the time."""
    print(time.strftime("%H:%M"), line, file=sys.stderr, flush=True)


if __name__ == "__main__":  # by its own name: a data module that has run in this process has taken __main__'s place
    from recipes.tables.__main__ import main as named_main

    sys.exit(named_main())
