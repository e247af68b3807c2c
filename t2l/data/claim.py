"""What a folder of shards was begun with, whether its sources are still the same, and lines of what was left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..budget import read_object
from ..io.atomic import atomic_path


def claim(out: Path, wanted: dict[str, Any]) -> None:
    """Write into config.json what is put into `out`, or check that it is what `out` was begun with.

    Raises ValueError that names what differs, and for a config.json that cannot be read.
    """
    wanted = json.loads(json.dumps(wanted))  # tuples become lists
    path = out / "config.json"
    found = read_object(path, "the options of the first run") if path.is_file() else wanted
    if other := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise other_pictures(out, other)
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(wanted, indent=2))


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
    return OSError(f"{shard} cannot be written ({error.strerror or error}); make room and run the same command again")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """One line each, whatever is in a file's name; no file for no lines."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    with atomic_path(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))
