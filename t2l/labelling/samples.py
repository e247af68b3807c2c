"""What a labeller is shown: samples in a drawn order, as the pictures that the page lays over each other, and what is
done.

One object serves one page; the server calls it from one thread at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ..data.example import Pictures
from ..data.labels import REASONS, Label, LabelFile
from ..data.orders import shuffle
from ..data.shards import Shards

MOST = 6000  # samples to label: the paper's 5,000 and 1,000 more to test on
LINE = (255, 45, 120)  # the outline
SHADE = (10, 10, 14, 170)  # over what a mask leaves out
TRANSPARENT = (0, 0, 0, 0)
EDGE = 0.1  # of a mask: what is above it was cut out and painted over (the paper's)
WIDENING = 40  # the hole reaches so much of a side beyond it


class Samples:
    """Samples to be labelled, by their number in an order that is drawn from all of them; the same each time."""

    def __init__(self, shards: Shards, labels: LabelFile, count: int = MOST) -> None:
        self.shards, self.labels, self.kind = shards, labels, labels.kind
        self.count = min(count, len(shards))

    def progress(self) -> dict[str, Any]:
        """How many there are, how many are done and how many of those are good."""
        done = self.labels.labels.values()
        return {"total": self.count, "done": len(done), "good": sum(bool(label.good) for label in done)}

    def next(self, after: int) -> dict[str, Any]:
        """The next sample without a label, round the end to the first; {"number": None} when all have one."""
        for step in range(self.count):
            number = (after + 1 + step) % self.count
            if self.key(number) not in self.labels.labels:
                return self.about(number)
        return {"number": None} | self.progress()

    def about(self, number: int) -> dict[str, Any]:
        """What the page writes beside a sample."""
        caption = self.shards.metadata(self._index(number))["caption"]
        return {"number": number, "key": self.key(number), "caption": caption[:400]} | self.progress()

    def say(self, number: int, good: bool, reason: str) -> None:
        """Write a label down. Raises ValueError for a reason that does not exist, OSError for a full disk."""
        self.labels.add(Label(key=self.key(number), kind=self.kind, good=good, reason=reason))

    def take_back(self) -> dict[str, Any]:
        """Take the last label back: its sample, {"number": None} where there is none or it is not in this order."""
        last = self.labels.take_back()
        numbers = (number for number in range(self.count) if last and self.key(number) == last.key)
        number = next(numbers, None)
        return {"number": None} | self.progress() if number is None else self.about(number)

    def picture(self, number: int, part: str) -> bytes:
        """One of PARTS as a PNG. Raises ValueError, naming shard and key, for a sample that cannot be read."""
        image = PARTS[part](self.shards.pictures(self._index(number)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def key(self, number: int) -> str:
        """The key of a sample in its shards."""
        return self.shards.key(self._index(number))

    def _index(self, number: int) -> int:
        return int(shuffle(np.array([number]), len(self.shards), 0, 0)[0])


def _picture(pictures: Pictures) -> Image.Image:
    foreground, background, mask = pictures
    return Image.composite(foreground, background, mask)


def _cutout(pictures: Pictures) -> Image.Image:
    foreground, _, mask = pictures
    cutout = foreground.copy()
    cutout.putalpha(mask)
    return cutout


def _shade(pictures: Pictures) -> Image.Image:
    """What the mask leaves out in the dark, and a line around what it takes."""
    mask = pictures[2]
    shade = Image.new("RGBA", mask.size, TRANSPARENT)
    shade.paste(SHADE, mask=None, box=(0, 0, *mask.size))
    shade.putalpha(ImageChops.invert(mask).point(lambda value: value * SHADE[3] // 255))
    return _outlined(shade, mask.point(lambda value: 255 * (value > 127)))


def _hole(pictures: Pictures) -> Image.Image:
    """A line around what was painted."""
    mask = pictures[2].point(lambda value: 255 * (value > 255 * EDGE))
    reach = 2 * max(1, max(mask.size) // WIDENING) + 1
    return _outlined(Image.new("RGBA", mask.size, TRANSPARENT), mask.filter(ImageFilter.MaxFilter(reach)))


def _outlined(image: Image.Image, area: Image.Image) -> Image.Image:
    width = 2 * max(1, max(area.size) // 400) + 1
    line = ImageChops.subtract(area.filter(ImageFilter.MaxFilter(width)), area)
    image.paste((*LINE, 255), mask=line)
    return image


PARTS: dict[str, Callable[[Pictures], Image.Image]] = {
    "picture": _picture,
    "cutout": _cutout,
    "shade": _shade,
    "background": lambda pictures: pictures[1],
    "hole": _hole,
}
SHOWN = {"mask": ("picture", "shade", "cutout"), "inpainting": ("picture", "background", "hole")}
assert SHOWN.keys() == REASONS.keys(), "every kind is shown"
