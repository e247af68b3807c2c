"""Bytes, JSON and archives made hostile by a seeded generator, near enough to good ones that readers look inside."""

import io
import json
import random
import struct
import zipfile
import zlib

NUMBERS = [0, 1, 2, 3, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
STRANGE = [
    None, True, False, "", "a" * 300, "\0", "\ud800", "../../x", [], {}, [[]], [None], {"a": 1}, 0, 1, -1, 0.5, 7,
    1000003,
    2**31, 2**63, 10**30, -(2**40), 1e308, -1e-300, float("inf"), float("nan"), "1", "nan", [0] * 9, [1, 2, 3],
    [10**9] * 4,
]  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes of a file changed: single ones, numbers of 2 and 4 bytes, pieces cut out, doubled, moved."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if len(changed) < 8:
            break
        chance.choice((_flip, _flip, _number, _number, _number, _cut, _double, _fill, _truncate))(changed, chance)
    return bytes(changed)


def _place(data: bytearray, chance: random.Random) -> int:
    """A place in the data; heads of files are likelier, they say what follows."""
    end = len(data) - 4
    return chance.randrange(min(end, chance.choice((32, 128, 1024, end, end))))


def _flip(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] = chance.choice((0, 255, chance.randrange(256)))


def _number(data: bytearray, chance: random.Random) -> None:
    at, value = _place(data, chance), chance.choice((*NUMBERS, chance.randrange(2**32)))
    kind = chance.choice((">H", "<H", ">I", "<I"))
    data[at : at + struct.calcsize(kind)] = struct.pack(kind, value % 2 ** (8 * struct.calcsize(kind)))


def _cut(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 16, 200))]


def _double(data: bytearray, chance: random.Random) -> None:
    at, length = _place(data, chance), chance.choice((1, 4, 40, 400))
    data[at:at] = data[at : at + length]


def _fill(data: bytearray, chance: random.Random) -> None:
    at, length = _place(data, chance), chance.choice((4, 16, 64))
    data[at : at + length] = bytes([chance.choice((0, 255))]) * length


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def strange_json(value: object, chance: random.Random, changes: int = 1) -> object:
    """A JSON value with some of its parts replaced by strange ones, taken away or nested."""
    for _ in range(changes):
        value = _changed(value, chance)
    return value


def _changed(value: object, chance: random.Random, depth: int = 0) -> object:
    if isinstance(value, (dict, list)) and value and (depth == 0 or chance.random() < 0.7):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, copy = chance.choice(list(keys)), value.copy()
        if chance.random() < 0.15:
            del copy[key]
        elif isinstance(copy, dict) and chance.random() < 0.1:
            copy[chance.choice(("x", "", "a" * 5000, "\0"))] = copy.pop(key)
        else:
            copy[key] = _changed(value[key], chance, depth + 1)
        return copy
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return chance.choice((value + 1, value - 1, -value, value * 1000, value * 10**6, float(value)))
    return chance.choice(STRANGE)


def dumped(value: object) -> bytes:
    """JSON with everything that Python's reader takes: NaN, lone surrogates."""
    return json.dumps(value).encode(errors="surrogatepass")


def archive(entries: dict[str, bytes], chance: random.Random) -> bytes:
    """A zip of entries, first one stored, some twice, some under other names, some with a wrong size in their
    header.
    """
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for number, (name, content) in enumerate(entries.items()):
            packed = zipfile.ZIP_STORED if number == 0 or chance.random() < 0.3 else zipfile.ZIP_DEFLATED
            for _ in range(2 if chance.random() < 0.03 else 1):
                file.writestr(zipfile.ZipInfo(name), content, packed)
    return data.getvalue()


def png_of_size(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header says another size."""
    changed = bytearray(data)
    changed[16:24] = struct.pack(">II", width % 2**32, height % 2**32)
    changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)
