"""A folder of somebody's layered pictures: which files belong together, their captions, their layers.

    KEY.foreground.png, KEY.background.png, KEY.mask.png    or with `_` for the dot, as `t2l generate` and `t2l convert` write
    KEY.foreground.png, KEY.background.png                  a foreground with transparency: its alpha is the mask
    KEY.psd, KEY.psb, KEY.ora                               two visible layers: background, and foreground over it
    KEY.txt or KEY.json                                     the caption, or an object with `caption` and more of TEXTS

Whatever cannot be used has a reason, a sentence without a subject: "a: has no background ...".
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bleed import bled
from ..budget import FILE_BYTES, KINDS, as_text, parse_json, read_text, shown, shown_path
from ..io.image import to_image
from ..io.layer_file import READ as LAYERED
from ..io.layer_file import open_layer_file
from ..io.picture_file import ENDINGS, read_colours, read_mask
from ..layers import Layers
from .example import TEXTS

LONGEST = 16_383  # pixels along a side of a WebP picture
SMALLEST = 64  # pixels along a side, as everywhere in training
PARTS = ("foreground", "background", "mask")
LARGEST_TEXT = 1 << 20  # bytes of a caption's file
PART = re.compile(r"(.+)[._](foreground|background|mask|composite|cutout)", re.IGNORECASE)
ONE_OF_MANY = re.compile(
    r"(.+?)[._](layer)\d\d-.*", re.IGNORECASE
)  # `t2l convert` writes those of more than two layers
UNREAD = (
    ".kra",
    ".xcf",
    ".clip",
    ".afphoto",
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".exr",
    ".hdr",
    ".tga",
    ".svg",
)


@dataclass(frozen=True)
class Source:
    """A layered picture that looks complete: its files exist and it has a caption."""

    name: str  # its path in the folder, without the part's name and, for a set of pictures, the ending
    files: dict[str, Path]  # foreground, background and perhaps mask; or layers
    texts: dict[str, Any]  # TEXTS, all of them str; "" for those that were not given


def find_sources(
    folder: Path, captions: Path | None = None, follow_links: bool = False
) -> tuple[list[Source], list[str]]:
    """The layered pictures under a folder, by name, and "name: reason" for every other picture and every link not followed.

    Links within the folder are followed, those that lead out of it only with follow_links: a data set is shared, and must not
    take along what was not meant. captions: a metadata.jsonl as Hugging Face's imagefolder has, whose file names are relative to the folder; then no other
    captions are looked for. Raises FileNotFoundError, or ValueError for a captions file that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; name the one that holds your layered pictures")
    said = None if captions is None else read_captions(captions)
    paths, skipped = _files(folder, follow_links)
    sources: list[Source] = []
    for name, found in _groups(folder, paths).items():
        try:
            files, beside = _chosen(found)
            skipped += [f"{_relative(path, folder)}: {reason}" for path, reason in beside]
            if files:
                for path in files.values():
                    FILE_BYTES.check(path.stat().st_size, f"has {path.name} of")
                title = _relative(files["layers"], folder) if "layers" in files else name
                sources.append(Source(title, files, _texts(folder / name, name, said)))
        except (ValueError, OSError) as error:
            skipped.append(f"{name}: {error}")
    return sources, skipped


def _files(folder: Path, follow_links: bool) -> tuple[list[Path], list[str]]:
    """Every file below a folder that is not hidden, each folder once, and a reason for what was left out."""
    files, skipped = [], []
    for path, reason in walk_files(folder, follow_links):
        if reason:
            skipped.append(f"{_relative(path, folder)}: {reason}")
        else:
            files.append(path)
    return files, skipped


def walk_files(folder: Path, follow_links: bool) -> Iterator[tuple[Path, str]]:
    """Every file below a folder that is not hidden, each folder once, in an order that every system gives.

    With "", or with the reason why something is left out. In memory are the names of one folder.
    """
    root = folder.resolve()
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
            kind = _not_followed(path, root, seen, follow_links) or _kind(path)
            if kind == "folder":
                seen.add(path.resolve())
                waiting.append(path)
            else:
                yield path, "" if kind == "file" else kind


