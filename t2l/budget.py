"""What one file or one node may ask for. A file may come from a stranger: it is measured before anything is allocated.

Every limit has a default that an artist does not meet, and an environment variable for those who do. Nothing else in
the project holds such a number. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
JSON_DEPTH = 64  # lists and objects inside each other; our own files have 4
KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}


class NotJSON(ValueError):
    """A text that should be JSON and is not."""


@dataclass(frozen=True)
class Limit:
    """The most of something that is taken."""

    variable: str  # of the environment: another number
    default: int
    unit: str  # what is counted, in the plural

    @property
    def most(self) -> int:
        """The number that holds now. Raises ValueError for a variable that is no whole number."""
        text = os.environ.get(self.variable, "")
        try:
            return int(text) if text else self.default
        except ValueError as error:
            raise ValueError(
                f"the environment variable {self.variable} must be a whole number, got {shown(text)}"
            ) from error

    @property
    def remedy(self) -> str:
        """The end of a sentence that says what was found."""
        return f"at most {self.most:,} {self.unit} are taken, the environment variable {self.variable} allows more"

    def check(self, found: int, subject: str) -> None:
        """Raise ValueError where more was found; `subject` begins the sentence, e.g. "a.ora has"."""
        if found > self.most:
            raise ValueError(f"{subject} {found:,} {self.unit}; {self.remedy}")


PIXELS = Limit("T2L_MAX_PIXELS", 40 << 20, "pixels")  # of a canvas, and of one picture in a file; 16 bytes each
LAYER_PIXELS = Limit(
    "T2L_MAX_LAYER_PIXELS", 128 << 20, "pixels"
)  # at once, of a file's layers and what is merged of them
CANVAS_PIXELS = Limit("T2L_MAX_CANVAS_PIXELS", 100_000_000, "pixels")  # of what a node makes: 1.6 GB in memory
WHOLE_PIXELS = Limit("T2L_MAX_WHOLE_PIXELS", 8 << 20, "pixels")  # that an autoencoder takes at once; more go in tiles
PICTURE_PIXELS = Limit("T2L_MAX_PICTURE_PIXELS", 170_000_000, "pixels")  # of a picture to pack; 3 bytes each, half a GB
FILE_BYTES = Limit("T2L_MAX_FILE_BYTES", 512 << 20, "bytes")  # of a layer file
INFLATED_BYTES = Limit("T2L_MAX_INFLATED_BYTES", 512 << 20, "bytes")  # that one file unpacks to, pictures not decoded
LAYERS = Limit("T2L_MAX_LAYERS", 1000, "layers")  # of a file or document, groups counted too
GROUP_DEPTH = Limit("T2L_MAX_GROUP_DEPTH", 32, "levels of groups")
NAME_LENGTH = Limit("T2L_MAX_NAME_LENGTH", 4096, "characters")  # of a layer's, a tensor's, a file's name
HEADER_BYTES = Limit("T2L_MAX_HEADER_BYTES", 100_000_000, "bytes")  # of a safetensors header; safetensors takes no more
METADATA = Limit("T2L_MAX_METADATA", 10_000, "entries of metadata")  # of a checkpoint
TEXT_BYTES = Limit("T2L_MAX_TEXT_BYTES", 256 << 20, "bytes")  # of a JSON file, an index or captions for a whole folder
JSON_VALUES = Limit("T2L_MAX_JSON_VALUES", 1_000_000, "values")  # of one JSON text; 200 bytes each in memory


def check_regular(path: Path, what: str) -> int:
    """The size of an ordinary file in bytes. Reading a pipe or a device could wait, or go on, for ever.

    what: begins the sentence, e.g. "the checkpoint". Raises FileNotFoundError, ValueError for what is no ordinary file.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "does not exist" if missing else f"cannot be opened ({getattr(error, 'strerror', None) or error})"
        raise FileNotFoundError(f"{what} {shown_path(path)} {reason}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{shown_path(path)} is a folder; {what} must be a file")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{shown_path(path)} is a pipe or a device; {what} must be an ordinary file")
    return found.st_size


def read_text(path: Path, what: str) -> str:
    """An ordinary file as text. Raises as `check_regular`, and ValueError for one that is too large or not UTF-8."""
    TEXT_BYTES.check(check_regular(path, what), f"{shown_path(path)} has")
    return as_text(path.read_bytes(), shown_path(path))


def as_text(data: bytes, what: str) -> str:
    """UTF-8 from a file. what: begins the sentence, e.g. the file's name. Raises ValueError for other bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text, from byte {error.start:,} on") from error


def parse_json(text: str, what: str) -> Any:
    """JSON from a file; what: begins the sentence. Raises NotJSON; ValueError for too many values or levels."""
    JSON_VALUES.check(sum(text.count(mark) for mark in ",[{"), f"{what} has up to")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep(what)) from error
    except ValueError as error:
        raise NotJSON(f"{what} is not JSON: {error}") from error
    if text.count("[") + text.count("{") > JSON_DEPTH and _depth(found) > JSON_DEPTH:
        raise ValueError(_too_deep(what))
    return found


def parse_object(text: str, what: str) -> dict[str, Any]:
    """The object that JSON from a file holds. Raises as `parse_json`, and ValueError for anything else."""
    found = parse_json(text, what)
    if not isinstance(found, dict):
        raise ValueError(f"{what} should hold an object and holds {KINDS[type(found)]}")
    return found


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds. Raises as `read_text`, and ValueError for anything else."""
    found = parse_json(read_text(path, what), shown_path(path))
    if not isinstance(found, dict):
        raise ValueError(f"{shown_path(path)} must hold one JSON object, got {KINDS[type(found)]}")
    return found


def shown(value: object) -> str:
    """A value from a file inside a sentence: quoted, on one line, shortened."""
    return SHORT.repr(value)


def shown_path(path: object, length: int = 200) -> str:
    """A path inside a sentence: its end where it is long, nothing that a terminal takes for a command."""
    text = "".join(character if character.isprintable() else "?" for character in str(path)[-length:])
    return text if len(str(path)) <= length else f"...{text}"


def _too_deep(what: str) -> str:
    return f"{what} has lists or objects in more than {JSON_DEPTH} levels"


def _depth(value: Any) -> int:
    """Levels of lists and objects, level by level: no recursion."""
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, dict | list)]:
        depth += 1
        level = [y for x in level for y in (x.values() if isinstance(x, dict) else x)]
    return depth
