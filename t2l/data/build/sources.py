"""Flat pictures with captions as people have them. A source lists places, cheaply and in an order that every system
gives, and reads the picture of one place at any time: nothing of millions of pictures is kept in memory. This file says
what all have in common; opening.py opens one.

What cannot be used has a reason, a sentence without a subject: "has no caption".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ...budget import as_text, check_regular, parse_object

Place = Any  # a JSON value that says where a picture is
TEXT_ENDINGS = (".json", ".caption", ".txt")
COLUMNS = {  # names of a column or a key, in small letters, the first that holds something
    "picture": (
        "file_name",
        "filename",
        "file",
        "path",
        "file_path",
        "filepath",
        "image_path",
        "img_path",
        "image",
        "img",
    ),
    "caption": ("caption", "text", "prompt", "alt", "top_caption"),
    "licence": ("licence", "license"),
    "source": ("source", "url", "original_url", "image_url"),
}


@dataclass(frozen=True)
class Record:
    """What a source says of one picture."""

    name: str  # in the source: a path or a key
    data: bytes  # the picture's file
    caption: str = ""
    source: str = ""  # its address, where it is known
    licence: str = ""
    sha256: str = ""  # of data


class Source(Protocol):
    """Where pictures come from. A frozen dataclass: it travels to other processes."""

    def scan(self) -> Iterator[tuple[Place, str]]:
        """Every place, with "" or with why nothing can be read there. Raises ValueError for no source at all."""

    def name(self, place: Place) -> str:
        """The picture's name, as far as it is known without reading it."""

    def record(self, place: Place) -> Record:
        """Raises ValueError with a reason."""

    def files(self, place: Place) -> list[Path]:
        """The files that hold the picture and what is said of it."""

    def identity(self) -> dict[str, Any]:
        """What config.json says of the source beside the places, JSON values."""


def parse_texts(texts: Mapping[str, bytes]) -> dict[str, str]:
    """Caption, source and licence, from the files beside a picture by their ending. Raises ValueError with a reason.

    An object in .json says all three; .caption and .txt the caption, where it does not.
    """
    row = parse_object(as_text(texts[".json"], "its .json"), "its .json") if ".json" in texts else {}
    said = {what: first_text(row, what) for what in ("caption", "source", "licence")}
    for ending in TEXT_ENDINGS[1:]:
        if not said["caption"] and ending in texts:
            said["caption"] = as_text(texts[ending], f"its {ending}")
    return said


def first_text(row: Mapping[str, Any], what: str) -> str:
    """The first of the columns for something that holds a text; "" for none."""
    names = {str(name).strip().lower(): name for name in row}
    for column in COLUMNS[what]:
        found = row.get(names.get(column, ""))
        if isinstance(found, str) and found.strip():
            return found
    return ""


def read_inside(path: Path, folder: Path, follow_links: bool, most: int) -> bytes:
    """A file of the folder. Raises ValueError with a reason, also for one outside, by a link or a path with `..`."""
    what = PurePosixPath(path).name
    try:
        size = check_regular(path, "the file")
        if not follow_links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise ValueError(f"has {what} outside of the source's folder; put it there, or give --follow-links")
        if size > most:
            raise ValueError(f"has {what} of {size:,} bytes; at most {most:,} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"is not there: there is no file {what}") from None
    except OSError as error:
        raise ValueError(f"has {what}, which cannot be read: {error.strerror or error}") from error
