"""Tar shards in WebDataset layout with one index each, read at random: pictures and captions stay on the disk.

    000000.tar      KEY.foreground.webp, KEY.background.webp, KEY.mask.png, KEY.json, KEY.foreground.webp, ...
    000000.jsonl    first line: what the tar must be; then one line per key: where its files lie, and its captions

A shard is written under a temporary name and its index last, so a shard with an index is a finished shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..budget import TEXT_BYTES, as_text, check_regular, parse_json, shown, shown_path
from ..io.atomic import atomic_path, write_whole
from .example import (
    PICTURES,
    Example,
    Pictures,
    check_metadata,
    decode_example,
    decode_mask,
    decode_pictures,
    encode_example,
)

REMEDY = "delete this shard and its index, and run the command that made them again"
ROW = ("key", "members", "metadata", "sha256")  # of an index; the last is missing in those of the first version
LONGEST_LINE = 1 << 20  # bytes of an index's first line, which names a file and two numbers
LINES_KEPT = 8_000_000  # places of lines of indexes that are kept in memory, 4 bytes each


def shard_is_finished(directory: Path, number: int) -> bool:
    """True when shard `number` needs no more work."""
    return all((directory / f"{number:06d}.{kind}").is_file() for kind in ("tar", "jsonl"))


def write_shard(directory: Path, number: int, examples: Iterable[Example]) -> None:
    """Write one shard and its index. The same examples give the same bytes. Keys must not hold a dot or a slash.

    Whatever is raised, also on the way of an example: no half of a file stays.
    """
    path = directory / f"{number:06d}.tar"
    with atomic_path(path) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            rows = [_add(tar, example) for example in examples]
        head = {"shard": path.name, "bytes": partial.stat().st_size, "count": len(rows)}
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in [head, *rows])
    write_whole(path.with_suffix(".jsonl"), text)


def _add(tar: tarfile.TarFile, example: Example) -> dict[str, Any]:
    """Append one example's files; returns its line of the index."""
    files, members, digest = encode_example(example), {}, hashlib.sha256()
    for suffix, data in files.items():
        entry = tarfile.TarInfo(f"{example.key}.{suffix}")
        entry.size = len(data)
        members[suffix] = (tar.offset + tarfile.BLOCKSIZE, len(data))  # one header block stands before the data
        tar.addfile(entry, io.BytesIO(data))
        digest.update(data)
    metadata = json.loads(files["json"])
    return {"key": example.key, "members": members, "metadata": metadata, "sha256": digest.hexdigest()}


