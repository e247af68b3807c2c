"""How large pictures may become in a node, said before anything is allocated: workflows are shared by strangers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..t2l.stack import Layer, Stack

MAX_SIDE = 16384  # pixels, ComfyUI's own largest picture
MAX_PIXELS = 100_000_000  # of one picture: 1.6 GB in memory
MAX_TOGETHER = 2 * MAX_PIXELS  # of all pictures of a batch, and of all layers of a document


def check_pictures(size: tuple[int, int], count: int, source: str) -> None:
    """Raises ValueError for so many pictures of a size (height, width) that are too large; `source` names node and input."""
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{source} takes at most {MAX_PIXELS:,} pixels, got {width} x {height}; make the picture smaller"
        )
    if height * width * count > MAX_TOGETHER:
        raise ValueError(
            f"{source} takes at most {MAX_TOGETHER:,} pixels in all, got {count} pictures of {width} x {height}; make them "
            "smaller, or the batch"
        )


def check_canvas(size: tuple[int, int], layers: Iterable[tuple[str, tuple[int, int]]], source: str) -> None:
    """Raises ValueError for a canvas (height, width), and for layers of a name and a size on it, that are too large."""
    layers = list(layers)
    for name, (height, width) in [("its canvas", size), *((repr(name), shown) for name, shown in layers)]:
        if height * width > MAX_PIXELS:
            raise ValueError(
                f"{source} takes at most {MAX_PIXELS:,} pixels, {name} has {width} x {height}; make it smaller"
            )
    if (together := sum(height * width for _, (height, width) in layers)) > MAX_TOGETHER:
        raise ValueError(
            f"{source} takes at most {MAX_TOGETHER:,} pixels in all layers, got {together:,} in {len(layers)} layers; make them "
            "smaller, or merge some"
        )


def check_resized(stack: Stack, before: tuple[int, int], after: tuple[int, int], source: str) -> None:
    """Raises ValueError for a stack that is too large once a canvas of one size (height, width) has become the other."""
    scale = after[0] / before[0], after[1] / before[1]
    check_canvas(after, ((layer.name, _scaled(layer, scale)) for layer in stack.layers), source)


def shown_sizes(layers: Sequence[Layer]) -> list[tuple[str, tuple[int, int]]]:
    """Name and size of layers as they are shown, (height, width)."""
    return [(layer.name, layer.shown_size) for layer in layers]


def _scaled(layer: Layer, scale: tuple[float, float]) -> tuple[int, int]:
    height, width = layer.shown_size
    return max(1, round(height * scale[0])), max(1, round(width * scale[1]))
