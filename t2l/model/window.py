"""Where a picture lies on a grid of latents that rounds its size up, and how it moves when the latents do.

Nodes that flip, turn, crop or enlarge latents know no padding; comparing input and output tells where the picture is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LIKENESS = 0.7  # of resampled latents: distance from ours, over their own size. Unrelated ones are 1.4 apart


@dataclass(frozen=True)
class Window:
    """A rectangle on a grid of latents, in cells; edges of pictures fall between them."""

    grid: tuple[int, int]  # height and width
    top: float
    left: float
    height: float
    width: float
    stretch: tuple[float, float] = (1.0, 1.0)  # along y and x, of the decoded picture: grids round the size asked for

    @classmethod
    def of(cls, size: tuple[int, int], downscale: int) -> Window:
        """A picture of size (height, width) pixels that is padded at the right and at the bottom."""
        height, width = size
        return cls((-(-height // downscale), -(-width // downscale)), 0, 0, height / downscale, width / downscale)

    @property
    def is_whole(self) -> bool:
        """Whether the picture has no padding."""
        return (self.height, self.width) == self.grid

    def mirrored(self) -> Window:
        """Left and right change places."""
        return replace(self, left=self.grid[1] - self.left - self.width)

    def turned(self) -> Window:
        """A quarter turn, as torch.rot90 turns the last two axes."""
        top = self.grid[1] - self.left - self.width
        return Window(self.grid[::-1], top, self.top, self.width, self.height, self.stretch[::-1])

    def cropped(self, row: int, column: int, grid: tuple[int, int]) -> Window | None:
        """What is left of the picture on a grid cut out at (row, column); None for nothing."""
        top, left = max(self.top - row, 0), max(self.left - column, 0)
        height = min(self.top + self.height - row, grid[0]) - top
        width = min(self.left + self.width - column, grid[1]) - left
        return Window(grid, top, left, height, width) if min(height, width) > 0 else None

    def scaled(self, grid: tuple[int, int]) -> Window:
        """The picture on another grid, at the size asked for: a factor in quarters, or else the grid's size."""
        down, across = (after / before for before, after in zip(self.grid, grid, strict=True))
        moved = Window(grid, self.top * down, self.left * across, self.height * down, self.width * across)
        if self.is_whole:
            return moved
        factor = round(2 * (down + across)) / 4
        by_factor = all(round(before * factor) == after for before, after in zip(self.grid, grid, strict=True))
        wanted = (self.height * factor, self.width * factor) if by_factor else grid
        down, across = wanted[0] / moved.height, wanted[1] / moved.width
        return replace(
            moved, stretch=(down * self.stretch[0], across * self.stretch[1]) if by_factor else (down, across)
        )

    def of_decoded(self, pixels: Tensor, downscale: int) -> Tensor:
        """The picture out of the whole decoded grid, (N, C, H, W)."""
        top, bottom = _span(self.top * downscale, self.height * downscale, pixels.shape[-2])
        left, right = _span(self.left * downscale, self.width * downscale, pixels.shape[-1])
        picture = pixels[..., top:bottom, left:right]
        lengths = zip((self.height, self.width), self.stretch, strict=True)
        size = [max(1, round(length * downscale * stretch)) for length, stretch in lengths]
        if size == list(picture.shape[-2:]):
            return picture
        return F.interpolate(picture, size=size, mode="bilinear", antialias=True)


def _span(start: float, length: float, limit: int) -> tuple[int, int]:
    """First pixel and the one behind the last, at least one of `limit` pixels."""
    first = min(round(start), limit - 1)
    return first, max(first + 1, round(start + length))


