"""OpenRaster (.ora), the open layer format of Krita, MyPaint and GIMP: a zip of PNG files and a stack.xml.

Eight bits per channel. A layer's mask becomes the alpha channel of its PNG, whose colours stay also where it is 0.
https://www.openraster.org/baseline/layer-stack-spec.html
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..budget import GROUP_DEPTH, LAYERS, NAME_LENGTH, as_text, shown
from ..compositing.blend import BlendMode
from ..compositing.stack import Layer, Stack, cropped
from .archive import Archive, open_archive
from .atomic import atomic_path
from .image import encode_image, to_image
from .layer_nodes import Account, Group, LayerFile, Node, Operator, Special, Whole
from .layer_tree import plain_layers
from .picture_file import Unreadable

MIMETYPE = "image/openraster"
THUMBNAIL = 256  # pixels, the longest side
MAX_XML = 4 << 20  # bytes of stack.xml
COMPARED = 1 << 20  # pixels at most that are compared with Krita's own picture
MODES: dict[str, BlendMode] = {
    "svg:src-over": "normal",
    "svg:multiply": "multiply",
    "svg:screen": "screen",
    "svg:overlay": "overlay",
    "svg:darken": "darken",
    "svg:lighten": "lighten",
    "svg:plus": "add",
    "svg:soft-light": "soft light",
    "svg:hard-light": "hard light",
    "svg:color-dodge": "color dodge",
    "svg:color-burn": "color burn",
    "svg:difference": "difference",
    "svg:hue": "hue",
    "svg:saturation": "saturation",
    "svg:color": "color",
    "svg:luminosity": "luminosity",
    # Krita's own names for what the standard leaves out.
    "krita:exclusion": "exclusion",
    "krita:subtract": "subtract",
    "krita:divide": "divide",
    "krita:linear_burn": "linear burn",
    "krita:linear light": "linear light",
    "krita:vivid_light": "vivid light",
    "krita:pin_light": "pin light",
    "krita:hard_mix_photoshop": "hard mix",
    "krita:darker color": "darker color",
    "krita:lighter color": "lighter color",
    "krita:linear_dodge": "add",
    "krita:soft_light": "soft light krita",
    "krita:grain_extract": "grain extract",
    "krita:grain_merge": "grain merge",
}
# Modes of Krita that are none of these, with the nearest: its own hard mix dodges and burns.
RELATED: dict[str, BlendMode] = {"krita:hard mix": "hard mix", "krita:hard_mix_softer_photoshop": "hard mix"}
OPERATORS: dict[str, Operator] = {  # Porter and Duff's, which paint nothing but change what is below
    "svg:src-atop": "src-atop",  # Krita's "inherit alpha"
    "svg:dst-in": "dst-in",
    "svg:dst-out": "dst-out",  # Krita's eraser
    "svg:dst-atop": "dst-atop",
}


# ---- writing


def save_ora(stack: Stack, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Write an OpenRaster file, whole or not at all: the layers, the composite and a thumbnail.

    texts: written as `name.json` entries beside them. Raises OSError with a sentence when it cannot be written.
    """
    root = ElementTree.Element("image", {"version": "0.0.3", "w": str(stack.width), "h": str(stack.height)})
    parent = ElementTree.SubElement(root, "stack")
    colour, alpha = stack.flattened()
    merged = to_image(colour if bool((alpha == 1).all()) else torch.cat([colour, alpha]))
    thumbnail = merged.copy()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as file:
        file.writestr("mimetype", MIMETYPE)  # first and not compressed, so that the first bytes tell what it is
        for i in reversed(range(len(stack.layers))):  # the file lists them from the top down
            source = f"data/layer{i:03d}.png"
            ElementTree.SubElement(parent, "layer", _attributes(stack.layers[i], source))
            file.writestr(source, _png(to_image(torch.cat([stack.layers[i].image, stack.layers[i].mask]))))
        file.writestr("stack.xml", ElementTree.tostring(root, "UTF-8", xml_declaration=True), zipfile.ZIP_DEFLATED)
        file.writestr("mergedimage.png", _png(merged))
        file.writestr("Thumbnails/thumbnail.png", _png(thumbnail))
        for name, text in (texts or {}).items():
            file.writestr(f"{name}.json", text, zipfile.ZIP_DEFLATED)


