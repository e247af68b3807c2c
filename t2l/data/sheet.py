"""Some pictures of a data set on one sheet, to be looked at: foreground, background, mask and composite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from ..io.atomic import atomic_path
from ..io.image import COLUMNS, contact_sheet
from .cache_folder import evenly_spaced
from .several import SeveralShards
from .shards import Shards

PICTURES = 24  # on a sheet, spread over the data set
MARKED = 8  # more of those that something is said of, before them
QUALITY = 88  # of the JPEG


def write_sheet(path: Path, shards: Path, marked: Mapping[int, str]) -> None:
    """Draw some pictures of a folder of shards. marked: what is wrong with some, by their numbers; these come first.

    The same shards give the same bytes. Raises OSError for a full disk.
    """
    save_sheet(sheet_of(Shards(shards), marked), path)


def sheet_of(shards: Shards | SeveralShards, marked: Mapping[int, str], columns: int = COLUMNS) -> Image.Image:
    """The sheet itself."""
    first = sorted(marked)[:MARKED]
    numbers = [*first, *(number for number in evenly_spaced(len(shards), PICTURES) if number not in first)]
    titles = [f"! {marked[number]}" if number in first else shards.metadata(number)["caption"] for number in numbers]
    return contact_sheet((shards[number].layers for number in numbers), titles, columns=columns)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as JPEG, whole or not at all."""
    with atomic_path(path) as partial:
        sheet.save(partial, "JPEG", quality=QUALITY)
