"""Models that cost nothing, for workers of any kind; and pictures with a subject."""

import io
import json
import os
import tarfile
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from t2l.compositing.bleed import push_pull
from t2l.data.build import Models

COLOURS = ((200, 40, 40), (220, 140, 20), (200, 200, 60), (230, 90, 160), (250, 120, 90))


def redness(pictures: torch.Tensor) -> torch.Tensor:
    """A soft mask of what is redder than blue."""
    return ((pictures[:, :1] - pictures[:, 2:]) * 3).clamp(0, 1)


def smooth_fill(pictures: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    return push_pull(pictures, 1 - hole)


def judge_of_masks(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Good where a tenth of the picture is covered."""
    return (masks.mean(dim=(1, 2, 3)) * 10).clamp(0, 1)


def judge_of_fills(backgrounds: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return 1 - redness(backgrounds).mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class CheapModels:
    """A factory, told apart by its name."""

    name: str = "cheap"
    filters: bool = True

    def __call__(self) -> Models:
        judges = {"mask": judge_of_masks, "inpainting": judge_of_fills} if self.filters else {}
        return Models(redness, smooth_fill, judges)

    def identity(self) -> dict[str, str]:
        return {"name": self.name}


def draw(number: int, size: tuple[int, int] = (96, 80), radius: int = 18) -> Image.Image:
    """A warm disc on a blue scene that differs from number to number."""
    rng = np.random.default_rng(number)
    scene = Image.fromarray(rng.integers(0, 60, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image = Image.composite(scene, Image.new("RGB", size, (30, 90, 220)), Image.new("L", size, 110))
    x, y = (int(rng.integers(radius, side - radius)) for side in size)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[number % 5])
    return image


def as_file(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def said(number: int) -> dict[str, str]:
    return {
        "caption": f"disc number {number}",
        "license": ("CC0-1.0", "CC-BY-4.0")[number % 2],
        "url": f"https://example.org/{number}",
    }


def write_folder(folder, count: int = 6, **options: object):
    """Pictures with what is said of them in .json beside."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(as_file(draw(number, **options)))
        (folder / f"{number:03d}.json").write_text(json.dumps(said(number)))
    return folder


def write_jsonl(folder, count: int = 6):
    write_folder(folder, count)
    rows = [json.dumps({"file_name": f"{n:03d}.png", **said(n)}) for n in range(count)]
    (folder / "list.jsonl").write_text("\n".join(rows))
    return folder / "list.jsonl"


def write_csv(folder, count: int = 6):
    write_folder(folder, count)
    rows = [f'{n:03d}.png,{said(n)["url"]},"{said(n)["caption"]}",{said(n)["license"]}' for n in range(count)]
    (folder / "list.csv").write_text("\n".join(["path,URL,TEXT,LICENSE", *rows]))
    return folder / "list.csv"


def write_parquet(folder, count: int = 6, inside: bool = False):
    import pyarrow
    import pyarrow.parquet

    write_folder(folder, count)
    names = [f"{n:03d}.png" for n in range(count)]
    held = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    columns = {"image": held} if inside else {"path": names}
    columns |= {name: [said(n)[name] for n in range(count)] for name in said(0)}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "list.parquet", row_group_size=4)
    return folder / "list.parquet"


def write_held(folder, count: int = 6):
    return write_parquet(folder, count, inside=True)


def write_tars(folder, count: int = 6, each: int = 4):
    """As img2dataset does it: .jpg holds whatever was fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    for tar_number, first in enumerate(range(0, count, each)):
        with tarfile.open(folder / f"{tar_number:05d}.tar", "w") as tar:
            for n in range(first, min(first + each, count)):
                add(tar, f"{n:03d}.jpg", as_file(draw(n)))
                add(tar, f"{n:03d}.txt", said(n)["caption"].encode())
                add(tar, f"{n:03d}.json", json.dumps(said(n)).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def shards_of(out) -> dict[str, bytes]:
    """Every shard and index, by its name."""
    paths = [path for split in ("train", "validation") for path in sorted((out / split).glob("0*[rl]"))]
    return {os.fspath(path.relative_to(out)): path.read_bytes() for path in paths}
