"""One workflow in the format of ComfyUI's frontend."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from workflow_layout import Box, Node, Router, Workflow, laid_out

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SCREEN = (70, 100, 1280, 640)  # x, y, width and height that ComfyUI's bars leave of 1366 x 768


def version() -> str:
    """The pack's own, of pyproject.toml."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version = "))


def properties(kind: str) -> dict[str, str]:
    """What ComfyUI-Manager and the frontend find a missing node's pack by."""
    pack = ("text2layer", version()) if kind.startswith("T2L_") else ("comfy-core", "0.3.75")
    return {"cnr_id": pack[0], "ver": pack[1], "Node name for S&R": kind}


class Drawing:
    """One workflow on its way into the frontend's format. `known` is what /object_info says of the nodes."""

    def __init__(self, workflow: Workflow, known: dict[str, Any]) -> None:
        self.workflow = workflow
        self.known = known
        self.layout = laid_out(workflow)
        self.router = Router(self.layout)
        self.nodes = {node.name: node for node in workflow.nodes()}
        self.ids = {name: number for number, name in enumerate(self.nodes, 2)}  # 1 is the note
        self.links: list[list[Any]] = []
        self.reroutes: list[dict[str, Any]] = []
        self.bent: list[dict[str, int]] = []

    def prompt(self) -> dict[str, Any]:
        """API format."""
        result = {}
        for name, node in self.nodes.items():
            inputs = {
                key: [str(self.ids[value[0]]), value[1]] if isinstance(value, list) else value
                for key, value in node.inputs.items()
            }
            result[str(self.ids[name])] = {"class_type": node.kind, "inputs": inputs}
        return result

    def ui(self) -> dict[str, Any]:
        """The whole file."""
        nodes = [self._note(), *(self._node(node) for node in self.nodes.values())]
        for link, source, slot, *_ in self.links:
            output = next(node for node in nodes if node["id"] == source)["outputs"][slot]
            output["links"] = [*(output["links"] or []), link]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"text2layer/{self.workflow.name}")),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(self.links),
            "nodes": nodes,
            "links": self.links,
            "groups": self._groups(),
            "config": {},
            "extra": {"ds": self._view(), "reroutes": self.reroutes, "linkExtensions": self.bent},
            "version": 0.4,
        }

    def _view(self) -> dict[str, Any]:
        """Scale and offset at which the whole graph fits the screen."""
        bounds, (left, top, width, height) = self.layout.bounds(), SCREEN
        scale = round(min(width / bounds.width, height / bounds.height), 2)
        return {"scale": scale, "offset": [round(left / scale - bounds.x), round(top / scale - bounds.y)]}

    def _groups(self) -> list[dict[str, Any]]:
        groups = zip(self.workflow.groups, self.layout.groups, strict=True)
        return [
            {
                "id": number,
                "title": group.title,
                "bounding": numbers(box.x, box.y, box.width, box.height),
                "color": group.colour,
                "font_size": 22,
                "flags": {},
            }
            for number, (group, box) in enumerate(groups, 1)
        ]

    def _note(self) -> dict[str, Any]:
        box = self.layout.note
        return _frame(1, "MarkdownNote", box) | {
            "inputs": [],
            "outputs": [],
            "properties": properties("MarkdownNote"),
            "widgets_values": [self.workflow.note],
        }

    def _node(self, node: Node) -> dict[str, Any]:
        about = self.known[node.kind]
        sockets, values = [], []
        for key, spec in _inputs(about).items():
            given, is_widget = node.inputs.get(key), isinstance(spec[0], list) or spec[0] in WIDGETS
            if isinstance(given, list):
                sockets.append(self._wire(node, key, spec, len(sockets)))
            if is_widget:
                values += _widget(key, spec, given)
        outputs = zip(about["output_name"], about["output"], strict=True)
        title = {"title": f"{about['display_name']}: {node.label}"} if node.label else {}
        return _frame(self.ids[node.name], node.kind, self.layout.nodes[node.name]) | {
            "inputs": sockets,
            "outputs": [{"name": label, "type": type_, "links": None} for label, type_ in outputs],
            "properties": properties(node.kind),
            "widgets_values": values,
            **title,
        }

    def _wire(self, node: Node, key: str, spec: list[Any], slot: int) -> dict[str, Any]:
        link, (source, output) = len(self.links) + 1, node.inputs[key]
        type_ = "COMBO" if isinstance(spec[0], list) else spec[0]
        self.links.append([link, self.ids[source], output, self.ids[node.name], slot, type_])
        self._bend(link, self._output_at(source, output), self._input_at(node, key))
        widget = {"widget": {"name": key}} if type_ in WIDGETS else {}
        return {"name": key, "type": type_, "link": link, **widget}

    def _bend(self, link: int, start: tuple[float, float], end: tuple[float, float]) -> None:
        last = 0
        for x, y in self.router.bends_of(start, end):
            number = len(self.reroutes) + 1
            before = {"parentId": last} if last else {}
            self.reroutes.append({"id": number, **before, "pos": numbers(x, y), "linkIds": [link]})
            last = number
        if last:
            self.bent.append({"id": link, "parentId": last})

    def _output_at(self, name: str, output: int) -> tuple[float, float]:
        box = self.layout.nodes[name]
        return box.x + box.width, box.y + 14 + 20 * output

    def _input_at(self, node: Node, key: str) -> tuple[float, float]:
        box, inputs = self.layout.nodes[node.name], _inputs(self.known[node.kind])
        sockets = [name for name, spec in inputs.items() if not isinstance(spec[0], list) and spec[0] not in WIDGETS]
        rows = sockets.index(key) if key in sockets else len(self.known[node.kind]["output"])
        return box.x, box.y + 14 + 20 * rows


def _inputs(about: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: spec for group in ("required", "optional") for key, spec in about["input"].get(group, {}).items()}


def _frame(number: int, kind: str, box: Box) -> dict[str, Any]:
    return {
        "id": number,
        "type": kind,
        "pos": numbers(box.x, box.y),
        "size": numbers(box.width, box.height),
        "flags": {},
        "order": number - 1,
        "mode": 0,
    }


def numbers(*values: float) -> list[int]:
    """Whole pixels."""
    return [round(value) for value in values]


def _widget(key: str, spec: list[Any], value: Any) -> list[Any]:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [""])
    if isinstance(value, list):  # it comes through a wire; of files, examples come last and are everywhere
        value = choices[-1]
    elif value is None:
        value = options.get("default", choices[0])
    extra = ["fixed"] if options.get("control_after_generate") or key == "seed" else []
    return [value, *extra, *(["image"] if options.get("image_upload") else [])]
