"""What the files in workflows/ and subgraphs/ say: packs, titles, and where nodes, groups and wires lie."""

import json
import math
import re
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
VERSION = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
TITLE = 30  # pixels of a node's title bar, above its pos
TUCKED = 13  # pixels that a wire's curve may go under a node's edge
SCREEN = (1366, 768)


def each(paths):
    return pytest.mark.parametrize(
        "graph", [json.loads(path.read_text()) for path in paths], ids=[x.stem for x in paths]
    )


def nodes_of(graph):
    inner = [node for subgraph in graph.get("definitions", {}).get("subgraphs", []) for node in subgraph["nodes"]]
    return inner or graph["nodes"]


def box(node):
    """Left, top, right, bottom, title bar included."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def bounds(graph):
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in graph["groups"])]
    boxes = [*map(box, graph["nodes"]), *groups]
    return [choose(each) for choose, each in zip((min, min, max, max), zip(*boxes, strict=True), strict=True)]


def wire(graph, link):
    """Points of a wire: straight between its bends, else the curve that LiteGraph draws."""
    _, source, output, target, slot, _ = link
    by_id = {node["id"]: node for node in graph["nodes"]}
    start, end = box(by_id[source]), box(by_id[target])
    start, end = (start[2], start[1] + TITLE + 14 + 20 * output), (end[0], end[1] + TITLE + 14 + 20 * slot)
    reroutes = {reroute["id"]: reroute for reroute in graph["extra"]["reroutes"]}
    last = next((each["parentId"] for each in graph["extra"]["linkExtensions"] if each["id"] == link[0]), None)
    bends = []
    while last:
        bends.insert(0, tuple(reroutes[last]["pos"]))
        last = reroutes[last].get("parentId")
    if not bends:
        return curve(start, end)
    return [between(a, b, i / 40) for a, b in zip([start, *bends], [*bends, end], strict=True) for i in range(41)]


def between(a, b, t):
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def curve(start, end):
    reach = math.dist(start, end) / 4
    points = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    result = []
    for i in range(81):
        stage = points
        while len(stage) > 1:
            stage = [between(a, b, i / 80) for a, b in zip(stage, stage[1:], strict=False)]
        result += stage
    return result


@each([*WORKFLOWS, *BLUEPRINTS])
def test_every_node_says_which_pack_it_is_of(graph):
    for node in nodes_of(graph):
        pack, version = ("text2layer", VERSION) if node["type"].startswith("T2L_") else ("comfy-core", "0.3.75")
        assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == (pack, version)


@each(WORKFLOWS)
def test_a_workflow_is_readable_when_it_opens_on_a_small_screen(graph):
    """The frontend fits a template into three quarters of the screen; below 8/14 it draws no text."""
    left, top, right, bottom = bounds(graph)
    assert right - left <= 1700
    scale = 0.75 * min(SCREEN[0] / (right - left + 20), SCREEN[1] / (bottom - top + 20))
    assert scale >= 0.575
    view = graph["extra"]["ds"]  # older frontends open it as it says
    assert view["scale"] >= 0.6
    assert (right + view["offset"][0]) * view["scale"] <= SCREEN[0] and (left + view["offset"][0]) * view["scale"] >= 60
    assert (bottom + view["offset"][1]) * view["scale"] <= SCREEN[1] and (top + view["offset"][1]) * view["scale"] >= 90


@each(WORKFLOWS)
def test_every_node_but_the_note_lies_in_a_group_with_a_colour_and_a_title(graph):
    assert all(group["title"] and re.fullmatch("#[0-9a-fA-F]{6}", group["color"]) for group in graph["groups"])
    for node in graph["nodes"]:
        left, top, right, bottom = box(node)
        frames = [group["bounding"] for group in graph["groups"]]
        around = [x <= left and y <= top and right <= x + w and bottom <= y + h for x, y, w, h in frames]
        assert sum(around) == (node["type"] != "MarkdownNote")


@each(WORKFLOWS)
def test_no_node_lies_on_another(graph):
    for a, b in combinations(map(box, graph["nodes"]), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@each(WORKFLOWS)
def test_no_wire_lies_behind_a_node(graph):
    for link in graph["links"]:
        for x, y in wire(graph, link):
            for node in graph["nodes"]:
                left, top, right, bottom = box(node)
                inside = left + TUCKED < x < right - TUCKED and top + TUCKED < y < bottom - TUCKED
                assert not inside, f"{link} behind {node['type']} at {x:.0f}, {y:.0f}"


@each(WORKFLOWS)
def test_a_title_begins_with_the_name_of_the_nodes_kind(graph):
    for node in graph["nodes"]:
        name = re.sub(r"^T2L_|(?<=[a-z])(?=[A-Z])", " ", node["type"]).strip()
        words = {"Mask Preview": "Preview Mask|MaskPreview", "Preview Any": "Preview"}.get(name, name)
        words = words.replace("CLIPText", "CLIP Text").replace("Load Checkpoint", "Load Text2Layer Checkpoint")
        assert re.match(words, node.get("title", words.split("|")[0])), node["title"]


@each(WORKFLOWS)
def test_a_note_is_short(graph):
    (note,) = (node for node in graph["nodes"] if node["type"] == "MarkdownNote")
    assert len(note["widgets_values"][0]) <= 520


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_thumbnail_fills_its_frame(path):
    """The template browser shows a .jpg uncut in 302 x 256, and does not enlarge it."""
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.width >= 302 and picture.height >= 256
        assert abs(picture.width / picture.height - 302 / 256) < 0.02
    assert path.with_suffix(".jpg").stat().st_size < 60_000


@each(BLUEPRINTS)
def test_a_blueprint_is_one_node_with_sound_wires(graph):
    (instance,), (subgraph,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert instance["type"] == subgraph["id"] and subgraph["description"]
    inner = {str(node["id"]): node for node in subgraph["nodes"]}
    assert all(node in inner for node, _ in instance["properties"]["proxyWidgets"])
    for link in subgraph["links"]:
        if link["origin_id"] != -10:
            assert link["id"] in inner[str(link["origin_id"])]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] != -20:
            assert inner[str(link["target_id"])]["inputs"][link["target_slot"]]["link"] == link["id"]
    assert [end["name"] for end in subgraph["inputs"]] == [end["name"] for end in instance["inputs"]]
    assert [end["name"] for end in subgraph["outputs"]] == [end["name"] for end in instance["outputs"]]


def test_comfyui_lists_the_blueprints(server):
    listed = json.loads(server.get("/global_subgraphs")).values()
    ours = {entry["name"] for entry in listed if entry["info"]["node_pack"] == "custom_nodes.text2layer"}
    assert ours == {path.stem for path in BLUEPRINTS} and len(ours) == 3
