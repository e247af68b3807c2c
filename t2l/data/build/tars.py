"""WebDataset shards as img2dataset writes them: 000000.tar with KEY.jpg, KEY.txt and KEY.json next to each other.

Nothing is unpacked onto the disk, so a name in a tar may be anything.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...budget import FILE_BYTES, shown_path
from ...io.picture_file import ENDINGS
from ..captions_found import LARGEST_TEXT
from .sample import Record
from .sources import TEXT_ENDINGS, Place, described

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarSource:
    """One .tar or all in a folder. A place is [file name, where the first of a sample's files begins, how many they are, key]."""

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
        return Record(self.name(place), picture, **described(found))

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
