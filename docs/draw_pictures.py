"""Draws the README's pictures with the shipped checkpoint: python docs/draw_pictures.py [CHECKPOINT]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from t2l import GenerateConfig, Text2Layer, text_to_layers
from t2l.cli.options import default_checkpoint
from t2l.io.image import contact_sheet, save_png, to_image
from t2l.layers import Layers

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
MIXED = (  # written down before any of them was drawn
    "a tiger in the snow at night",
    "a red teapot on a wooden table",
    "a giraffe in a savanna at dusk",
    "an octopus under water",
    "a spaceship among the stars",
    "a kitten in an empty room",
    "a blue car in a city street at night",
    "a lantern on a desk in the dark",
    "an owl in the woods in fog",
    "a pink balloon above the sea",
    "a rabbit by a forest stream",
    "a cheeseburger against a yellow wall",
    "a white sofa in a hotel lobby",
    "a locomotive in the mountains",
    "a robot in a warehouse",
    "a tent on the sand at midnight",
    "a purple umbrella in a park",
    "a frog by a river",
    "a grand piano in a ballroom",
    "a black motorbike in a town square",
    "a pineapple in front of a pink wall",
    "a castle on a hill at sunset",
    "a rooster in a meadow in golden light",
    "a snowman in front of a brick wall",
)
CELL, GAP, MARGIN = 160, 6, 150  # pixels
MOVED = 0.3  # of the width: how far the foreground is moved aside


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


def moved_sheet(model: Text2Layer, seed: int) -> Image.Image:
    """The composite of every mixed prompt, and beside it the same layers with the foreground moved aside."""
    width, height = 2 * CELL + 3 * GAP, CELL + 22
    sheet = Image.new("RGB", (3 * width + GAP, 8 * height + GAP), "#fbfaf6")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    config = GenerateConfig(height=model.trained_size, width=model.trained_size, seed=seed)
    for number, prompt in enumerate(MIXED):
        layers = text_to_layers(model, [prompt], config).layers
        left, top = GAP + number % 3 * width, GAP + number // 3 * height
        pen.text((left, top), prompt, fill="#444444", font=font)
        for column, shown in enumerate((layers, aside(layers))):
            picture = to_image(shown.composite()[0]).resize((CELL, CELL))
            sheet.paste(picture, (left + column * (CELL + GAP), top + 16))
    return sheet


def aside(layers: Layers) -> Layers:
    """The same layers with the foreground a part of the width to the right; what leaves the picture is cut."""
    mask = torch.zeros_like(layers.mask)
    foreground = layers.foreground.clone()
    step = round(MOVED * mask.shape[-1])
    mask[..., step:], foreground[..., step:] = layers.mask[..., :-step], layers.foreground[..., :-step]
    return Layers(foreground, layers.background, mask)


def main() -> None:
    model = Text2Layer.load(sys.argv[1] if len(sys.argv) > 1 else default_checkpoint())
    IMAGES.mkdir(exist_ok=True)
    config = GenerateConfig(height=model.trained_size, width=model.trained_size, seed=7)
    save_png(contact_sheet(text_to_layers(model, list(PROMPTS), config).layers, list(PROMPTS)), IMAGES / "demo.png")
    swap_grid(model, seed=7).save(IMAGES / "swap-grid.jpg", quality=90)
    moved_sheet(model, seed=7).save(IMAGES / "moved.jpg", quality=88)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
