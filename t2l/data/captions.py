"""The captions of a latent cache, which stay on the disk: those of a picture are read when it is drawn.

A file holds `captions`, (bytes,) uint8, all of them in UTF-8 laid end to end, and `caption_places`, (n, k + 1) int64: where the
first of a picture's k captions begins, and where each of them ends. Files of the first version hold captions as JSON in their
metadata; of those that were read last they stay in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..io.checkpoint import read_metadata
from ..io.header import Entry, Header
from .cache_folder import read_bytes, read_captions, read_tensor

BYTES, PLACES = "captions", "caption_places"
OLD_FILES_KEPT = 100  # 0.4 MB each, at 1,000 pictures


def pack_captions(captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """The tensors that hold k captions of each of n pictures, n and k 1 or more."""
    texts = [[text.encode("utf-8", "surrogatepass") for text in said] for said in captions]
    ends = np.cumsum([len(text) for said in texts for text in said]).reshape(len(texts), -1)
    begins = np.append(0, ends[:-1, -1])
    data = np.frombuffer(b"".join(text for said in texts for text in said), np.uint8)
    places = np.concatenate([begins[:, None], ends], axis=1).astype(np.int64)
    return {BYTES: torch.from_numpy(data.copy()), PLACES: torch.from_numpy(places)}


class _File(NamedTuple):
    """Where the captions of a file are; of the first version only the path."""

    path: Path
    data: Entry | None = None
    places: Entry | None = None


class Captions:
    """The captions of every picture, by its number; `each` says how many a picture has."""

    def __init__(self) -> None:
        self.each = 0
        self._files: list[_File] = []
        self._ends: list[int] = []  # of the pictures of each file
        self._old: dict[int, list[list[str]]] = {}

    def add(self, path: Path, header: Header, count: int) -> None:
        """Take the next file, which holds `count` pictures. Raises ValueError when its captions are not theirs."""
        data, places = header.tensors.get(BYTES), header.tensors.get(PLACES)
        if data is None or places is None:
            file, each = _File(path), _check(read_captions(header.metadata, path.name), path, count)
        else:
            kinds = data.dtype, len(data.shape), places.dtype, len(places.shape), places.shape[:1]
            if kinds != ("U8", 1, "I64", 2, (count,)) or places.shape[1] < 2:
                raise _damaged(path, count)
            file, each = _File(path, data, places), places.shape[1] - 1
        if self._files and each != self.each:
            raise _damaged(path, count)
        self.each = each
        self._files.append(file)
        self._ends.append(count + (self._ends[-1] if self._ends else 0))

    def __getitem__(self, pictures: Tensor) -> list[list[str]]:
        """pictures: (N,), their numbers. Returns the captions of each. Raises ValueError for a file that is damaged."""
        return [self._read(picture) for picture in pictures.tolist()]

    def __iter__(self) -> Iterator[str]:
        """Every caption of every picture, one after the other; a file's in memory at a time."""
        for file in self._files:
            if file.data is None or file.places is None:
                yield from (text for said in read_captions(read_metadata(file.path), file.path.name) for text in said)
                continue
            data, places = read_tensor(file.path, file.data).tobytes(), read_tensor(file.path, file.places)
            for row in places.tolist():
                yield from _decode_texts(data, row, file.path)

    def _read(self, picture: int) -> list[str]:
        number = bisect_right(self._ends, picture)
        file, place = self._files[number], picture - (self._ends[number - 1] if number else 0)
        if file.data is None or file.places is None:
            return self._read_first_version(number, file.path)[place]
        size = 8 * (self.each + 1)
        row = np.frombuffer(read_bytes(file.path, file.places.begin + place * size, size), np.int64)
        begin, end = int(row[0]), int(row[-1])
        if not 0 <= begin <= end <= file.data.shape[0]:
            raise ValueError(
                f"{file.path.name} is damaged, it has no captions at the bytes {begin} to {end}; make the cache again"
            )
        data = read_bytes(file.path, file.data.begin + begin, end - begin)
        return _decode_texts(data, (row - begin).tolist(), file.path)

    def _read_first_version(self, number: int, path: Path) -> list[list[str]]:
        """The captions of a file of the first version."""
        said = self._old.get(number)
        if said is None:
            said = self._old[number] = read_captions(read_metadata(path), path.name)
            for oldest in list(self._old)[: max(0, len(self._old) - OLD_FILES_KEPT)]:
                self._old.pop(oldest, None)  # another thread may have been faster
        return said


def _decode_texts(data: bytes, places: Sequence[int], path: Path) -> list[str]:
    """The texts between places that rise."""
    try:
        return [data[begin:end].decode("utf-8", "surrogatepass") for begin, end in pairwise(places)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: its captions are not UTF-8 text; make the cache again") from error


def _check(captions: Sequence[Any], path: Path, count: int) -> int:
    """How many captions each of `count` pictures has. Raises ValueError when they have not as many."""
    are_texts = all(isinstance(said, list) and all(isinstance(text, str) for text in said) for said in captions)
    if len(captions) != count or not are_texts or len({len(said) for said in captions}) != 1 or not captions[0]:
        raise _damaged(path, count)
    return len(captions[0])


def _damaged(path: Path, count: int) -> ValueError:
    return ValueError(
        f"{path.name}: the captions of the latent cache are not those of its {count} pictures; make the cache again"
    )
