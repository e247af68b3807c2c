"""A zip file of pictures from a stranger: an entry is unpacked as far as it is read, all together within one budget."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from ..budget import FILE_BYTES, INFLATED_BYTES, PIXELS, check_regular, shown, shown_path
from .picture_file import Unreadable, decoded

BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
PIECE = 1 << 20  # bytes that are unpacked at once, at most


class Archive:
    """An open zip file, with what was unpacked of it so far."""

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        self.file, self.name, self.inflated = file, name, 0

    def read(self, entry: str, limit: int) -> bytes:
        """The bytes of an entry. Raises ValueError for one that is not there or has more than the limit."""
        data = bytearray()
        with self._open(entry) as file:
            while len(data) <= limit and (piece := file.read(PIECE)):
                data += piece
        if len(data) > limit:
            raise ValueError(f"the entry {shown(entry)} has more than {limit >> 20} MB")
        return bytes(data)

    @contextmanager
    def picture(self, entry: str) -> Iterator[Image.Image]:
        """An entry's PNG, decoded; what follows it is not unpacked. Raises Unreadable, and ValueError as `read`."""
        with self._open(entry) as file, decoded(file, formats=("PNG",), limit=PIXELS) as image:
            yield image

    def count(self, size: int) -> None:
        """Raise Unreadable when so many bytes more are more than the file may unpack to."""
        self.inflated += size
        if self.inflated > INFLATED_BYTES.most:
            raise Unreadable(
                f"makes the file unpack to more than {INFLATED_BYTES.most:,} bytes; {INFLATED_BYTES.remedy}"
            )

    def _open(self, entry: str) -> _Entry:
        try:
            return _Entry(self.file.open(entry), self)
        except KeyError as error:
            raise ValueError(f"there is no {shown(entry)} in it") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"the entry {shown(entry)} is damaged or encrypted") from error


class _Entry(io.RawIOBase):
    """An entry as a file that counts what is read of it."""

    def __init__(self, entry: IO[bytes], archive: Archive) -> None:
        self.entry, self.archive = entry, archive

    def read(self, size: int = -1, /) -> bytes:
        data = self.entry.read(PIECE if size < 0 else min(size, PIECE))
        self.archive.count(len(data))
        return data

    def close(self) -> None:
        self.entry.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.entry.seek(offset, whence)

    def tell(self) -> int:
        return self.entry.tell()


@contextmanager
def open_archive(path: Path, kind: str) -> Iterator[Archive]:
    """A zip file to read from. kind: what it should be, for the sentence.

    Raises FileNotFoundError, and ValueError for what is no zip file, is too large, or fails while it is read.
    """
    FILE_BYTES.check(check_regular(path, "the layer file"), f"{path.name} has")
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as file:
            yield Archive(file, path.name)
    except BROKEN as error:
        if type(error) is ValueError and str(error).startswith(path.name):  # a sentence already
            raise
        raise ValueError(f"{shown_path(path.name)} cannot be read as {kind}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong with a zip, in words for people."""
    if type(error) in (ValueError, Unreadable):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is no zip file, or a damaged one"
