"""Draws docs/images/clean-edges.jpg and prints how true the colours of soft edges are: python docs/draw_edges.py DATA.

DATA is a folder of `python -m recipes.demo`: its test pictures have known foregrounds. Each is laid over nine solid
colours and over its own place, cut out again with its own mask, and compared with the foreground where the mask is
between 0.05 and 0.95.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from t2l.compositing.bleed import extend_colours
from t2l.compositing.edges import FUSION_RADII, free_colours
from t2l.compositing.resample import gaussian_blur
from t2l.data.cache_folder import evenly_spaced
from t2l.data.shards import Shards
from t2l.io.image import to_image
from t2l.layers import Layers

PICTURES = 8  # of the test split, evenly spread
SHOWN = (0, 4)  # which of them are drawn: one from a bright place, one from a dark one
SOFTNESS = 1.5  # pixels: standard deviation of the blur that makes the masks of drawn things as soft as a photograph's
NINE = ("black", "gray", "white", "red", "lime", "blue", "yellow", "magenta", "cyan")
FORTE_RADII = (45, 3)  # the two passes of Forte 2021
ZOOM = 84  # pixels of a picture along a cell
CELL, GAP, TITLE = 168, 6, 26  # pixels of the sheet
OUT = Path(__file__).parent / "images" / "clean-edges.jpg"


def pictures(data: Path) -> Layers:
    """Test pictures with soft masks."""
    shards = Shards(data / "test")
    layers = Layers.cat([shards[i].layers for i in evenly_spaced(len(shards), PICTURES)])
    return Layers(layers.foreground, layers.background, gaussian_blur(layers.mask, SOFTNESS))


def solid(colour: str, like: Tensor) -> Tensor:
    """One of NINE as a picture; CSS has "gray" at 128 of 255."""
    rgb = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return (torch.tensor(rgb) / 255).view(1, 3, 1, 1).expand_as(like)


def soft_band_error(found: Tensor, layers: Layers) -> float:
    """Mean absolute difference of the colours where the mask is soft."""
    band = ((layers.mask > 0.05) & (layers.mask < 0.95)).float()
    return float(((found - layers.foreground).abs().mean(dim=1, keepdim=True) * band).sum() / band.sum())


def print_errors(layers: Layers) -> None:
    """A Markdown table: plain copy, Forte's two passes, ours."""
    print("| background | plain copy | two passes | Clean Edges | ratio |\n|---|---|---|---|---|")
    backgrounds = {name: solid(name, layers.foreground) for name in NINE} | {"its own place": layers.background}
    for name, background in backgrounds.items():
        copy = Layers(layers.foreground, background, layers.mask).composite()
        found = (copy, free_colours(copy, layers.mask, FORTE_RADII), cleaned(copy, layers.mask))
        errors = [soft_band_error(x, layers) for x in found]
        print(f"| {name} | " + " | ".join(f"{x:.4f}" for x in errors) + f" | {errors[2] / errors[0]:.2f} |", flush=True)


def cleaned(picture: Tensor, mask: Tensor) -> Tensor:
    return extend_colours(free_colours(picture, mask, FUSION_RADII), mask)


def draw(layers: Layers) -> Image.Image:
    """Things cut out of their places, as a plain copy and cleaned, each on nine backgrounds."""
    rows = []
    for i in range(len(layers)):
        picture, mask = layers[i : i + 1].composite(), layers.mask[i : i + 1]
        rows += [("plain copy of the picture", picture, mask), ("Clean Edges", cleaned(picture, mask), mask)]
    step = CELL + GAP
    sheet = Image.new("RGB", (len(NINE) * step + GAP, len(rows) * (step + TITLE) + GAP), "#fbfaf6")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (title, foreground, mask) in enumerate(rows):
        top = row * (step + TITLE)
        pen.text((GAP, top + 5), title, fill="#444444", font=font)
        for column, name in enumerate(NINE):
            seen = Layers(foreground, solid(name, foreground), mask).composite()
            cell = to_image(edge_of(seen, mask)[0]).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (GAP + column * step, top + TITLE))
    return sheet


def edge_of(picture: Tensor, mask: Tensor) -> Tensor:
    """The upper left corner of the thing's box: large enough on paper to see the rim."""
    top, left = (int((mask[0, 0] > 0.5).any(dim=axis).nonzero()[0]) for axis in (1, 0))
    top, left = max(0, top - 8), max(0, left - 8)
    return picture[..., top : top + ZOOM, left : left + ZOOM]


def main() -> None:
    layers = pictures(Path(sys.argv[1]))
    OUT.parent.mkdir(exist_ok=True)
    draw(Layers.cat([layers[i : i + 1] for i in SHOWN])).save(OUT, quality=90)
    print_errors(layers)


if __name__ == "__main__":
    main()
