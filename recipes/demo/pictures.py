"""The pictures that the demo is drawn from, decoded: of the packages' files, or of the archive that archive.py packs.

Both give the same pictures but for the archive's compression. A source is a file's id (sources.py).
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from t2l.io.picture_file import FORMATS

from .cutouts import cutout_from, read_cutout
from .places import Plates, decode_panorama, decode_photo, doubled, pixels

LEDGER = "ledger.csv"


class Pictures(Plates, Protocol):
    """What an artist draws from: panoramas, photos and cut-outs."""

    def cutout(self, source: str) -> Tensor: ...


@dataclass(frozen=True)
class PackagePictures:
    """Pictures of the packages. read: a source file's id -> its bytes."""

    read: Callable[[str], bytes]

    def cutout(self, source: str) -> Tensor:
        return read_cutout(self.read(source))

    def panorama(self, source: str, exposure: float) -> Tensor:
        return decode_panorama(self.read(source), exposure)

    def photo(self, source: str) -> Tensor:
        return decode_photo(self.read(source))


@dataclass(frozen=True)
class ArchivePictures:
    """Pictures of an archive. Raises FileNotFoundError for one that it does not hold, ValueError for no archive."""

    path: Path

    def cutout(self, source: str) -> Tensor:
        return cutout_from(self._picture(entry_of(source)).convert("RGBA").convert("RGBa"))

    def panorama(self, source: str, exposure: float) -> Tensor:
        return doubled(pixels(self._picture(entry_of(source, exposure)).convert("RGB")))

    def photo(self, source: str) -> Tensor:
        return pixels(self._picture(entry_of(source)).convert("RGB"))

    def ledger(self, sources: Iterable[str]) -> str:
        """The ledger's rows of these sources, with its head."""
        head, *rows = self.read(LEDGER).decode().splitlines(keepends=True)
        wanted = {*sources}
        return "".join([head, *(row for row in rows if next(csv.reader([row]))[0] in wanted)])

    def read(self, entry: str) -> bytes:
        """The bytes of an entry."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(entry)
        except KeyError as error:
            raise FileNotFoundError(
                f"{self.path} does not hold {entry}: it was packed before the demo's tables changed, pack it again"
            ) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is no archive that recipes.demo.archive packed: {error}") from error

    def _picture(self, entry: str) -> Image.Image:
        return Image.open(io.BytesIO(self.read(entry)), formats=FORMATS)


def entry_of(source: str, exposure: float | None = None) -> str:
    """The name that a picture has in an archive; of a panorama also the exposure that it is tone-mapped with."""
    return f"{source}.webp" if exposure is None else f"{source}.{exposure:g}.webp"
