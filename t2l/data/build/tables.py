"""A table that names pictures: CSV, JSON lines or Parquet, one row each. Paths are relative to the table's folder.

Rows are found by their offset in the file. A row that cannot be read costs one picture.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from ...budget import FILE_BYTES, as_text, parse_json, shown_path
from ..claim import hash_file
from ..shards import locate
from .sources import COLUMNS, Place, Record, first_text, read_inside

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *LINES, ".parquet")
LONGEST_ROW = 1 << 20  # bytes
DELIMITERS = ",\t;"


@dataclass(frozen=True)
class _Table:
    path: Path
    follow_links: bool = False

    def identity(self) -> dict[str, Any]:
        return {"kind": "table", "sha256": hash_file(self.path)}

    def read_picture(self, row: dict[str, Any]) -> Record:
        """The picture that a row names. Raises ValueError with a reason."""
        name, folder = first_text(row, "picture"), self.path.parent
        if not name:
            raise ValueError("names no picture")
        texts = {what: first_text(row, what) for what in ("caption", "source", "licence")}
        return Record(name, read_inside(folder / name, folder, self.follow_links, FILE_BYTES.most), **texts)


@dataclass(frozen=True)
class TableSource(_Table):
    """A CSV file with a header, or JSON lines. A place is the offset of a row."""

    @property
    def is_csv(self) -> bool:
        return self.path.suffix.lower() not in LINES

    def check(self) -> None:
        """Raise ValueError for a table without a column of pictures."""
        _header.cache_clear()  # of a file that may have changed
        if self.is_csv:
            _header(self.path)

    def scan(self) -> Iterator[tuple[Place, str]]:
        with self.path.open("rb") as file:
            rows = _rows(file, self.is_csv)
            if self.is_csv:
                next(rows, None)  # the header
            for offset, row in rows:
                if row is None:
                    yield offset, f"is longer than {LONGEST_ROW:,} bytes" + ", or has an open quote" * self.is_csv
                elif row.strip():
                    yield offset, ""

    def name(self, place: Place) -> str:
        return f"{self.path.name}, the row at byte {place}"

    def record(self, place: Place) -> Record:
        return self.read_picture(self._row(place))

    def files(self, place: Place) -> list[Path]:
        try:
            return [self.path.parent / first_text(self._row(place), "picture")]
        except ValueError:
            return []

    def _row(self, offset: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(offset)
            _, data = next(_rows(file, self.is_csv), (0, None))
        text = as_text(data or b"", "it")
        if self.is_csv:
            return _csv_row(text, self.path)
        found = parse_json(text, "it")
        if not isinstance(found, dict):
            raise ValueError("is no JSON object")
        return found


def _rows(file: BinaryIO, quoted: bool) -> Iterator[tuple[int, bytes | None]]:
    """Where each row begins, and the row; None for one too long. quoted: line ends within quotes belong to the row."""
    while True:
        offset = file.tell()
        row = file.readline(LONGEST_ROW)
        if not row:
            return
        after = file.tell()
        while quoted and row.count(b'"') % 2 and len(row) < LONGEST_ROW:
            line = file.readline(LONGEST_ROW)
            row += line
            if not line:
                break
        if len(row) < LONGEST_ROW and not (quoted and row.count(b'"') % 2):
            yield offset, row
            continue
        yield offset, None
        file.seek(after)
        while after and not _ends_a_line(file, after):
            file.readline(LONGEST_ROW)
            after = file.tell()


def _ends_a_line(file: BinaryIO, after: int) -> bool:
    """Whether the byte before is a line's end, or nothing follows; leaves the file there."""
    file.seek(after - 1)
    before, following = file.read(1), file.read(1)
    file.seek(after)
    return before == b"\n" or not following


@lru_cache(8)
def _header(path: Path) -> tuple[tuple[str, ...], str]:
    """The names of the columns, and what stands between them. Raises ValueError where none of them names pictures."""
    with path.open("rb") as file:
        _, data = next(_rows(file, True), (0, None))
    text = as_text(data or b"", shown_path(path.name)).strip("\r\n")
    for delimiter in DELIMITERS:
        names = tuple(next(csv.reader([text], delimiter=delimiter), []))
        if {name.strip().lower() for name in names} & set(COLUMNS["picture"]):
            return names, delimiter
    raise _no_pictures(path, text)


def _no_pictures(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{shown_path(path.name)} has no column that names pictures ({', '.join(COLUMNS['picture'])}), but "
        f"{shown_path(found, 100) or 'nothing'}; addresses alone are fetched with img2dataset first"
    )


def _csv_row(text: str, path: Path) -> dict[str, Any]:
    names, delimiter = _header(path)
    try:
        values = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error as error:
        raise ValueError(f"is no row of CSV: {error}") from error
    if len(values) != len(names):
        raise ValueError(f"has {len(values)} columns, and the header {len(names)}")
    return dict(zip(names, values, strict=True))


@dataclass(frozen=True)
class ParquetSource(_Table):
    """A Parquet table; a column `image` may hold the files themselves (Hugging Face). A place is a row's number."""

    def check(self) -> None:
        """Raise ModuleNotFoundError without pyarrow, ValueError for what is no Parquet or has no column of pictures."""
        for known in (_parquet_columns, _group_ends, _group):
            known.cache_clear()  # of a file that may have changed
        _parquet_columns(self.path)

    def scan(self) -> Iterator[tuple[Place, str]]:
        yield from ((row, "") for row in range(_parquet(self.path).metadata.num_rows))

    def name(self, place: Place) -> str:
        return f"{self.path.name}, row {place}"

    def record(self, place: Place) -> Record:
        row = self._row(place)
        for column in COLUMNS["picture"]:
            held = next((value for name, value in row.items() if name.lower() == column), None)
            if isinstance(held, dict) and isinstance(held.get("bytes"), bytes):
                name = held.get("path") or self.name(place)
                return Record(
                    str(name), held["bytes"], *(first_text(row, what) for what in ("caption", "source", "licence"))
                )
        return self.read_picture(row)

    def files(self, place: Place) -> list[Path]:
        try:
            name = first_text(self._row(place), "picture")
        except ValueError:
            name = ""
        return [self.path.parent / name] if name else [self.path]

    def _row(self, number: int) -> dict[str, Any]:
        import pyarrow

        group, place = locate(_group_ends(self.path), number, self.path.name)
        try:
            return dict(_group(self.path, group).slice(place, 1).to_pylist()[0])
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"cannot be read from {self.path.name}: {_first_line(error)}") from error


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} needs the package pyarrow: run `pip install pyarrow`", name="pyarrow"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shown_path(path)} is no Parquet file, or damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(8)
def _parquet_columns(path: Path) -> tuple[str, ...]:
    """The columns that are read. Raises ValueError where none of them holds or names pictures."""
    names = _parquet(path).schema_arrow.names
    if not any(name.lower() in COLUMNS["picture"] for name in names):
        raise _no_pictures(path, ", ".join(names))
    wanted = {column for columns in COLUMNS.values() for column in columns}
    return tuple(name for name in names if name.lower() in wanted)


@lru_cache(8)
def _group_ends(path: Path) -> tuple[int, ...]:
    """How many rows are in the row groups up to each one."""
    metadata = _parquet(path).metadata
    return tuple(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


@lru_cache(1)
def _group(path: Path, group: int) -> Any:
    return _parquet(path).read_row_group(group, columns=list(_parquet_columns(path)))
