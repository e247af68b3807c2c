"""Subgraph blueprints: a few of our nodes as one, in the node library. The format is that of ComfyUI's own
blueprints.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from workflow_drawing import Drawing, numbers
from workflow_layout import PURPLE, Box, Group, Node, Workflow
from workflow_pages import (
    COMPOSITE,
    CUTOUT,
    LAYERS,
    PLACEMENT,
    canvas,
    decoder,
    loader,
    no_words,
    sampler,
    words,
    written,
)

INPUT, OUTPUT = -10, -20  # the ids of a subgraph's two ends


@dataclass
class Blueprint:
    """Columns of nodes; a wire from ("in", i) is input i, outputs are (name, node, output), widgets (node, input)."""

    name: str
    description: str
    aliases: list[str]
    columns: list[list[Node]]
    inputs: list[tuple[str, str]]  # name and type
    outputs: list[tuple[str, str, int]]
    widgets: list[tuple[str, str]]


class Subgraph(Drawing):
    """One blueprint on its way into the frontend's format."""

    def __init__(self, blueprint: Blueprint, known: dict[str, Any]) -> None:
        self.blueprint = blueprint
        workflow = Workflow(blueprint.name, "", [Group("", PURPLE, blueprint.columns)], [], note_height=0)
        super().__init__(workflow, known)
        self.ids["in"], self.layout.nodes["in"] = INPUT, Box(-180, 100, 120, 100)

    def ui(self) -> dict[str, Any]:
        """The whole file: one node, and the subgraph that it stands for."""
        number = self._id("graph")
        return {
            "id": self._id("file"),
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [self._instance(number)],
            "links": [],
            "groups": [],
            "definitions": {"subgraphs": [self._definition(number)]},
            "config": {},
            "extra": {
                "BlueprintDescription": self.blueprint.description,
                "BlueprintSearchAliases": self.blueprint.aliases,
            },
            "version": 0.4,
        }

    def _instance(self, kind: str) -> dict[str, Any]:
        inputs = [{"name": name, "type": type_, "link": None} for name, type_ in self.blueprint.inputs]
        outputs = [{"name": name, "type": self._type(*end), "links": []} for name, *end in self.blueprint.outputs]
        widgets = [[str(self.ids[node]), key] for node, key in self.blueprint.widgets]
        return {
            "id": 1,
            "type": kind,
            "pos": [0, 0],
            "size": [300, 60 + 24 * (len(widgets) + max(len(inputs), len(outputs)))],
            "flags": {},
            "order": 0,
            "mode": 0,
            "title": self.blueprint.name,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"proxyWidgets": widgets},
            "widgets_values": [],
        }

    def _definition(self, number: str) -> dict[str, Any]:
        nodes = [self._node(node) for node in self.nodes.values()]
        for name, source, slot in self.blueprint.outputs:
            end = [
                len(self.links) + 1,
                self.ids[source],
                slot,
                OUTPUT,
                self._output_slot(name),
                self._type(source, slot),
            ]
            self.links.append(end)
        for link, source, slot, *_ in self.links:
            for node in (node for node in nodes if node["id"] == source):
                node["outputs"][slot]["links"] = [*(node["outputs"][slot]["links"] or []), link]
        state = {
            "lastGroupId": 0,
            "lastNodeId": max(self.ids.values()),
            "lastLinkId": len(self.links),
            "lastRerouteId": 0,
        }
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": number,
            "version": 1,
            "state": state,
            "revision": 0,
            "config": {},
            "name": self.blueprint.name,
            "category": "text2layer",
            "description": self.blueprint.description,
            "inputNode": {"id": INPUT, "bounding": [-200, 60, 120, 40 + 20 * len(self.blueprint.inputs)]},
            "outputNode": {
                "id": OUTPUT,
                "bounding": [*self._right_of_all(), 120, 40 + 20 * len(self.blueprint.outputs)],
            },
            "inputs": [self._end(i, *given, 2) for i, given in enumerate(self.blueprint.inputs)],
            "outputs": [
                self._end(i, name, self._type(*end), 4) for i, (name, *end) in enumerate(self.blueprint.outputs)
            ],
            "widgets": [],
            "nodes": nodes,
            "groups": [],
            "links": [dict(zip(keys, (link[0], *link[1:]), strict=True)) for link in self.links],
            "extra": {"workflowRendererVersion": "LG"},
        }

    def _end(self, slot: int, name: str, type_: str, place: int) -> dict[str, Any]:
        """An input (place 2, whose wires come from the subgraph's input) or an output (4)."""
        at = (INPUT, slot) if place == 2 else (OUTPUT, slot)
        wires = [link[0] for link in self.links if tuple(link[1:3] if place == 2 else link[3:5]) == at]
        return {"id": self._id(f"{place}/{name}"), "name": name, "type": type_, "linkIds": wires}

    def _bend(self, link: int, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Wires inside a subgraph run straight: it opens small, and its owner lays it out."""

    def _right_of_all(self) -> list[int]:
        return numbers(max(box.x + box.width for box in self.layout.nodes.values()) + 80, 60)

    def _output_slot(self, name: str) -> int:
        return [output[0] for output in self.blueprint.outputs].index(name)

    def _type(self, node: str, slot: int) -> str:
        return self.known[self.nodes[node].kind]["output"][slot]

    def _id(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"text2layer/blueprints/{self.blueprint.name}/{part}"))


def clean() -> Node:
    options = {"refine": 0, "decontaminate": True, "shrink": 0.5, "feather": 0.0, "layer": "top"}
    return Node("clean", "T2L_CleanEdges", {"layers": ["in", 0], **options})


BLUEPRINTS = [
    Blueprint(
        "Prompt to PSD",
        "A prompt becomes a layered PSD: the thing with a real layer mask over a whole background.",
        ["text to layers", "psd", "photoshop", "krita", "layer", "cutout", "transparent"],
        [
            [loader()],
            [words("prompt", "a strawberry on a beach"), no_words(), canvas()],
            [sampler("sample", 7, "prompt")],
            [decoder("layers", "sample"), written("layers", LAYERS, "layers")],
        ],
        [],
        [("cutout", "layers", CUTOUT), ("composite", "layers", COMPOSITE), ("layers", "layers", LAYERS)],
        [("prompt", "text"), ("sample", "seed"), ("canvas", "batch_size"), ("psd", "filename_prefix")],
    ),
    Blueprint(
        "Swap the Background",
        "Lays the thing of a layer document over another picture, its edge freed of the old background's colours.",
        ["replace background", "layer", "cutout", "psd", "photoshop", "composite"],
        [
            [clean()],
            [Node("parts", "T2L_SplitLayers", {"layers": ["clean", 0], "layer": "top"})],
            [
                Node(
                    "placed",
                    "T2L_CompositeLayers",
                    {"foreground": ["parts", 0], "background": ["in", 1], "mask": ["parts", 2], **PLACEMENT},
                )
            ],
        ],
        [("layers", "LAYERS"), ("background", "IMAGE")],
        [("composite", "placed", 0), ("mask", "placed", 1)],
        [("placed", key) for key in ("x", "y", "scale", "rotation", "shadow")],
    ),
    Blueprint(
        "Clean and Upscale Layers",
        "Frees the edges of a layer document of the old background's colours and enlarges every layer without a "
        "fringe.",
        ["upscale psd", "defringe", "layer", "alpha", "matte", "sticker"],
        [
            [clean()],
            [
                Node(
                    "large",
                    "T2L_UpscaleLayers",
                    {"layers": ["clean", 0], "factor": 2.0, "width": 0, "height": 0, "method": "lanczos"},
                )
            ],
        ],
        [("layers", "LAYERS")],
        [("layers", "large", 0), ("cutout", "clean", 1)],
        [("clean", "shrink"), ("clean", "feather"), ("large", "factor"), ("large", "method")],
    ),
]
