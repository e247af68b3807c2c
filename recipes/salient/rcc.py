"""Qt's resource files, in which the Debian package gcompris-qt-data keeps its photographs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path


def read_rcc(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file in it that is not packed with zstd."""
    data = path.read_bytes()
    magic, version, tree, payload, names = struct.unpack(">4sIIII", data[:20])
    if magic != b"qres":
        raise ValueError(f"{path} is no Qt resource file")
    node_size = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6
        return data[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + index * node_size)
        full = f"{folder}/{name_at(name)}".strip("/") if index else ""
        if flags & 2:  # a folder: how many, and the first of them
            for child in range(second, second + first):
                yield from walk(child, full)
        elif not flags & 4:
            (length,) = struct.unpack_from(">I", data, payload + second)
            content = data[payload + second + 4 : payload + second + 4 + length]
            yield full, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")
