"""A hole in a picture, painted in with what lies around it: no network, no weights, the same result every time.

Every patch that touches the hole looks for the known patch most like it, and the hole becomes the mean of what the
found ones show there; again and again, from a picture of a few dozen pixels up (Wexler et al. 2007, "Space-Time
Completion of Video"). The coarse levels compare all patches, the fine ones search as PatchMatch does (Barnes et al.
2009). That happens at a limited size; the full size gets its detail from the places that were found.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .bleed import push_pull

# Pictures (N, 3, H, W), hole (N, 1, H, W), 1 = to be painted -> pictures.
Inpainter = Callable[[Tensor, Tensor], Tensor]

WORKING_SIDE = 256  # pixels of the longer side at which patches are compared; 512 takes five times as long, no better
SMALLEST_SIDE = 24  # pixels of the shorter side of the coarsest level
RADIUS = 3  # of a patch: 7 x 7 pixels
ROUNDS = 8, 3  # of search and mean, on levels where all pairs are compared and on the others
ALL_PAIRS = 3_000_000  # patches of the hole times known ones, up to which all are compared
AT_ONCE = 1 << 20  # pixels of full size that get their detail at once
CONFIDENCE = 1.3  # a patch counts so much less for every pixel that it lies deeper in the hole; Wexler et al. 2007
SHARPEN = 0.1  # of the spread of distances, in the last mean


def fill(picture: Tensor, hole: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] of any size, the hole (N, 1, H, W) painted in; exactly as given where it is 0.

    hole: 1 = to be painted; between 0 and 1 what was painted is mixed with what was there. Of a picture that is all
    hole its mean colour is left.
    """
    painted = [_fill_one(x, h) for x, h in zip(picture.float().split(1), (hole > 0).float().split(1), strict=True)]
    return torch.where(hole > 0, torch.lerp(picture, torch.cat(painted).to(picture), hole.to(picture)), picture)


def _fill_one(picture: Tensor, hole: Tensor) -> Tensor:
    """One picture; only the neighbourhood of the hole is looked at."""
    if not bool(hole.any()):
        return picture
    if bool(hole.all()):
        return picture.mean(dim=(2, 3), keepdim=True).expand_as(picture)
    rows, columns = _neighbourhood(hole)
    part, part_hole = picture[..., rows, columns], hole[..., rows, columns]
    scale = min(1.0, WORKING_SIDE / max(part.shape[-2:]))
    size = max(1, round(part.shape[-2] * scale)), max(1, round(part.shape[-1] * scale))
    small, small_hole = _reduce(part, part_hole, size)
    found = _complete(small, small_hole)
    result = picture.clone()
    if found is None:
        result[..., rows, columns] = push_pull(part, 1 - part_hole)
    elif size == tuple(part.shape[-2:]):
        result[..., rows, columns] = found[0]
    else:
        _paint_with_detail(result[..., rows, columns], part, part_hole, small, *found)
    return result


