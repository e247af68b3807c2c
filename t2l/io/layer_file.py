"""Layers as files of editors: .psd and .ora by the ending of the name, and sets of PNG files.

psd_read.py, psd_write.py and ora.py are imported for a file that needs them: ComfyUI's start waits for imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..compositing.bleed import extend_colours
from ..compositing.stack import Layer, Stack, placed
from .image import clean_stem, layer_images, read_image, save_png, to_image
from .layer_nodes import Account, Depth, LayerFile, MaskAs, Whole

READ = (".psd", ".psb", ".ora")  # endings that open_layer_file takes
WRITTEN = (".psd", ".ora")  # endings that save_layer_file takes


def open_layer_file(path: str | Path, whole: Whole | None = None) -> LayerFile:
    """The layers of a .psd, .psb or .ora file; any other picture becomes one layer with its alpha as the mask.

    whole: says by its name whether a group becomes one layer where it could be opened. Raises FileNotFoundError, and
    ValueError with a sentence for a file that cannot be read.
    """
    ending = Path(path).suffix.lower()
    if ending == ".ora":
        from .ora import open_ora

        return open_ora(path, whole)
    if ending in READ:
        from .psd_read import open_psd

        return open_psd(path, whole)
    pixels = read_image(path, "RGBA")[0]
    account = Account(Path(path).name)
    account.claim(pixels.shape[-2], pixels.shape[-1])
    layer = Layer(image=pixels[:3], mask=pixels[3:], name=Path(path).stem)
    return LayerFile(Stack(*layer.size, (layer,)), held=account.held)


def check_format(ending: str, depth: int) -> None:
    """Raises ValueError for a kind of file, or for bits per channel, that save_layer_file does not write."""
    if ending not in WRITTEN:
        raise ValueError(f"layers are written as {' or '.join(WRITTEN)}, got a file name that ends in {ending!r}")
    if ending == ".ora" and depth != 8:
        raise ValueError(f"OpenRaster is written with 8 bits per channel, got {depth}; save as PSD for 16")


def save_layer_file(
    stack: Stack,
    path: str | Path,
    depth: Depth = 8,
    mask_as: MaskAs = "layer mask",
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a stack as the file that the path's ending says, whole or not at all. Takes and raises as `save_psd`."""
    ending = Path(path).suffix.lower()
    check_format(ending, depth)
    stack = stack.drawn
    if ending == ".psd":
        from .psd_write import save_psd

        save_psd(stack, path, depth, mask_as, texts)
    else:
        from .ora import save_ora

        save_ora(stack, path, texts)


def save_png_set(stack: Stack, folder: str | Path, stem: str, texts: Mapping[str, str] | None = None) -> list[Path]:
    """Write a stack as PNG files; returns the paths, the composite's last.

    `stem_foreground.png`, `_background`, `_mask`, `_cutout` and `_composite` of the highest visible layer against the
    rest; of more than two layers also each of them as `stem_layer01-name.png`, RGBA at the size of the canvas. texts
    become text chunks of every file. In RGBA the visible colours go on under alpha 0, so that no edge turns grey when
    the picture is scaled. Raises OSError with a sentence when one cannot be written, and then leaves none of them.
    """
    stack = stack.drawn
    split = stack.to_layers()
    images = layer_images(split) | {"cutout": _cutout(split.foreground[0], split.mask[0])}
    if len(stack.layers) > 2:
        for i, layer in enumerate(stack.layers, 1):
            name = f"layer{i:02d}-{clean_stem(layer.name)[:40]}"
            images[name] = _cutout(*placed(replace(layer, opacity=1.0), stack.height, stack.width))
    images["composite"] = to_image(stack.composite())
    names = [*(name for name in images if name != "composite"), "composite"]
    paths = [Path(folder) / f"{stem}_{name}.png" for name in names]
    try:
        for name, path in zip(names, paths, strict=True):
            save_png(images[name], path, texts)
    except OSError:
        for path in paths:  # half a set is of no use
            path.unlink(missing_ok=True)
        raise
    return paths


def _cutout(image: Tensor, mask: Tensor) -> Image.Image:
    """Colours (3, H, W) and mask (1, H, W) as RGBA."""
    return to_image(torch.cat([extend_colours(image[None], mask[None])[0], mask]))
