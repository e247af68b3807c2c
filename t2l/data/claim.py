"""What a folder of shards was begun with, whether its sources are still the same, and lines of what was left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..budget import read_object
from ..io.atomic import write_whole

CONFIG = "config.json"


def claim(out: Path, wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Write into config.json what is put into `out`, or check that it is what `out` was begun with.

    defaults: of what config.json does not say yet. Raises ValueError naming what differs, or for an unreadable file.
    """
    if other := find_differences(out, wanted, defaults):
        raise other_pictures(out, other)
    write_whole(out / CONFIG, json.dumps(wanted, indent=2))


def find_differences(out: Path, wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> list[str]:
    """The names of what `out` was begun with and is wanted otherwise, sorted; nothing for a folder that is free."""
    if not (out / CONFIG).is_file():
        return []
    wanted, before = (json.loads(json.dumps(values)) for values in (wanted, defaults or {}))  # tuples become lists
    found = before | read_object(out / CONFIG, "the options of the first run")
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def other_pictures(out: Path, differing: Sequence[str]) -> ValueError:
    """The error for a folder that belongs to something else."""
    return ValueError(
        f"{out} was begun with other pictures, captions or options ({', '.join(differing)} differ); "
        "choose another folder or delete it"
    )


def digest_files(files: Iterable[tuple[str, Path]], of: Callable[[Path], bytes]) -> str:
    """A hash of something of every file, with what the file is; one that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for name, path in files:
        try:
            found = of(path)
        except (OSError, ValueError):  # ValueError: a name with a zero byte
            found = b""
        digest.update(f"{name} ".encode(errors="surrogateescape") + hashlib.sha256(found).digest())
    return digest.hexdigest()


def file_times(path: Path) -> bytes:
    """What changes when a file is written: its size and time."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()


def disk_error(shard: Path, error: OSError) -> OSError:
    """The sentence for a shard that could not be written."""
    found = error.__cause__ if isinstance(error.__cause__, OSError) else error  # atomic_path has made a sentence of it
    return OSError(f"{shard} cannot be written ({found.strerror or error}); make room and run the same command again")


def hash_file(path: Path) -> str:
    """A file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """One line each, whatever is in a file's name; no file for no lines."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    write_whole(path, text.encode(errors="backslashreplace"))