def _attributes(layer: Layer, source: str) -> dict[str, str]:
    return {
        "name": "".join(c for c in layer.name if c.isprintable()),
        "src": source,
        "x": str(layer.x),
        "y": str(layer.y),
        "opacity": f"{layer.opacity:.6g}",
        "visibility": "visible" if layer.visible else "hidden",
        "composite-op": next(key for key, mode in MODES.items() if mode == layer.blend_mode),
    }


def _subsample(stack: Stack, step: int) -> Stack:
    """Every `step`th pixel of every `step`th row; layers without any are left out."""
    if step == 1:
        return stack
    layers = []
    for layer in stack.layers:
        part = cropped(layer, stack.height, stack.width)
        if part is not None and layer.visible:
            rows, columns = slice(-part.y % step, None, step), slice(-part.x % step, None, step)
            image, mask = part.image[:, rows, columns], part.mask[:, rows, columns]
            if mask.numel():
                x, y = -(-part.x // step), -(-part.y // step)
                layers.append(replace(part, image=image, mask=mask, x=x, y=y))
    return Stack(-(-stack.height // step), -(-stack.width // step), tuple(layers or stack.layers[:1]))


def _png(image: Image.Image) -> bytes:
    return encode_image(image, "PNG", compress_level=1)  # a third of the time for a tenth more bytes


# ---- reading


def open_ora(path: str | Path, whole: Whole | None = None) -> LayerFile:
    """An OpenRaster file as a stack. Groups are opened or merged; what a stack cannot hold is named in the notes.

    Nothing is unpacked to the disk. Raises FileNotFoundError, and ValueError with a sentence for a damaged or too large
    file and one whose stack.xml defines entities.
    """
    with open_archive(Path(path), "OpenRaster") as file:
        return _Reading(file).layer_file(whole)


class _Reading:
    """One file on its way into a stack."""

    def __init__(self, file: Archive) -> None:
        self.file, self.name = file, file.name
        self.account, self.layers = Account(file.name), 0
        self.pictures: dict[str, tuple[Tensor, Tensor]] = {}  # by their entries: a file may show one many times
        self.notes = self.account.notes

    def layer_file(self, whole: Whole | None) -> LayerFile:
        root = self._xml()
        height, width = (self._whole_number(root, key, "0") for key in "hw")
        if min(height, width) < 1:
            raise ValueError(f"{self.name} has a canvas of {width} x {height} pixels; it needs at least one")
        self.account.check_picture(height, width)  # the canvas, for what is made of it later
        top = root.find("stack")
        nodes = () if top is None else self._nodes(top, 0)
        layers = plain_layers(nodes, height, width, self.account, whole=whole)
        if not layers:
            raise ValueError(" ".join([f"{self.name} holds no layer with pixels.", *self.notes]))
        stack = Stack(height, width, tuple(layers))
        if root.get("version") == "0.0.1" and "xres" in root.attrib:  # as Krita writes it, and only Krita
            self._compare(stack)
        return LayerFile(stack, tuple(dict.fromkeys(self.notes)), self.account.held)

    def _compare(self, stack: Stack) -> None:
        """Name it when Krita's own picture differs: it weighs brightness, and mixes black and white, in its own way."""
        step = math.ceil(math.sqrt(stack.height * stack.width / COMPARED))
        try:
            with self.file.picture("mergedimage.png") as image:
                if image.size != (stack.width, stack.height):
                    return
                pixels = torch.from_numpy(np.array(image.convert("RGBA"))[::step, ::step])
        except (ValueError, RuntimeError, OSError):
            return  # it is not needed
        pixels = pixels.movedim(-1, 0).float() / 255
        theirs = torch.lerp(torch.ones_like(pixels[:3]), pixels[:3], pixels[3:])
        difference = 255 * (_subsample(stack, step).composite() - theirs).abs().amax(dim=0)
        share = float((difference > 2).float().mean())
        if share > 0:
            self.notes.append(
                f"Krita's own picture differs in {max(share, 0.0001):.2%} of its pixels, by up to "
                f"{float(difference.max()):.0f} of 255: some layers are mixed in another way there"
            )

    def _xml(self) -> ElementTree.Element:
        """The root of stack.xml, which may not define entities: they could name other files, or grow without end."""
        try:
            text = as_text(self.file.read("stack.xml", MAX_XML), "it")
            if "<!DOCTYPE" in text or "<!ENTITY" in text:
                raise ValueError("it defines entities, which are not read")
            return ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            line, column = error.position
            raise ValueError(f"{self.name} has no stack.xml that can be read: line {line}, column {column}") from error
        except ValueError as error:
            raise ValueError(f"{self.name} has no stack.xml that can be read: {error}") from error

    def _nodes(self, parent: ElementTree.Element, depth: int) -> tuple[Node, ...]:
        """The layers of a stack element, from the bottom up."""
        if depth > GROUP_DEPTH.most:
            raise ValueError(
                f"{self.name} has groups in more than {GROUP_DEPTH.most} levels; merge some in your editor, or set "
                f"{GROUP_DEPTH.variable}"
            )
        nodes: list[Node] = []
        for element in reversed(list(parent)):
            self.layers += 1
            if self.layers > LAYERS.most:
                raise ValueError(
                    f"{self.name} has more than {LAYERS.most:,} layers; merge some in your editor, or set "
                    f"{LAYERS.variable}"
                )
            if element.tag == "stack":
                children, fields = self._nodes(element, depth + 1), self._common_fields(element, "group")
                plain = fields["opacity"] == 1 and element.get("composite-op", "svg:src-over") == "svg:src-over"
                through = element.get("isolation") == "auto" and plain  # otherwise isolated, by the specification
                nodes.append(self._with_operator(element, Group(children=children, pass_through=through, **fields)))
            elif element.tag == "layer":
                nodes.append(self._with_operator(element, self._layer(element)))
            else:
                self.notes.append(f"the {element.tag} {element.get('name', '')!r} holds no pixels and is left out")
        return tuple(nodes)

    def _with_operator(self, element: ElementTree.Element, node: Layer | Group) -> Node:
        operator = OPERATORS.get(element.get("composite-op", ""))
        return Special(node=node, operator=operator) if operator else node

    def _layer(self, element: ElementTree.Element) -> Layer:
        fields, source = self._common_fields(element, "layer"), element.get("src", "")
        image, mask = self._picture(source)
        x, y = (self._whole_number(element, key, "0") for key in "xy")
        return Layer(image=image, mask=mask, x=x, y=y, **fields)

    def _picture(self, source: str) -> tuple[Tensor, Tensor]:
        """An entry's picture, (3, H, W) and (1, H, W) in [0, 1], read once; its size is checked first."""
        if source in self.pictures:
            self.account.claim(*self.pictures[source][1].shape[1:])
            return self.pictures[source]
        if ".." in source.split("/") or source.startswith("/"):
            raise ValueError(f"{self.name} names a picture outside of itself, {source!r}")
        try:
            with self.file.picture(source) as found:
                if found.mode.startswith("I"):
                    self.notes.append(f"the 16 bits of {source} are read as 8")
                self.account.claim(found.height, found.width)
                values = torch.from_numpy(np.array(found if found.mode == "RGBA" else found.convert("RGBA")))
        except Unreadable as error:
            raise ValueError(f"{self.name} holds a picture that cannot be read, {shown(source)}: it {error}") from error
        image, mask = (torch.empty(x.shape).copy_(x).div_(255) for x in values.movedim(-1, 0).split([3, 1]))
        self.pictures[source] = image, mask
        return image, mask

    def _common_fields(self, element: ElementTree.Element, kind: str) -> dict[str, Any]:
        """What layers and groups have in common."""
        name, operator = element.get("name") or kind, element.get("composite-op", "svg:src-over")
        NAME_LENGTH.check(max(len(name), len(operator)), f"{self.name}: the name {shown(name)} or its blend mode has")
        if operator not in MODES and operator not in OPERATORS:
            instead = RELATED.get(operator, "normal")
            self.notes.append(f"the blend mode {operator} of {name!r} is shown as {instead}")
        try:
            opacity = min(max(float(element.get("opacity", "1")), 0.0), 1.0)
        except ValueError as error:
            raise ValueError(f"{self.name}: the opacity of {name!r} is no number") from error
        return {
            "name": name,
            "opacity": opacity if opacity == opacity else 1.0,
            "blend_mode": MODES.get(operator, RELATED.get(operator, "normal")),
            "visible": element.get("visibility", "visible") != "hidden",
        }

    def _whole_number(self, element: ElementTree.Element, key: str, default: str) -> int:
        text = element.get(key, default)
        try:
            return max(-(2**24), min(2**24, round(float(text))))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{self.name}: {key} must be a whole number, got {text[:40]!r}") from error
