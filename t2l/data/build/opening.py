"""A source by what lies at its path: a folder, tar files, or a table (tables.py).

a folder                          a.jpg with a.txt, a.caption or a.json beside it, in any folders below
a .csv, .tsv, .jsonl, .parquet    one row a picture; also metadata.* in a folder
a folder of .tar, or one          img2dataset's WebDataset shards: KEY.jpg, KEY.txt and KEY.json next to each other
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...budget import FILE_BYTES, check_regular, shown_path
from ...io.picture_file import ENDINGS
from ..caption_files import LARGEST_TEXT
from ..folder import walk_files
from ..part_names import UNREAD
from .sources import TEXT_ENDINGS, Place, Record, Source, parse_texts, read_inside
from .tables import TABLES, ParquetSource, TableSource

BLOCK = tarfile.BLOCKSIZE


def open_source(path: Path, follow_links: bool = False, exclude: Path | None = None) -> Source:
    """The source at a path, by what is there. exclude: a folder that is not looked into. Raises FileNotFoundError and
    ValueError, and ModuleNotFoundError for a Parquet file without pyarrow.
    """
    if path.is_dir():
        if any(path.glob("*.tar")):
            return TarSource(path, follow_links)
        tables = [file for ending in TABLES if (file := path / f"metadata{ending}").is_file()]
        if not tables:
            return FolderSource(path, follow_links, exclude)
        path = tables[0]
    check_regular(path, "the source")
    ending = path.suffix.lower()
    if ending == ".tar":
        return TarSource(path, follow_links)
    if ending not in TABLES:
        raise ValueError(f"{path.name} is no source: a folder, {', '.join(TABLES)} or .tar is taken")
    source = ParquetSource(path, follow_links) if ending == ".parquet" else TableSource(path, follow_links)
    source.check()
    return source


@dataclass(frozen=True)
class FolderSource:
    """Pictures with their captions beside them. A place is a path in the folder. exclude: a folder that is left out."""

    folder: Path
    follow_links: bool = False
    exclude: Path | None = None

    def scan(self) -> Iterator[tuple[Place, str]]:
        for path, reason in walk_files(self.folder, self.follow_links, self.exclude):
            ending = path.suffix.lower()
            if not reason and ending in UNREAD and ending not in ENDINGS:
                reason = "is of a kind that is not read; save it as PNG or JPEG"
            if reason or ending in ENDINGS:
                yield path.relative_to(self.folder).as_posix(), reason

    def name(self, place: Place) -> str:
        return str(place)

    def record(self, place: Place) -> Record:
        picture, *beside = self.files(place)
        data = read_inside(picture, self.folder, self.follow_links, FILE_BYTES.most)
        there = [path for path in beside if os.path.lexists(path)]
        texts = {path.suffix: read_inside(path, self.folder, self.follow_links, LARGEST_TEXT) for path in there}
        return Record(str(place), data, **parse_texts(texts))

    def files(self, place: Place) -> list[Path]:
        path = self.folder / place
        return [path, *(path.with_suffix(ending) for ending in TEXT_ENDINGS)]

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder"}


@dataclass(frozen=True)
class TarSource:
    """One .tar or all in a folder. A place is [file name, where a sample's first file begins, number of files, key]."""

    path: Path
    follow_links: bool = False

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def scan(self) -> Iterator[tuple[Place, str]]:
        tars = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
        for path in tars:
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if path.is_symlink() and not (self.follow_links or inside):
                yield [path.name, 0, 0, ""], "is a link that leads out of the folder; give --follow-links"
            else:
                yield from _scan(path)

    def name(self, place: Place) -> str:
        tar, offset, _, key = place
        return f"{tar}/{key}" if key else f"{tar}, byte {offset}"

    def record(self, place: Place) -> Record:
        found: dict[str, bytes] = {}
        try:
            for member, tar in _members(self.folder / place[0], place[1], place[2]):
                ending = _key_and_ending(member.name)[1]
                most = FILE_BYTES.most if ending in ENDINGS else LARGEST_TEXT
                if not member.isreg() or ending not in (*ENDINGS, *TEXT_ENDINGS):
                    continue
                if member.size > most:
                    raise ValueError(f"has a {ending} of {member.size:,} bytes; at most {most:,} are read")
                file = tar.extractfile(member)
                assert file is not None, "a regular file has bytes"
                found.setdefault(ending, file.read())
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"cannot be read: {error}") from error
        picture = next((found[ending] for ending in ENDINGS if ending in found), None)
        if picture is None:
            raise ValueError("holds no picture")
        return Record(self.name(place), picture, **parse_texts(found))

    def files(self, place: Place) -> list[Path]:
        return [self.folder / place[0]]

    def identity(self) -> dict[str, Any]:
        return {"kind": "tars"}


def _scan(path: Path) -> Iterator[tuple[Place, str]]:
    """The samples of one tar; what is wrong with its end comes last."""
    place: list[Any] = [path.name, 0, 0, ""]
    reason, end = "", 0
    try:
        for member, tar in _members(path):
            key = _key_and_ending(member.name)[0]
            if place[2] and key == place[3]:
                place[2] += 1
            else:
                if place[2]:
                    yield place, ""
                place = [path.name, member.offset, 1, key]
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                reason = "is no tar file" if not end else "is cut off or damaged from here on"
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"cannot be read from here on: {error}"
    if place[2]:
        yield place, ""
    if reason:
        yield [path.name, end, 0, ""], reason


def _members(
    path: Path, offset: int = 0, count: int | None = None
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members from an offset on; no list of them grows in memory."""
    with path.open("rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while count is None or count > 0:
                member = tar.next()
                if member is None:
                    return
                tar.members = []  # type: ignore[attr-defined]  # it would remember all
                yield member, tar
                count = None if count is None else count - 1


def _key_and_ending(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last part of the name."""
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    return shown_path((path.parent / stem).as_posix()), (dot + ending).lower()
