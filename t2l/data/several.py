"""Several data sets as one: their pictures one after the other, each set as often as is wanted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .example import Example, Pictures
from .shards import Shards, locate

MOST_TIMES = 1_000_000
TIMES = re.compile(r"(.+):(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Repeated:
    """A folder of shards, and how often each picture comes in an epoch. Raises ValueError for less than once."""

    folder: Path
    times: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.times <= MOST_TIMES:
            raise ValueError(
                f"a data set comes from 1 to {MOST_TIMES:,} times an epoch, got {self.times} for {self.folder}"
            )

    @classmethod
    def parse(cls, text: str) -> Repeated:
        """`FOLDER` or `FOLDER:TIMES`; a folder that is called so is meant itself."""
        match = None if Path(text).exists() else TIMES.fullmatch(text)
        return cls(Path(text)) if match is None else cls(Path(match[1]), int(match[2]))


Data = Path | Sequence[Repeated]  # what training takes: one folder of shards, or several


def as_data(sets: Sequence[Repeated]) -> Data:
    """A single folder that comes once as such: it is the same data set, whoever names it."""
    return sets[0].folder if len(sets) == 1 and sets[0].times == 1 else list(sets)


def open_shards(data: Data) -> Shards | SeveralShards:
    """The data set that training reads. Raises as `Shards`."""
    return Shards(data) if isinstance(data, Path) else SeveralShards(data)


class SeveralShards:
    """Several folders of shards as one sequence: picture k of a set that comes twice is k and k + its length."""

    def __init__(self, sets: Sequence[Repeated]) -> None:
        if not sets:
            raise ValueError("a data set needs at least one folder")
        self.sets = list(sets)
        self.parts = [Shards(one.folder) for one in sets]
        self._ends = np.cumsum([len(part) * one.times for part, one in zip(self.parts, self.sets, strict=True)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        part, number = self._place(index)
        return part[number]

    def pictures(self, index: int) -> Pictures:
        """As `Shards.pictures`."""
        part, number = self._place(index)
        return part.pictures(number)

    def mask(self, index: int) -> Image.Image:
        """As `Shards.mask`."""
        part, number = self._place(index)
        return part.mask(number)

    def metadata(self, index: int) -> dict[str, Any]:
        """As `Shards.metadata`."""
        part, number = self._place(index)
        return part.metadata(number)

    def key(self, index: int) -> str:
        """As `Shards.key`, with the folder, for two may have the same keys."""
        part, number = self._place(index)
        return f"{part.directory}/{part.key(number)}"

    def digest(self) -> str:
        """A hash of all data sets, their order and how often each comes."""
        digests = [f"{part.digest()} {one.times}" for part, one in zip(self.parts, self.sets, strict=True)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _place(self, index: int) -> tuple[Shards, int]:
        """The data set of a picture, and its number there."""
        number, place = locate(self._ends, index, f"{len(self.parts)} data sets")
        return self.parts[number], place % len(self.parts[number])
