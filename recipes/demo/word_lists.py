"""Prints the words that a recipe of this data set teaches, in Markdown: python -m recipes.demo.word_lists RECIPE"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from t2l.config import config_from_dict
from t2l.training.recipe import load_recipe

from .build import DemoConfig, places_of, things_of
from .captions import LIGHTS, SIZES
from .cutouts import COLOURS


def word_lists(recipe: str | Path) -> str:
    """Things, places, lights, sizes and colours, a list each; a stroke stands between names for the same.

    Raises ValueError, FileNotFoundError or OSError with a sentence for a recipe that cannot be read.
    """
    config = config_from_dict(DemoConfig, load_recipe(Path(recipe)).stage("data").config.config)
    things, places = things_of(config, held_out=False), places_of(config)
    lists = {
        f"{len(things)} things": _names(thing.names for thing in things),
        f"{len(places)} places": _names(place.phrases for place in places),
        "Light": _names(LIGHTS.values()) if config.lit else "",
        "Sizes": _names(SIZES.values()) if config.resized else "",
        "Colours": ", ".join(COLOURS) + "; of these things: " + ", ".join(x.name for x in things if x.recolour),
    }
    written = (f"- {name}: {text}." for name, text in lists.items() if text)
    return "\n".join(textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False) for text in written)


def _names(rows: Iterable[Iterable[str]]) -> str:
    return ", ".join(" / ".join(row) for row in rows)


def main() -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(word_lists(sys.argv[1]))
    except (ValueError, OSError) as error:
        print(f"recipes.demo.word_lists: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