def _neighbourhood(hole: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the hole, and as many again on every side as it is long."""
    spans = [hole[0, 0].amax(dim=axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0)]
    margin = max(32, *(last - first + 1 for first, last in spans))
    rows, columns = (slice(max(0, first - margin), last + 1 + margin) for first, last in spans)
    return rows, columns


def _reduce(picture: Tensor, hole: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A smaller picture: the mean of what is known; a pixel over any of the hole is hole."""
    if size == tuple(picture.shape[-2:]):
        return picture, hole
    known = 1 - hole
    total = F.adaptive_avg_pool2d(picture * known, size)
    return total / F.adaptive_avg_pool2d(known, size).clamp(min=1e-6), F.adaptive_max_pool2d(hole, size)


def _complete(picture: Tensor, hole: Tensor) -> tuple[Tensor, Tensor] | None:
    """The picture without hole and where its pixels come from, (H, W, 2), row, column; None without known patches."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(picture.shape[-2], picture.shape[-1])]
    while min(sizes[-1]) // 2 >= SMALLEST_SIDE:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    levels = [_Level(*_reduce(picture, hole, size)) for size in sizes]
    if not len(levels[0].sources):
        return None
    offsets: Tensor | None = None
    for level in reversed([level for level in levels if len(level.sources)]):
        start = None if offsets is None else level.sources_at(offsets)
        painted = level.noisy(generator) if start is None else level.mean_of(start, torch.zeros_like(start).float())
        rounds = ROUNDS[0] if level.is_small else ROUNDS[1]
        for _ in range(rounds):
            if level.is_small or start is None:
                start, distance = level.nearest(painted)
            else:
                start, distance = level.searched(painted, start, generator)
            painted = level.mean_of(start, distance)
        assert start is not None, "every level has its rounds"
        offsets = level.offsets(start)
    assert start is not None and offsets is not None, "the last level has sources"
    return level.blended(start, distance), offsets


class _Level:
    """One size of a picture (1, 3, H, W) with a hole (1, 1, H, W). A patch goes by the number of its middle pixel."""

    def __init__(self, picture: Tensor, hole: Tensor) -> None:
        self.picture, self.hole = picture, hole
        self.height, self.width = picture.shape[-2:]
        self.radius = radius = min(RADIUS, (min(self.height, self.width) - 1) // 2)
        near = F.max_pool2d(hole, 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0
        inside = torch.zeros_like(near)
        inside[radius : self.height - radius, radius : self.width - radius] = True
        self.is_source = (inside & ~near).flatten()
        self.sources = self.is_source.nonzero()[:, 0]  # patches that are known all over
        self.targets = (inside & near).flatten().nonzero()[:, 0]  # patches that touch the hole
        self.is_small = len(self.sources) * len(self.targets) <= ALL_PAIRS
        steps = torch.arange(-radius, radius + 1, device=picture.device)
        self.shifts = (steps[:, None] * self.width + steps).flatten()  # from the middle of a patch to its pixels

    @cached_property
    def confidence(self) -> Tensor:
        """How far each target is to be trusted, (T,)."""
        depth, rest = torch.zeros_like(self.hole), self.hole
        for _ in range(20):
            depth = depth + rest
            rest = 1 - F.max_pool2d(1 - rest, 3, stride=1, padding=1)
        return CONFIDENCE ** -depth.flatten()[self.targets]

    def noisy(self, generator: torch.Generator) -> Tensor:
        """The hole as a smooth blob, as noisy as the known part: a blob alone would find what is out of focus."""
        blob, known = push_pull(self.picture, 1 - self.hole), 1 - self.hole
        mean = F.avg_pool2d(self.picture, 5, stride=1, padding=2, count_include_pad=False)
        spread = ((self.picture - mean) ** 2 * known).sum(dim=(2, 3), keepdim=True) / known.sum()
        noise = torch.randn(blob.shape, generator=generator).to(blob)
        return torch.where(self.hole > 0, blob + spread.sqrt() * noise, self.picture)

    def nearest(self, painted: Tensor) -> tuple[Tensor, Tensor]:
        """Of all sources the one most like each target, and how far it is: (T,) and (T,), mean squared difference."""
        known, wanted = (self._patches(painted, middles).flatten(1) for middles in (self.sources, self.targets))
        squares = (known**2).sum(dim=1)
        best = [(squares - 2 * some @ known.T).min(dim=1) for some in wanted.split(4096)]
        distance = torch.cat([x.values for x in best]) + (wanted**2).sum(dim=1)
        return self.sources[torch.cat([x.indices for x in best])], distance.clamp(min=0) / known.shape[1]

    def searched(self, painted: Tensor, start: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `nearest`, but better only than `start`: tries neighbours' finds, random places (Barnes et al. 2009)."""
        search = _Search(self, painted, start)
        for step in (1, 2, 1):
            for row, column in ((0, step), (0, -step), (step, 0), (-step, 0)):
                search.try_neighbours(row, column)
        reach = max(self.height, self.width) // 2
        while reach >= 1:
            search.try_around(reach, generator)
            reach //= 2 if reach < 16 else 4
        return search.found, search.distance

    def mean_of(self, found: Tensor, distance: Tensor) -> Tensor:
        """The picture with the hole as the found patches show it, near ones and those at the rim first."""
        return torch.where(self.hole > 0, self._votes(found, distance, 1.0)[0], self.picture)

    def blended(self, found: Tensor, distance: Tensor) -> Tensor:
        """The last mean, sharper, and brought to the colours that the picture has around the hole."""
        shown, weight = self._votes(found, distance, SHARPEN)
        rim = ((weight > 0) & (self.hole == 0)).float()
        shown = shown + push_pull((self.picture - shown) * rim, rim)
        return torch.where(self.hole > 0, shown.clamp(0, 1), self.picture)

    def offsets(self, found: Tensor) -> Tensor:
        """From every pixel to where it comes from, (H, W, 2); at the border of the picture as beside it."""
        result = torch.zeros(self.height * self.width, 2, dtype=torch.long, device=found.device)
        result[self.targets] = torch.stack(self._places(found), dim=1) - torch.stack(self._places(self.targets), dim=1)
        rows, columns = (
            torch.arange(n, device=found.device).clamp(self.radius, n - 1 - self.radius)
            for n in (self.height, self.width)
        )
        return result.view(self.height, self.width, 2)[rows[:, None], columns]

    def sources_at(self, offsets: Tensor) -> Tensor:
        """For each target the source that a coarser level's offsets (h, w, 2) name; any other where that is none."""
        (height, width), (row, column) = offsets.shape[:2], self._places(self.targets)
        moved = offsets[row * height // self.height, column * width // self.width].float()
        row = row + (moved[:, 0] * self.height / height).round().long()
        column = column + (moved[:, 1] * self.width / width).round().long()
        found, is_source = self.at(row, column)
        return torch.where(is_source, found, self.sources[self.targets * 7919 % len(self.sources)])

    def at(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The patch at a place, and whether it is a source."""
        inside = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
        number = row.clamp(0, self.height - 1) * self.width + column.clamp(0, self.width - 1)
        return number, inside & self.is_source[number]

    def _places(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return numbers // self.width, numbers % self.width

    def _patches(self, picture: Tensor, middles: Tensor) -> Tensor:
        """Patches of a picture, (P, pixels, 3)."""
        return _pixels(picture)[middles[:, None] + self.shifts]

    def _votes(self, found: Tensor, distance: Tensor, sharpen: float) -> tuple[Tensor, Tensor]:
        """What the found patches show at every pixel, (1, 3, H, W), and their weight, (1, 1, H, W)."""
        spread = sharpen * distance.quantile(0.75)
        weight = self.confidence * torch.exp(-distance / (2 * spread + 1e-8)).clamp(min=1e-6)
        shown = F.pad(self._patches(self.picture, found), (0, 1), value=1) * weight[:, None, None]
        total = torch.zeros(self.height * self.width, 4, device=shown.device)
        total.index_add_(0, (self.targets[:, None] + self.shifts).flatten(), shown.flatten(0, 1))
        total = total.T.view(1, 4, self.height, self.width)
        return total[:, :3] / total[:, 3:].clamp(min=1e-12), total[:, 3:]


class _Search:
    """The best sources so far, and how far they are: (T,) and (T,)."""

    def __init__(self, level: _Level, painted: Tensor, start: Tensor) -> None:
        self.level, self.pixels, self.found = level, _pixels(painted), start.clone()
        self.wanted = self.pixels[level.targets[:, None] + level.shifts]
        self.distance = self._distance(start, slice(None))
        self.row, self.column = level.targets // level.width, level.targets % level.width
        self.number = torch.full((level.height * level.width,), -1, device=start.device)  # of the target at a pixel
        self.number[level.targets] = torch.arange(len(start), device=start.device)

    def try_neighbours(self, row: int, column: int) -> None:
        """What lies beside the find of the target so many rows and columns away."""
        level = self.level
        there_row, there_column = self.row + row, self.column + column
        inside = (there_row >= 0) & (there_row < level.height) & (there_column >= 0) & (there_column < level.width)
        there = self.number[(there_row * level.width + there_column).clamp(0, len(self.number) - 1)]
        source = self.found[there.clamp(min=0)]
        self._try(source // level.width - row, source % level.width - column, inside & (there >= 0))

    def try_around(self, reach: int, generator: torch.Generator) -> None:
        """A random place within `reach` of every find."""
        move = torch.randint(-reach, reach + 1, (2, len(self.found)), generator=generator).to(self.found.device)
        width = self.level.width
        self._try(
            self.found // width + move[0], self.found % width + move[1], torch.ones_like(move[0], dtype=torch.bool)
        )

    def _try(self, row: Tensor, column: Tensor, allowed: Tensor) -> None:
        source, is_source = self.level.at(row, column)
        which = (allowed & is_source & (source != self.found)).nonzero()[:, 0]
        distance = self._distance(source[which], which)
        better = distance < self.distance[which]
        self.found[which[better]], self.distance[which[better]] = source[which[better]], distance[better]

    def _distance(self, source: Tensor, which: Tensor | slice) -> Tensor:
        return ((self.pixels[source[:, None] + self.level.shifts] - self.wanted[which]) ** 2).mean(dim=(1, 2))


def _pixels(picture: Tensor) -> Tensor:
    """(1, 3, H, W) -> (H W, 3)."""
    return picture[0].flatten(1).T.contiguous()


def _paint_with_detail(
    target: Tensor, picture: Tensor, hole: Tensor, small: Tensor, completed: Tensor, offsets: Tensor
) -> None:
    """Paint the hole of `target` (1, 3, H, W): the completed small picture and full-size detail from its sources."""
    size = torch.tensor(picture.shape[-2:], device=picture.device)
    scale = size / torch.tensor(small.shape[-2:], device=picture.device)
    for place in (hole[0, 0] > 0).nonzero().split(AT_ONCE):
        coarse = (place / scale).long()
        source = place + (offsets[coarse[:, 0], coarse[:, 1]] * scale).round().long()
        source = torch.minimum(source.clamp(min=0), size - 1)
        detail = picture[0, :, source[:, 0], source[:, 1]] - _sample(small, source, size)
        target[0, :, place[:, 0], place[:, 1]] = (_sample(completed, place, size) + detail).clamp(0, 1)


def _sample(small: Tensor, places: Tensor, size: Tensor) -> Tensor:
    """A small picture at places (P, 2) of one of `size`, between its pixels: (3, P)."""
    grid = ((2 * places + 1) / size - 1).flip(-1).view(1, 1, -1, 2)
    return F.grid_sample(small, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]
