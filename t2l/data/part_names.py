"""What a file of a layered picture is called: which picture it belongs to, and what it is of it.

    KEY.foreground.png, KEY_fg.png, KEY-mask.png, fg_KEY.png    a part's name after or before the key
    foreground/KEY.png, cats/fg/KEY.png                         a folder of one part: KEY, cats/KEY
    KEY/foreground.png                                          a folder of one picture
    KEY.psd, KEY.ora; KEY.txt, KEY.json, captions/KEY.txt       a layer file; a caption

Names are compared in Unicode's composed form: a Mac writes them decomposed.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from ..io.layer_file import READ as LAYERED
from ..io.picture_file import ENDINGS

PARTS = ("foreground", "background", "mask")
SAVE_IT = "save it as .psd, .ora or as PNG files"
TEXT_ENDINGS = (".json", ".txt", ".caption")  # the first one that a picture has is its caption
UNREAD = {  # ending -> why, and what to do
    ending: f"is of a kind that is not read; {SAVE_IT}"
    for ending in (".kra .xcf .clip .afphoto .heic .heif .jxl .jp2 .exr .hdr .tga .svg".split())
} | {
    ".avif": "is AVIF, which this pillow does not read: pip install --upgrade pillow (11.3 or newer), or save it as PNG"
}
NAMES = {  # of parts, as people write them
    "foreground": ("foreground", "foregrounds", "fg", "fgs", "fgr"),
    "background": ("background", "backgrounds", "bg", "bgs", "bgr"),
    "mask": ("mask", "masks", "alpha", "alphas", "matte", "mattes", "matting", "pha"),
    "composite": ("composite", "composites"),
    "cutout": ("cutout", "cutouts"),
    "caption": ("caption", "captions", "prompt", "prompts", "text", "texts", "txt"),
}
PART_OF = {name: part for part, names in NAMES.items() for name in names}
FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL  # ASCII: a Kelvin sign is no k
_ANY = "|".join(sorted(PART_OF, key=len, reverse=True))
AFTER = re.compile(rf"(.+)[._\- ]({_ANY})", FLAGS)
BEFORE = re.compile(rf"({_ANY})[._\- ](.+)", FLAGS)
ONE_OF_MANY = re.compile(r"(.+?)[._]layer\d\d-.*", FLAGS)  # `t2l convert` writes those of more than two layers
LONE_KEY = "picture"  # the key of foreground.png in the folder itself


def interpret_path(path: PurePosixPath) -> list[tuple[str, str]]:
    """What a path, relative to the data set's folder, may say of its file: (picture's key, part), likeliest first.

    part: of NAMES, or layer, layers, flat, unread. Nothing for what is neither picture nor caption.
    """
    if not path.name:
        return []
    ending, stem = path.suffix.lower(), path.with_suffix("").as_posix()
    if ending in LAYERED:
        return [(stem, "layers")]
    if ending in UNREAD and ending not in ENDINGS:
        return [(stem, "unread")]
    if ending in TEXT_ENDINGS:
        bare = without_ending(PurePosixPath(stem))  # of a.png.txt
        return [(stem, "flat"), *_interpret_stem(bare)]
    return [reading for reading in _interpret_stem(stem) if reading[1] != "caption"] if ending in ENDINGS else []


def _interpret_stem(stem: str) -> list[tuple[str, str]]:
    """By the file's own name, by the folder that is named after a part, and by both."""
    key, part = _by_file(stem)
    by_folder, folder_part = _by_folder(stem)
    found = [(key, part)] if part != "flat" else []
    if folder_part:
        found += [(_by_folder(key)[0], part)] if part == folder_part else []
        found += [(by_folder, folder_part)]
        found += [(_by_folder(key)[0], part)] if part not in ("flat", folder_part) else []
    return [*found, (stem, "flat")]


def normalise(name: str) -> str:
    """A name to compare with others: in Unicode's form C."""
    return unicodedata.normalize("NFC", name)


def without_ending(path: PurePosixPath) -> str:
    """A path without the ending of a picture, a layer file or a caption; a dot in a name is none."""
    known = (*ENDINGS, *LAYERED, *UNREAD, *TEXT_ENDINGS)
    return path.with_suffix("").as_posix() if path.suffix.lower() in known else path.as_posix()


def _by_file(stem: str) -> tuple[str, str]:
    """Key and part by the file's own name."""
    folder, slash, name = stem.rpartition("/")
    if match := ONE_OF_MANY.fullmatch(name):
        return folder + slash + match[1], "layer"
    if match := AFTER.fullmatch(name):
        return folder + slash + match[1], PART_OF[match[2].lower()]
    if match := BEFORE.fullmatch(name):
        return folder + slash + match[2], PART_OF[match[1].lower()]
    if name.lower() in PART_OF:
        return folder or LONE_KEY, PART_OF[name.lower()]
    return stem, "flat"


def _by_folder(key: str) -> tuple[str, str]:
    """A key without the innermost folder that is named after a part, and that part; "" where there is none."""
    *folders, name = key.split("/")
    for place in reversed(range(len(folders))):
        if part := PART_OF.get(folders[place].lower()):
            return "/".join([*folders[:place], *folders[place + 1 :], name]), part
    return key, ""
