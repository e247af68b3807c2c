"""A cache's folder: what it was made of, numbered files that several processes write, rows that are read when needed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..budget import parse_json, read_object, shown
from ..io.atomic import atomic_path
from ..io.checkpoint import write_tensors
from ..io.header import Entry, Header, read_header
from .shards import read_places

ABOUT = "cache.json"
DATA = "data"  # in cache.json: Shards.digest
FILE_LENGTH = 1000  # rows in a file: 118 MB of captions' embeddings at CLIP ViT-L/14's width
MOST_READ = 1_000_000  # files that a cache.json may name
MOST_FILES = 10_000
KINDS = {"F16": torch.float16, "F32": torch.float32, "U8": torch.uint8, "I64": torch.int64}  # of tensors in a cache
Content = tuple[dict[str, Tensor], dict[str, str]]  # tensors and metadata of one file


def read_about(folder: Path) -> dict[str, Any]:
    """What cache.json says; nothing when there is none yet."""
    path = folder / ABOUT
    return read_object(path, "the description of a cache") if path.exists() else {}


def read_number(about: Mapping[str, Any], name: str, folder: Path, most: int = 10**12) -> int:
    """A whole number from 1 up of cache.json. Raises ValueError for anything else."""
    found = about.get(name)
    if type(found) is not int or not 1 <= found <= most:
        raise ValueError(f"{folder / ABOUT} needs a whole number from 1 to {most:,} for {name}, got {shown(found)}")
    return found


def read_captions(metadata: Mapping[str, str], name: str) -> list[Any]:
    """The captions in a file's metadata. Raises ValueError that names the file."""
    found = parse_json(metadata.get("captions", ""), f"{name}: its captions")
    if not isinstance(found, list):
        raise ValueError(f"{name}: its captions must be a list, got {shown(found)}")
    return found


