"""Before and after as one picture: both whole, and below them the place where they differ most, enlarged.

Pictures have an alpha and lie on a checkerboard of greys, so that a bright fringe is seen as well as a dark one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, GAP = 320, 8  # pixels: a panel's longer side, and what lies between two panels
SQUARE, GREYS = 8, (0.42, 0.58)  # of the checkerboard: pixels, from black to white
DETAIL, SMALLEST = 1 / 6, 24  # the enlarged window: share of the longer side, and its fewest pixels
DARK = 0.1  # of the gaps
FRAME = (1.0, 0.8, 0.1)  # yellow: around the place that is enlarged


def before_and_after(before: Tensor, after: Tensor) -> Tensor:
    """Two columns, before and after, of two rows, the whole and a detail: (3, H, W) in [0, 1].

    before, after: (4, h, w) in [0, 1], straight colours and alpha, of any sizes; panels have the proportions of before.
    """
    seen = [torch.cat([x[:3] * x[3:], x[3:]])[None].float() for x in (before, after)]
    window = changed_window(*seen)
    size = _panel_size(before.shape[-2], before.shape[-1])
    panels = [[_whole(x, window, size) for x in seen], [_detail(x, window) for x in seen]]
    above, below = (torch.cat([F.pad(left, (0, GAP), value=DARK), right], dim=-1) for left, right in panels)
    return torch.cat([F.pad(above, (0, 0, 0, GAP), value=DARK), below], dim=-2)


def changed_window(before: Tensor, after: Tensor) -> tuple[float, float, float, float]:
    """Where two pictures (1, 4, h, w), premultiplied, differ most, or when they do not, where the edges are.

    Returns top, left, height and width as shares of the picture's.
    """
    height, width = before.shape[-2:]
    size = min(max(SMALLEST, round(max(height, width) * DETAIL)), height, width)
    change = (before - F.interpolate(after, size=(height, width), mode="area")).abs().sum(dim=1, keepdim=True)
    step = max(1, size // 4)
    score = F.avg_pool2d(change + 1e-3 * _edges(before), size, stride=step)
    score = F.avg_pool2d(score, 3, stride=1, padding=1, count_include_pad=False)  # what is found lies in the middle
    row, column = divmod(int(score.argmax()), score.shape[-1])
    return row * step / height, column * step / width, size / height, size / width


def _edges(picture: Tensor) -> Tensor:
    """How much each pixel differs from the ones to its right and below it, (1, 1, h, w)."""
    right, down = (F.pad(picture.diff(dim=axis).abs(), pad) for axis, pad in ((-1, (0, 1)), (-2, (0, 0, 0, 1))))
    return (right + down).sum(dim=1, keepdim=True)


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is SIDE."""
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _whole(picture: Tensor, window: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """A picture (1, 4, h, w) at a size (height, width), with a frame around the window: (3, height, SIDE)."""
    panel = _on_checkerboard(F.interpolate(picture, size=size, mode="bilinear", antialias=True))
    top, left = (min(round(window[i] * size[i]), size[i] - 1) for i in (0, 1))
    bottom, right = (
        min(size[i], max(start + 1, round((window[i] + window[i + 2]) * size[i])))
        for i, start in enumerate((top, left))
    )
    colour = torch.tensor(FRAME, device=panel.device)[:, None, None]
    panel[:, [top, bottom - 1], left:right] = colour
    panel[:, top:bottom, [left, right - 1]] = colour
    beside = SIDE - size[1]
    return F.pad(panel, (beside // 2, beside - beside // 2), value=DARK)


def _detail(picture: Tensor, window: tuple[float, float, float, float]) -> Tensor:
    """The window of a picture (1, 4, h, w), its pixels enlarged to a panel: (3, SIDE, SIDE)."""
    top, left, height, width = (
        round(share * length) for share, length in zip(window, picture.shape[-2:] * 2, strict=True)
    )
    part = picture[..., top : top + max(1, height), left : left + max(1, width)]
    return _on_checkerboard(F.interpolate(part, size=(SIDE, SIDE), mode="nearest-exact"))


def _on_checkerboard(picture: Tensor) -> Tensor:
    """Premultiplied colours and alpha (1, 4, h, w) over the checkerboard, (3, h, w)."""
    rows, columns = (torch.arange(length, device=picture.device) // SQUARE for length in picture.shape[-2:])
    board = torch.where((rows[:, None] + columns) % 2 == 0, *GREYS)
    return (picture[0, :3] + (1 - picture[0, 3:]) * board).clamp(0, 1)
