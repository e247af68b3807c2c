"""Draws what the Comfy registry shows of the pack: docs/images/icon.png (square) and docs/images/banner.jpg (21:9).

python docs/draw_registry.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from t2l.io.layer_file import open_layer_file

ROOT = Path(__file__).resolve().parent.parent
SIDE, WIDTH, HEIGHT = 400, 1260, 540
DARK, LIGHT = "#1d2733", "#f5f1e8"


def parts() -> tuple[Image.Image, Image.Image, Image.Image]:
    """Background, cut-out and mask of the example that comes with the pack."""
    layers = open_layer_file(ROOT / "workflows" / "strawberry.psd").stack.to_layers()
    pixels = [x[0].clamp(0, 1).mul(255).round().byte() for x in (layers.background, layers.foreground, layers.mask)]
    back, front = (Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pixels[:2])
    mask = Image.fromarray(pixels[2][0].numpy())
    cutout = front.convert("RGBA")
    cutout.putalpha(mask)
    return back, cutout, mask


def sheet(picture: Image.Image, side: int, fill: str = "#00000000") -> Image.Image:
    """A picture as a sheet of paper: rounded, and whole where it is transparent."""
    large = picture.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
    result = Image.new("RGBA", (side, side), fill)
    result.alpha_composite(large)
    corners = Image.new("L", (4 * side, 4 * side), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), side // 3, fill=255)
    corners = corners.resize((side, side), Image.Resampling.LANCZOS)
    result.putalpha(ImageChops.multiply(result.getchannel("A"), corners))
    return result


def icon() -> Image.Image:
    """The three layers as sheets, one behind the other."""
    back, cutout, mask = parts()
    result = Image.new("RGBA", (SIDE, SIDE), DARK)
    for picture, place, fill in ((back, 24, DARK), (mask, 80, DARK), (cutout, 136, LIGHT)):
        result.alpha_composite(sheet(picture, 240, fill), (place, place))
    return result.convert("RGB").quantize(128, dither=Image.Dither.NONE)


def banner() -> Image.Image:
    """Name, what it does, and the layers of one prompt."""
    back, cutout, mask = parts()
    result = Image.new("RGBA", (WIDTH, HEIGHT), DARK)
    pen = ImageDraw.Draw(result)
    pen.text((60, 60), "Text2Layer", LIGHT, ImageFont.load_default(92))
    pen.text(
        (64, 176), "a prompt becomes layers: cut-out, background, mask, PSD", "#aebccb", ImageFont.load_default(34)
    )
    whole = back.convert("RGBA")
    whole.alpha_composite(cutout)
    for number, (picture, fill) in enumerate(((whole, DARK), (cutout, LIGHT), (back, DARK), (mask, DARK))):
        result.alpha_composite(sheet(picture, 255, fill), (60 + 295 * number, 250))
    return result.convert("RGB")


if __name__ == "__main__":
    icon().save(ROOT / "docs" / "images" / "icon.png", optimize=True)
    banner().save(ROOT / "docs" / "images" / "banner.jpg", quality=82)
