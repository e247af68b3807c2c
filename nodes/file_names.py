"""File names in workflows: which a node offers, and which path one may mean. Workflows are shared by strangers.

Names are relative, with "/" between their parts; "\\" is taken too, as Windows writes it. A part that begins with a dot
is hidden: it is neither offered nor read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..t2l.budget import shown

LONGEST = 4096  # characters: no system opens a longer name, and taking one apart takes time


def is_plain(name: str) -> bool:
    """Whether a name leads down only, by visible parts: no "..", no drive, no share, no hidden folder."""
    if len(name) > LONGEST or "\0" in name or (os.name == "nt" and ":" in name):
        return False
    return not any(part == "" or part.startswith(".") for part in name.replace("\\", "/").split("/"))


def is_offered(name: str) -> bool:
    """Whether a plain name may stand in a list: one that every browser can send back, and that is no HTML."""
    return is_plain(name) and "<" not in name and name == name.encode(errors="ignore").decode()


def path_below(folder: str | Path, name: str) -> Path | None:
    """The file that a name means below a folder; None without one, and for a link that leads out of the folder."""
    if not is_plain(name):
        return None
    base = os.path.realpath(folder)
    path = os.path.join(base, *name.replace("\\", "/").split("/"))
    if not os.path.isfile(path):
        return None
    path = os.path.realpath(path)
    return Path(path) if path.startswith(base.rstrip(os.sep) + os.sep) else None


def check_inside(base: str | Path, folder: str | Path) -> None:
    """Raises ValueError for a folder below another one, there or not yet, that a link leads out of it."""
    real_base, real = (os.path.realpath(path) for path in (base, os.path.join(base, folder)))
    if real != real_base and not real.startswith(real_base.rstrip(os.sep) + os.sep):
        raise ValueError(
            f"must stay inside the output folder, got {shown(str(folder))}, a link that leads out of it; write another "
            "name, or start ComfyUI with --output-directory"
        )


def files_below(folder: str | Path, endings: tuple[str, ...]) -> list[str]:
    """The names of the files below a folder that end so: its own first, then those of its folders, at any depth.

    Left out: what is hidden, folders that cannot be read or are links, files that are links out of the folder.
    """
    base, found, folders = os.path.realpath(folder), [], [""]
    while folders:
        below = folders.pop()
        for entry in _entries(os.path.join(base, below)):
            name = f"{below}/{entry.name}" if below else entry.name
            is_folder = _is_folder(entry)
            if not (is_folder or name.lower().endswith(endings)) or not is_offered(entry.name) or "\\" in entry.name:
                continue
            if is_folder:
                folders.append(name)
            elif entry.is_file(follow_symlinks=False) or path_below(base, name):
                found.append(name)
    return sorted(found, key=lambda name: ("/" in name, name))


def match_name(name: Any, offered: Iterable[str]) -> str | None:
    """The one of the offered names that a name means, whichever separators it has; None for any other name."""
    if not isinstance(name, str) or len(name) > LONGEST:
        return None
    plain = {x.replace("\\", "/"): x for x in offered}
    return plain.get(name.replace("\\", "/"))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # no permission, taken away meanwhile, or a path longer than the system's
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder and no link to one: not even a junction of Windows, so that no circle is walked."""
    try:
        if not entry.is_dir(follow_symlinks=False):
            return False
        tag = getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0)  # Windows' alone, as the constant is
        return not tag or tag != getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", 0)
    except OSError:
        return False
