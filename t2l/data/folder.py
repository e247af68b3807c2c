"""A folder of somebody's layered pictures: which files belong together, and their captions.

    KEY.foreground.png, KEY.background.png, KEY.mask.png    also as part_names.py says, and `t2l generate` writes
    KEY.foreground.png, KEY.background.png                  a foreground with transparency: its alpha is the mask
    KEY.psd, KEY.psb, KEY.ora                               layers: background, foreground over it (layer_sources.py)
    captions                                                beside them, or in one file for many (caption_files.py)

Whatever cannot be used has a reason, a sentence without a subject: "a: has no background ...".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..budget import FILE_BYTES
from .caption_files import Names, Row, Rows, is_metadata, read_rows, read_texts_beside, texts_from_row
from .layer_sources import Source
from .part_names import PARTS, TEXT_ENDINGS, UNREAD, interpret_path, normalise

Groups = dict[str, dict[str, list[Path]]]  # key -> part -> files


def find_sources(
    folder: Path, captions: Path | None = None, follow_links: bool = False, exclude: Path | None = None
) -> tuple[list[Source], list[str]]:
    """The layered pictures under a folder, by name, and "name: reason" for other pictures and links not followed.

    Links within the folder are followed, those that lead out of it only with follow_links: a data set is shared, and
    must not take along what was not meant. captions: a file of captions for many pictures, whose file names are
    relative to the folder; then no other captions are looked for. exclude: a folder that is not looked into. Raises
    FileNotFoundError, or ValueError for a captions file without a line of use.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; name the one that holds your layered pictures")
    paths, skipped = _find_files(folder, follow_links, exclude)
    groups = _group_files(folder, [path for path in paths if path.suffix.lower() not in TEXT_ENDINGS])
    found_captions = _Captions(folder, groups, paths, captions)
    skipped += found_captions.faults
    sources: list[Source] = []
    for name, found in groups.items():
        try:
            files, beside = _choose_files(found)
            skipped += [f"{_relative_name(path, folder)}: {reason}" for path, reason in beside]
            if files:
                for path in files.values():
                    FILE_BYTES.check(path.stat().st_size, f"has {path.name} of")
                title = _relative_name(files["layers"], folder) if "layers" in files else name
                sources.append(Source(title, files, found_captions.of(name)))
        except (ValueError, OSError) as error:
            skipped.append(f"{name}: {error}")
    return sources, skipped


class _Captions:
    """What is said of the pictures of a folder, and in faults which lines of its files of captions are of no use.

    captions: as `find_sources` takes it.
    """

    def __init__(self, folder: Path, groups: Groups, paths: list[Path], captions: Path | None) -> None:
        self._is_given = captions is not None
        self._said: dict[str, Row] = {}
        self._bad: dict[str, str] = {}
        self._beside: dict[str, list[tuple[str, Path]]] = {}
        self.faults: list[str] = []
        names = Names(folder, groups)
        if captions is not None:
            rows = read_rows(captions, captions, ("", _relative_folder(captions, folder)), names)
            if reason := rows.why_none():
                raise ValueError(reason)
            self._take(rows)
            return
        for path in sorted(paths):
            relative = PurePosixPath(_relative_name(path, folder))
            if is_metadata(path) and not _is_of_one(relative, groups):
                self._find(path, relative, names)
            elif path.suffix.lower() in TEXT_ENDINGS:
                for key, part in interpret_path(relative):
                    self._beside.setdefault(normalise(key), []).append((part, path))

    def _find(self, path: Path, relative: PurePosixPath, names: Names) -> None:
        try:
            base = relative.parent.as_posix()
            rows = read_rows(path, relative, ("" if base == "." else base,), names)
        except (ValueError, OSError) as error:
            self.faults.append(f"{relative}: {error}")
            return
        if rows.said or rows.bad:
            self._take(rows)
        else:  # it may be of something else: one line says enough
            self.faults += rows.faults[:1]

    def _take(self, rows: Rows) -> None:
        self._said, self._bad = rows.said | self._said, rows.bad | self._bad  # of two the first counts
        self.faults += rows.faults

    def of(self, key: str) -> dict[str, str]:
        """The texts of a picture. Raises ValueError with a reason."""
        files = {path: part for part, path in reversed(self._beside.get(normalise(key), []))}
        texts = read_texts_beside([(part, path) for path, part in files.items()]) if files else None
        if texts is not None:
            return texts
        if key in self._bad:
            raise ValueError(self._bad[key])
        if key in self._said:
            return texts_from_row(self._said[key].said, self._said[key].where)
        name = PurePosixPath(key).name
        none = f"has no caption: there is no {name}.txt and no {name}.json"
        raise ValueError("has no line in the captions file" if self._is_given else none)


def _relative_folder(captions: Path, folder: Path) -> str:
    """The folder of a file of captions, from the data set's; "" where it lies elsewhere."""
    here, root = captions.absolute().parent, folder.absolute()
    return here.relative_to(root).as_posix() if here.is_relative_to(root) else ""


