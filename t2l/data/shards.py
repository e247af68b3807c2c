"""Tar shards in WebDataset layout with one index each, read at random and in an order that can be resumed.

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..budget import as_text, check_regular, parse_json, read_text, shown
from .example import Example, check_metadata, decode_example, encode_example

REMEDY = "delete this shard and its index, and run the command that made them again"
ROW = ("key", "members", "metadata", "sha256")  # of an index; the last is missing in those of the first version
LONGEST_LINE = 1 << 20  # bytes of an index's first line, which names a file and two numbers
INDEXES_KEPT = 16  # 2.8 MB each in memory, at 1,000 examples a shard


def shard_is_finished(directory: Path, number: int) -> bool:
    """True when shard `number` needs no more work."""
    return all((directory / f"{number:06d}.{kind}").is_file() for kind in ("tar", "jsonl"))


def write_shard(directory: Path, number: int, examples: Iterable[Example]) -> None:
    """Write one shard and its index. The same examples give the same bytes. Keys must not hold a dot or a slash."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{number:06d}.tar"
    partial = path.with_suffix(".tar.partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        rows = [_add(tar, example) for example in examples]
    head = {"shard": path.name, "bytes": partial.stat().st_size, "count": len(rows)}
    partial.replace(path)
    index = path.with_suffix(".jsonl")
    partial = index.with_suffix(".jsonl.partial")
    partial.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in [head, *rows]))
    partial.replace(index)  # a reader never sees half an index


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

    Files are opened lazily and read with a position of their own (pread), so one object serves many threads, forked
    workers and, pickled, spawned ones. Of the indexes a few are kept in memory. Raises FileNotFoundError for an empty folder,
    ValueError for shards without a picture and, naming the shard, for one that is truncated or has no index; when something is
    read, for an index or, naming the key too, an example that cannot be.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._files: dict[int, int] = {}  # shard -> file descriptor
        paths = sorted(self.directory.glob("*.tar"))
        if not paths:
            raise FileNotFoundError(f"there are no shards (000000.tar, ...) in {self.directory}")
        self._names = [path.name for path in paths]
        self._rows: dict[int, list[dict[str, Any]]] = {}  # shard -> its index, of those read last
        self._ends = np.cumsum([_read_count(path) for path in paths])  # shard s holds ends[s - 1] .. ends[s] - 1
        if not len(self):
            raise ValueError(f"the shards in {self.directory} hold no pictures")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        shard, row = self._row(index)
        try:
            wanted = {name: place for name, place in row["members"].items() if name != "json"}
            files = {name: self._read(shard, *place) for name, place in wanted.items()}
            return decode_example(row["key"], files, row["metadata"])
        except ValueError as error:
            raise ValueError(f"shard {self._names[shard]}, key {row['key']}: {error}; {REMEDY}") from error

    def metadata(self, index: int) -> dict[str, Any]:
        """The captions, thing, place, colour and sources of one example, without reading its pictures."""
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

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Every index once, (len,) int64: shards permuted, examples shuffled inside each shard.

        A pure function of (seed, epoch): who knows how many of them are used up goes on exactly there.
        """
        rng = np.random.default_rng([seed, epoch])
        starts = np.concatenate([[0], self._ends[:-1]])
        shards = rng.permutation(len(self._ends))
        return np.concatenate([starts[s] + rng.permutation(self._ends[s] - starts[s]) for s in shards]).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def _row(self, index: int) -> tuple[int, dict[str, Any]]:
        """The number of an example's shard and its line of the index."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} examples in {self.directory}, got index {index}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        rows = self._rows.get(shard)
        if rows is None:
            rows = _read_rows(self.directory / self._names[shard], int(self._ends[shard]) - start)
            kept = list(self._rows.items())[1 - INDEXES_KEPT :]
            self._rows = dict(kept) | {shard: rows}
        return shard, rows[index - start]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            self._files[shard] = os.open(self.directory / self._names[shard], os.O_RDONLY)
        if (end := os.fstat(self._files[shard]).st_size) < offset + size:  # before memory is taken for it
            raise ValueError(f"the file ends {offset + size - end} bytes early")
        data = os.pread(self._files[shard], size, offset)
        if len(data) < size:
            raise ValueError(f"the file ends {size - len(data)} bytes early")
        return data


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


def _read_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines of a shard's index after the first, `count` of them."""
    index = path.with_suffix(".jsonl")
    with _parsing(index):
        lines = read_text(index, "the index").splitlines()[1 : count + 2]  # one more than there should be
        rows = [_checked_row(parse_json(line, f"line {i}")) for i, line in enumerate(lines, 2)]
    if len(rows) != count:
        raise ValueError(f"the index {index.name} should list {count} examples and lists {len(rows)}; {REMEDY}")
    return rows


def _checked_row(found: dict[str, Any]) -> dict[str, Any]:
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
