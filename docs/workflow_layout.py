"""Where the nodes and wires of a workflow lie on ComfyUI's canvas, so that it can be read when it opens.

Pixels of the canvas; x to the right, y down. A node's y is below its title bar, as LiteGraph counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TITLE = 30  # a node's title bar
HEADER = 38  # a group's title
PAD = 16  # from a group's edge to its nodes
GUTTER = 52  # between two columns, in a group and from one to the next
STACK = 22  # between a node and the title of the one below
LANE = 8  # between two wires that run side by side
NOTE_GAP = 14
SWING = 280  # over a longer way up or down a curve would swing out of its gutter
TUCKED = 12  # so far a wire's curve may go under a node's edge

BLUE, PURPLE, GREEN, YELLOW = "#7db4e0", "#cf95d6", "#a3d3a3", "#e3c46e"

# Width and height that a node needs with Vue nodes, the larger; KSampler's and Load Layers' with the picture they come
# to show.
SIZES = {
    "T2L_LoadCheckpoint": (230, 156),
    "T2L_LoadAutoencoder": (230, 110),
    "EmptyLatentImage": (230, 124),
    "CLIPTextEncode": (230, 110),
    "KSampler": (230, 500),
    "T2L_EncodeLayers": (230, 124),
    "T2L_DecodeLayers": (230, 196),
    "T2L_KeepLayer": (230, 172),
    "PreviewImage": (240, 266),
    "MaskPreview": (240, 266),
    "SaveImage": (240, 306),
    "T2L_CompositeLayers": (230, 476),
    "T2L_SaveLayers": (230, 400),
    "T2L_LoadLayers": (230, 530),
    "T2L_CleanEdges": (230, 460),
    "T2L_SplitLayers": (230, 216),
    "T2L_UpscaleLayers": (230, 400),
    "T2L_FitLayers": (230, 196),
    "T2L_BestLayers": (230, 170),
    "PreviewAny": (230, 150),
    "SetLatentNoiseMask": (230, 60),
    "GrowMask": (230, 110),
    "T2L_PictureToLayers": (230, 170),
    "LoadBackgroundRemovalModel": (230, 90),
    "RemoveBackground": (230, 80),
    "CheckpointLoaderSimple": (230, 136),
    "InpaintModelConditioning": (230, 160),
    "VAEDecode": (230, 60),
}


@dataclass
class Node:
    """One node of a workflow; an input (name, output) is a wire from the node of that name."""

    name: str
    kind: str
    inputs: dict[str, Any]
    label: str = ""  # behind the kind's own name, in the title
    height: int = 0  # 0 = as SIZES has it

    @property
    def size(self) -> tuple[int, int]:
        width, height = SIZES[self.kind]
        return width, self.height or height


@dataclass
class Group:
    """A coloured box with a title around columns of nodes."""

    title: str
    colour: str
    columns: list[list[Node]]


@dataclass
class Workflow:
    """A note, and groups from left to right; the note lies above the first `under_note` of them."""

    name: str
    note: str
    groups: list[Group]
    thumbnail: list[str]  # nodes whose pictures stand for it: four pictures, or a large one and a small one
    note_height: int = 130
    under_note: int = 1
    picture_of: str = ""  # the workflow whose picture stands for it, where its own models are not at hand to run it
    number: int = 0  # before the file's name, where a list in order of names should begin with it

    @property
    def file(self) -> str:
        """The stem of its file in workflows/."""
        return f"{self.number}-{self.name}" if self.number else self.name

    def nodes(self) -> list[Node]:
        return [node for group in self.groups for column in group.columns for node in column]


@dataclass
class Box:
    """x, y, width, height."""

    x: float
    y: float
    width: float
    height: float

    def holds(self, x: float, y: float, margin: float) -> bool:
        inside = self.x - margin < x < self.x + self.width + margin
        return inside and self.y - margin < y < self.y + self.height + margin


@dataclass
class Layout:
    """Boxes of nodes (without their title bars) by name, of groups and of the note."""

    nodes: dict[str, Box] = field(default_factory=dict)
    groups: list[Box] = field(default_factory=list)
    note: Box = field(default_factory=lambda: Box(0, 0, 0, 0))

    def obstacles(self) -> Iterator[Box]:
        """What no wire may lie behind."""
        yield self.note
        for box in self.nodes.values():
            yield Box(box.x, box.y - TITLE, box.width, box.height + TITLE)

    def bounds(self) -> Box:
        boxes = [*self.groups, Box(self.note.x, self.note.y - TITLE, self.note.width, self.note.height + TITLE)]
        x, y = min(box.x for box in boxes), min(box.y for box in boxes)
        right, bottom = max(box.x + box.width for box in boxes), max(box.y + box.height for box in boxes)
        return Box(x, y, right - x, bottom - y)


def laid_out(workflow: Workflow) -> Layout:
    """Groups side by side, columns from left to right, nodes from top to bottom."""
    layout, x = Layout(), 0.0
    for number, group in enumerate(workflow.groups):
        under = number < workflow.under_note
        top = TITLE + workflow.note_height + NOTE_GAP if under else 0
        box = _placed_group(group, x, top, layout)
        layout.groups.append(box)
        x = box.x + box.width + GUTTER - 2 * PAD
    width = layout.groups[workflow.under_note - 1].x + layout.groups[workflow.under_note - 1].width
    layout.note = Box(0, TITLE, width, workflow.note_height)
    return layout


def _placed_group(group: Group, x: float, top: float, layout: Layout) -> Box:
    left, bottom = x + PAD, top
    for column in group.columns:
        width, y = max(node.size[0] for node in column), top + HEADER
        for node in column:
            layout.nodes[node.name] = Box(left, y + TITLE, width, node.size[1])
            y += TITLE + node.size[1] + STACK
        left, bottom = left + width + GUTTER, max(bottom, y - STACK)
    return Box(x, top, left - GUTTER + PAD - x, bottom + PAD - top)


Point = tuple[float, float]


class Router:
    """Wires that lie behind no node: straight to the next column, else along a free lane between two bends."""

    def __init__(self, layout: Layout) -> None:
        self.obstacles = list(layout.obstacles())
        self.headers = [Box(box.x, box.y, box.width, HEADER - 10) for box in layout.groups]
        bounds = layout.bounds()
        self.heights = [bounds.y + LANE * i for i in range(round(bounds.height) // LANE + 6)]
        self.lanes: list[tuple[float, float, float]] = []  # y, from x, to x
        self.bends: dict[float, int] = {}  # how many wires turn beside a column's edge

    def bends_of(self, start: Point, end: Point) -> list[Point]:
        """The bends of a wire from an output to an input; none where the wire may run straight."""
        if not any(self._hidden(point, -TUCKED) for point in curve(start, end)):
            return []
        out, back = self._beside(start[0], 1), self._beside(end[0], -1)
        free = [y for y in self.heights if self._is_free(start, (out, y), (back, y), end)]
        if not free:
            raise ValueError(f"no lane is free from {start} to {end}; leave more room in workflow_layout.py")
        y = min(free, key=lambda y: abs(y - start[1]) + abs(y - end[1]))
        self.lanes.append((y, *sorted((out, back))))
        first = [(out, start[1])] if abs(y - start[1]) > SWING else []
        last = [(back, end[1])] if abs(y - end[1]) > SWING else []
        return [*first, (out, y), (back, y), *last]

    def _beside(self, edge: float, side: int) -> float:
        taken = self.bends[edge] = self.bends.get(edge, -1) + 1
        return edge + side * (12 + LANE * (taken % 4))

    def _is_free(self, *corners: Point) -> bool:
        (left, right), y = sorted((corners[1][0], corners[2][0])), corners[1][1]
        if any(abs(y - lane) < LANE and left < end and right > start for lane, start, end in self.lanes):
            return False
        if any(self._hidden(point, 5) or self._on_title(point) for point in straight(corners[1], corners[2])):
            return False
        ends = [*straight(corners[0], corners[1])[1:], *straight(corners[2], corners[3])[:-1]]
        return not any(self._hidden(point) for point in ends)

    def _hidden(self, point: Point, margin: float = -0.5) -> bool:
        return any(box.holds(*point, margin) for box in self.obstacles)

    def _on_title(self, point: Point) -> bool:
        return any(box.holds(*point, 0) for box in self.headers)


def straight(start: Point, end: Point, steps: int = 60) -> list[Point]:
    """Points of a line."""
    return [
        (start[0] + (end[0] - start[0]) * i / steps, start[1] + (end[1] - start[1]) * i / steps)
        for i in range(steps + 1)
    ]


def curve(start: Point, end: Point, steps: int = 60) -> list[Point]:
    """Points of the curve that LiteGraph draws from an output to an input: level at both, a quarter of the distance
    long.
    """
    reach = math.dist(start, end) / 4
    corners = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    points = []
    for i in range(steps + 1):
        t = i / steps
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        x, y = (sum(w * corner[axis] for w, corner in zip(weights, corners, strict=True)) for axis in (0, 1))
        points.append((x, y))
    return points
