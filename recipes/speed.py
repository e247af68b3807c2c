"""How fast a recipe's trainings were, and how many steps fit: python -m recipes.speed RUN stage=seconds ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def describe_speed(run: Path, stage: str, seconds: float) -> str:
    """A sentence about a training stage by its last logged steps, which no compiling slows down."""
    log = run / stage / "stats.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"there is no {log}: {stage} has not trained in {run}")
    logged = [values for values in map(json.loads, log.read_text().splitlines()) if "steps_per_second" in values]
    rate, wait = logged[-1]["steps_per_second"], logged[-1]["data_wait"]
    steps = max(1, round(rate * seconds, -2))
    return (
        f"{stage}: {rate:.2f} steps a second, {wait:.0%} of the time waiting for data; {seconds:.0f} s are about "
        f"{steps:.0f} steps: {stage}.num_steps={steps:.0f}"
    )


def main(words: list[str]) -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    try:
        run, *stages = words
        for stage, seconds in (word.split("=") for word in stages):
            print(describe_speed(Path(run), stage, float(seconds)))
    except (ValueError, OSError) as error:
        print(f"recipes.speed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
