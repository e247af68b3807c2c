"""What is often wrong with people's cut-outs and nobody sees until a model has learnt it, each with what to do."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from ..compositing.bleed import push_pull
from ..io.image import to_pixels

DARK_MASK = "its mask never exceeds 1/255; it was perhaps saved as 0 and 1, multiply it by 255"
INVERTED = (
    "its mask contradicts the transparency of its foreground and looks inverted; it is white where the foreground shows"
)
DARK_RIM = "its foreground grows dark in the soft edge and looks premultiplied; save it with straight alpha"
WHITE_RIM = "its foreground grows white in the soft edge, as cut out of a white picture; save it with straight alpha"
LONG_CAPTION = "its caption has more than 77 CLIP tokens; what comes after them is never read"
SHORT_NAMES = {  # fault -> what a line of counts says
    DARK_MASK: "with a mask that never exceeds 1/255",
    INVERTED: "with a mask that looks inverted",
    DARK_RIM: "with a dark rim",
    WHITE_RIM: "with a white rim",
    LONG_CAPTION: "with more than 77 tokens of caption",
}
WINDOW = 256  # pixels along a side, of the piece whose edge is looked at
SOFT, OPAQUE, FEWEST = (25, 230), 240, 40  # of a mask in 8 bits; pixels of a soft edge
SEEN = 12 / 255  # that the edge's colours are off before anything is said


def find_faults(foreground: Image.Image, alpha: Image.Image | None, mask: Image.Image) -> list[str]:
    """What looks wrong. foreground RGB, its own transparency L if it has one, mask L; all of one size."""
    if np.asarray(mask).max() <= 1:
        return [DARK_MASK]
    found = [INVERTED] if alpha is not None and _is_inverted(alpha, mask) else []
    return found or _find_rim(foreground, np.asarray(mask))


def count_faults(lines: list[str]) -> str:
    """How many lines end with which fault, in words; "" for none."""
    counts = {short: sum(line.endswith(fault) for line in lines) for fault, short in SHORT_NAMES.items()}
    return ", ".join(f"{count} {short}" for short, count in counts.items() if count)


def _is_inverted(alpha: Image.Image, mask: Image.Image) -> bool:
    """Whether the mask is much nearer to the opposite of the transparency."""
    apart = [_mean(ImageChops.difference(mask, other)) for other in (alpha, ImageChops.invert(alpha))]
    return apart[1] < 0.5 * apart[0]


def _mean(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def _find_rim(foreground: Image.Image, mask: np.ndarray) -> list[str]:
    """Whether the colours of a soft edge are those inside times the mask (H, W), over black or over white."""
    soft = (mask > SOFT[0]) & (mask < SOFT[1])
    rows, columns = place = _find_fullest_window(soft)
    soft, mask = soft[place], mask[place]
    opaque = mask >= OPAQUE
    if soft.sum() < FEWEST or not opaque.any():
        return []
    piece = foreground.crop((columns.start, rows.start, columns.start + mask.shape[1], rows.start + mask.shape[0]))
    colours = to_pixels(piece)
    inside = push_pull(colours, torch.from_numpy(opaque)[None, None].float())
    shown = torch.from_numpy(mask.copy())[None, None].float() / 255
    edge = torch.from_numpy(soft)

    def off(wanted: Tensor) -> float:
        return float((colours - wanted).abs().mean(dim=1)[0][edge].mean())

    straight = off(inside)
    for over, fault in ((0.0, DARK_RIM), (1.0, WHITE_RIM)):
        plain = off(torch.full_like(inside, over))  # a shadow or an outline, which is so whatever the mask
        if (
            off(torch.lerp(torch.full_like(inside, over), inside, shown)) < 0.5 * min(straight, plain)
            and straight > SEEN
        ):
            return [fault]
    return []


def _find_fullest_window(soft: np.ndarray) -> tuple[slice, slice]:
    """The window that holds most of a soft edge."""
    starts = [range(0, side, WINDOW) for side in soft.shape]
    counts = np.add.reduceat(np.add.reduceat(soft, starts[0], 0, dtype=np.int64), starts[1], 1)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    top, left = int(row) * WINDOW, int(column) * WINDOW
    return slice(top, top + WINDOW), slice(left, left + WINDOW)
