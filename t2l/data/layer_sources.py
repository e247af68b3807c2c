"""The layers of one of somebody's pictures: foreground, background and mask out of its files, at the size of training.

Of a layer file the foreground is the layer that is asked for, by the rule of ComfyUI's Load Layers (`Stack.to_layers`):
the highest of that name, hidden or not, or "top"; all other visible layers are the background. Where nothing is asked
for it is the upper one of two visible layers, else what is named foreground, over a background if named so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..compositing.bleed import extend_colours
from ..compositing.stack import TOP, Stack
from ..io.image import to_image, to_pixels
from ..io.layer_file import open_layer_file
from ..io.picture_file import read_colours, read_mask
from ..layers import Layers
from .faults import find_faults
from .part_names import NAMES

LONGEST = 16_383  # pixels along a side of a WebP picture
SMALLEST = 64  # pixels along a side, as everywhere in training


class FoundLayers(NamedTuple):
    """The pictures in the files of a layered picture."""

    foreground: Image.Image  # RGB
    background: Image.Image
    mask: Image.Image  # L
    notes: tuple[str, ...] = ()  # on what is not shown as it is in the files
    alpha: Image.Image | None = None  # the foreground's own transparency, if it has any


@dataclass(frozen=True)
class Source:
    """A layered picture that looks complete: its files exist and it has a caption."""

    name: str  # its path in the folder, without the part's name and, for a set of pictures, the ending
    files: dict[str, Path]  # foreground, background and perhaps mask; or layers
    texts: dict[str, Any]  # TEXTS, all of them str; "" for those that were not given
    layer: str = ""  # which layer of a layer file is the foreground; "" = by itself, as layer_sources.py says


def read_layers(source: Source, size: int) -> tuple[Layers, tuple[str, ...]]:
    """One layered picture, in steps of 1/255 where nothing was scaled, and notes on what its file could not show.

    A picture whose shorter side has more than `size` pixels is scaled down to it. A foreground of a single colour where
    its mask is 0 was cut out: its colours are extended beyond the edge. Raises ValueError with a reason.
    """
    if "layers" in source.files:
        found = _read_layer_file(source.files["layers"], source.layer)
    else:
        found = _read_pictures(source.files)
    foreground, background, mask = found.foreground, found.background, found.mask
    if max(mask.size) * min(1, size / min(mask.size)) > LONGEST:
        raise ValueError(
            f"has {mask.width:,} x {mask.height:,} pixels; a shard holds {LONGEST:,} along a side, or less"
        )
    if min(mask.size) < SMALLEST:
        raise ValueError(f"has {mask.width} x {mask.height} pixels; training takes {SMALLEST} along a side, or more")
    if mask.getextrema()[1] == 0:
        raise ValueError("has a mask that is black all over; it is white where the foreground shows")
    notes = (*found.notes, *find_faults(foreground, found.alpha, mask))
    is_cut_out = _is_cut_out(foreground, mask)
    if min(mask.size) > size:
        factor = size / min(mask.size)
        smaller = round(mask.width * factor), round(mask.height * factor)
        foreground = _scale_down(foreground, smaller, mask if is_cut_out else None)
        background, mask = _scale_down(background, smaller), _scale_down(mask, smaller)
    colours, shows = to_pixels(foreground), to_pixels(mask)
    return Layers(extend_colours(colours, shows) if is_cut_out else colours, to_pixels(background), shows), notes


def _read_pictures(files: dict[str, Path]) -> FoundLayers:
    foreground, alpha = read_colours(files["foreground"])
    background, hole = read_colours(files["background"])
    if hole is not None:
        raise ValueError(f"has holes in {files['background'].name}; a background has a colour everywhere")
    if "mask" not in files and alpha is None:
        raise ValueError("has no mask, and no transparency in its foreground that could be one")
    mask = read_mask(files["mask"]) if "mask" in files else alpha
    assert mask is not None, "one of the two is there"
    sizes = {"foreground": foreground.size, "background": background.size, "mask": mask.size}
    notes: tuple[str, ...] = ()
    if foreground.size == background.size != mask.size and _has_shape_of(mask.size, foreground.size):
        notes = (f"its mask of {mask.width} x {mask.height} is scaled to {foreground.width} x {foreground.height}",)
        mask = _scale_down(mask, foreground.size)
    if not foreground.size == background.size == mask.size:
        text = ", ".join(f"{part} {width} x {height}" for part, (width, height) in sizes.items())
        raise ValueError(f"has layers of different sizes: {text}")
    return FoundLayers(foreground, background, mask, notes, alpha)


def _has_shape_of(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the smaller of two sizes is the larger one scaled down and rounded to whole pixels."""
    return 2 * abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def _read_layer_file(path: Path, rule: str) -> FoundLayers:
    try:
        stack, rule, notes = _choose_layers(path, rule)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    chosen = stack.index(rule)
    below = tuple(layer for i, layer in enumerate(stack.layers) if layer.visible and i != chosen)
    if not below:
        raise ValueError(f"has no visible layer but {stack.layers[chosen].name!r}; a background is needed too")
    _, covered = replace(stack, layers=below).flattened()
    if bool((covered < 1).any()):
        lower = f"lower layer {below[0].name!r}" if len(below) == 1 else "lower layers"
        raise ValueError(f"has holes in its {lower}; a background has a colour everywhere")
    layers = stack.to_layers(rule)
    foreground, background, mask = (to_image(x[0]) for x in (layers.foreground, layers.background, layers.mask))
    return FoundLayers(foreground, background, mask, notes)


