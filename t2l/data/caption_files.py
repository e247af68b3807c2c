"""The words for somebody's layered pictures, wherever they wrote them.

    KEY.txt, KEY.json, KEY.caption, KEY_fg.txt, foreground/KEY.txt, captions/KEY.txt    beside the picture
    metadata.jsonl, metadata.csv, meta_cap.json, ...                                    one file for many, in any folder

What stands beside a picture goes before what such a file says. A file for many has rows with the name of any of the
picture's files and a caption (Hugging Face's imagefolder, LLaVA), or is kohya's object {name: {"caption" or "tags"}}.
A row that cannot be used costs its picture alone.
"""

from __future__ import annotations

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from ..budget import KINDS, TEXT_BYTES, as_text, check_regular, parse_json, parse_object, shown, shown_path
from .example import TEXTS
from .part_names import TEXT_ENDINGS, interpret_path, normalise, without_ending

LARGEST_TEXT = 1 << 20  # bytes of a caption's file
LONGEST_LISTED = 10_000  # characters of one of several captions
CAPTIONS = ("caption", "text", "prompt", "captions", "tags", "additional_feature", "conversations")  # in this order
FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "path", "foreground", "background", "mask")
METADATA = re.compile(r"(meta(data)?|captions?)([._-](cap|captions?|clean|lat|tags?))?\.(jsonl|csv|tsv|json)", re.I)
ORDER = ("flat", "caption", "composite", "cutout", "foreground", "background", "mask")  # of files that hold a caption


@dataclass(frozen=True)
class Row:
    """What a file of captions says of one picture."""

    names: tuple[str, ...]  # of the picture's files
    said: dict[str, Any]
    where: str  # begins a sentence: "line 3 of metadata.csv"


@dataclass
class Rows:
    """What files of captions say of the pictures of a folder."""

    said: dict[str, Row] = field(default_factory=dict)  # by key
    bad: dict[str, str] = field(default_factory=dict)  # key -> why its row is of no use
    faults: list[str] = field(default_factory=list)  # sentences on rows that name no picture

    def add(self, row: Row, key: str | None) -> None:
        """Take a row of a picture, or say what is wrong with it."""
        caption = _caption(row.said)
        if not isinstance(caption, str) or not row.names:
            reason = f'{row.where} needs "file_name" and "text", got {shown(row.said)}; "caption" serves too'
            if key is None:
                self.faults.append(reason)
            elif key not in self.said:
                self.bad[key] = f"has no caption: {reason}"
        elif (
            key is not None and key in self.said and _join_words(_caption(self.said[key].said)) != _join_words(caption)
        ):
            other = f"{row.where} gives {shown_path(key)} another caption than a line before it"
            self.bad[key] = f"has two captions: {other}"
        elif key is not None and key not in self.said:
            self.said[key] = row
            self.bad.pop(key, None)

    def why_none(self) -> str:
        """What is wrong with the first row, where no row is of use."""
        if self.said.keys() - self.bad.keys():
            return ""
        return next((reason.partition(": ")[2] for reason in self.bad.values()), next(iter(self.faults), ""))


