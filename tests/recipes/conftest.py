"""Stand-ins for the demo's source files, made here: the build is tested without fetching anything."""

import base64
import io
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from recipes.demo.archive import pack_archive
from recipes.demo.captions import load_things
from recipes.demo.places import load_places
from recipes.demo.sources import packages


def png(size: int = 40) -> bytes:
    """A blue disc with a white spot on nothing."""
    picture = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((4, 4, size - 5, size - 5), fill=(30, 60, 220, 255))
    draw.ellipse((12, 10, 18, 16), fill=(255, 255, 255, 255))
    return as_file(picture, "png")


def as_file(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def panorama(folder: Path) -> bytes:
    """Blue above green, with a broken sun, as the panoramas come."""
    OpenEXR = pytest.importorskip("OpenEXR")
    radiance = np.full((16, 32, 3), (0.2, 0.4, 0.9), np.float32)
    radiance[8:] = (0.1, 0.3, 0.1)
    radiance[4, 10] = (-np.inf, -500, 800)
    path = folder / "panorama.exr"
    OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": radiance}).write(str(path))
    return b"export default 'data:application/exr;base64," + base64.b64encode(path.read_bytes()) + b"'"


@pytest.fixture(scope="session")
def source_files(tmp_path_factory) -> dict[str, bytes]:
    """Every file id of the curation tables -> the bytes of a small stand-in."""
    view = panorama(tmp_path_factory.mktemp("panorama"))
    photo = as_file(Image.linear_gradient("L").resize((90, 60)).convert("RGB"), "jpeg")
    kinds = {"hdri": view, "photo": photo}
    ids = {source for row in (*load_things(), *load_places()) for source in getattr(row, "pictures", ()) or row.files}
    return {source: kinds.get(source.split("/")[0], png()) for source in sorted(ids)}


@pytest.fixture(scope="session")
def downloads(tmp_path_factory, source_files) -> Path:
    """A downloads folder as `fetch_sources` leaves it, with the stand-ins."""
    folder = tmp_path_factory.mktemp("downloads")
    roots = {
        "fluent": "lobehub-fluent-emoji-3d/package/assets",
        "hdri": "pmndrs-assets/package/hdri",
        "furniture": "sweethome3d-furniture/usr/share/sweethome3d/furniture",
        "clipart": "openclipart-png/usr/share/openclipart/png",
        "photo": "lomiri-wallpapers-16.04/usr/share/backgrounds",
    }
    catalogs = defaultdict(dict)
    for source, data in source_files.items():
        short, path = source.split("/", 1)
        if short == "furniture":
            catalog, member = path.split("/", 1)
            catalogs[catalog][member] = data
            continue
        target = folder / "unpacked" / roots[short] / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for catalog, members in catalogs.items():
        target = folder / "unpacked" / roots["furniture"] / f"{catalog}.sh3f"
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w") as archive:
            rows = [f"icon#{i}=/{name}\ncreator#{i}=Ann {i}\n" for i, name in enumerate(members)]
            archive.writestr("PluginFurnitureCatalog.properties", "".join(rows))
            for name, data in members.items():
                archive.writestr(name, data)
    for package in packages():
        (folder / package.file).touch()
    return folder


@pytest.fixture(scope="session")
def packed(downloads, tmp_path_factory) -> Path:
    """The archive of the stand-ins."""
    path = tmp_path_factory.mktemp("archive") / "demo.zip"
    pack_archive(downloads, path, lambda line: None)
    return path
