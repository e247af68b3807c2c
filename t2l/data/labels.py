"""What people said of samples: good, or bad for one of the paper's reasons. One JSON object a line, appended.

    {"good": false, "key": "train-000123", "kind": "mask", "reason": "incomplete"}

The last line of a key counts; "good": null takes a label back. What a kill cut off at the end of the file is no line.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..budget import as_text, parse_json, read_text, shown, shown_path

REASONS = {  # kind of filter -> why a sample is bad (Zhang et al. 2023, section 4.2)
    "mask": ("incomplete", "background", "small"),
    "inpainting": ("object", "cohesion"),
}


@dataclass(frozen=True, kw_only=True)
class Label:
    """What was said of one sample. Raises ValueError for a kind or reason that does not exist."""

    key: str  # the sample's, in its shards
    kind: str  # mask or inpainting
    good: bool | None  # None: taken back
    reason: str = ""  # why it is bad, one of REASONS, or nothing

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not isinstance(self.kind, str) or self.kind not in REASONS:
            raise ValueError(
                f"a label needs a key and a kind of {', '.join(REASONS)}, got {shown([self.key, self.kind])}"
            )
        if self.good is not None and type(self.good) is not bool:
            raise ValueError(f"good must be true, false or null, got {shown(self.good)}")
        if self.reason not in ("", *REASONS[self.kind]):
            raise ValueError(f"the reason must be one of {', '.join(REASONS[self.kind])}, got {shown(self.reason)}")
        if self.reason and self.good is not False:
            raise ValueError(f"only a bad sample has a reason, got {shown(self.reason)}")


def read_labels(paths: Path | Sequence[Path], kind: str) -> dict[str, Label]:
    """The labels of one kind by key, in the order they were given. A later line, and a later file, counts.

    Raises FileNotFoundError, or ValueError that names the file and the line.
    """
    found: dict[str, Label] = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        lines = read_text(path, "the file of labels").split("\n")
        for number, line in enumerate(lines, 1):
            if line.strip() and (
                label := _parse_line(line, f"{shown_path(path)}, line {number}", number == len(lines))
            ):
                if label.kind == kind:
                    _put(found, label)
    return found


def _put(labels: dict[str, Label], label: Label) -> None:
    """Make a label the last one."""
    labels.pop(label.key, None)
    if label.good is not None:
        labels[label.key] = label


def _parse_line(line: str, where: str, is_last: bool) -> Label | None:
    """A line's label; None where it is the last and was cut off. Other kinds than the one asked for are read too."""
    try:
        values = parse_json(line, "it")
    except ValueError as error:
        if is_last:
            return None
        raise ValueError(f"{where}: {error}") from error
    try:
        if not isinstance(values, dict) or not {"key", "kind", "good"} <= values.keys():
            raise ValueError(f"a label has key, kind and good, got {shown(values)}")
        return Label(**{name: values.get(name, "") for name in ("key", "kind", "good", "reason")})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class LabelFile:
    """A file of labels that one labeller appends to: on the disk when `add` returns, and nobody else writes meanwhile.

    Used in `with`. Raises BlockingIOError while another process has it, and ValueError for a file that holds no labels.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind
        self.labels: dict[str, Label] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path.parent / f".{self.path.name}.lock").open("wb")
        try:
            _lock(self._lock)
        except OSError as error:
            self._lock.close()
            raise BlockingIOError(
                f"{self.path} is being written by another `t2l label`; give this one a file of its own with --out, "
                "`t2l train-filter` takes several"
            ) from error
        try:
            self._file = self._opened()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._lock.close()

    def add(self, label: Label) -> None:
        """Append a label; it is on the disk when this returns. Raises OSError for a full disk, with nothing written."""
        assert label.kind == self.kind, f"this file takes labels of {self.kind}"
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(asdict(label), sort_keys=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        _put(self.labels, label)

    def take_back(self) -> Label | None:
        """Take the last label back, by one more line; None when there is none."""
        if not self.labels:
            return None
        last = next(reversed(self.labels.values()))
        self.add(Label(key=last.key, kind=last.kind, good=None))
        return last

    def _opened(self) -> BinaryIO:
        """The file at its end, without what a kill cut off there; its labels are read."""
        file: Any = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and _is_label(data[whole:]):
            file.write(b"\n")  # somebody's editor left it out
        else:
            file.truncate(whole)
        try:
            self.labels = read_labels(self.path, self.kind)
        except BaseException:
            file.close()
            raise
        return file


def _is_label(data: bytes) -> bool:
    try:
        return isinstance(parse_json(as_text(data, "it"), "it"), dict)
    except ValueError:
        return False


def _lock(file: BinaryIO) -> None:
    """Hold a file until it is closed or the process ends. Raises OSError when another process holds it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held_out(sources: Iterable[str], fraction: float = 0.25, seed: int = 0) -> bool | None:
    """Whether a sample is kept for testing, by a hash of its sources' names; None where they fall on both sides.

    No source is then both trained and tested on, and the answer never changes.
    """
    sides = {zlib.crc32(f"{seed} {source}".encode()) % 1000 < round(fraction * 1000) for source in sources}
    return sides.pop() if len(sides) == 1 else None