class Names:
    """Which picture a path in a file of captions means."""

    def __init__(self, folder: Path, groups: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
        self._folder, self._group_files = folder, groups
        self._roots = [f"{path.as_posix().rstrip('/')}/" for path in (folder.absolute(), folder.resolve())]

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Every name of a picture's file, with and without its ending, and the key itself."""
        keys: dict[str, str] = {}
        for key, found in self._group_files.items():
            for path in (path for paths in found.values() for path in paths):
                name = path.relative_to(self._folder)
                keys[normalise(name.as_posix())] = key
                keys.setdefault(normalise(without_ending(PurePosixPath(name))), key)
        for key in self._group_files:
            keys.setdefault(normalise(key), key)
        return keys

    @cached_property
    def _any_case(self) -> dict[str, str]:
        return {name.casefold(): key for name, key in reversed(self._keys.items())}

    def key(self, name: str, base: str) -> str | None:
        """The key of the picture that has the file, or None. base: the folder of the captions, from the data set's."""
        name = name.strip().removeprefix("file://").replace("\\", "/")
        for path in dict.fromkeys((name, unquote(name), quote(name, errors="replace"))):
            for candidate in self._candidates(path, base):
                if (key := self._lookup(candidate)) is not None:
                    return key
        return None

    def _candidates(self, path: str, base: str) -> list[str]:
        """The paths that it may be from the data set's folder."""
        if not path.startswith("/") and not re.match("[A-Za-z]:/", path):
            return list(dict.fromkeys(posixpath.normpath(start) for start in (posixpath.join(base, path), path)))
        path = posixpath.normpath(path)
        for root in self._roots:
            if path.startswith(root):
                return [path.removeprefix(root)]
        parts = path.split("/")[1:]  # of another machine's folder: by as much of its end as there is
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        return [name for end in ends for name in dict.fromkeys((posixpath.join(base, end), end))]

    def _lookup(self, path: str) -> str | None:
        pure = PurePosixPath(path)
        forms = [path, without_ending(pure), *(key for key, _ in interpret_path(pure))]
        found = (self._keys.get(normalise(form)) for form in forms)
        exact = next((key for key in found if key is not None), None)
        return exact if exact is not None else self._any_case.get(normalise(forms[1]).casefold())


def is_metadata(path: Path) -> bool:
    """Whether a file is one of captions for many pictures, by its name."""
    return METADATA.fullmatch(path.name) is not None


def read_rows(path: Path, shown_as: object, bases: Sequence[str], names: Names) -> Rows:
    """What a file of captions says. bases: folders that its file names start from, from the data set's.

    Raises FileNotFoundError, or ValueError for a file that cannot be read at all.
    """
    rows = Rows()
    for row in _rows(path, shown_as):
        if isinstance(row, str):
            rows.faults.append(row)
            continue
        found = (names.key(name, base) for name in row.names for base in bases)
        rows.add(row, next((key for key in found if key is not None), None))
    return rows


def read_texts_beside(files: Sequence[tuple[str, Path]]) -> dict[str, str] | None:
    """The texts of the files beside a picture, the first that says something; None where there are none.

    files: what each of them may be named after, and its path. Raises ValueError with a reason.
    """
    ordered = sorted(files, key=lambda file: (ORDER.index(file[0]), _ending(file[1]), file[1].name))
    for number, (_, path) in enumerate(ordered, 1):
        text = _read_text(path)
        said = {"caption": text}
        if path.suffix.lower() == ".json":
            said = parse_object(text, path.name)
            if number < len(ordered) and not any(name in said for name in CAPTIONS):
                continue  # it says other things
        return texts_from_row(said, path.name)
    return None


def texts_from_row(said: Mapping[str, Any], where: str) -> dict[str, str]:
    """TEXTS, of which only the caption has to be there. Raises ValueError with a reason."""
    texts = {text: "" if said.get(text) is None else said[text] for text in TEXTS} | {"caption": _caption(said)}
    texts["caption"] = "" if texts["caption"] is None else texts["caption"]
    if wrong := [text for text, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"has no text for {', '.join(wrong)} in {where}, but {shown(texts[wrong[0]])}")
    texts = {text: _join_words(value) for text, value in texts.items()}
    if not texts["caption"]:
        raise ValueError(f"has an empty caption in {where}")
    return texts


def _join_words(text: Any) -> str:
    return " ".join(text.split()) if isinstance(text, str) else ""


def _ending(path: Path) -> int:
    return TEXT_ENDINGS.index(path.suffix.lower())


def _caption(said: Mapping[str, Any]) -> Any:
    """The caption in an object: a text, the first of a list, tags as one text, or what an assistant said."""
    found = [_text(said[name], name) for name in CAPTIONS if said.get(name) is not None]
    return next((text for text in found if not isinstance(text, str) or text.strip()), found[0] if found else None)


def _text(value: Any, name: str) -> Any:
    if not isinstance(value, list):
        return value
    if name == "conversations":
        answers = [turn for turn in value if isinstance(turn, dict) and turn.get("from") in ("gpt", "assistant")]
        return next((turn["value"] for turn in answers if isinstance(turn.get("value"), str)), None)
    if not value or not all(isinstance(part, str) and len(part) <= LONGEST_LISTED for part in value):
        return value
    return ", ".join(value) if name == "tags" else next((text for text in value if text.strip()), "")


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"has {path.name} of more than {LARGEST_TEXT:,} bytes, too large for a caption")
        return _decoded(path.read_bytes(), path.name)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error


