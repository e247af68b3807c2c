"""One layered training picture with its captions, and the four files it is stored as.

KEY.foreground.webp, KEY.background.webp    lossy colours
KEY.mask.png                                8-bit grey, exact
KEY.json                                    captions, labels, sources; licences and scores where there are some
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..budget import KINDS, as_text, parse_json, shown
from ..io.image import encode_image, to_image
from ..io.picture_file import Unreadable, decoded
from ..layers import Layers

PICTURES = ("foreground.webp", "background.webp", "mask.png")
QUALITY = 92  # of the lossy webp colours
CAPTIONS = ("caption", "foreground_caption", "background_caption")
TEXTS = (*CAPTIONS, "thing", "place")  # what people's own files may say of a picture
LISTS = ("sources", "licences")
KEYS = {*CAPTIONS, *LISTS, "scores"}  # of the json; what is named otherwise is a label
NO_LABELS: dict[str, Any] = {"thing": "", "place": "", "colour": None}  # in every json: version 0.1.0 asks for them


@dataclass(frozen=True, eq=False)
class Example:
    """A layered picture and the words for it. `layers` holds one picture (N = 1), in steps of 1/255."""

    key: str  # unique within its data set
    layers: Layers
    caption: str  # the whole prompt
    foreground_caption: str = ""  # "a red teapot"; what follows may be empty
    background_caption: str = ""  # "on a wooden table"
    labels: dict[str, str] = field(default_factory=dict)  # "thing": "teapot"; evaluation asks for thing and place
    sources: tuple[str, ...] = ()  # ids or addresses of the files it was drawn from
    licences: tuple[str, ...] = ()  # of the sources, where they are known
    scores: dict[str, float] = field(default_factory=dict)  # what judged it, e.g. "mask": 1 = surely good


def encode_example(example: Example) -> dict[str, bytes]:
    """The example's files by their suffix: `PICTURES` and "json".

    Raises ValueError for a label that is named as something else in the json.
    """
    if taken := KEYS & example.labels.keys():
        raise ValueError(f"a label needs another name than {', '.join(sorted(taken))}")
    metadata = {name: getattr(example, name) for name in CAPTIONS} | NO_LABELS | example.labels
    metadata |= {"sources": list(example.sources)}
    optional = {"licences": list(example.licences), "scores": example.scores}
    metadata |= {name: value for name, value in optional.items() if value}
    return {
        "foreground.webp": encode_image(to_image(example.layers.foreground[0]), "webp", quality=QUALITY, method=2),
        "background.webp": encode_image(to_image(example.layers.background[0]), "webp", quality=QUALITY, method=2),
        "mask.png": encode_image(to_image(example.layers.mask[0]), "png", compress_level=4),
        "json": json.dumps(metadata, sort_keys=True).encode(),
    }


def decode_example(key: str, files: dict[str, bytes], metadata: dict[str, Any] | None = None) -> Example:
    """The inverse of `encode_example`; the mask comes back exactly.

    metadata: the parsed json, if known. Raises ValueError naming a file that is missing, unreadable or of wrong size.
    """
    missing = [] if metadata or "json" in files else ["json"]
    pictures = decode_pictures(files, missing)
    metadata = check_metadata(_from_json(files["json"]) if metadata is None else metadata)
    layers = Layers.from_stacked(stacked_bytes(pictures).float() / 255)
    lists: dict[str, Any] = {name: tuple(metadata.get(name, ())) for name in LISTS}
    return Example(key, layers, scores=metadata.get("scores", {}), **lists, **words_of(metadata))


def words_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Captions and labels as `Example` takes them, out of one object; every text that is named otherwise is a label."""
    labels = {name: text for name, text in metadata.items() if name not in KEYS and isinstance(text, str) and text}
    return {name: metadata[name] for name in CAPTIONS} | {"labels": labels}


Pictures = tuple[Image.Image, Image.Image, Image.Image]  # foreground and background in RGB, the mask in L


def decode_pictures(files: dict[str, bytes], missing: Sequence[str] = ()) -> Pictures:
    """The pictures of an example in 8 bits, all of one size. missing: what else of the example is not there.

    Raises ValueError naming the file that is missing, unreadable or of another size.
    """
    if missing := [*(name for name in PICTURES if name not in files), *missing]:
        raise ValueError(f"there is no {' and no '.join(missing)}")
    foreground, background, mask = (_from_file(name, files[name]) for name in PICTURES)
    if not foreground.size == background.size == mask.size:
        named = zip(PICTURES, (foreground, background, mask), strict=True)
        sizes = ", ".join(f"{name} {picture.width} x {picture.height}" for name, picture in named)
        raise ValueError(f"its pictures differ in size: {sizes}")
    return foreground, background, mask


def decode_mask(files: dict[str, bytes]) -> Image.Image:
    """The mask of an example in 8 bits. Raises ValueError where it is missing or unreadable."""
    if "mask.png" not in files:
        raise ValueError("there is no mask.png")
    return _from_file("mask.png", files["mask.png"])


def stacked_bytes(pictures: Pictures, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """Foreground, background and mask as stored, (1, 7, H, W) uint8. box: left, top, right and bottom of a piece."""
    pieces = pictures if box is None else [picture.crop(box) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(channel) for piece in pieces for channel in piece.split()]))[None]


def check_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata as it came. Raises ValueError when one of `CAPTIONS` is missing, and for what is no text."""
    if not isinstance(metadata, dict):
        raise ValueError(f"its json should hold an object and holds {KINDS[type(metadata)]}")
    lists, colour = [metadata.get(name, []) for name in LISTS], metadata.get("colour")
    are_lists = all(isinstance(part, list) for part in lists)
    if not are_lists or not all(isinstance(text, str) for text in [*sum(lists, []), colour or ""]):
        raise ValueError(f"its json has sources, licences or a colour that are no texts: {shown([*lists, colour])}")
    scores = metadata.get("scores", {})
    if not isinstance(scores, dict) or not all(type(score) in (int, float) for score in scores.values()):
        raise ValueError(f"its json has scores that are no numbers: {shown(scores)}")
    texts = NO_LABELS | metadata
    if missing := [name for name in TEXTS if not isinstance(texts.get(name), str)]:
        raise ValueError(f"its json has no {', '.join(missing)}")
    return metadata


def training_captions(metadata: Mapping[str, Any]) -> list[str]:
    """The two captions a picture is trained with; the same one twice where its layers have none of their own."""
    parts = metadata["foreground_caption"], metadata["background_caption"]
    return [metadata["caption"], " ".join(parts) if all(parts) else metadata["caption"]]


def _from_json(data: bytes) -> Any:
    try:
        return parse_json(as_text(data, "it"), "it")
    except ValueError as error:
        raise ValueError(f"its json is unreadable: {error}") from error


def _from_file(name: str, data: bytes) -> Image.Image:
    """A picture file as L for the mask, else as RGB."""
    try:
        with decoded(io.BytesIO(data), formats=("WEBP", "PNG")) as picture:
            return picture.convert("L" if name == "mask.png" else "RGB")
    except Unreadable as error:
        raise ValueError(f"its {name} is unreadable: it {error}") from error