def followed(window: Window, before: Any, after: Any) -> Window | None:
    """Where the picture is once latents (N, C, h, w) were replaced by others; None when nothing says where.

    Latents of the same grid that are neither mirrored nor turned are a picture in the same place, whatever they show.
    The first of a batch speaks for all.
    """
    if not (_is_latents(before) and _is_latents(after)) or window.grid != tuple(before.shape[-2:]):
        return None
    grid = (after.shape[-2], after.shape[-1])
    before, after = before[:1], after[:1].to(before)
    for moved, latents in _symmetries(window, before):
        if latents.shape == after.shape and torch.equal(latents, after):
            return moved
    if grid == window.grid:
        return window
    beside = any(a == b for a, b in zip(grid, window.grid, strict=True)) and _position(after, before)
    if after.shape[1] != before.shape[1] or beside:
        return None
    place = _position(before, after)
    return window.cropped(*place, grid) if place else _scaled(window, before, after)


def _is_latents(x: Any) -> bool:
    """Whether x can be compared: anything may be put into a LATENT, and nobody's node should fail for our curiosity."""
    usual = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
    return usual and x.is_floating_point() and x.ndim == 4 and x.numel() > 0


def _symmetries(window: Window, latents: Tensor) -> Iterator[tuple[Window, Tensor]]:
    """The eight ways to lay a picture down."""
    for moved, turned in ((window, latents), (window.mirrored(), latents.flip(-1))):
        for _ in range(4):
            yield moved, turned
            moved, turned = moved.turned(), turned.rot90(1, (-2, -1))


def _position(whole: Tensor, part: Tensor) -> tuple[int, int] | None:
    """Row and column where a part of latents was cut out, by its memory or by its values; None when it was not."""
    rows, columns = (w - p for w, p in zip(whole.shape[-2:], part.shape[-2:], strict=True))
    if min(rows, columns) < 0:
        return None
    alike = (whole[0, :, : rows + 1, : columns + 1] == part[0, :, :1, :1]).all(dim=0)
    places = [_offset_of_view(whole, part), *((int(row), int(column)) for row, column in alike.nonzero())]
    height, width = part.shape[-2:]
    for row, column in places:
        if torch.equal(whole[..., row : row + height, column : column + width], part):
            return row, column
    return None


def _offset_of_view(whole: Tensor, part: Tensor) -> tuple[int, int]:
    """Row and column where a view begins, (0, 0) for what is no view. Many cells of a plain picture are alike."""
    if whole.untyped_storage().data_ptr() != part.untyped_storage().data_ptr():
        return 0, 0
    offset, place = int(part.storage_offset() - whole.storage_offset()), [0, 0, 0, 0]
    for axis in sorted((axis for axis in range(4) if whole.shape[axis] > 1), key=whole.stride, reverse=True):
        place[axis], offset = divmod(offset, max(1, whole.stride(axis)))
    return place[2], place[3]


def _scaled(window: Window, before: Tensor, after: Tensor) -> Window | None:
    """The window on resampled latents, of the whole grid or of its middle; None when they are no such thing."""
    grid = (after.shape[-2], after.shape[-1])
    y, x = _middle(window.grid, grid)
    middle = before[..., y : window.grid[0] - y, x : window.grid[1] - x]
    cut = window.cropped(y, x, (middle.shape[-2], middle.shape[-1]))
    distances = [(_distance(latents, after), moved) for latents, moved in ((before, window), (middle, cut)) if moved]
    distance, nearest = min(distances, key=lambda found: found[0])
    return nearest.scaled(grid) if distance < LIKENESS else None


def _middle(grid: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that ComfyUI cuts off at either side to get the target's proportions."""
    before, after = grid[1] / grid[0], target[1] / target[0]
    if before > after:
        return 0, round((grid[1] - grid[1] * (after / before)) / 2)
    return round((grid[0] - grid[0] * (before / after)) / 2) if before < after else 0, 0


def _distance(before: Tensor, after: Tensor) -> float:
    """How far latents are from others enlarged to their grid, over their own size."""
    size = [int(n) for n in after.shape[-2:]]
    ways = [F.interpolate(before, size=size, mode=mode) for mode in ("nearest-exact", "bilinear", "area")]
    return min((after - way).norm().item() for way in ways) / max(after.norm().item(), 1e-6)
