"""What the files of editors have in common: groups and clipped layers, brought down to a plain `Stack`.

A group that mixes as if it were not there is opened, so that its layers stay layers; any other is merged into one layer.
Everything here is exact as long as colours are mixed in sRGB, and what is not exact is said in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..blend import BlendMode, blend
from ..stack import Layer, Stack, cropped

MAX_PIXELS = 32 << 20  # of all layers of a file together; 16 bytes each in memory
MAX_LAYERS = 1000  # of a file, groups counted too
MAX_DEPTH = 32  # groups within groups
MAX_FILE = 512 << 20  # bytes


@dataclass(frozen=True)
class LayerFile:
    """What a file held."""

    stack: Stack
    notes: tuple[str, ...] = ()  # what could not be shown as the editor shows it, one sentence each


@dataclass(frozen=True, eq=False, kw_only=True)
class Clipped:
    """A layer or group and those above it that are seen only inside of it."""

    base: Node
    above: tuple[Node, ...]  # from the bottom up


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Layers that are merged before they meet what lies below; with `pass_through` they meet it one by one."""

    children: tuple[Node, ...]  # from the bottom up
    name: str = "group"
    opacity: float = 1.0
    blend_mode: BlendMode = "normal"
    visible: bool = True
    pass_through: bool = False
    mask: Tensor | None = None  # (1, height, width) of the canvas


Node = Layer | Group | Clipped


def to_stack(nodes: Sequence[Node], height: int, width: int, notes: list[str]) -> Stack:
    """A tree of layers as a stack of them. Raises ValueError without any layer; notes are added to."""
    layers = _layers(nodes, (height, width), notes)
    if not layers:
        raise ValueError(" ".join(["it holds no layer with pixels.", *notes]))
    return Stack(height, width, tuple(layers))


def check_pixels(so_far: int, height: int, width: int, path: object) -> int:
    """Pixels of a file with one more picture. Raises ValueError before more memory is taken than there should be."""
    if so_far + height * width > MAX_PIXELS:
        raise ValueError(
            f"{path} is too large: its layers have more than {MAX_PIXELS:,} pixels together (the next one is "
            f"{width:,} x {height:,}); scale it down, or merge layers in your editor"
        )
    return so_far + height * width


def _layers(nodes: Sequence[Node], size: tuple[int, int], notes: list[str]) -> list[Layer]:
    found: list[Layer] = []
    for node in nodes:
        if isinstance(node, Layer):
            found.append(node)
        elif isinstance(node, Group) and _is_open(node):
            inner = _layers(node.children, size, notes)
            found += inner if node.visible else [replace(layer, visible=False) for layer in inner]
        else:
            merged = _merged(node, size, notes)
            found += [] if merged is None else [merged]
    return found


def _is_open(group: Group) -> bool:
    """Whether a group looks the same when its layers are taken out of it."""
    if not group.visible:
        return True
    plain = group.opacity == 1 and group.mask is None and (group.pass_through or group.blend_mode == "normal")
    return plain and (group.pass_through or _is_normal(group.children))


def _is_normal(nodes: Sequence[Node]) -> bool:
    """Whether all layers cover what is below without a blend mode: then it does not matter what they are grouped with."""
    for node in nodes:
        if isinstance(node, Clipped):
            node = node.base
        if not node.visible:
            continue
        if node.blend_mode != "normal" or (isinstance(node, Group) and not _is_normal(node.children)):
            return False
    return True


def _merged(node: Node, size: tuple[int, int], notes: list[str]) -> Layer | None:
    """A node as one layer; None when there is nothing to see in it."""
    if isinstance(node, Layer):
        return node
    return _merged_group(node, size, notes) if isinstance(node, Group) else _merged_clipping(node, size, notes)


def _merged_group(group: Group, size: tuple[int, int], notes: list[str]) -> Layer | None:
    layers = _layers(group.children, size, notes)
    if not layers:
        return None
    if group.pass_through and not _is_normal(group.children):
        notes.append(
            f"the group {group.name!r} lets blend modes through while it is faded or masked; it is merged without that"
        )
    colour, alpha = Stack(*size, tuple(layers)).flattened()
    layer = Layer(
        image=colour,
        mask=alpha if group.mask is None else alpha * group.mask,
        name=group.name,
        opacity=group.opacity,
        blend_mode="normal" if group.pass_through else group.blend_mode,
        visible=group.visible,
    )
    return _trimmed(layer)


def _merged_clipping(node: Clipped, size: tuple[int, int], notes: list[str]) -> Layer | None:
    """The clipped layers painted onto the colours of their base, whose mask stays."""
    base = _merged(node.base, size, notes)
    if base is None:
        return None
    image, hidden = base.image, []
    for upper in node.above:
        layer = _merged(upper, size, notes)
        if layer is None or not layer.visible:
            hidden.append(upper)
            continue
        inside = cropped(replace(layer, x=layer.x - base.x, y=layer.y - base.y), *base.size)
        if inside is not None:
            image = image.clone()
            window = image[:, inside.y : inside.y + inside.size[0], inside.x : inside.x + inside.size[1]]
            painted = blend(window, inside.image, inside.blend_mode)
            window.copy_(torch.lerp(window, painted, inside.mask * inside.opacity))
    if hidden:
        notes.append(f"{len(hidden)} hidden layers clipped to {base.name!r} are left out")
    return replace(base, image=image)


def _trimmed(layer: Layer) -> Layer:
    """Without the rows and columns around it where nothing shows."""
    rows, columns = (layer.mask[0].amax(dim=axis).nonzero() for axis in (1, 0))
    if not len(rows):
        return layer
    top, bottom, left, right = (int(x) for x in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    image, mask = (x[:, top:bottom, left:right].clone() for x in (layer.image, layer.mask))
    return replace(layer, image=image, mask=mask, x=layer.x + left, y=layer.y + top)