def divide(count: int, begun: int | None = None) -> list[range]:
    """The rows of every file: FILE_LENGTH each, or the smallest multiple of it that needs at most MOST_FILES files.

    begun: the number of files that the folder's cache.json names. The first version knew no MOST_FILES: what it began goes
    on in files of FILE_LENGTH.
    """
    length = FILE_LENGTH * max(1, -(-count // (FILE_LENGTH * MOST_FILES)))
    if begun == -(-count // FILE_LENGTH):
        length = FILE_LENGTH
    return [range(first, min(first + length, count)) for first in range(0, count, length)]


def claim(folder: Path, about: Mapping[str, Any], addition: bool = False) -> None:
    """Write into cache.json what the cache is made of, or check that it says so already. None = does not apply.

    addition: a cache that says nothing about it yet may have it too. The first version kept no digest of the data: what it
    began is not compared by it. Raises ValueError for the folder of another cache.
    """
    found = read_about(folder)
    if found and DATA not in found:
        about = {name: value for name, value in about.items() if name != DATA}
    begun = found.keys() & about.keys() if addition else about.keys() if found else set()
    if changed := [name for name, value in about.items() if name in begun and found.get(name) != value]:
        there, wanted = ({name: source.get(name) for name in changed} for source in (found, about))
        raise ValueError(
            f"{folder} holds a cache of something else, made with {json.dumps(there)}; take another folder for "
            f"{json.dumps(wanted)}"
        )
    with atomic_path(folder / ABOUT) as partial:
        partial.write_text(json.dumps(found | {name: value for name, value in about.items() if value is not None}))


def write_files(
    folder: Path,
    names: Sequence[str],
    make: Callable[[Sequence[int]], Iterator[Content]],
    process: int,
    processes: int,
    wait: Callable[[], None],
    what: str,
) -> None:
    """Write the files that are not there yet, dealt evenly to the processes; make: their numbers -> what is in each, by turns.

    wait: returns when all processes have called it.
    """
    missing = [number for number, name in enumerate(names) if not (folder / name).exists()]
    wait()  # a file that one writes before another has looked would be dealt differently by the two
    own = missing[process::processes]
    if not own:
        return  # what `make` needs is not begun
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:  # one is written while the next is made
        for number, content in zip(tqdm(own, unit="file", desc=what, disable=process > 0), make(own), strict=True):
            if writing is not None:
                writing.result()
            writing = pool.submit(write_tensors, folder / names[number], *content)
        if writing is not None:
            writing.result()


def alone() -> None:
    """Waiting of a process that has no others."""


def read_headers(folder: Path, names: Sequence[str]) -> Iterator[Header]:
    """What every file says of itself. Raises ValueError when some are missing, before the first is read."""
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ValueError(
            f"the latent cache {folder} is unfinished, {len(missing)} of {len(names)} files are missing "
            f"(first {missing[0]}); run the same `t2l cache-latents` again"
        )
    return (read_header(folder / name) for name in names)


class Rows:
    """Tensors of one shape but for their length, in several files, as one sequence of rows.

    Only the rows that are asked for are read, and in memory is one place for every tensor: nothing grows with the rows.
    """

    def __init__(self, parts: Iterable[tuple[Path, Entry]]) -> None:
        """parts: one or more files, each with its tensor, (n, *shape), of KINDS. Raises ValueError for shapes or kinds that differ."""
        paths, entries = zip(*parts, strict=True)
        for path, entry in zip(paths, entries, strict=True):
            if (entry.shape[1:], entry.dtype) != (entries[0].shape[1:], entries[0].dtype):
                raise ValueError(
                    f"{path.name} has tensors of another shape or kind than {paths[0].name}; make the cache again"
                )
        self._paths: tuple[Path, ...] = paths
        self.shape: tuple[int, ...] = entries[0].shape[1:]
        self.dtype = KINDS[entries[0].dtype]
        self._begins = np.array([entry.begin for entry in entries])
        self._ends = np.cumsum([entry.shape[0] for entry in entries])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """rows: (N,). Returns (N, *shape) in the dtype of the files."""
        found = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        size = math.prod(self.shape) * self.dtype.itemsize
        for place, row in enumerate(rows.tolist()):
            part, number = self.locate(row)
            data = read_bytes(self._paths[part], int(self._begins[part]) + number * size, size)
            found[place] = torch.frombuffer(bytearray(data), dtype=self.dtype).view(self.shape)
        return found

    def locate(self, row: int) -> tuple[int, int]:
        """Which part a row is in, and which row of that it is."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return part, row - self.starts_at(part)

    def starts_at(self, part: int) -> int:
        """How many rows are in the parts before."""
        return int(self._ends[part - 1]) if part else 0


def read_whole(path: Path, entry: Entry) -> np.ndarray:
    """A whole tensor of a file, of a dtype of KINDS that numpy has."""
    dtype = torch.empty(0, dtype=KINDS[entry.dtype]).numpy().dtype
    size = math.prod(entry.shape) * dtype.itemsize
    return np.frombuffer(read_bytes(path, entry.begin, size), dtype).reshape(entry.shape)


def read_bytes(path: Path, begin: int, size: int) -> bytes:
    """A piece of a file. Raises ValueError that names it where it ends before."""
    try:
        return read_places(path, {"": (begin, size)})[""]
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}; make the cache again") from error


def spread(length: int, count: int) -> list[int]:
    """`count` numbers below `length`, or all when there are fewer, at even distances: neighbours in a data set may be alike."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def compare(what: str, pairs: Iterable[tuple[str, Tensor, Tensor]], precision: torch.dtype) -> str:
    """A sentence that says how far cached tensors are from those computed again. pairs: name, cached, computed.

    precision: of the computation, where it is coarser than the cache's float16. Raises ValueError when one is further off
    than the rounding of its largest value explains.
    """
    half, largest = torch.finfo(torch.float16), 0.0
    unit = max(half.eps, torch.finfo(precision).eps)
    for name, cached, computed in pairs:
        if cached.shape != computed.shape:
            raise ValueError(
                f"the {name} is {tuple(cached.shape)} in the cache and {tuple(computed.shape)} computed again"
            )
        difference = float((cached - computed).abs().max())
        explained = unit * max(float(computed.abs().max()), half.tiny)  # below it float16's steps get no smaller
        if not difference <= explained:
            raise ValueError(
                f"the {name} in the cache is {difference:.2g} from the one computed again, rounding explains {explained:.2g}; "
                "it was made of other data, or a file is damaged: make the cache again in another folder"
            )
        largest = max(largest, difference)
    return f"{what}, computed again, differ from the cache by at most {largest:.2g}, which rounding explains"
