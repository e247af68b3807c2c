"""Build the demo data set: fetch the sources, plan who stands where, draw, write shards.

    OUT/train, OUT/test, OUT/held_out, OUT/validation, OUT/unfiltered    shards
    OUT/config.json                      what the folder was begun with; another config is refused
    OUT/dataset.json                     config, things, places, counts, words
    OUT/ledger.csv                       every source file with its licence and author
    OUT/downloads                        the packages, as fetched and unpacked; none where an archive is drawn from

Every sample is a function of (seed, split, index), so the bytes do not depend on the number of processes. The same
command goes on after the last finished shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2l.config import config_to_dict
from t2l.data.claim import claim, hash_file
from t2l.data.example import Example
from t2l.data.shards import Shards, shard_is_finished, write_shard
from t2l.data.workers import run_jobs
from t2l.io.atomic import remove_partials, write_whole
from t2l.layers import Layers

from .captions import SIZES, Thing, describe, load_things
from .cutouts import COLOURS, can_recolour, place_cutout, random_pose, recolour
from .pictures import LEDGER, ArchivePictures, PackagePictures, Pictures
from .places import Place, PlaceArtist, in_light, load_places
from .sources import fetch_sources, read_source, write_ledger

SPLITS = ("train", "test", "held_out", "validation", "unfiltered")  # new ones last: their places seed what is drawn
SHARED_LIGHT = 0.35  # of a place's light that falls on the thing too
FLOATING = {"sea", "space", "underwater"}  # places without ground to stand on


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo data set is built from. dataset.json carries it."""

    seed: int = 0
    size: int = 256  # pixels per side
    train: int = 24000  # samples
    test: int = 512  # samples of (thing, place) pairs that train never shows: for the figures, once
    validation: int = 512  # samples of other pairs that train never shows: for every choice
    held_out: int = 128  # samples of things that train never shows
    unfiltered: int = 0  # samples as train's, the same ones where there are as many, a share of them `faulty`
    things: tuple[str, ...] = ()  # the only ones that are drawn, by their usual names; () = all
    places: tuple[str, ...] = ()
    test_pairs: int = 2  # places per thing that only test shows, and as many that only validation shows
    recoloured: float = 0.4  # share of the samples of a recolourable thing
    resized: float = 0.25  # share of the samples that are drawn, and called, small or large
    lit: float = 0.3  # share of the samples at a place that can be graded, which are at night, in fog, ...
    usual: float = 0.6  # share of the first name and phrase in captions; near words share the rest
    faulty: float = 0.0  # share of unfiltered with a fault that the paper's filters find (see `with_fault`)
    fluent: float = 0.6  # least share of the glossy emoji among a thing's pictures, where it has one
    shard_size: int = 1000  # samples a shard
    processes: int = 2
    archive: str = ""  # a file of recipes.demo.archive to draw from; "" = the packages, which are fetched

    def __post_init__(self) -> None:
        least = {"size": 8, "shard_size": 1, "processes": 1, "test_pairs": 0} | dict.fromkeys(SPLITS, 0)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be {bound} or more, got {getattr(self, name)}")
        for name in ("recoloured", "resized", "lit", "usual", "faulty", "fluent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        _check_names("things", self.things, [thing.name for thing in load_things()])
        _check_names("places", self.places, [place.name for place in load_places()])
        if self.archive and not Path(self.archive).is_file():
            raise ValueError(
                f"archive must be a file that python -m recipes.demo.archive packed, and {self.archive} is none"
            )
        hidden = self.test_pairs * (2 if self.validation else 1)
        if len(places_of(self)) <= hidden:
            raise ValueError(
                f"places must be more than the {hidden} of each thing that only test and validation show, got "
                f"{len(places_of(self))}"
            )
        for split in SPLITS:
            if self.count(split) and not things_of(self, split == "held_out"):
                raise ValueError(f"{split} must be 0: none of the things is drawn there, got {self.count(split)}")

    def count(self, split: str) -> int:
        """Samples of a split."""
        return int(getattr(self, split))


def _check_names(what: str, names: tuple[str, ...], known: list[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{what} must be among {', '.join(known)}; got {', '.join(unknown)}")


Pair = tuple[Thing, Place]


def build_demo(config: DemoConfig, out: Path, progress: Callable[[str], None] = print) -> None:
    """Build the whole demo data set under `out`, or what is missing of it. progress: gets lines for people.

    Raises ValueError when `out` holds a data set of another config, and what `fetch_sources` raises.
    """
    out = Path(out)
    _claim(out, config)
    used = [source for held_out in (False, True) for thing in things_of(config, held_out) for source in thing.pictures]
    used += [source for place in places_of(config) for source in place.files]
    if config.archive:
        write_whole(out / LEDGER, ArchivePictures(Path(config.archive)).ledger(used))
    else:
        fetch_sources(out / "downloads", progress)
        write_ledger(out / LEDGER, out / "downloads", used)
    draw_shards(config, out, progress)
    _describe(config, out)
    progress(f"the demo data set is complete in {out}")


def _claim(out: Path, config: DemoConfig) -> None:
    """Write the config down, or check that it is the one `out` was begun with; processes may differ.

    A value that was not there yet when `out` was begun is the default.
    """
    claim(out, _identity(config), config_to_dict(DemoConfig()))


def _identity(config: DemoConfig) -> dict[str, Any]:
    """What decides the pictures: of an archive what is in it, wherever it lies."""
    archive = hash_file(Path(config.archive)) if config.archive else ""
    return config_to_dict(replace(config, processes=1)) | {"archive": archive}


def draw_shards(config: DemoConfig, out: Path, progress: Callable[[str], None]) -> None:
    """Draw every shard that is not finished, in `config.processes` processes."""
    for split in SPLITS:
        remove_partials(out / split)
    jobs = [
        (split, number)
        for split in SPLITS
        for number in range(-(-config.count(split) // config.shard_size))
        if not shard_is_finished(out / split, number)
    ]

    def say(job: tuple[str, int], done: int) -> None:
        split, number = job
        progress(f"{split}/{number:06d}.tar is drawn ({done} of {len(jobs)})")

    run_jobs(partial(_draw_shard, config, out), jobs, config.processes, say)


def _draw_shard(config: DemoConfig, out: Path, job: tuple[str, int]) -> None:
    torch.set_num_threads(1)  # the processes share the machine, and sums keep their order
    split, number = job
    first = number * config.shard_size
    indices = range(first, min(first + config.shard_size, config.count(split)))
    pairs = plan(config, split)
    artist = _artist(config, out / "downloads")
    examples: Iterator[Example] = (artist.draw(split, index, *pairs[index]) for index in indices)
    write_shard(out / split, number, examples)


@cache
def _artist(config: DemoConfig, downloads: Path) -> Artist:
    """One artist per process: what it has decoded serves every shard."""
    if config.archive:
        return Artist(config, ArchivePictures(Path(config.archive)))
    return Artist(config, PackagePictures(partial(read_source, downloads)))


@cache
def hidden_pairs(config: DemoConfig, split: str) -> dict[str, tuple[str, ...]]:
    """For every thing the places where only test, or only validation if there is one, shows it; none for other splits.

    The pairs of the README's example stay in train.
    """
    if split != "test" and not (split == "validation" and config.validation):
        return {}
    taken = hidden_pairs(config, "test") if split == "validation" else {}
    rng = np.random.default_rng([config.seed, 99, 1] if taken else [config.seed, 99])
    names = [place.name for place in places_of(config)]
    pairs = {}
    for thing in things_of(config, held_out=False):
        others = {*taken.get(thing.name, ()), *(["wooden table"] if thing.name == "teapot" else [])}
        allowed = [name for name in names if name not in others]
        pairs[thing.name] = tuple(str(name) for name in rng.choice(allowed, config.test_pairs, replace=False))
    return pairs


@cache
def plan(config: DemoConfig, split: str) -> list[Pair]:
    """Who stands where, for every sample of a split: every thing equally often, places by their weights."""
    rng = np.random.default_rng([config.seed, 100 + _seed(split)])
    things = things_of(config, held_out=split == "held_out")
    hidden = {name: hidden_pairs(config, name) for name in SPLITS}
    rounds = -(-config.count(split) // len(things))
    order = np.concatenate([rng.permutation(len(things)) for _ in range(max(rounds, 1))])
    pairs = []
    for number in order[: config.count(split)]:
        thing = things[number]
        shown = {name: of.get(thing.name, ()) for name, of in hidden.items()}
        others = {place for name, of in shown.items() if name != split for place in of}
        places = [place for place in places_of(config) if place.name in (shown.get(split) or {place.name} - others)]
        weights = np.array([place.weight for place in places])
        pairs.append((thing, places[int(rng.choice(len(places), p=weights / weights.sum()))]))
    return pairs


def _seed(split: str) -> int:
    """What the samples of a split are drawn from."""
    return SPLITS.index("train" if split == "unfiltered" else split)


def things_of(config: DemoConfig, held_out: bool) -> list[Thing]:
    """The things that are drawn: those of train, or those that it never shows."""
    return [t for t in load_things() if t.held_out == held_out and (not config.things or t.name in config.things)]


def places_of(config: DemoConfig) -> list[Place]:
    """The places that are drawn."""
    return [place for place in load_places() if not config.places or place.name in config.places]


class Artist:
    """Draws samples; keeps the cut-outs and plates it has decoded."""

    def __init__(self, config: DemoConfig, pictures: Pictures) -> None:
        self.config = config
        self.places = PlaceArtist(pictures)
        self._cutout = cache(pictures.cutout)
        self._can_recolour = cache(lambda source: can_recolour(self._cutout(source)))
        self._recoloured = lru_cache(64)(lambda source, colour: recolour(self._cutout(source), colour))

    def draw(self, split: str, index: int, thing: Thing, place: Place) -> Example:
        """The sample `index` of a split, a pure function of the config's seed and the arguments."""
        config = self.config
        rng = np.random.default_rng([config.seed, _seed(split), index])
        source = self._choose(thing, rng)
        labels = {"thing": thing.name, "place": place.name} | self._looks(thing, place, source, rng)
        looks = {name: labels.get(name, "") for name in ("colour", "size", "light")}
        cutout = self._recoloured(source, looks["colour"]) if looks["colour"] else self._cutout(source)
        pose = random_pose(rng, cutout, place.name not in FLOATING, looks["size"])
        foreground, mask = place_cutout(cutout, pose, config.size)
        background, plate = self.places.draw(place, rng, config.size)
        if looks["light"]:
            background = in_light(background, looks["light"])
            foreground = torch.lerp(foreground, in_light(foreground, looks["light"]), SHARED_LIGHT)
        texts: dict[str, Any] = describe(thing, place, rng, config.usual, **looks)
        sources = (source, plate) if plate else (source,)
        layers = Layers(foreground[None], background[None], mask[None])
        faults = np.random.default_rng([config.seed, _seed(split), index, 1])
        if split == "unfiltered" and faults.random() < config.faulty:
            layers = with_fault(layers, faults)
        key = f"{split}-{index:06d}"
        return Example(key, layers, labels=labels, sources=sources, **texts)

    def _looks(self, thing: Thing, place: Place, source: str, rng: np.random.Generator) -> dict[str, str]:
        """In which colour, how large and in which light a sample is drawn, as far as it is not as usual."""
        config, looks = self.config, {}
        if rng.random() < config.recoloured and thing.recolour and self._can_recolour(source):
            looks["colour"] = str(rng.choice(list(COLOURS)))
        if rng.random() < config.resized:
            looks["size"] = str(rng.choice(list(SIZES)))
        if place.lights and rng.random() < config.lit:
            looks["light"] = str(rng.choice(place.lights))
        return looks

    def _choose(self, thing: Thing, rng: np.random.Generator) -> str:
        """One of a thing's pictures: the emoji most often, clip art least."""
        weights = np.array([{"fluent": 3.0, "furniture": 1.0, "clipart": 0.5}[s.split("/")[0]] for s in thing.pictures])
        fluent = np.array([source.startswith("fluent/") for source in thing.pictures])
        if fluent.any() and not fluent.all():
            share = max(self.config.fluent, float(weights[fluent].sum() / weights.sum()))
            shares = np.where(fluent, share / weights[fluent].sum(), (1 - share) / weights[~fluent].sum())
            weights = weights * shares
        return str(rng.choice(thing.pictures, p=weights / weights.sum()))


def with_fault(layers: Layers, rng: np.random.Generator) -> Layers:
    """One picture as the paper's unfiltered data set has it: half of its mask is lost, or the foreground was not
    painted out of its background.
    """
    if rng.random() < 0.5:
        return replace(layers, background=layers.composite())
    height, width = layers.size
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    area = layers.mask.sum().clamp(min=1e-6)
    angle = rng.uniform(0, 2 * np.pi)
    away = (x - (x * layers.mask).sum() / area) * np.cos(angle) + (y - (y * layers.mask).sum() / area) * np.sin(angle)
    return replace(layers, mask=layers.mask * (away > 0))


def _describe(config: DemoConfig, out: Path) -> None:
    """Write dataset.json: what was built, from the shards themselves."""
    counts, words = {}, set()
    for split in (split for split in SPLITS if config.count(split)):
        shards = Shards(out / split)
        counts[split] = len(shards)
        for index in range(len(shards)):
            words |= set(shards.metadata(index)["caption"].replace(",", "").split())
    summary = {
        "config": _identity(config),
        "counts": counts,
        "things": {thing.name: len(thing.pictures) for thing in things_of(config, held_out=False)},
        "held_out_things": {thing.name: len(thing.pictures) for thing in things_of(config, held_out=True)},
        "places": {place.name: list(place.phrases) for place in places_of(config)},
        "test_only_pairs": hidden_pairs(config, "test"),
        "validation_only_pairs": hidden_pairs(config, "validation"),
        "words": sorted(words),
    }
    write_whole(out / "dataset.json", json.dumps(summary, indent=2) + "\n")
