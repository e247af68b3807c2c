"""Pack what the demo is drawn from into one small file: python -m recipes.demo.archive --downloads DIR --out FILE

Cut-outs and photos are shrunk to what the artists use, panoramas are display colours; all are WebP. With the ledger of
their licences. `python -m recipes.demo archive=FILE` draws from it without npm, apt-get, OpenEXR or a network.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from t2l.io.atomic import atomic_path

from .captions import load_things
from .cutouts import cut_out
from .pictures import LEDGER, entry_of
from .places import load_places, shrink_photo, tone_map
from .sources import fetch_sources, read_source, write_ledger

QUALITY = 95  # of WebP, for colours; alpha is exact
WHEN = (1980, 1, 1, 0, 0, 0)  # of every entry: the same pictures are the same file


def main() -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    parser = argparse.ArgumentParser(prog="python -m recipes.demo.archive", description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True, metavar="DIR", help="the packages, fetched if missing")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the archive, a .zip")
    args = parser.parse_args()
    try:
        pack_archive(args.downloads, args.out, lambda line: print(line, file=sys.stderr, flush=True))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"recipes.demo.archive: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


def pack_archive(downloads: Path, out: Path, progress: Callable[[str], None] = print) -> None:
    """Write the archive of every thing and place. Raises what `fetch_sources` raises, ImportError without OpenEXR."""
    fetch_sources(downloads, progress)
    entries = {entry: _as_webp(picture) for entry, picture in _pictures(downloads)}
    ledger = _ledger(downloads)
    with atomic_path(out) as path, zipfile.ZipFile(path, "w") as archive:
        for entry, data in ({LEDGER: ledger} | entries).items():
            archive.writestr(zipfile.ZipInfo(entry, WHEN), data)
    progress(f"{out} holds {len(entries)} pictures, {out.stat().st_size / 1e6:.1f} MB")


def _pictures(downloads: Path) -> Iterator[tuple[str, Image.Image]]:
    read = partial(read_source, downloads)
    for source in sorted({source for thing in load_things() for source in thing.pictures}):
        yield entry_of(source), cut_out(read(source)).convert("RGBA")
    for place in load_places():
        for source in place.files:
            if place.kind == "panorama":
                shown = (tone_map(read(source), place.exposure) * 255).round().byte().permute(1, 2, 0)
                yield entry_of(source, place.exposure), Image.fromarray(shown.numpy())
            else:
                yield entry_of(source), shrink_photo(read(source))


def _as_webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=QUALITY, method=6)
    return buffer.getvalue()


def _ledger(downloads: Path) -> bytes:
    things, places = load_things(), load_places()
    sources = [source for row in (*(t.pictures for t in things), *(p.files for p in places)) for source in row]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LEDGER
        write_ledger(path, downloads, sources)
        return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
