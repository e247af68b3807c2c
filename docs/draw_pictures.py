"""Draws the README's pictures with the shipped checkpoint: python docs/draw_pictures.py [CHECKPOINT]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from t2l import GenerateConfig, Text2Layer, text_to_layers
from t2l.cli.options import default_checkpoint
from t2l.io.image import contact_sheet, save_png, to_image

IMAGES = Path(__file__).parent / "images"
PROMPTS = (
    "a red teapot on a wooden table",
    "a tiger in a forest",
    "a rocket against a yellow wall",
    "a potted plant in a meadow",
)
FOREGROUNDS = ("a red teapot", "a blue car", "a penguin", "a strawberry", "a teddy bear", "a rocket")
BACKGROUNDS = (
    "on a wooden table",
    "in a forest",
    "in front of a brick wall",
    "in a meadow",
    "against a yellow wall",
    "in the snow",
)
CELL, GAP, MARGIN = 160, 6, 150  # pixels


def swap_grid(model: Text2Layer, seed: int) -> Image.Image:
    """Composites of every foreground phrase (rows) with every background phrase (columns), all from one seed."""
    sheet = Image.new("RGB", (MARGIN + 6 * (CELL + GAP), 30 + 6 * (CELL + GAP)), "#fbfaf6")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, background in enumerate(BACKGROUNDS):
        pen.text((MARGIN + column * (CELL + GAP), 8), background, fill="#444444", font=font)
    for row, foreground in enumerate(FOREGROUNDS):
        top = 30 + row * (CELL + GAP)
        pen.text((14, top + CELL // 2 - 8), foreground, fill="#444444", font=font)
        for column, background in enumerate(BACKGROUNDS):
            config = GenerateConfig(height=model.trained_size, width=model.trained_size, seed=seed)
            composite = text_to_layers(model, [f"{foreground} {background}"], config).layers.composite()
            sheet.paste(to_image(composite[0]).resize((CELL, CELL)), (MARGIN + column * (CELL + GAP), top))
    return sheet


def main() -> None:
    model = Text2Layer.load(sys.argv[1] if len(sys.argv) > 1 else default_checkpoint())
    IMAGES.mkdir(exist_ok=True)
    config = GenerateConfig(height=model.trained_size, width=model.trained_size, seed=7)
    save_png(contact_sheet(text_to_layers(model, list(PROMPTS), config).layers, list(PROMPTS)), IMAGES / "demo.png")
    swap_grid(model, seed=7).save(IMAGES / "swap-grid.jpg", quality=90)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
