"""Writes workflows/*.json (what artists open), tests/comfy/workflows/*.json (the same as prompts) and subgraphs/*.json
(blueprints) from the descriptions in workflow_pages.py and workflow_blueprints.py.

    python docs/draw_workflows.py http://127.0.0.1:8188 [NAME ...]

A running ComfyUI with the pack says which widgets a node has and in which order, and runs every workflow for its
picture, workflows/*.jpg; a browser takes docs/images/comfyui.jpg. Run it after a change of a node, of the checkpoint or
below.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from workflow_blueprints import BLUEPRINTS, Subgraph
from workflow_drawing import ROOT, Drawing
from workflow_pages import WORKFLOWS
from workflow_photographs import PHOTOGRAPHS

FRAME = (
    400,
    340,
)  # pixels of workflows/*.jpg; the template browser shows 302 x 256 at most of a .jpg, without cutting it


class Server:
    """A running ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def pictures(self, prompt: dict[str, Any]) -> dict[str, list[Image.Image]]:
        """Run a prompt; what its nodes show, by their numbers."""
        self.post("/free", {"free_memory": True})  # what is in the server's cache shows no pictures again
        number = json.loads(self.post("/prompt", {"prompt": prompt}))["prompt_id"]
        while not (history := json.loads(self.get(f"/history/{number}"))):
            time.sleep(0.2)
        outputs = history[number]["outputs"]
        return {node: [self._picture(file) for file in outputs[node].get("images", [])] for node in outputs}

    def _picture(self, file: dict[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self.get(f"/view?{urllib.parse.urlencode(file)}")))


def tile(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture that fills a rectangle, cut where it must be; transparency on grey squares."""
    picture = ImageOps.fit(picture.convert("RGBA"), size, Image.Resampling.LANCZOS)
    squares = Image.new("RGBA", size, "#d8d8d8")
    for x in range(0, size[0], 12):
        for y in range(x // 12 % 2 * 12, size[1], 24):
            squares.paste("#f4f4f4", (x, y, x + 12, y + 12))
    return Image.alpha_composite(squares, picture).convert("RGB")


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """Four pictures in two rows; or the first alone, the second small in its corner."""
    if len(pictures) < 4:
        result = tile(pictures[0], FRAME)
        for picture in pictures[1:2]:
            small = ImageOps.expand(tile(picture, (116, 116)), 3, "white")
            result.paste(small, (FRAME[0] - small.width - 10, FRAME[1] - small.height - 10))
        return result
    result, size = Image.new("RGB", FRAME, "white"), (FRAME[0] // 2 - 1, FRAME[1] // 2 - 1)
    for number, picture in enumerate(pictures[:4]):
        result.paste(tile(picture, size), (number % 2 * (size[0] + 2), number // 2 * (size[1] + 2)))
    return result


def screenshot(url: str, workflow: Path) -> Image.Image:
    """A workflow in the frontend, after its run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(url)
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        page.wait_for_timeout(4000)
        page.evaluate("graph => app.loadGraphData(graph)", json.loads(workflow.read_text()))
        page.evaluate("app.queuePrompt(0, 1)")
        shown = "() => app.graph._nodes.filter(n => n.type == 'PreviewImage').every(n => n.imgs && n.imgs.length)"
        page.wait_for_function(shown, timeout=300_000)
        page.evaluate("app.canvas.ds.scale = 0.86; app.canvas.ds.offset = [105, 165]; app.canvas.setDirty(true, true)")
        page.wait_for_timeout(1500)
        below_the_bars = {"x": 0, "y": 80, "width": 1500, "height": 820}
        return Image.open(io.BytesIO(page.screenshot(clip=below_the_bars))).convert("RGB")


def write(drawing: Drawing) -> None:
    """A workflow and its twin in API format."""
    workflow, twins = drawing.workflow, ROOT / "tests" / "comfy" / "workflows"
    (ROOT / "workflows" / f"{workflow.file}.json").write_text(json.dumps(drawing.ui(), indent=1) + "\n")
    (twins / f"{workflow.name}.json").write_text(json.dumps(drawing.prompt(), indent=1) + "\n")


def write_blueprints(known: dict[str, Any]) -> None:
    """subgraphs/*.json."""
    for blueprint in BLUEPRINTS:
        text = json.dumps(Subgraph(blueprint, known).ui(), indent=1) + "\n"
        (ROOT / "subgraphs" / f"{blueprint.name}.json").write_text(text)


def main(url: str, names: list[str]) -> None:
    server = Server(url)
    known = json.loads(server.get("/object_info"))
    write_blueprints(known)
    for workflow in (w for w in [*WORKFLOWS, *PHOTOGRAPHS] if w.name in names or not names):
        if missing := {node.kind for node in workflow.nodes()} - known.keys():
            sys.stderr.write(f"{workflow.name} stays as it is: this ComfyUI has no {', '.join(sorted(missing))}\n")
            continue
        drawing = Drawing(workflow, known)
        write(drawing)
        if workflow.picture_of:
            shutil.copy(ROOT / "workflows" / f"{workflow.picture_of}.jpg", ROOT / "workflows" / f"{workflow.file}.jpg")
            continue
        shown = server.pictures(drawing.prompt())
        pictures = [picture for name in workflow.thumbnail for picture in shown[str(drawing.ids[name])]]
        thumbnail(pictures).save(ROOT / "workflows" / f"{workflow.file}.jpg", quality=80)
    server.post("/free", {"free_memory": True})
    quiet = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # nothing lies over the graph
    server.post("/settings", quiet)
    picture = screenshot(url, ROOT / "workflows" / f"{WORKFLOWS[0].file}.json")
    picture.save(ROOT / "docs" / "images" / "comfyui.jpg", quality=80)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
