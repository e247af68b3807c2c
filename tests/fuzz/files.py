"""Layer files, checkpoints and data folders as strangers may share them: good ones that a seeded generator damaged.

Each function writes one file (or folder) for a generator of random numbers, and returns its path.
"""

import io
import json
import random
import re
import struct
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from tests.fuzz.mutate import NUMBERS, archive, damaged, dumped, png_of_size, strange_json

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
LARGE_SIDES = [0, 1, 5000, 16000, 30000, 300000, 2**31 - 1, 2**32 - 1]
WORDS = [
    "nan",
    "-1",
    "0",
    "1e308",
    "inf",
    "999999999",
    "../../x.png",
    "\u202ename",
    "a" * 100_000,
    "",
    "svg:xor",
    "true",
]


def psd(good: list[bytes], folder: Path, chance: random.Random) -> Path:
    """A PSD with damaged bytes, other sizes in its header, or lengths that lead elsewhere."""
    data = bytearray(chance.choice(good))
    if chance.random() < 0.3:
        struct.pack_into(">HII", data, 12, chance.choice((0, 1, 3, 4, 56, 57)), *chance.choices(LARGE_SIDES, k=2))
    elif chance.random() < 0.5:
        marks = [found.start() for found in re.finditer(rb"8BIM", data)]
        at = chance.choice(marks) + chance.choice((-16, -12, -8, -4, 4, 8, 12, 16))
        struct.pack_into(">I", data, max(0, min(at, len(data) - 4)), chance.choice(NUMBERS))
    return _written(folder / "x.psd", damaged(bytes(data), chance) if chance.random() < 0.8 else bytes(data))


def ora(good: list[bytes], folder: Path, chance: random.Random) -> Path:
    """An OpenRaster file with other pictures, attributes and elements, packed well or badly."""
    with zipfile.ZipFile(io.BytesIO(chance.choice(good))) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    pictures = [name for name in entries if name.endswith(".png")]
    for _ in range(chance.choice((0, 1, 1, 2))):
        entries[chance.choice(pictures)] = _picture(entries[chance.choice(pictures)], chance)
    if chance.random() < 0.7:
        entries["stack.xml"] = _stack_xml(entries["stack.xml"].decode(), pictures, chance).encode(
            errors="surrogatepass"
        )
    if chance.random() < 0.1:
        del entries[chance.choice(list(entries))]
    data = archive(entries, chance)
    return _written(folder / "x.ora", damaged(data, chance) if chance.random() < 0.3 else data)


def _picture(good: bytes, chance: random.Random) -> bytes:
    """What may lie where a PNG should: damaged, of another size, of another format, with a long tail."""
    other = io.BytesIO()
    format_, mode = chance.choice(
        (
            ("jpeg", "RGB"),
            ("webp", "RGBA"),
            ("gif", "P"),
            ("tiff", "RGBA"),
            ("bmp", "RGB"),
            ("png", "I;16"),
            ("png", "1"),
        )
    )
    Image.new(mode, (9, 7)).save(other, format_)
    size = chance.choices(LARGE_SIDES, k=2)
    tail = bytes(chance.choice((10, 10**6, 3 * 10**7)))
    return chance.choice(
        (
            b"",
            EPS,
            damaged(good, chance),
            png_of_size(good, *size),
            other.getvalue(),
            good + tail,
            damaged(other.getvalue(), chance),
        )
    )


