"""A source by what lies at its path, and the simplest of them.

a folder                          a.jpg with a.txt, a.caption or a.json beside it, in any folders below
a .csv, .tsv, .jsonl, .parquet    one row a picture, see manifest.py; also metadata.* in a folder
a folder of .tar, or one          img2dataset's WebDataset shards, see tars.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...budget import FILE_BYTES, check_regular
from ...io.picture_file import ENDINGS
from ..captions_found import LARGEST_TEXT
from ..folder import walk_files
from ..part_names import UNREAD
from .manifest import MANIFESTS, ParquetSource, TableSource
from .sample import Record
from .sources import TEXT_ENDINGS, Place, Source, described, read_inside
from .tars import TarSource


@dataclass(frozen=True)
class FolderSource:
    """Pictures with their captions beside them. A place is a path in the folder. apart: a folder in it that is none of the source."""

    folder: Path
    follow_links: bool = False
    apart: Path | None = None

    def scan(self) -> Iterator[tuple[Place, str]]:
        for path, reason in walk_files(self.folder, self.follow_links, self.apart):
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
        return Record(str(place), data, **described(texts))

    def files(self, place: Place) -> list[Path]:
        path = self.folder / place
        return [path, *(path.with_suffix(ending) for ending in TEXT_ENDINGS)]

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder"}


def open_source(path: Path, follow_links: bool = False, apart: Path | None = None) -> Source:
    """The source at a path, by what is there. apart: a folder that is not looked into. Raises FileNotFoundError and ValueError, and ModuleNotFoundError for a
    Parquet file without pyarrow.
    """
    if path.is_dir():
        if any(path.glob("*.tar")):
            return TarSource(path, follow_links)
        manifests = [file for ending in MANIFESTS if (file := path / f"metadata{ending}").is_file()]
        if not manifests:
            return FolderSource(path, follow_links, apart)
        path = manifests[0]
    check_regular(path, "the source")
    ending = path.suffix.lower()
    if ending == ".tar":
        return TarSource(path, follow_links)
    if ending not in MANIFESTS:
        raise ValueError(f"{path.name} is no source: a folder, {', '.join(MANIFESTS)} or .tar is taken")
    source = ParquetSource(path, follow_links) if ending == ".parquet" else TableSource(path, follow_links)
    source.check()
    return source
