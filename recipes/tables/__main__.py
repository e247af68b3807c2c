"""Train and score the paper's systems in a small world, and write docs/tables.md: python -m recipes.tables

The same command goes on where it was stopped. Seeds, the judge and the figures of the systems are worked at side by
side, one core each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from t2l.data.workers import run_jobs, tell
from t2l.evaluation.drawing import EvaluateFiles
from t2l.evaluation.report import EvaluateConfig, evaluate
from t2l.generate import GenerateConfig
from t2l.io.atomic import write_whole
from t2l.model.salient import FILE as SALIENT
from t2l.training.recipe import Recipe, load_recipe
from t2l.training.recipe_run import RecipeRun, run_recipe

from .heads import score_heads
from .judge import train_judge
from .page import write_page

RECIPE = Path(__file__).resolve().parents[1] / "tables.toml"
LAST = "CaT2I-AE-SD-head"  # of what is trained with every seed; the other heads are tried with the first alone
FIGURES = EvaluateConfig(prompts=768, saliency_count=384, saliency_real_count=384, judged_size=128)
DRAWN = GenerateConfig(num_steps=25, guidance_scale=3.0)


def main() -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tables", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tables"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/tables.md"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="STAGE.name=value", help="as of t2l train")
    args = parser.parse_intermixed_args()
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # of the processes that begin here
    try:
        make_tables(args.run, args.page, args.seeds, args.processes, args.device, args.overrides)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"recipes.tables: {error}", file=sys.stderr)
        return 2
    print(args.page)
    return 0


def make_tables(run: Path, page: Path, seeds: int, processes: int, device: str, overrides: list[str]) -> None:
    """Everything from the data set to the page. Raises what training and evaluation raise."""
    recipe = recipe_of(0, overrides)
    run_recipe(recipe, run / "seed-0", run / "data", last="data", device=device, tell=say)
    systems = [stage.name for stage in recipe.stages if stage.command == "train-unet"]
    train = [("judge", 0), *(("train", seed) for seed in range(seeds))]
    score = [(system, seed) for seed in range(seeds) for system in systems] + [("heads", 0)]
    work = partial(_work, run, device, overrides)
    for jobs in (train, score):
        run_jobs(work, jobs, processes, lambda job, done: None, say)
    write_whole(page, write_page(run, recipe, systems, seeds))


def recipe_of(seed: int, overrides: list[str]) -> Recipe:
    """The recipe with every training begun from a seed."""
    return load_recipe(RECIPE, [f"train-autoencoder.seed={seed}", f"train-unet.seed={seed}", *overrides])


def _work(run: Path, device: str, overrides: list[str], job: tuple[str, int]) -> None:
    """One job in a process of its own: the judge, all trainings of a seed, or the figures of a system."""
    torch.set_num_threads(1)
    (what, seed), begun = job, time.monotonic()
    recipe, folder, data = recipe_of(seed, overrides), run / f"seed-{seed}", run / "data"
    if what == "judge":
        train_judge(data / "train", run / "judge")
    elif what == "train":
        last = None if seed == 0 else LAST
        run_recipe(recipe, folder, data, last=last, device=device, tell=lambda line: tell(f"seed {seed}, {line}"))
    elif what == "heads":
        score_heads(RecipeRun(recipe, folder, data), run / "judge" / "judge.safetensors", run / "heads.json")
    elif not (figures := folder / what / "figures.json").exists():
        files = EvaluateFiles(
            saliency=SALIENT, segmenter=run / "judge" / "judge.safetensors", samples=folder / what / "drawn.png"
        )
        checkpoint, config = (
            folder / what / "snapshot.safetensors",
            replace(FIGURES, generation=replace(DRAWN, seed=100_000 * seed)),
        )
        evaluate(checkpoint, data, figures.with_suffix(".part"), config, files, split="test", device=device)
        figures.with_suffix(".part").replace(figures)
    tell(f"seed {seed}, {what} is done after {(time.monotonic() - begun) / 60:.0f} min")


def say(line: str) -> None:
    """A line for people, with the time."""
    print(time.strftime("%H:%M"), line, file=sys.stderr, flush=True)


if __name__ == "__main__":  # by its own name: a data module that has run in this process has taken __main__'s place
    from recipes.tables.__main__ import main as named_main

    sys.exit(named_main())
