"""The tree of layers that a file of an editor holds, before it is brought down to a plain `Stack` (layer_tree.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..budget import LAYER_PIXELS, PIXELS
from ..compositing.blend import BlendMode
from ..compositing.stack import Layer, Stack, cropped

Depth = Literal[8, 16]  # bits per channel
MaskAs = Literal["layer mask", "transparency"]  # how a PSD holds a layer's mask
Knockout = Literal["none", "shallow", "deep"]
Whole = Callable[[str], bool]  # whether a group of this name is to be one layer
Operator = Literal["src-over", "src-atop", "dst-in", "dst-out", "dst-atop"]  # Porter and Duff's


@dataclass(frozen=True)
class LayerFile:
    """What a file held."""

    stack: Stack
    notes: tuple[str, ...] = ()  # what could not be shown as the editor shows it, one sentence each
    held: int = 0  # the most pixels at once while it was read, of layers and of what was merged of them; 16 bytes each


@dataclass
class Account:
    """What has been read of a file so far."""

    name: str  # of the file, for sentences
    notes: list[str] = field(default_factory=list)
    pixels: int = 0  # that are held now
    held: int = 0  # the most so far

    def check_picture(self, height: int, width: int) -> None:
        """Raises ValueError for a canvas or a picture that is too large."""
        if height * width > PIXELS.most:
            raise ValueError(
                f"{self.name} is too large: {width:,} x {height:,} are more than {PIXELS.most:,} pixels; scale it "
                f"down, or set {PIXELS.variable}"
            )

    def claim(self, height: int, width: int, channels: int = 4) -> None:
        """Count one more picture, or some of its channels. Raises ValueError before too much memory is taken."""
        self.check_picture(height, width)
        self.pixels += height * width * channels // 4
        self.held = max(self.held, self.pixels)
        most = max(LAYER_PIXELS.most, PIXELS.most)
        if self.pixels > most:
            raise ValueError(
                f"{self.name} is too large: its layers, and what is merged of them, have more than {most:,} pixels "
                f"together (the next one is {width:,} x {height:,}); scale it down, or merge layers in your editor, or "
                f"set {LAYER_PIXELS.variable}"
            )

    def release(self, height: int, width: int, channels: int = 4) -> None:
        """What was claimed is not in memory any more."""
        self.pixels -= height * width * channels // 4


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

    def over(self, layer: Layer) -> Tensor:
        """The part over a layer, (1, H, W)."""
        return self.window(layer.x, layer.y, *layer.size)


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Clipped:
    """A layer or group and those above it that are seen only inside of it."""

    base: Layer | Group
    above: tuple[Layer | Group | Special, ...]  # from the bottom up
    as_group: bool = True  # painted onto the base before its blend mode; otherwise each meets what lies below by itself
    opacity: float = 1.0  # of those above when they are no group: the base's, without its fill


@dataclass(frozen=True, eq=False, kw_only=True)
class Special:
    """A node that meets what lies below it in a way that no layer of a stack does."""

    node: Layer | Group | Clipped
    operator: Operator = "src-over"
    knockout: Knockout = "none"  # hides what is below: down to the group's bottom, or to the background
    fill: float = 1.0  # how much of a node that knocks out is painted into its hole; its opacity fades both
    channels: tuple[bool, bool, bool] = (True, True, True)  # of red, green and blue, those that it changes


Node = Layer | Group | Clipped | Special
