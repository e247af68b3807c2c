"""Faults planted into layers whose truth is known: the bad masks and bad fills that the paper's filters are there to
find.

The paper's labellers called a mask bad when the object is largely incomplete, when it contains background or when the
object is too small, and a fill when an object or artifact is left in it or when it does not go with the rest (Zhang et
al. 2023, section 4.2). Every fault here is one of those, graded from mild to gross; a mild one is still seen. Each is a
pure function of its generator.

mask: (1, 1, H, W); pictures: (1, 3, H, W), floats in [0, 1]. hole: the mask of what was painted, 1 inside, as hard as
the fill's edge.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t2l.compositing.bleed import push_pull
from t2l.compositing.resample import gaussian_blur
from t2l.layers import Layers

MASK_FAULTS = {  # fault -> the paper's reason
    "cut": "incomplete",
    "eaten": "incomplete",
    "part": "incomplete",
    "grown": "background",
    "blob": "background",
    "box": "background",
    "shifted": "background",
    "other": "background",
    "inverted": "background",
    "small": "small",
}
FILL_FAULTS = {
    "left": "object",
    "ghost": "object",
    "other": "object",
    "smear": "object",
    "patch": "cohesion",
    "texture": "cohesion",
    "flat": "cohesion",
    "noise": "cohesion",
    "displaced": "cohesion",
    "blurred": "cohesion",
}
WORST_IOU = 0.75  # of a bad mask with the true one, at most
SMALLEST = 0.005  # share of the picture, at most, that is too small
SEEN, UNSEEN = 0.045, 0.02  # mean difference of the coarse colours in the hole: a bad fill has more, a decent one less
CONTRAST, ALIKE = 2.0, 1.35  # or of fine contrast, as a factor either way: a bad fill has more, a decent one less
TRIES = 12  # until a fault is seen


def bad_mask(mask: Tensor, other: Tensor, rng: np.random.Generator) -> tuple[Tensor, str]:
    """A mask that is wrong, and which of `MASK_FAULTS` it has. other: another picture's mask of the same size.

    Its IOU with the true one is at most WORST_IOU. Raises ValueError for an empty mask.
    """
    if not bool((mask > 0.5).any()):
        raise ValueError("a fault is planted into a mask that shows something, got one that is empty")
    for _ in range(TRIES):
        name = str(rng.choice(list(MASK_FAULTS)))
        found = _MASKS[name](mask, other, rng).clamp(0, 1)
        if _iou(found, mask) <= WORST_IOU and bool((found > 0.5).any()):
            return found, name
    return 1 - mask, "inverted"


def good_mask(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A mask as a good network gives it: wider or narrower, softer or harder than the true one, by at most 1/80."""
    side = max(mask.shape[-2:])
    reach = int(rng.integers(0, max(1, side // 100) + 1))
    moved = _grown(mask, reach) if rng.random() < 0.5 else 1 - _grown(1 - mask, reach)
    moved = moved if _iou(moved, mask) > 0.88 else mask
    soft = gaussian_blur(moved, float(rng.uniform(0, side / 160)))
    return (soft * float(rng.uniform(0.93, 1))).clamp(0, 1)


def bad_fill(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> tuple[Tensor, str]:
    """A background painted badly where the hole is, and which of `FILL_FAULTS` it has.

    truth: what is there, (F, B, m). other: another picture of the same size, whose object and background go wrong
    places.
    """
    edge = gaussian_blur(hole, float(rng.choice([0, 0, 0.5, 1.5, 3])))
    for _ in range(TRIES):
        name = str(rng.choice(list(FILL_FAULTS)))
        painted = _FILLS[name](truth, other, hole, rng).clamp(0, 1)
        found = torch.lerp(truth.background, painted, edge)
        if _is_seen(found, truth.background, hole):
            return found, name
    return torch.lerp(truth.background, 1 - truth.background, edge), "texture"


def good_fill(truth: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """A background as a good fill gives it: the true one, or its surroundings where a person takes them for it."""
    edge = gaussian_blur(hole, float(rng.uniform(0.8, 3)))
    for paint in (_displaced, _displaced, _displaced, _blurred):
        found = torch.lerp(truth.background, paint(truth, truth, hole, rng), edge)
        colour, contrast = _differences(found, truth.background, hole)
        if rng.random() < 0.5 and colour < UNSEEN and contrast < ALIKE:
            return found
    return truth.background


def _is_seen(found: Tensor, truth: Tensor, hole: Tensor) -> bool:
    """Whether a fill differs from the truth by enough, in colour or in contrast, for a person to see it."""
    colour, contrast = _differences(found, truth, hole)
    return colour >= SEEN or contrast >= CONTRAST


def _differences(found: Tensor, truth: Tensor, hole: Tensor) -> tuple[float, float]:
    """Inside the hole: mean difference of coarse colours, and the factor by which fine contrast differs, 1 or more."""

    def mean(x: Tensor) -> float:
        return float((x * hole).sum() / hole.sum().clamp(min=1))

    coarse = [_box_blurred(x, max(x.shape[-2:]) // 24 | 1) for x in (found, truth)]
    fine = [mean((x - _box_blurred(x, 5)).abs().mean(1, keepdim=True)) + 0.004 for x in (found, truth)]
    return mean((coarse[0] - coarse[1]).abs().mean(1, keepdim=True)), max(fine) / min(fine)


def _box_blurred(picture: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(picture, width, stride=1, padding=width // 2, count_include_pad=False)


def _blurred_by(picture: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(picture.transpose(0, 1), sigma).transpose(0, 1)


def _iou(a: Tensor, b: Tensor) -> float:
    return float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum().clamp(min=1))


def _grown(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius else mask


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what a mask shows."""
    rows, columns = (torch.nonzero((mask[0, 0] > 0.5).any(axis)).flatten() for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _blobs(mask: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Soft-cornered spots: the highest `share` of smooth noise, 1 there and 0 elsewhere."""
    grid = int(rng.integers(3, 7))
    noise = torch.from_numpy(rng.random((1, 1, grid, grid))).float()
    smooth = F.interpolate(noise, mask.shape[-2:], mode="bicubic", align_corners=False)
    return (smooth > smooth.flatten().quantile(1 - share)).float()


def _half(mask: Tensor, rng: np.random.Generator, lost: float) -> Tensor:
    """1 on the side of a straight line, at any angle, that keeps all but the share `lost` of a mask."""
    height, width = mask.shape[-2:]
    angle = rng.uniform(0, 2 * np.pi)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    along = x * np.cos(angle) + y * np.sin(angle)
    return (along >= along[mask[0, 0] > 0.5].float().quantile(lost)).float()[None, None]


def _shift(x: Tensor, down: int, right: int) -> Tensor:
    """Moved by whole pixels; what comes in is 0."""
    return F.pad(x, (right, -right, down, -down))


def _cut(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    return mask * _half(mask, rng, float(rng.uniform(0.25, 0.7)))


def _eaten(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    return mask * (1 - _blobs(mask, rng, float(rng.uniform(0.3, 0.6))))


def _part(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """What a network keeps that sees one part: a round piece of the object."""
    top, left, bottom, right = _box(mask)
    height, width = mask.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = torch.nonzero(mask[0, 0] > 0.5)
    down, across = inside[int(rng.integers(len(inside)))]
    radius = rng.uniform(0.25, 0.55)
    away = ((y - down) / (bottom - top)) ** 2 + ((x - across) / (right - left)) ** 2
    return mask * (away < radius**2).float()


def _grown_far(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    side = float((mask > 0.5).sum()) ** 0.5
    return _grown(mask, max(2, int(side * rng.uniform(0.07, 0.35))))


def _blob(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    near = _grown(mask, int(rng.integers(8, 48) * max(mask.shape[-2:]) / 256) + 1)
    return torch.maximum(mask, near * _blobs(mask, rng, float(rng.uniform(0.2, 0.6))))


def _boxed(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    top, left, bottom, right = _box(mask)
    found = torch.zeros_like(mask)
    found[..., top:bottom, left:right] = 1
    return found


def _shifted(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    top, left, bottom, right = _box(mask)
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6)
    return _shift(mask, int((bottom - top) * far * np.sin(angle)), int((right - left) * far * np.cos(angle)))


def _other(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    return other


def _inverted(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    return 1 - mask


def _small(mask: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """A spot of the object, no larger than SMALLEST of the picture."""
    height, width = mask.shape[-2:]
    inside = torch.nonzero(mask[0, 0] > 0.5)
    down, across = inside[int(rng.integers(len(inside)))]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = (rng.uniform(0.1, 1) * SMALLEST * height * width / np.pi) ** 0.5
    return mask * (((y - down) ** 2 + (x - across) ** 2) < radius**2).float()


_MASKS: dict[str, Callable[[Tensor, Tensor, np.random.Generator], Tensor]] = {
    "cut": _cut,
    "eaten": _eaten,
    "part": _part,
    "grown": _grown_far,
    "blob": _blob,
    "box": _boxed,
    "shifted": _shifted,
    "other": _other,
    "inverted": _inverted,
    "small": _small,
}


def _left(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """A piece of the object is still there."""
    piece = truth.mask * _half(truth.mask, rng, float(rng.uniform(0, 0.75)))
    return torch.lerp(truth.background, truth.foreground, piece)


def _ghost(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """The object shines through."""
    return torch.lerp(truth.background, truth.foreground, truth.mask * float(rng.uniform(0.25, 0.8)))


def _other_object(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """Another object was painted where this one was, fitted into the hole."""
    if not bool((other.mask > 0.5).any()):
        return truth.background
    top, left, bottom, right = _box(hole)
    up, west, down, east = _box(other.mask)
    cut = torch.cat([other.foreground, other.mask], 1)[..., up:down, west:east]
    scale = float(rng.uniform(0.5, 0.95)) * min((bottom - top) / (down - up), (right - left) / (east - west))
    size = [max(2, round(n * scale)) for n in cut.shape[-2:]]
    cut = F.interpolate(cut, size, mode="bilinear", antialias=True, align_corners=False)
    y, x = top + (bottom - top - size[0]) // 2, left + (right - left - size[1]) // 2
    found = truth.background.clone()
    place = found[..., y : y + size[0], x : x + size[1]]
    place.copy_(torch.lerp(place, cut[:, :3], cut[:, 3:]))
    return found


def _smear(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """Streaks: what stands at the hole's edge, or what is left of the object, drawn out along one direction."""
    picture = truth.composite() if rng.random() < 0.6 else truth.background
    length = int(max(picture.shape[-2:]) * rng.uniform(0.08, 0.3)) | 1
    window, pad = (
        ((1, length), (length // 2,) * 2 + (0, 0)) if rng.random() < 0.5 else ((length, 1), (0, 0) + (length // 2,) * 2)
    )
    return F.avg_pool2d(F.pad(picture, pad, mode="replicate"), window, stride=1)


def _patch(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """A rectangle with hard edges, from elsewhere in the same picture or of another brightness."""
    top, left, bottom, right = _box(hole)
    inset = float(rng.uniform(0, 0.25))
    y, x = top + int((bottom - top) * inset), left + int((right - left) * inset)
    down, across = bottom - int((bottom - top) * inset), right - int((right - left) * inset)
    source = truth.background.roll(tuple(int(n) for n in rng.integers(40, 120, 2)), (2, 3))
    source = source + float(rng.choice([-1, 1]) * rng.uniform(0.03, 0.2))
    found = truth.background.clone()
    found[..., y:down, x:across] = source[..., y:down, x:across]
    return found


def _texture(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """Another picture's background, its brightness brought part of the way to this one's."""
    gap = (truth.background - other.background).mean((2, 3), keepdim=True)
    return other.background + gap * float(rng.uniform(0, 1))


def _flat(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """One colour: that of the surroundings, or one not far from it."""
    colour = (truth.background * hole).sum((2, 3), keepdim=True) / hole.sum().clamp(min=1)
    return (colour + torch.from_numpy(rng.normal(0, 0.08, (1, 3, 1, 1))).float()).expand_as(truth.background)


def _noise(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """Grain, fine or coarse, on a smooth fill."""
    height, width = hole.shape[-2:]
    coarse = int(rng.choice([1, 2, 4]))
    grain = torch.from_numpy(rng.normal(0, rng.uniform(0.06, 0.25), (1, 3, -(-height // coarse), -(-width // coarse))))
    grain = F.interpolate(grain.float(), (height, width), mode="bilinear", align_corners=False)
    return push_pull(truth.background, 1 - hole) + grain


def _displaced(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """The same background from elsewhere, perhaps upside down or mirrored: lines break at the edge of the hole."""
    down, right = (int(n) for n in rng.integers(30, 110, 2) * max(hole.shape[-2:]) / 256)
    moved = truth.background.roll((down, right), (2, 3))
    return moved.flip(2) if rng.random() < 0.3 else moved


def _blurred(truth: Layers, other: Layers, hole: Tensor, rng: np.random.Generator) -> Tensor:
    """A smooth fill among sharp surroundings."""
    if rng.random() < 0.5:
        return push_pull(truth.background, 1 - hole)
    return _blurred_by(truth.background, max(hole.shape[-2:]) * float(rng.uniform(0.012, 0.05)))


_FILLS: dict[str, Callable[[Layers, Layers, Tensor, np.random.Generator], Tensor]] = {
    "left": _left,
    "ghost": _ghost,
    "other": _other_object,
    "smear": _smear,
    "patch": _patch,
    "texture": _texture,
    "flat": _flat,
    "noise": _noise,
    "displaced": _displaced,
    "blurred": _blurred,
}
