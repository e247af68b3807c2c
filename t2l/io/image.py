"""Layers as PNG files and as one contact sheet; pictures back into pixels. Files are written whole or not at all."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

from ..budget import PIXELS, check_regular, shown_path
from ..layers import Layers
from .atomic import atomic_path
from .picture_file import Unreadable, decoded

PARTS = ("foreground", "background", "mask", "composite", "cutout")  # the files of one picture
ROWS = ("foreground", "background", "mask", "composite")
COLUMNS = 8  # pictures side by side on a contact sheet; more begin a new band
GAP, MARGIN, LABELS = 10, 28, 118  # pixels
PAPER, INK, FAINT, RIM = (250, 249, 246), (38, 38, 42), (120, 118, 112), (221, 218, 210)
CAPTION_SIZE, LABEL_SIZE, CAPTION_LINES = 15, 14, 3


def save_layers(layers: Layers, folder: str | Path, stem: str = "picture", parts: Sequence[str] = PARTS) -> list[Path]:
    """Write foreground, background, mask, composite and cut-out of every picture, or some, as PNG; returns the paths.

    Names are `stem_foreground.png`, or `stem_01_foreground.png` and so on for more than one picture. The cut-out is
    RGBA with straight alpha = mask. Characters of the stem that do not belong in a file name become "-". Raises OSError
    with a sentence for a folder that cannot be written and a full disk.
    """
    stem, paths = clean_stem(stem), []
    for i in range(len(layers)):
        name = stem if len(layers) == 1 else f"{stem}_{i + 1:02d}"
        images = layer_images(layers[i : i + 1])
        for part in parts:
            path = Path(folder) / f"{name}_{part}.png"
            save_png(images[part], path)
            paths.append(path)
    return paths


def layer_images(layers: Layers) -> dict[str, Image.Image]:
    """The first picture's foreground, background, mask, composite and cut-out."""
    parts = {"foreground": layers.foreground, "background": layers.background, "mask": layers.mask}
    parts |= {"composite": layers.composite(), "cutout": torch.cat([layers.foreground, layers.mask], dim=1)}
    return {name: to_image(pixels[0]) for name, pixels in parts.items()}


def save_png(image: Image.Image, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a PNG, whole or not at all, with texts in its text chunks. Raises OSError with a sentence."""
    chunks = PngImagePlugin.PngInfo()
    for name, text in (texts or {}).items():
        chunks.add_text(name, text)
    with atomic_path(path) as partial:
        image.save(partial, format="PNG", pnginfo=chunks)


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file. kind, options: as pillow takes them."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) in [0, 1], C = 1 (grey), 3 (RGB) or 4 (RGBA) -> an 8-bit picture."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(values.movedim(0, -1).squeeze(-1).contiguous().numpy())


def read_image(path: str | Path, mode: Literal["RGB", "RGBA", "L"] = "RGB") -> Tensor:
    """A picture file as pixels (1, C, H, W), turned upright. Raises FileNotFoundError and ValueError."""
    path = Path(path)
    check_regular(path, "the picture")
    try:
        with decoded(path, limit=PIXELS) as file:
            image = ImageOps.exif_transpose(file).convert(mode)
    except Unreadable as error:
        raise ValueError(f"{shown_path(path)} {error}") from error
    return to_pixels(image)


def to_pixels(image: Image.Image) -> Tensor:
    """An 8-bit picture as pixels (1, C, H, W) in [0, 1]."""
    values = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(values).movedim(-1, 0).unsqueeze(0).float().div_(255)


def clean_stem(stem: str) -> str:
    """A file name's beginning of letters, digits, dots, dashes and underscores: at most 80, never hidden or empty."""
    return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip(".-_")[:80] or "picture"


def contact_sheet(
    pictures: Layers | Iterable[Layers | Image.Image],
    captions: Sequence[str] | None = None,
    has_layers: bool = True,
    columns: int = COLUMNS,
) -> Image.Image:
    """Everything on one sheet: a column per picture; its caption, foreground cut out, background, mask and composite.

    pictures: also one after the other, of any sizes, each Layers of batch 1 or a flat picture, which is a composite
    alone. has_layers: False for a model without layers, whose composite alone says something. columns: side by side.
    """
    rows = ROWS if has_layers else ("composite",)
    if isinstance(pictures, Layers):
        pictures = [pictures[i : i + 1] for i in range(len(pictures))]
    drawn = [_column(picture, rows) for picture in pictures]
    titles = [*(captions or ()), *[""] * len(drawn)][: len(drawn)]
    bands = [
        _band(drawn[i : i + columns], titles[i : i + columns], rows, has_titles=bool(captions))
        for i in range(0, len(drawn), columns)
    ]
    width, height = max(band.width for band in bands), sum(band.height for band in bands)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + MARGIN * (len(bands) + 1)), PAPER)
    top = MARGIN
    for band in bands:
        sheet.paste(band, (MARGIN, top))
        top += band.height + MARGIN
    return sheet


