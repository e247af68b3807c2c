"""Writing a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its name on leaving, with mode 0644.

    Makes the folder. When anything fails the temporary file is removed and the old file stays. Raises OSError with a
    sentence for a folder that cannot be written and a full disk.
    """
    path = Path(path)
    partial: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        yield partial
        _sync(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a small file through `atomic_path`; text as UTF-8."""
    with atomic_path(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_partials(folder: Path) -> None:
    """Remove what a kill left of files that were being written; nobody may be writing there."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)  # a name must not reach the disk before its bytes
    finally:
        os.close(handle)
