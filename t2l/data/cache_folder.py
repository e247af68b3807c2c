"""A cache's folder: what it was made of, numbered files that several processes write, rows that are read when needed;
and the captions in its files, which stay on the disk too.

A file of latents holds `captions`, (bytes,) uint8, all of them in UTF-8 laid end to end, and `caption_places`, (n, k +
1) int64: where the first of a picture's k captions begins, and where each of them ends. Files of the first version hold
captions as JSON in their metadata; of those that were read last they stay in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..budget import parse_json, read_object, shown
from ..io.atomic import write_whole
from ..io.checkpoint import read_metadata, write_tensors
from ..io.header import Entry, Header, read_header
from .shards import locate, read_places

ABOUT = "cache.json"
DATA = "data"  # in cache.json: Shards.digest
FILE_LENGTH = 1000  # rows in a file: 118 MB of captions' embeddings at CLIP ViT-L/14's width
MOST_READ = 1_000_000  # files that a cache.json may name
MOST_FILES = 10_000
LAYERS_ROUND = 4  # units of the computation in which a value may be off, after all layers of a network
DTYPES = {"F16": torch.float16, "F32": torch.float32, "U8": torch.uint8, "I64": torch.int64}  # of tensors in a cache
Content = tuple[dict[str, Tensor], dict[str, str]]  # tensors and metadata of one file
BYTES, PLACES = "captions", "caption_places"
OLD_FILES_KEPT = 100  # 0.4 MB each, at 1,000 pictures


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


def divide_rows(count: int, begun: int | None = None) -> list[range]:
    """The rows of every file: FILE_LENGTH each, or the smallest multiple of it that needs at most MOST_FILES files.

    begun: the number of files cache.json names. What the first version, without MOST_FILES, began keeps FILE_LENGTH.
    """
    length = FILE_LENGTH * max(1, -(-count // (FILE_LENGTH * MOST_FILES)))
    if begun == -(-count // FILE_LENGTH):
        length = FILE_LENGTH
    return [range(first, min(first + length, count)) for first in range(0, count, length)]


def claim(folder: Path, about: Mapping[str, Any], addition: bool = False) -> None:
    """Write into cache.json what the cache is made of, or check that it says so already. None = does not apply.

    addition: a cache that says nothing about it yet may have it too. The first version kept no digest of the data: what
    it began is not compared by it. Raises ValueError for the folder of another cache.
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
    kept = {name: value for name, value in about.items() if value is not None}
    write_whole(folder / ABOUT, json.dumps(found | kept))


def write_files(
    folder: Path,
    names: Sequence[str],
    make: Callable[[Sequence[int]], Iterator[Content]],
    process: int,
    processes: int,
    wait: Callable[[], None],
    what: str,
) -> None:
    """Write the missing files, dealt evenly to the processes; make: their numbers -> what is in each, by turns.

    wait: returns when all processes have called it.
    """
    missing = [number for number, name in enumerate(names) if not (folder / name).exists()]
    wait()  # a file that one writes before another has looked would be dealt differently by the two
    own = missing[process::processes]
    if not own:
        return  # what `make` needs is not begun
    writing: Future[None] | None = None
    shown = tqdm(own, unit="file", desc=what, **({"disable": True} if process else {}))
    with ThreadPoolExecutor(1) as pool:  # one is written while the next is made
        for number, content in zip(shown, make(own), strict=True):
            if writing is not None:
                writing.result()
            writing = pool.submit(write_tensors, folder / names[number], *content)
        if writing is not None:
            writing.result()


def no_barrier() -> None:
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
        """parts: files, each with its tensor, (n, *shape). Raises ValueError where shapes or dtypes differ."""
        paths, entries = zip(*parts, strict=True)
        for path, entry in zip(paths, entries, strict=True):
            if (entry.shape[1:], entry.dtype) != (entries[0].shape[1:], entries[0].dtype):
                raise ValueError(
                    f"{path.name} has tensors of another shape or kind than {paths[0].name}; make the cache again"
                )
        self._paths: tuple[Path, ...] = paths
        self.shape: tuple[int, ...] = entries[0].shape[1:]
        self.dtype = DTYPES[entries[0].dtype]
        self._begins = np.array([entry.begin for entry in entries])
        self.ends = np.cumsum([entry.shape[0] for entry in entries])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """rows: (N,). Returns (N, *shape) in the dtype of the files."""
        found = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        size = math.prod(self.shape) * self.dtype.itemsize
        for place, row in enumerate(rows.tolist()):
            part, number = locate(self.ends, row, "the cache")
            data = read_bytes(self._paths[part], int(self._begins[part]) + number * size, size)
            found[place] = torch.frombuffer(bytearray(data), dtype=self.dtype).view(self.shape)
        return found


def read_tensor(path: Path, entry: Entry) -> np.ndarray:
    """A whole tensor of a file, of a dtype that numpy has."""
    dtype = torch.empty(0, dtype=DTYPES[entry.dtype]).numpy().dtype
    size = math.prod(entry.shape) * dtype.itemsize
    return np.frombuffer(read_bytes(path, entry.begin, size), dtype).reshape(entry.shape)


def read_bytes(path: Path, begin: int, size: int) -> bytes:
    """A piece of a file. Raises ValueError that names it where it ends before."""
    try:
        return read_places(path, {"": (begin, size)})[""]
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}; make the cache again") from error


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` evenly spaced numbers below `length`, or all of fewer: neighbours in a data set may be alike."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def compare(what: str, pairs: Iterable[tuple[str, Tensor, Tensor]], precision: torch.dtype) -> str:
    """A sentence that says how far cached tensors are from those computed again. pairs: name, cached, computed.

    precision: of the computation, where it is coarser than the cache's float16. Raises ValueError when one is further
    off than the rounding of its largest value explains: kernels differ with the batch and the machine.
    """
    half, largest = torch.finfo(torch.float16), 0.0
    unit = max(half.eps, LAYERS_ROUND * torch.finfo(precision).eps)
    for name, cached, computed in pairs:
        if cached.shape != computed.shape:
            raise ValueError(
                f"the {name} is {tuple(cached.shape)} in the cache and {tuple(computed.shape)} computed again"
            )
        difference = float((cached - computed).abs().max())
        explained = unit * max(float(computed.abs().max()), half.tiny)  # below it float16's steps get no smaller
        if not difference <= explained:
            raise ValueError(
                f"the {name} in the cache is {difference:.2g} from the one computed again, rounding explains "
                f"{explained:.2g}; it was made of other data, or a file is damaged: make the cache again "
                "in another folder"
            )
        largest = max(largest, difference)
    return f"{what}, computed again, differ from the cache by at most {largest:.2g}, which rounding explains"


# ---- captions


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
        number, place = locate(self._ends, picture, "the cache")
        file = self._files[number]
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
        said = self._old.get(number)
        if said is None:
            said = self._old[number] = read_captions(read_metadata(path), path.name)
            for oldest in list(self._old)[: max(0, len(self._old) - OLD_FILES_KEPT)]:
                self._old.pop(oldest, None)  # another thread may have been faster
        return said


def _decode_texts(data: bytes, places: Sequence[int], path: Path) -> list[str]:
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
