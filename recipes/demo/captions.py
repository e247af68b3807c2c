"""Words for a drawn sample: what stands in front, where it is, and the whole prompt in several wordings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from t2l.config import config_from_dict

from .places import Place

WORDINGS = [  # share, wording; {bare} has no article
    (0.62, "{foreground} {background}"),
    (0.14, "a photo of {foreground} {background}"),
    (0.12, "a picture of {foreground} {background}"),
    (0.12, "{bare}, {background}"),
]
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}  # the usual word first
LIGHTS = {
    "night": ("at night", "by night", "in the dark", "at midnight"),
    "fog": ("in fog", "in the mist", "in the fog", "on a foggy day"),
    "dusk": ("at dusk", "in the evening", "at twilight"),
    "warm": ("in warm light", "in golden light", "in the afternoon"),
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One row of things.json."""

    names: tuple[str, ...]  # the usual one first
    pictures: tuple[str, ...]  # ids of source files
    article: str | None = None  # None: a or an, by the first letter; "": none
    recolour: bool = False  # may be drawn and captioned in another colour
    held_out: bool = False  # never in train

    @property
    def name(self) -> str:
        return self.names[0]


@cache
def load_things() -> tuple[Thing, ...]:
    """The curated things."""
    rows = json.loads((Path(__file__).parent / "things.json").read_text())["things"]
    return tuple(config_from_dict(Thing, row) for row in rows)


def describe(
    thing: Thing,
    place: Place,
    rng: np.random.Generator,
    usual: float = 1.0,
    colour: str = "",
    size: str = "",
    light: str = "",
) -> dict[str, str]:
    """caption, foreground_caption and background_caption: lower case, plain ASCII, no full stop.

    usual: share of the first name and the first phrase; the near words share the rest. colour: one of COLOURS; size:
    of SIZES; light: of LIGHTS; "": nothing is said of it.
    """
    said = partial(_usually_first, usual=usual, rng=rng)
    bare = " ".join(filter(None, (said(SIZES[size]) if size else "", colour, said(thing.names))))
    article = thing.article if thing.article is not None else ("an" if bare[0] in "aeiou" else "a")
    foreground = f"{article} {bare}".strip()
    background = " ".join(filter(None, (said(place.phrases), said(LIGHTS[light]) if light else "")))
    wording = WORDINGS[int(rng.choice(len(WORDINGS), p=[share for share, _ in WORDINGS]))][1]
    caption = wording.format(foreground=foreground, background=background, bare=bare)
    return {"caption": caption, "foreground_caption": foreground, "background_caption": background}


def _usually_first(choices: tuple[str, ...], usual: float, rng: np.random.Generator) -> str:
    if len(choices) == 1 or rng.random() < usual:
        return choices[0]
    return choices[1 + int(rng.integers(len(choices) - 1))]
