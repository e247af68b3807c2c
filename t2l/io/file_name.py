"""File names that every system can hold, made of what a user typed."""

from __future__ import annotations

import re

LONGEST = 120  # bytes of one part; 255 are allowed, and numbers, names of layers and endings are still to come
DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(10))}  # of Windows


def clean_prefix(prefix: str) -> str:
    """A path prefix below a folder, each part a name that Windows, macOS and Linux can hold.

    Letters of all languages, digits and `.-_%` stay, anything else becomes "-". Raises ValueError for a prefix that
    leaves the folder: one that begins with a slash or a drive, or has `..` for a part.
    """
    path = prefix.replace("\\", "/")
    parts = path.split("/")
    if path.startswith("/") or re.match(r"[A-Za-z]:($|/)", path) or ".." in parts:
        raise ValueError(f"must stay inside the output folder, got {prefix[:80]!r}; write a name, or folder/name")
    return "/".join(clean_part(part) for part in parts if part.strip() not in ("", ".")) or "layers"


def clean_part(name: str) -> str:
    """One part of a path: never empty or hidden, no device of Windows, at most LONGEST bytes."""
    name = re.sub(r"[^\w.%-]+", "-", name).strip(".- ") or "layers"
    name = name.encode()[:LONGEST].decode(errors="ignore")
    return f"_{name}" if name.split(".")[0].lower() in DEVICES else name
