"""Composites with known foreground, background and mask, and the faults planted into them: what the shipped filters
learn from.

Cut-outs and places are those of the demo's packages (MIT, CC0, CC-BY, public domain). A sample's are all held out or
none is, by the same rule by which `t2l train-filter` keeps a part for testing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2l.compositing.edges import square_max
from t2l.data.example import Example
from t2l.data.labels import is_held_out
from t2l.layers import Layers

from ..demo.captions import load_things
from ..demo.cutouts import Pose, place_cutout, read_cutout
from ..demo.pictures import PackagePictures
from ..demo.places import Place, PlaceArtist, decode_photo, load_places, photo_crop
from ..demo.sources import read_source
from .planted_faults import FILL_FAULTS, MASK_FAULTS, SMALLEST, bad_fill, bad_mask, good_fill, good_mask

SIZE = 256
WALLPAPERS = (  # photographs without a subject, in plasma-workspace-wallpapers and mate-backgrounds
    "Path/contents/images/2560x1600.jpg",
    "EveningGlow/contents/images/2560x1600.jpg",
    "FallenLeaf/contents/images/2560x1600.jpg",
    "BytheWater/contents/images/2560x1600.jpg",
    "ColdRipple/contents/images/2560x1600.jpg",
    "DarkestHour/contents/images/2560x1600.jpg",
    "summer_1am/contents/images/2560x1600.jpg",
    "OneStandsOut/contents/images/2560x1600.jpg",
    "GreenMeadow.jpg",
    "Dune.jpg",
    "Storm.jpg",
    "Wood.jpg",
    "RainDrops.jpg",
)
EMOJI = (
    (0x1F300, 0x1F3FA),
    (0x1F400, 0x1F4FF),
    (0x1F5A5, 0x1F5FF),
    (0x1F680, 0x1F6FC),
    (0x1F950, 0x1F9FF),
    (0x1FA70, 0x1FAFF),
)


@dataclass(frozen=True)
class Material:
    """What composites are made of. Ids are those of sources.py; a painted place is "scene/NAME"."""

    cutouts: tuple[str, ...]
    places: tuple[str, ...]
    cutout: Callable[[str], Tensor]  # id -> premultiplied (4, H, W)
    place: Callable[[str, np.random.Generator], Tensor]  # id -> (3, SIZE, SIZE)


def photo_material(stamps: Path, wallpapers: Path) -> Material:
    """Photographed cut-outs (tuxpaint-stamps-default, GPL-2) before wallpapers. To test on, never to train on."""
    cutouts = {str(file.relative_to(stamps)): file for file in stamps.rglob("*.png") if _is_photo(file, stamps)}
    places = {str(file.relative_to(wallpapers)): file for name in WALLPAPERS for file in wallpapers.rglob(name)}
    photo = cache(lambda source: decode_photo(places[source].read_bytes()))

    def draw(source: str, rng: np.random.Generator) -> Tensor:
        return photo_crop(photo(source), rng, (0.0, 0.0, 1.0, 1.0), SIZE)

    cutout = lru_cache(200)(lambda source: read_cutout(cutouts[source].read_bytes()))
    return Material(tuple(sorted(cutouts)), tuple(sorted(places)), cutout, draw)


def _is_photo(file: Path, stamps: Path) -> bool:
    parts = file.relative_to(stamps).parts
    if parts[0] in ("symbols", "naturalforces") or {"cartoon", "flags", "roadsigns"} & set(parts):
        return False
    with Image.open(file) as picture:
        return min(picture.size) >= 128 and picture.mode in ("RGBA", "LA", "P")


def demo_material(downloads: Path) -> Material:
    """Cut-outs and places of the demo's packages, fetched before by `fetch_sources`."""
    places = {
        source: place for place in load_places() for source in place.files or (f"scene/{place.scene}{place.colour}",)
    }
    artist = PlaceArtist(PackagePictures(partial(read_source, downloads)))

    def draw(source: str, rng: np.random.Generator) -> Tensor:
        place: Place = places[source]
        number = place.files.index(source) if place.files else 0
        alone = {"files": (source,) if place.files else (), "regions": place.regions[number : number + 1]}
        return artist.draw(Place(**(vars(place) | alone)), rng, SIZE)[0]

    cutout = lru_cache(200)(lambda source: read_cutout(read_source(downloads, source)))
    return Material(tuple(sorted(_cutouts(downloads))), tuple(sorted(places)), cutout, draw)


def _cutouts(downloads: Path) -> set[str]:
    """Emoji of things, all furniture, and what the demo takes from clip art."""
    found = {source for thing in load_things() for source in thing.pictures}
    for file in (downloads / "unpacked" / "lobehub-fluent-emoji-3d" / "package" / "assets").glob("*.webp"):
        if re.fullmatch("[0-9a-f]{5}", file.stem) and any(low <= int(file.stem, 16) <= high for low, high in EMOJI):
            found.add(f"fluent/{file.name}")
    for catalog in (downloads / "unpacked" / "sweethome3d-furniture" / "usr/share/sweethome3d/furniture").glob(
        "*.sh3f"
    ):
        if catalog.stem in ("BlendSwap-CC-0", "BlendSwap-CC-BY", "KatorLegaz", "Scopia"):
            names = zipfile.ZipFile(catalog).namelist()
            found |= {f"furniture/{catalog.stem}/{name}" for name in names if name.endswith(".png")}
    return found