class Shards:
    """A folder of shards as a sequence of examples.

    A file is open only while something is read from it, so one object serves many threads and any number of shards, and
    travels to other processes. In memory are the shards' names and, of those read last, where the lines of their
    indexes begin. Raises FileNotFoundError for an empty folder, ValueError for shards without a picture and, naming the
    shard, for one that is truncated or has no index; when something is read, for an index or, naming the key too, an
    example that cannot be.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        paths = sorted(self.directory.glob("*.tar"))
        if not paths:
            raise FileNotFoundError(f"there are no shards (000000.tar, ...) in {self.directory}")
        self._names = [path.name for path in paths]
        self._lines: dict[int, np.ndarray] = {}  # shard -> where its examples' lines begin, and where the last one ends
        self._ends = np.cumsum([_read_count(path) for path in paths])  # shard s holds ends[s - 1] .. ends[s] - 1
        if not len(self):
            raise ValueError(f"the shards in {self.directory} hold no pictures")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        with self._reading(index) as (row, files):
            return decode_example(row["key"], files, row["metadata"])

    def pictures(self, index: int) -> Pictures:
        """Foreground, background and mask of one example as they were decoded, in 8 bits."""
        with self._reading(index) as (_, files):
            return decode_pictures(files)

    def mask(self, index: int) -> Image.Image:
        """The mask of one example in 8 bits, without reading its colours."""
        with self._reading(index, ("mask.png",)) as (_, files):
            return decode_mask(files)

    def metadata(self, index: int) -> dict[str, Any]:
        """The captions, labels and sources of one example, without reading its pictures."""
        return self._row(index)[1]["metadata"]

    def key(self, index: int) -> str:
        """The key of one example, without reading its pictures."""
        return self._row(index)[1]["key"]

    def digest(self) -> str:
        """A hash of every key, of its picture and of what is said of it, without reading pictures.

        Indexes of the first version hold no hash of the picture; theirs is one of keys and captions alone.
        """
        digest = hashlib.sha256()
        for index in range(len(self)):
            _, row = self._row(index)
            known = [row[name] for name in ("key", "metadata", "sha256") if name in row]
            digest.update(json.dumps(known, sort_keys=True).encode())
        return digest.hexdigest()

    @contextmanager
    def _reading(
        self, index: int, names: Sequence[str] = PICTURES
    ) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
        """An example's line of the index, and some of its files. What fails inside names shard and key."""
        shard, row = self._row(index)
        wanted = {name: place for name, place in row["members"].items() if name in names}
        try:
            yield row, read_places(self.directory / self._names[shard], wanted)
        except ValueError as error:
            raise ValueError(f"shard {self._names[shard]}, key {row['key']}: {error}; {REMEDY}") from error

    def _row(self, index: int) -> tuple[int, dict[str, Any]]:
        """The number of an example's shard and its line of the index."""
        shard, line = locate(self._ends, index, self.directory)
        path = (self.directory / self._names[shard]).with_suffix(".jsonl")
        begin, end = (int(place) for place in self._places(path, shard)[line : line + 2])
        with _parsing(path):
            text = as_text(read_places(path, {"": (begin, end - begin)})[""], "a line")
            return shard, _check_row(parse_json(text, f"line {line + 2}"))

    def _places(self, index: Path, shard: int) -> np.ndarray:
        """Where the lines of a shard's index begin."""
        lines = self._lines.get(shard)
        if lines is None:
            count = int(self._ends[shard] - (self._ends[shard - 1] if shard else 0))
            lines = self._lines[shard] = _read_lines(index, count)
            most = max(16, LINES_KEPT * len(self._ends) // len(self))
            for oldest in list(self._lines)[: max(0, len(self._lines) - most)]:
                self._lines.pop(oldest, None)  # another thread may have been faster
        return lines


def locate(ends: Sequence[int] | np.ndarray, index: int, where: object) -> tuple[int, int]:
    """The part that holds an item, and its place there. ends: how many items are in the parts up to each one.

    An index below 0 counts from the end. Raises IndexError, with the place where the items are.
    """
    count = int(ends[-1])
    if not -count <= index < count:
        raise IndexError(f"there are {count} examples in {where}, got index {index}")
    index %= count
    part = bisect_right(ends, index)
    return part, index - (int(ends[part - 1]) if part else 0)


def read_places(path: Path, places: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
    """Some pieces of a file, from where to how many bytes each. Raises ValueError where it ends before them."""
    file = os.open(path, os.O_RDONLY)
    try:
        length = os.fstat(file).st_size
        if (missing := max((begin + size for begin, size in places.values()), default=0) - length) > 0:
            raise ValueError(f"the file ends {missing} bytes early")  # before memory is taken for it
        return {name: os.pread(file, size, begin) for name, (begin, size) in places.items()}
    finally:
        os.close(file)


def _read_count(path: Path) -> int:
    """How many examples a shard has, by the first line of its index, which is checked against the tar."""
    index = path.with_suffix(".jsonl")
    if not index.is_file():
        raise ValueError(f"shard {path.name} has no index {index.name}; {REMEDY}")
    size = check_regular(path, "the shard")
    with _parsing(index), index.open("rb") as file:
        head = parse_json(as_text(file.readline(LONGEST_LINE), "its first line"), "its first line")
        expected, count = head["bytes"], head["count"]
        if type(expected) is not int or type(count) is not int:
            raise ValueError("its first line needs two whole numbers, bytes and count")
    if size != expected:
        raise ValueError(f"shard {path.name} should have {shown(expected)} bytes and has {size}; {REMEDY}")
    if not 0 <= count <= size // tarfile.BLOCKSIZE:  # every file in a tar has a block of its own before it
        raise ValueError(f"shard {path.name} of {size} bytes cannot hold {shown(count)} examples; {REMEDY}")
    return count


def _read_lines(index: Path, count: int) -> np.ndarray:
    """Where the lines of an index after the first begin, and where the last one ends: (count + 1,) uint32."""
    with _parsing(index):
        TEXT_BYTES.check(check_regular(index, "the index"), f"{shown_path(index)} has")
        data = index.read_bytes()
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    if len(ends) - 1 != count:
        raise ValueError(f"the index {index.name} should list {count} examples and lists {len(ends) - 1}; {REMEDY}")
    return ends.astype(np.uint32)


def _check_row(found: dict[str, Any]) -> dict[str, Any]:
    """A line of an index, of which only ROW is kept. Raises what `_parsing` makes a sentence of."""
    row = {name: found[name] for name in ROW if name in found or name != "sha256"}
    check_metadata(row["metadata"])
    if not isinstance(row["key"], str) or not isinstance(row.get("sha256", ""), str):
        raise ValueError("a key or a hash is no text")
    for name, place in row["members"].items():
        offset, size = place if isinstance(place, list) and len(place) == 2 else (None, None)
        if type(offset) is not int or type(size) is not int or not 0 <= offset < 2**62 or not 0 <= size < 2**31:
            raise ValueError(f"{shown(name)} lies at {shown(place)}")
    return row


@contextmanager
def _parsing(index: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f": {error}" if isinstance(error, ValueError) else ", it is no index of ours"
        raise ValueError(f"the index {index.name} of shard {index.stem}.tar is unreadable{reason}; {REMEDY}") from error