def _stack_xml(xml: str, pictures: list[str], chance: random.Random) -> str:
    """stack.xml with strange attributes, repeated, nested or unknown elements, entities and other encodings."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind = chance.choice(
            ("attribute", "attribute", "attribute", "repeat", "nest", "entity", "source", "unknown", "bytes")
        )
        attributes = list(re.finditer(r'(\w[\w:-]*)="([^"]*)"', xml))
        if kind == "attribute" and attributes:
            found = chance.choice(attributes)
            word = str(chance.choice([*WORDS, *LARGE_SIDES])).replace("<", "&lt;").replace('"', "")
            xml = xml[: found.start(2)] + word + xml[found.end(2) :]
        elif kind == "repeat" and (layers := re.findall(r"<layer[^>]*/>", xml)):
            layer = chance.choice(layers)
            xml = xml.replace(layer, layer * chance.choice((2, 60, 1500)), 1)
        elif kind == "nest":
            depth = chance.choice((2, 40, 3000))
            xml = xml.replace("<stack>", "<stack>" * depth, 1).replace("</stack>", "</stack>" * depth, 1)
        elif kind == "entity":
            xml = re.sub(
                r"(<\?xml[^>]*\?>)?",
                r'\1<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>',
                xml,
                count=1,
            )
        elif kind == "source":
            xml = re.sub(
                r'src="[^"]*"',
                f'src="{chance.choice([*pictures, "/etc/passwd", "../x.png", "stack.xml", "mimetype"])}"',
                xml,
            )
        elif kind == "unknown":
            xml = xml.replace("<layer", chance.choice(("<filter", "<text", "<stack", "<layer xmlns:a='b' a:c='d'")), 1)
        else:
            xml = damaged(xml.encode(errors="ignore"), chance).decode("latin-1")
    return xml


def checkpoint(good: list[bytes], folder: Path, chance: random.Random) -> Path:
    """A checkpoint with other metadata, another config, other shapes, offsets or numbers."""
    data = chance.choice(good)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = chance.choice(("config", "config", "config", "metadata", "tensor", "tensor", "numbers", "bytes", "nested"))
    if kind == "config":
        configs = [name for name, text in header["__metadata__"].items() if text.startswith(("{", "["))]
        name = chance.choice(configs)
        changed = strange_json(json.loads(header["__metadata__"][name]), chance, chance.choice((1, 1, 2)))
        header["__metadata__"][name] = json.dumps(changed)
    elif kind == "metadata":
        header["__metadata__"] = strange_json(header["__metadata__"], chance)
    elif kind == "tensor":
        name = chance.choice([name for name in header if name != "__metadata__"])
        header[name] = strange_json(header[name], chance)
    elif kind == "nested":
        header["__metadata__"][chance.choice(list(header["__metadata__"]))] = chance.choice("[{") * 50_000
    elif kind == "numbers" and body:
        at = 4 * chance.randrange(len(body) // 4 - 4)
        body = body[:at] + struct.pack("<f", chance.choice((float("nan"), float("inf"), 1e38))) * 4 + body[at + 16 :]
    raw = dumped(header)
    made = struct.pack("<Q", len(raw)) + raw + body
    return _written(folder / "x.safetensors", damaged(made, chance) if kind == "bytes" else made)


def shards(good: list[dict[str, bytes]], folder: Path, chance: random.Random) -> Path:
    """A folder of one shard whose index or tar was changed."""
    files = dict(chance.choice(good))
    tar, index = (next(name for name in files if name.endswith(ending)) for ending in (".tar", ".jsonl"))
    kind = chance.choice(("index", "index", "index", "tar", "bytes", "missing"))
    if kind == "index":
        lines = [json.loads(line) for line in files[index].splitlines()]
        i = chance.randrange(len(lines))
        lines[i] = strange_json(lines[i], chance, chance.choice((1, 1, 2)))
        files[index] = b"\n".join(dumped(line) for line in lines) + b"\n"
    elif kind == "tar":
        files[tar] = _other_tar(files[tar], chance)
    elif kind == "bytes":
        name = chance.choice((tar, index))
        files[name] = damaged(files[name], chance)
    else:
        del files[chance.choice((tar, index))]
    folder = folder / "shards"
    folder.mkdir()
    for name, data in files.items():
        _written(folder / name, data)
    return folder


def _other_tar(data: bytes, chance: random.Random) -> bytes:
    """A tar whose members are other pictures of the same length, so that the index still fits."""
    changed = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
    member = chance.choice(members)
    start = member.offset_data
    other = _picture(data[start : start + member.size], chance)[: member.size].ljust(member.size, b"\0")
    changed[start : start + member.size] = other
    return bytes(changed)


def pictures(good: list[dict[str, bytes]], folder: Path, chance: random.Random) -> Path:
    """A folder of layered pictures and captions to pack, some of which cannot be used."""
    folder = folder / "pictures"
    (folder / "sub").mkdir(parents=True)
    files = dict(chance.choice(good))
    for _ in range(chance.choice((1, 1, 2, 3))):
        name = chance.choice(list(files))
        if name.endswith(".png"):
            files[name] = _picture(files[name], chance)
        elif name.endswith(".json"):
            files[name] = dumped(strange_json(json.loads(files[name]), chance))
        else:
            files[name] = damaged(files[name], chance)
        if chance.random() < 0.2:
            files[chance.choice(("sub/" + name, "a" * 200 + name, "\u202e" + name, name.upper(), "." + name))] = files[
                name
            ]
    for name, data in files.items():
        _written(folder / name, data)
    if chance.random() < 0.2:
        (folder / "circle").symlink_to(folder, target_is_directory=True)
    return folder


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