def _is_of_one(path: PurePosixPath, groups: Groups) -> bool:
    """Whether a file named as captions for many belongs to one picture: metadata.json beside metadata.psd."""
    own = {path.with_suffix("").as_posix(), path.parent.as_posix()}
    return path.suffix.lower() == ".json" and not own.isdisjoint(groups)


def _find_files(folder: Path, follow_links: bool, exclude: Path | None) -> tuple[list[Path], list[str]]:
    """Every file below a folder that is not hidden, each folder once, and a reason for what was left out."""
    files, skipped = [], []
    for path, reason in walk_files(folder, follow_links, exclude):
        if reason:
            skipped.append(f"{_relative_name(path, folder)}: {reason}")
        else:
            files.append(path)
    return files, skipped


def walk_files(folder: Path, follow_links: bool, exclude: Path | None = None) -> Iterator[tuple[Path, str]]:
    """Every file below a folder that is not hidden, each folder once, in an order that every system gives.

    With "", or with the reason why something is left out. In memory are the names of one folder. exclude: a folder that
    is left out, where it lies below.
    """
    root, other = folder.resolve(), None if exclude is None else exclude.resolve()
    waiting, seen = [folder], {root}
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                names = sorted((entry.is_symlink(), entry.name) for entry in entries)
        except OSError as error:
            yield here, f"cannot be read ({error.strerror})"
            continue
        for _, name in names:
            if name.startswith((".", "__MACOSX")):
                continue
            path = here / name
            kind = _why_not_followed(path, root, seen, follow_links) or _file_or_folder(path)
            if kind == "folder":
                seen.add(path.resolve())
                waiting += [] if path.resolve() == other else [path]
            else:
                yield path, "" if kind == "file" else kind


def _file_or_folder(path: Path) -> str:
    """Either folder or file, or the reason why it is neither."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "is a pipe or a device, no file"


def _why_not_followed(path: Path, root: Path, seen: set[Path], follow_links: bool) -> str:
    """Why a link is left out; "" for what is none, and for one that is followed."""
    if not os.path.islink(path):
        return ""
    target = Path(os.path.realpath(path))
    if not os.path.exists(target):  # also where it cannot be looked at, where Path's own method raises
        return "is a link to what is not there"
    if not follow_links and not target.is_relative_to(root):
        return "is a link that leads out of the folder; put the files themselves there, or give --follow-links"
    if os.path.isdir(target) and (target in seen or root.is_relative_to(target)):
        return "is a link to a folder that is read already"
    return ""


def _group_files(folder: Path, files: list[Path]) -> Groups:
    """The picture files that share a key, by what they are of it, in an order that every system gives.

    Of what a name may say the first holds under which a picture is complete. What makes none complete joins one that
    lacks just that, and is else told by the likeliest.
    """
    paths = {_relative_name(path, folder): path for path in files}
    left = {name: found for name in sorted(paths) if (found := interpret_path(PurePosixPath(name)))}
    groups: Groups = {}
    keys: dict[str, str] = {}  # of the complete ones: composed -> as it is written
    for turn in range(max(map(len, left.values()), default=0)):
        tried: dict[str, list[str]] = {}
        for name, found in left.items():
            if turn < len(found):
                tried.setdefault(normalise(found[turn][0]), []).append(name)
        for key, names in tried.items():
            parts = {left[name][turn][1] for name in names}
            known = groups.get(keys.get(key, ""), {})
            if _is_complete(parts):
                keys.setdefault(key, left[names[0]][turn][0])
            elif not known or not parts.isdisjoint(known):
                continue
            for name in names:
                groups.setdefault(keys[key], {}).setdefault(left.pop(name)[turn][1], []).append(paths[name])
    for name, found in left.items():
        groups.setdefault(found[0][0], {}).setdefault(found[0][1], []).append(paths[name])
    return dict(sorted(groups.items()))


def _is_complete(parts: set[str]) -> bool:
    return "layers" in parts or {"foreground", "background"} <= parts


def _choose_files(found: dict[str, list[Path]]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """The files of a group that make a layered picture, none if there is none, and reasons for the others."""
    parts: dict[str, list[Path]] = {part: found[part] for part in PARTS if part in found}
    for part, paths in parts.items():
        if len(paths) > 1:
            raise ValueError(f"has several files for its {part} ({', '.join(p.name for p in paths)}); keep one")
    layered = found.get("layers", [])
    if "foreground" in parts and "background" in parts:
        files = {part: paths[0] for part, paths in parts.items()}
        return files, [(path, "is packed from the pictures of its layers beside it") for path in layered]
    if layered:
        return {"layers": layered[0]}, [(path, f"is packed from {layered[0].name} beside it") for path in layered[1:]]
    if parts:
        missing = " and no ".join(part for part in ("foreground", "background") if part not in parts)
        raise ValueError(f"has no {missing}; a layered picture needs foreground, background and a mask")
    flat = "is no layered picture: KEY.foreground, KEY.background and KEY.mask belong together, or take a .psd or .ora"
    return {}, [(path, UNREAD.get(path.suffix.lower(), flat)) for paths in found.values() for path in paths]


def _relative_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