def _kind(path: Path) -> str:
    """Either folder or file, or the reason why it is neither."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "is a pipe or a device, no file"


def _not_followed(path: Path, root: Path, seen: set[Path], follow_links: bool) -> str:
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


def _groups(folder: Path, files: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """The picture files that share a folder and a key, by what they are of it, in an order that every system gives."""
    groups: dict[str, dict[str, list[Path]]] = {}
    paths = {_relative(path, folder): path for path in files}
    for name in sorted(paths):
        key, part = _key_and_part(PurePosixPath(name))
        if part:
            groups.setdefault(key, {}).setdefault(part, []).append(paths[name])
    return dict(sorted(groups.items()))


def _key_and_part(path: PurePosixPath) -> tuple[str, str]:
    """What a file belongs to and what it is of it; the part is "" for what is no picture."""
    ending, stem = path.suffix.lower(), path.with_suffix("").as_posix()
    if ending in LAYERED:
        return stem, "layers"
    if ending in UNREAD:
        return stem, "unread"
    if ending not in ENDINGS:
        return path.as_posix(), ""
    match = ONE_OF_MANY.fullmatch(stem) or PART.fullmatch(stem)
    return (match[1], match[2].lower()) if match else (stem, "flat")


def _chosen(found: dict[str, list[Path]]) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
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
    reasons = {"unread": "is of a kind that is not read; save it as .psd, .ora or as PNG files"}
    return {}, [(path, reasons.get(part, flat)) for part, paths in found.items() for path in paths]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


# ---- captions


def read_captions(path: Path) -> dict[str, dict[str, Any]]:
    """A metadata.jsonl: the key of every picture -> what its line says. Raises FileNotFoundError, or ValueError with the line."""
    said: dict[str, dict[str, Any]] = {}
    lines = io.StringIO(read_text(path, "the captions file"), newline="\n")  # JSON may hold other line separators
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _json_object(line, f"line {number} of {path}")
        if not isinstance(row.get("file_name"), str) or not isinstance(row.get("text"), str):
            raise ValueError(f'line {number} of {path} needs "file_name" and "text", got {shown(row)}')
        key, _ = _key_and_part(PurePosixPath(row["file_name"].replace("\\", "/")))
        given = {text: row[text] for text in TEXTS if text in row} | {"caption": row["text"]}
        if said.setdefault(key, given)["caption"] != row["text"]:
            raise ValueError(f"line {number} of {path} gives {shown_path(key)} another caption than a line before it")
    return said


def _texts(base: Path, name: str, said: dict[str, dict[str, Any]] | None) -> dict[str, str]:
    """The texts of a picture. Raises ValueError with a reason."""
    as_json, as_text = (base.with_name(base.name + ending) for ending in (".json", ".txt"))
    if said is not None:
        if name not in said:
            raise ValueError("has no line in the captions file")
        given, where = said[name], "its line of the captions file"
    elif as_json.is_file():
        given, where = _json_object(_read_text(as_json), as_json.name), as_json.name
    elif as_text.is_file():
        given, where = {"caption": _read_text(as_text)}, as_text.name
    else:
        raise ValueError(f"has no caption: there is no {as_text.name} and no {as_json.name}")
    texts = {text: "" if given.get(text) is None else given[text] for text in TEXTS}
    if wrong := [text for text, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"has no text for {', '.join(wrong)} in {where}, but {shown(texts[wrong[0]])}")
    texts = {text: " ".join(value.split()) for text, value in texts.items()}
    if not texts["caption"]:
        raise ValueError(f"has an empty caption in {where}")
    return texts


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"has {path.name} of more than {LARGEST_TEXT:,} bytes, too large for a caption")
        return as_text(path.read_bytes(), path.name)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error


def _json_object(text: str, where: str) -> dict[str, Any]:
    found = parse_json(text, where)
    if not isinstance(found, dict):
        raise ValueError(f"{where} should hold an object and holds {KINDS[type(found)]}")
    return found


# ---- layers


def read_layers(source: Source, size: int) -> tuple[Layers, tuple[str, ...]]:
    """One layered picture, in steps of 1/255 where nothing was scaled, and notes on what its file could not show.

    A picture whose shorter side has more than `size` pixels is scaled down to it. A foreground that has one single colour
    wherever its mask is 0 was cut out: its colours are extended beyond the edge. Raises ValueError with a reason.
    """
    if "layers" in source.files:
        (foreground, background, mask), notes = _of_layer_file(source.files["layers"])
    else:
        (foreground, background, mask), notes = _of_pictures(source.files), ()
    sizes = {"foreground": foreground.size, "background": background.size, "mask": mask.size}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{part} {width} x {height}" for part, (width, height) in sizes.items())
        raise ValueError(f"has layers of different sizes: {text}")
    if max(mask.size) * min(1, size / min(mask.size)) > LONGEST:
        raise ValueError(
            f"has {mask.width:,} x {mask.height:,} pixels; a shard holds {LONGEST:,} along a side, or less"
        )
    if min(mask.size) < SMALLEST:
        raise ValueError(f"has {mask.width} x {mask.height} pixels; training takes {SMALLEST} along a side, or more")
    if mask.getextrema()[1] == 0:
        raise ValueError("has a mask that is black all over; it is white where the foreground shows")
    is_cut_out = _is_cut_out(foreground, mask)
    if min(mask.size) > size:
        factor = size / min(mask.size)
        smaller = round(mask.width * factor), round(mask.height * factor)
        foreground = _scaled(foreground, smaller, mask if is_cut_out else None)
        background, mask = _scaled(background, smaller), _scaled(mask, smaller)
    layers = Layers(_pixels(foreground), _pixels(background), _pixels(mask))
    return replace(layers, foreground=bled(layers.foreground, layers.mask)) if is_cut_out else layers, notes


Pictures = tuple[Image.Image, Image.Image, Image.Image]  # foreground and background in RGB, the mask in L


def _of_pictures(files: dict[str, Path]) -> Pictures:
    foreground, alpha = read_colours(files["foreground"])
    background, hole = read_colours(files["background"])
    if hole is not None:
        raise ValueError(f"has holes in {files['background'].name}; a background has a colour everywhere")
    if "mask" in files:
        return foreground, background, read_mask(files["mask"])
    if alpha is None:
        raise ValueError("has no mask, and no transparency in its foreground that could be one")
    return foreground, background, alpha


def _of_layer_file(path: Path) -> tuple[Pictures, tuple[str, ...]]:
    try:
        opened = open_layer_file(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    visible = tuple(layer for layer in opened.stack.layers if layer.visible)
    if len(visible) != 2:
        raise ValueError(
            f"has {len(visible)} visible layers; two are needed, a background and a foreground over it: merge or hide others"
        )
    _, covered = replace(opened.stack, layers=visible[:1]).flattened()
    if bool((covered < 1).any()):
        raise ValueError(f"has holes in its lower layer {visible[0].name!r}; a background has a colour everywhere")
    layers = opened.stack.to_layers()
    foreground, background, mask = (to_image(x[0]) for x in (layers.foreground, layers.background, layers.mask))
    return (foreground, background, mask), opened.notes


def _is_cut_out(foreground: Image.Image, mask: Image.Image) -> bool:
    """Whether there is one colour, or none that was stored, all over where the mask is 0."""
    hidden = mask.point([255, *[0] * 255])
    counts = np.array(foreground.histogram(hidden)).reshape(3, 256)
    return bool((np.count_nonzero(counts, axis=1) == 1).all())


def _scaled(image: Image.Image, size: tuple[int, int], mask: Image.Image | None = None) -> Image.Image:
    """Scaled down without ringing. mask: what lies under its 0 is not mixed in (pillow weights RGBA by alpha)."""
    if mask is None:
        return image.resize(size, Image.Resampling.HAMMING)
    cut_out = image.copy()
    cut_out.putalpha(mask)
    return cut_out.resize(size, Image.Resampling.HAMMING).convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    """(1, C, H, W) in [0, 1]."""
    values = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(values).movedim(-1, 0)[None].float() / 255
