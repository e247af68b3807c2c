"""How large pictures may become in a node, said before anything is allocated: workflows are shared by strangers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..t2l.budget import CANVAS_PIXELS
from ..t2l.compositing.stack import Layer, Stack

MAX_SIDE = 16384  # pixels, ComfyUI's own largest picture
MAX_PICTURES = 4096  # of a batch, as in ComfyUI itself
TOGETHER = 2  # times CANVAS_PIXELS: of all pictures of a batch, and of all layers of a document


def most_together() -> int:
    """The most pixels of all pictures of a batch, and of all layers of a document."""
    return TOGETHER * CANVAS_PIXELS.most


def check_pictures(size: tuple[int, int], count: int, source: str) -> None:
    """Raises ValueError where so many pictures of a size (height, width) are too large; `source`: node and input."""
    height, width = size
    if count > MAX_PICTURES:
        raise ValueError(f"{source} takes at most {MAX_PICTURES} pictures, got {count}; split the batch")
    if height * width > CANVAS_PIXELS.most:
        raise ValueError(
            f"{source} takes at most {CANVAS_PIXELS.most:,} pixels, got {width} x {height}; make the picture smaller"
            f"{_variable()}"
        )
    if height * width * count > most_together():
        raise ValueError(
            f"{source} takes at most {most_together():,} pixels in all, got {count} pictures of {width} x {height}; "
            f"make them smaller, or the batch{_variable()}"
        )


def check_canvas(size: tuple[int, int], layers: Iterable[tuple[str, tuple[int, int]]], source: str) -> None:
    """Raises ValueError for a canvas (height, width), and for layers of a name and a size on it, that are too large."""
    layers, most = list(layers), CANVAS_PIXELS.most
    for name, (height, width) in [("its canvas", size), *((repr(name[:80]), shown) for name, shown in layers)]:
        if height * width > most:
            raise ValueError(
                f"{source} takes at most {most:,} pixels, {name} has {width} x {height}; make it smaller{_variable()}"
            )
    if (together := sum(height * width for _, (height, width) in layers)) > most_together():
        raise ValueError(
            f"{source} takes at most {most_together():,} pixels in all layers, got {together:,} in {len(layers)} "
            f"layers; make them smaller, or merge some{_variable()}"
        )


def check_resized(stack: Stack, before: tuple[int, int], after: tuple[int, int], source: str) -> None:
    """Raises ValueError for a stack that is too large once a canvas of one size (height, width) becomes the other."""
    scale = after[0] / before[0], after[1] / before[1]
    check_canvas(after, ((layer.name, _scaled(layer, scale)) for layer in stack.layers), source)


def shown_sizes(layers: Sequence[Layer]) -> list[tuple[str, tuple[int, int]]]:
    """Name and size of layers as they are shown, (height, width)."""
    return [(layer.name, layer.shown_size) for layer in layers]


def _scaled(layer: Layer, scale: tuple[float, float]) -> tuple[int, int]:
    height, width = layer.shown_size
    return max(1, round(height * scale[0])), max(1, round(width * scale[1]))


def _variable() -> str:
    return f", or allow more by the environment variable {CANVAS_PIXELS.variable}"