def _decoded(data: bytes, what: str) -> str:
    """UTF-8, or UTF-16 with its mark, as Windows' editors write it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return as_text(data, what)


# ---- files of captions for many pictures


def _rows(path: Path, shown_as: object) -> Iterator[Row | str]:
    """The rows of a file, and a sentence in place of one that cannot be read."""
    TEXT_BYTES.check(check_regular(path, "the captions file"), f"{shown_path(path)} has")
    text = _decoded(path.read_bytes(), shown_path(path))
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(text, shown_as)
    return _of_json(text, shown_as) if path.suffix.lower() == ".json" else _of_lines(text, shown_as)


def _of_lines(text: str, path: object) -> Iterator[Row | str]:
    """JSON in every line; it may hold other line separators than these."""
    for number, line in enumerate(io.StringIO(text.replace("\r\n", "\n"), newline="\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            yield _row(parse_object(line, where), where)
        except ValueError as error:
            yield str(error)


def _of_json(text: str, path: object) -> Iterator[Row | str]:
    """A list of rows, or an object of them by their names. Raises ValueError for anything else."""
    found = parse_json(text, shown_path(path))
    if not isinstance(found, list | dict):
        raise ValueError(f"{shown_path(path)} should hold a list or an object and holds {KINDS[type(found)]}")
    entries = [(None, row) for row in found] if isinstance(found, list) else list(found.items())
    for number, (name, row) in enumerate(entries, 1):
        where = f"entry {number} of {path}"
        said = {"caption": row} if isinstance(row, str) and name is not None else row
        yield _row(said, where, name) if isinstance(said, dict) else f"{where} should hold an object, got {shown(row)}"


def _of_table(text: str, path: object) -> Iterator[Row | str]:
    """A table with names in its first line. Raises ValueError for one without file names and captions."""
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader, [])]
    if not any(map(_names_a_file, header)) or not any(name in CAPTIONS for name in header):
        raise ValueError(f"line 1 of {path} needs the names file_name and text or caption, got {shown(first)}")
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num} of {path} cannot be read: {error}"
            continue
        where = f"line {reader.line_num} of {path}"
        if len(fields) > len(header) and header[-1] in CAPTIONS:  # commas of a caption that has no quotes
            fields[len(header) - 1 :] = [delimiter.join(fields[len(header) - 1 :])]
        if len(fields) > len(header):
            yield f"line {reader.line_num} of {path} has {len(fields)} fields, its first line names {len(header)}"
        elif any(text.strip() for text in fields):
            yield _row({name: value for name, value in zip(header, fields, strict=False) if value.strip()}, where)


def _names_a_file(name: str) -> bool:
    return name in FILE_NAMES or name.endswith("_file_name")


def _row(said: dict[str, Any], where: str, name: str | None = None) -> Row:
    names = [name, *(said[key] for key in sorted(said, key=_rank) if _names_a_file(key))]
    return Row(tuple(name for name in names if isinstance(name, str) and name.strip()), said, where)


def _rank(name: str) -> int:
    return FILE_NAMES.index(name) if name in FILE_NAMES else len(FILE_NAMES)