def _choose_layers(path: Path, rule: str) -> tuple[Stack, str, tuple[str, ...]]:
    """A layer file's stack, the rule for its foreground, and notes. Raises ValueError where it is not clear."""
    if rule and rule != TOP:
        opened = open_layer_file(path, whole=lambda name: name == rule)
        return opened.stack, rule, opened.notes
    opened = open_layer_file(path)
    visible = sum(layer.visible for layer in opened.stack.layers)
    if rule == TOP or visible == 2:
        return opened.stack, TOP, opened.notes
    opened = open_layer_file(path, whole=lambda name: _part_named(name) != "")
    parts = [_part_named(layer.name) for layer in opened.stack.layers]
    if "foreground" not in parts:
        raise ValueError(
            f"has {visible} visible layers; two are needed, a background and a foreground over it: merge or hide "
            "others, name one layer or group foreground, or say with --layer which it is"
        )
    highest = {part: number for number, part in enumerate(parts) if part}
    rule = opened.stack.layers[highest["foreground"]].name
    if "background" not in highest:
        return opened.stack, rule, opened.notes
    layers = opened.stack.layers
    kept = tuple(replace(layers[number], visible=True) for number in sorted(highest.values()))
    others = [repr(x.name[:80]) for i, x in enumerate(layers) if x.visible and i not in highest.values()]
    left_out = (f"left out {', '.join(others)}, named neither foreground nor background",) if others else ()
    return replace(opened.stack, layers=kept), rule, (*opened.notes, *left_out)


def _part_named(name: str) -> str:
    """What a layer or group is by its name; "" for any other."""
    found = (part for part in ("foreground", "background") if name.strip().lower() in NAMES[part])
    return next(found, "")


def _is_cut_out(foreground: Image.Image, mask: Image.Image) -> bool:
    """Whether there is one colour, or none that was stored, all over where the mask is 0."""
    hidden = mask.point([255, *[0] * 255])
    counts = np.array(foreground.histogram(hidden)).reshape(3, 256)
    return bool((np.count_nonzero(counts, axis=1) == 1).all())


def _scale_down(image: Image.Image, size: tuple[int, int], mask: Image.Image | None = None) -> Image.Image:
    """Scaled down without ringing. mask: what lies under its 0 is not mixed in (pillow weights RGBA by alpha)."""
    if mask is None:
        return image.resize(size, Image.Resampling.HAMMING)
    cut_out = image.copy()
    cut_out.putalpha(mask)
    return cut_out.resize(size, Image.Resampling.HAMMING).convert("RGB")