def checkerboard(height: int, width: int, square: int = 8) -> Tensor:
    """The light grey squares that stand for transparency: (1, 3, H, W)."""
    y, x = torch.arange(height)[:, None] // square, torch.arange(width)[None] // square
    return torch.where((y + x) % 2 == 0, 0.96, 0.84).expand(1, 3, height, width)


def _column(layers: Layers | Image.Image, rows: Sequence[str]) -> list[Image.Image | None]:
    """One picture's cells, in the order of the rows; None for what it does not have."""
    if isinstance(layers, Image.Image):
        whole = layers.convert("RGB")
        return [_cell(whole) if row == "composite" else None for row in rows]
    height, width = layers.size
    board = checkerboard(height, width, square=max(4, max(height, width) // 24)).to(layers.foreground)
    shown = {
        "foreground": torch.lerp(board, layers.foreground, layers.mask),
        "background": layers.background,
        "mask": layers.mask,
        "composite": layers.composite(),
    }
    return [_cell(to_image(shown[row][0]).convert("RGB")) for row in rows]


def _cell(image: Image.Image) -> Image.Image:
    """A picture at the size that a sheet shows it in."""
    longest = max(image.size)
    scale = min(320, max(160, longest)) / longest
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)


def _band(
    columns: list[list[Image.Image | None]], titles: list[str], rows: Sequence[str], has_titles: bool
) -> Image.Image:
    """Up to COLUMNS pictures side by side, captions above and the rows' names on the left."""
    sizes = [image.size for column in columns for image in column if image is not None]
    width, height = (max(size[i] for size in sizes) for i in (0, 1))
    font, small = _font(CAPTION_SIZE), _font(LABEL_SIZE)
    wrapped = [_wrap(title, font, width) for title in titles]
    head = (max(text.count("\n") for text in wrapped) + 1) * (CAPTION_SIZE + 5) + GAP if has_titles else 0
    size = LABELS + len(columns) * (width + GAP) - GAP, head + len(rows) * (height + GAP) - GAP
    band = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(band)
    for row, name in enumerate(rows):
        draw.text((0, head + row * (height + GAP) + height // 2), name, fill=FAINT, font=small, anchor="lm")
    for i, column in enumerate(columns):
        left = LABELS + i * (width + GAP)
        draw.multiline_text((left, 0), wrapped[i], fill=INK, font=font, spacing=5)
        for row, image in enumerate(column):
            if image is not None:
                x, y = left + (width - image.width) // 2, head + row * (height + GAP) + (height - image.height) // 2
                band.paste(image, (x, y))
                draw.rectangle((x, y, x + image.width - 1, y + image.height - 1), outline=RIM)
    return band


def _wrap(text: str, font: Any, width: int) -> str:
    """Text in lines that fit `width` pixels, at most CAPTION_LINES, the rest cut with an ellipsis."""
    letter = font.getlength("n" * 20) / 20
    lines = textwrap.wrap(" ".join(text.split())[:1000], max(8, math.floor(width / letter)))
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1].rpartition(" ")[0] + " ..."]
    return "\n".join(lines)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
