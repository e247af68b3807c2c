"""What is painted behind a thing, against what really was there: things pasted on photographs, their masks grown.

    python benchmarks/fill.py PHOTOGRAPHS CUTOUTS [--pictures N] [--sheet FILE.jpg]

PHOTOGRAPHS: a folder of pictures; CUTOUTS: a folder of pictures with transparency. For each way to fill: L1 inside the
hole in 1/255, LPIPS over its share of the picture, processor seconds on one thread; 512 x 512. The sheet shows the
truth, the hole and each way, side by side. Then how far the foreground's colours are off at its soft edge, freed and as
a plain copy.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from t2l.compositing.bleed import push_pull
from t2l.compositing.fill import Inpainter, fill
from t2l.compositing.split import SplitConfig, find_hole, split
from t2l.io.image import save_png, to_image, to_pixels
from t2l.model.inpainting import inpainter
from t2l.model.perceptual import Perceptual

SIDE, SHARE = 512, 0.6  # pixels of a picture, and of it the side of the thing


def pyramid(picture: Tensor, hole: Tensor) -> Tensor:
    """The smooth blob that fill begins with."""
    return torch.where(hole > 0, push_pull(picture, 1 - hole), picture)


def scenes(photographs: Path, cutouts: Path, count: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, foreground, background and mask of pictures made at random, the same every time."""
    draw = random.Random(1)
    places, things = (
        sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
        for folder in (photographs, cutouts)
    )
    for place, thing in zip(draw.sample(places, min(count, len(places))), draw.sample(things, count), strict=False):
        background = to_pixels(ImageOps.fit(Image.open(place).convert("RGB"), (SIDE, SIDE)))
        canvas, side = Image.new("RGBA", (SIDE, SIDE)), int(SIDE * SHARE)
        canvas.paste(ImageOps.fit(Image.open(thing).convert("RGBA"), (side, side)), (SIDE // 5, SIDE // 5))
        pixels = to_pixels(canvas)
        mask = pixels[:, 3:]
        yield place.stem, push_pull(pixels[:, :3], (mask > 0.5).float()), background, mask


def soft_error(found: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean difference of colours where the mask is soft, in 1/255."""
    soft = ((mask > 0.05) & (mask < 0.95)).float()
    return float(((found - truth).abs() * soft).sum() / soft.sum().clamp(min=1) / 3 * 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("cutouts", type=Path)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Inpainter] = {"pyramid": pyramid, "fill": fill, "patchmatch": inpainter("patchmatch")}
    judge, figures, colours, rows = Perceptual(), {name: [] for name in ways}, [], []
    for place, foreground, background, mask in scenes(args.photographs, args.cutouts, args.pictures):
        picture, hole = torch.lerp(background, foreground, mask), find_hole(mask)
        cells = [background, picture * (1 - hole)]
        for name, paint in ways.items():
            start = time.process_time()
            painted = paint(picture, hole)
            seconds = time.process_time() - start
            truth = torch.where(hole > 0, background, painted)
            error = float(((painted - truth).abs() * hole).sum() / hole.sum() / 3 * 255)
            figures[name].append((error, float(judge(painted, truth) / hole.mean()), seconds))
            cells.append(painted)
        rows.append(torch.cat(cells, dim=3))
        parts = [
            split(picture, mask, background, config=SplitConfig(free_colours=free)).foreground for free in (True, False)
        ]
        colours.append([soft_error(part, foreground, mask) for part in parts])
        print(
            place,
            *(f"{name} {x[-1][0]:.1f} {x[-1][1]:.3f} {x[-1][2]:.2f} s;" for name, x in figures.items()),
            flush=True,
        )
    for name, values in figures.items():
        mean, spread = torch.tensor(values).mean(dim=0), torch.tensor(values).std(dim=0)
        print(f"{name}: L1 {mean[0]:.1f} +- {spread[0]:.1f}, LPIPS {mean[1]:.3f} +- {spread[1]:.3f}, {mean[2]:.2f} s")
    freed, copied = torch.tensor(colours).mean(dim=0).tolist()
    print(f"colours at the soft edge: freed {freed:.1f}, plain copy {copied:.1f}, ratio {freed / copied:.2f}")
    if args.sheet:
        save_png(to_image(F.interpolate(torch.cat(rows, dim=2), scale_factor=0.5, mode="area")[0]), args.sheet)


if __name__ == "__main__":
    main()
