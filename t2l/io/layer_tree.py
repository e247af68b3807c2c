"""What the files of editors have in common: groups and clipped layers, brought down to a plain `Stack`.

A group that mixes as if it were not there is opened, so that its layers stay layers; any other is merged into one layer.
Everything here is exact as long as colours are mixed in sRGB, and what is not exact is said in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..blend import BlendMode, blend
from ..stack import Layer, Stack, cropped

Depth = Literal[8, 16]  # bits per channel
MaskAs = Literal["layer mask", "transparency"]  # how a PSD holds a layer's mask
MAX_PIXELS = 40 << 20  # of all layers of a file together; 16 bytes each in memory
MAX_LAYERS = 1000  # of a file, groups counted too
MAX_DEPTH = 32  # groups within groups
MAX_FILE = 512 << 20  # bytes


@dataclass(frozen=True)
class LayerFile:
    """What a file held."""

    stack: Stack
    notes: tuple[str, ...] = ()  # what could not be shown as the editor shows it, one sentence each


@dataclass
class Account:
    """What has been read of a file so far."""

    name: str  # of the file, for sentences
    notes: list[str] = field(default_factory=list)
    pixels: int = 0

    def claim(self, height: int, width: int, channels: int = 4) -> None:
        """Count one more picture, or a mask of one channel. Raises ValueError before more memory is taken than there should be."""
        self.pixels += height * width * channels // 4
        if self.pixels > MAX_PIXELS:
            raise ValueError(
                f"{self.name} is too large: its layers have more than {MAX_PIXELS:,} pixels together (the next one is "
                f"{width:,} x {height:,}); scale it down, or merge layers in your editor"
            )


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask that lies somewhere on the canvas and has one value everywhere else."""

    values: Tensor  # (h, w) in [0, 1]
    x: int
    y: int
    outside: float

    def window(self, x: int, y: int, height: int, width: int) -> Tensor:
        """The part over a window of the canvas, (1, height, width)."""
        result = self.values.new_full((1, height, width), self.outside)
        if not self.values.numel():
            return result
        as_layer = Layer(image=self.values.expand(3, -1, -1), mask=self.values[None], x=self.x - x, y=self.y - y)
        inside = cropped(as_layer, height, width)
        if inside is not None:
            rows, columns = inside.size
            result[:, inside.y : inside.y + rows, inside.x : inside.x + columns] = inside.mask
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Clipped:
    """A layer or group and those above it that are seen only inside of it."""

    base: Layer | Group
    above: tuple[Layer | Group, ...]  # from the bottom up


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Layers that are merged before they meet what lies below; with `pass_through` they meet it one by one."""

    children: tuple[Node, ...]  # from the bottom up
    name: str = "group"
    opacity: float = 1.0
    blend_mode: BlendMode = "normal"
    visible: bool = True
    pass_through: bool = False
    mask: Mask | None = None


Node = Layer | Group | Clipped


def plain_layers(nodes: Sequence[Node], height: int, width: int, account: Account) -> list[Layer]:
    """A tree of layers as the layers of a stack on a canvas of this size, from the bottom up."""
    found: list[Layer] = []
    for node in nodes:
        if isinstance(node, Layer):
            found.append(node)
        elif isinstance(node, Group) and _is_open(node):
            inner = plain_layers(node.children, height, width, account)
            found += inner if node.visible else [replace(layer, visible=False) for layer in inner]
        else:
            merged = _merged(node, (height, width), account)
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
    seen = [node.base if isinstance(node, Clipped) else node for node in nodes]
    return all(
        node.blend_mode == "normal" and (isinstance(node, Layer) or _is_normal(node.children))
        for node in seen
        if node.visible
    )


def _merged(node: Node, size: tuple[int, int], account: Account) -> Layer | None:
    """A node as one layer; None when there is nothing to see in it."""
    if isinstance(node, Layer):
        return node
    return _merged_group(node, size, account) if isinstance(node, Group) else _merged_clipping(node, size, account)


def _merged_group(group: Group, size: tuple[int, int], account: Account) -> Layer | None:
    """Merged as far as its layers reach on the canvas."""
    layers = [cropped(layer, *size) for layer in plain_layers(group.children, *size, account)]
    inside = [layer for layer in layers if layer is not None]
    if not inside:
        return None
    if group.pass_through and not _is_normal(group.children):
        account.notes.append(
            f"the group {group.name!r} lets blend modes through while it is faded or masked; it is merged without that"
        )
    x, y = min(layer.x for layer in inside), min(layer.y for layer in inside)
    width = max(layer.x + layer.size[1] for layer in inside) - x
    height = max(layer.y + layer.size[0] for layer in inside) - y
    account.claim(1, max(0, height * width - sum(layer.mask.numel() for layer in inside)))  # no more than was claimed
    moved = tuple(replace(layer, x=layer.x - x, y=layer.y - y) for layer in inside)
    colour, alpha = Stack(height, width, moved).flattened()
    return Layer(
        image=colour,
        mask=alpha if group.mask is None else alpha * group.mask.window(x, y, height, width),
        name=group.name,
        x=x,
        y=y,
        opacity=group.opacity,
        blend_mode="normal" if group.pass_through else group.blend_mode,
        visible=group.visible,
    )


def _merged_clipping(node: Clipped, size: tuple[int, int], account: Account) -> Layer | None:
    """The clipped layers painted onto the colours of their base, whose mask stays."""
    base = _merged(node.base, size, account)
    if base is None:
        return None
    image, hidden = base.image.clone(), 0
    for upper in node.above:
        layer = _merged(upper, size, account)
        if layer is None or not layer.visible:
            hidden += 1
            continue
        inside = cropped(replace(layer, x=layer.x - base.x, y=layer.y - base.y), *base.size)
        if inside is not None:
            window = image[:, inside.y : inside.y + inside.size[0], inside.x : inside.x + inside.size[1]]
            painted = blend(window, inside.image, inside.blend_mode)
            window.copy_(torch.lerp(window, painted, inside.mask * inside.opacity))
    if hidden:
        account.notes.append(f"{hidden} hidden layers clipped to {base.name!r} are left out")
    return replace(base, image=image)