def choose(material: Material, held_out: bool | None, rng: np.random.Generator) -> tuple[str, str]:
    """A cut-out and a place, both held out or both not; any with None."""
    cutouts, places = _parts(material.cutouts, held_out), _parts(material.places, held_out)
    return str(rng.choice(cutouts)), str(rng.choice(places))


@cache
def _parts(sources: tuple[str, ...], held_out: bool | None) -> tuple[str, ...]:
    return tuple(source for source in sources if held_out is None or is_held_out([source]) == held_out)


def compose(
    material: Material, held_out: bool | None, rng: np.random.Generator, small: bool = False
) -> tuple[Layers, tuple[str, ...]]:
    """One picture and its sources: an object before a place, at times with another thing in the background."""
    while True:
        cutout, place = choose(material, held_out, rng)
        extent = float(rng.uniform(0.02, 0.09) if small else rng.uniform(0.3, 0.95))
        foreground, mask = _placed(material, cutout, extent, rng)
        share = float(mask.mean())
        if (share <= SMALLEST and bool((mask > 0.5).sum() > 12)) if small else share > 0.03:
            break
    background, sources = material.place(place, rng)[None], (cutout, place)
    if rng.random() < 0.35:
        beside = choose(material, held_out, rng)[0]
        thing, where = _placed(material, beside, float(rng.uniform(0.1, 0.25)), rng)
        if not bool((square_max(where, 12) * square_max(mask, 12) > 0.1).any()):
            background, sources = torch.lerp(background, thing, where), (*sources, beside)
    return Layers(foreground, background, mask), sources


def _placed(material: Material, cutout: str, extent: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    picture = material.cutout(cutout)
    picture = picture.flip(-1) if rng.random() < 0.5 else picture
    pose = Pose(extent, float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.35 + extent / 2, 1.05)))
    foreground, mask = place_cutout(picture, pose, SIZE)
    return _toned(foreground, rng)[None], mask[None]


def _toned(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Less of an emoji's gloss: some of the saturation gone, another brightness and contrast, a little grain."""
    grey = picture.mean(0, keepdim=True)
    picture = torch.lerp(grey, picture, float(rng.uniform(0.4, 1)))
    picture = (picture - 0.5) * float(rng.uniform(0.7, 1.1)) + 0.5 + float(rng.uniform(-0.15, 0.08))
    grain = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.025), picture.shape)).float()
    return (picture + grain).clamp(0, 1)


Sample = tuple[Layers, str, tuple[str, ...]]  # layers, the fault or "good", sources


class Draughtsman:
    """Draws the samples of one part of a set, each a pure function of (part, number); neighbours share composites."""

    def __init__(self, material: Material, part: str) -> None:
        self.material, self.part = material, part
        self.composed = lru_cache(8)(
            lambda number, small: compose(material, PARTS[part], self._rng(number, small), small)
        )

    def example(self, kind: str, number: int) -> Example:
        """Sample `number`: the even ones good, the odd ones bad. Its fault, or "good", is its caption."""
        rng, good = self._rng(number, kind == "mask", 1), number % 2 == 0
        layers, fault, sources = (self._mask if kind == "mask" else self._fill)(number // 2, good, rng)
        return Example(f"{self.part}-{number:05d}", layers, fault, sources=sources)

    def _mask(self, number: int, good: bool, rng: np.random.Generator) -> Sample:
        """A picture and a mask as flat layers, which compose to the picture."""
        small = not good and number % len(MASK_FAULTS) == 0
        layers, sources = self.composed(number, small)
        if good or small:
            return _flat(layers, good_mask(layers.mask, rng)), "small" if small else "good", sources
        other, more = self.composed(number + 1, False)
        mask, fault = bad_mask(layers.mask, other.mask, rng)
        return _flat(layers, mask if fault == "small" else good_mask(mask, rng)), fault, (*sources, *more)

    def _fill(self, number: int, good: bool, rng: np.random.Generator) -> Sample:
        """Layers whose background was painted well or badly where the object is."""
        layers, sources = self.composed(number, False)
        hole = square_max((layers.mask > 0.1).float(), int(rng.integers(SIZE // 64, SIZE // 20)))
        if good:
            return Layers(layers.foreground, good_fill(layers, hole, rng), layers.mask), "good", sources
        other, more = self.composed(number + 1, False)
        background, fault = bad_fill(layers, other, hole, rng)
        return Layers(layers.foreground, background, layers.mask), fault, (*sources, *more)

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([list(PARTS).index(self.part), *numbers])


def _flat(layers: Layers, mask: Tensor) -> Layers:
    picture = layers.composite()
    return Layers(picture, picture, mask)


KINDS = {"mask": MASK_FAULTS, "inpainting": FILL_FAULTS}  # kind of filter -> its faults and their reasons
PARTS = {"train": False, "held": True, "photos": None}  # part of a set -> whether its sources are held out
