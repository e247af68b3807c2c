"""Writes workflows/*.json (what artists open) and tests/comfy/workflows/*.json (the same as prompts) from one description.

    python docs/draw_workflows.py http://127.0.0.1:8188 [NAME ...]

A running ComfyUI with the pack says which widgets a node has and in which order, and runs every workflow for its picture,
workflows/*.jpg; a browser takes docs/images/comfyui.jpg. Run it after a change of a node, of the checkpoint or below.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, GAP = 340, 40  # pixels of a column of nodes, and between them
TILE = 192  # pixels of one picture in workflows/*.jpg
DEMO = "text2layer-demo.safetensors"
SAMPLING = {"steps": 50, "cfg": 4.0, "sampler_name": "dpmpp_2m_sde", "scheduler": "sgm_uniform"}
PLACEMENT = {
    "x": 0.0,
    "y": 0.0,
    "scale": 1.0,
    "rotation": 0.0,
    "flip_horizontal": False,
    "flip_vertical": False,
    "opacity": 1.0,
    "blend_mode": "normal",
    "feather": 0.0,
    "colour_space": "srgb",
    "shadow": 0.0,
    "shadow_softness": 1.0,
}


@dataclass
class Workflow:
    """Columns of nodes, left to right: (name, kind, height in pixels, inputs); an input [name, output] is a wire."""

    name: str
    note: str
    columns: list[list[tuple[str, str, int, dict[str, Any]]]] = field(default_factory=list)

    def prompt(self) -> dict[str, Any]:
        """API format."""
        nodes = [node for column in self.columns for node in column]
        return {name: {"class_type": kind, "inputs": inputs} for name, kind, _, inputs in nodes}


def loader() -> tuple[str, str, int, dict[str, Any]]:
    return ("load", "T2L_LoadCheckpoint", 130, {"checkpoint": DEMO})


def words(name: str, text: str) -> tuple[str, str, int, dict[str, Any]]:
    return (name, "CLIPTextEncode", 130, {"clip": ["load", 1], "text": text})


def canvas(batch: int = 1) -> tuple[str, str, int, dict[str, Any]]:
    return ("canvas", "EmptyLatentImage", 110, {"width": 256, "height": 256, "batch_size": batch})


def sampler(
    name: str, seed: int, words: str, latent: str = "canvas", denoise: float = 1.0
) -> tuple[str, str, int, dict[str, Any]]:
    wires = {
        "model": ["load", 0],
        "positive": [words, 0],
        "negative": ["empty prompt", 0],
        "latent_image": [latent, 0],
    }
    return (name, "KSampler", 480, {"seed": seed, **SAMPLING, "denoise": denoise, **wires})


def encoder(layers: str, first: int) -> tuple[str, str, int, dict[str, Any]]:
    """Foreground, background and mask are three outputs of a node, one after the other."""
    wires = {name: [layers, first + i] for i, name in enumerate(("foreground", "background", "mask"))}
    return ("encode", "T2L_EncodeLayers", 130, {"autoencoder": ["load", 2], **wires})


def decoder(name: str, latent: str) -> tuple[str, str, int, dict[str, Any]]:
    return (name, "T2L_DecodeLayers", 130, {"autoencoder": ["load", 2], "latent": [latent, 0]})


def picture(name: str, source: str, output: int = 0) -> tuple[str, str, int, dict[str, Any]]:
    return (name, "PreviewImage", 260, {"images": [source, output]})


def mask(name: str, source: str, output: int = 2) -> tuple[str, str, int, dict[str, Any]]:
    return (name, "MaskPreview", 260, {"mask": [source, output]})


def saved(source: str, output: int, prefix: str) -> tuple[str, str, int, dict[str, Any]]:
    return ("save", "SaveImage", 290, {"images": [source, output], "filename_prefix": f"text2layer/{prefix}"})


def placed(name: str, front: str, back: str, **changes: Any) -> tuple[str, str, int, dict[str, Any]]:
    wires = {"foreground": [front, 0], "background": [back, 1], "mask": [front, 2]}
    return (name, "T2L_CompositeLayers", 360, {**wires, **PLACEMENT, **changes})


def written(layers: str, output: int, prefix: str) -> tuple[str, str, int, dict[str, Any]]:
    options = {"filename_prefix": f"text2layer/{prefix}", "format": "psd", "bits": "8", "mask_as": "layer mask"}
    return ("psd", "T2L_SaveLayers", 420, {"layers": [layers, output], **options})


def read(name: str, file: str = "strawberry.psd [example]") -> tuple[str, str, int, dict[str, Any]]:
    return (name, "T2L_LoadLayers", 230, {"file": file, "layer": "top"})


START = [loader(), canvas()]
WORKFLOWS = [
    Workflow(
        "text-to-layers",
        "## Text to layers\nOne prompt, one run: foreground, background, mask and composite.\n\n"
        "- Write `thing` + `place` into the prompt: *a strawberry on a beach*. The demo checkpoint knows about a hundred "
        "things and thirty places; its model card lists them. It paints 256 x 256.\n"
        "- **Mask**: white = the foreground shows. ComfyUI's own *Join Image with Alpha* wants the opposite, hence *Invert Mask* "
        "before the cut-out.\n- The seed is fixed: the same graph paints the same picture.",
        [
            START,
            [words("prompt", "a strawberry on a beach"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [picture("foreground", "layers", 0), picture("background", "layers", 1)],
            [mask("mask", "layers"), picture("composite", "layers", 3)],
            [
                ("invert", "InvertMask", 50, {"mask": ["layers", 2]}),
                ("cutout", "JoinImageWithAlpha", 70, {"image": ["layers", 0], "alpha": ["invert", 0]}),
                saved("cutout", 0, "cutout"),
            ],
        ],
    ),
    Workflow(
        "swap-the-background",
        "## Swap the background\nThe foreground of one prompt over the background of another.\n\n"
        "Change only the second prompt: the thing stays exactly as it is, what lies behind it changes.",
        [
            START,
            [
                words("thing", "a strawberry on a beach"),
                words("place", "a robot in a forest"),
                words("empty prompt", ""),
            ],
            [sampler("first", 7, "thing"), sampler("second", 8, "place")],
            [decoder("thing layers", "first"), decoder("place layers", "second")],
            [picture("before", "thing layers", 3), picture("other", "place layers", 3)],
            [placed("swapped", "thing layers", "place layers"), saved("swapped", 0, "swapped")],
        ],
    ),
    Workflow(
        "move-and-scale-the-foreground",
        "## Move and scale the foreground\nThe background is whole, also behind the thing: move it and no hole appears.\n\n"
        "*x*, *y* are pixels to the right and down, *scale* and *rotation* turn about its middle. *Feather* softens the edge.",
        [
            START,
            [words("prompt", "a strawberry on a beach"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [picture("before", "layers", 3), picture("background", "layers", 1)],
            [placed("moved", "layers", "layers", x=-48.0, y=24.0, scale=0.7, rotation=-12.0, feather=1.0)],
            [saved("moved", 0, "moved"), mask("where", "moved", 1)],
        ],
    ),
    Workflow(
        "your-own-pictures",
        "## Your own pictures through the autoencoder and back\nChoose a cut-out (a PNG with transparency) and a background.\n\n"
        "*Load Image* gives a mask that is white where the picture is **transparent**, so it is inverted: ours is white where "
        "the foreground **shows**. A picture without transparency counts as all foreground.",
        [
            [
                ("load", "T2L_LoadAutoencoder", 80, {"autoencoder": DEMO}),
                ("own foreground", "LoadImage", 320, {"image": "example.png"}),
            ],
            [
                ("invert", "InvertMask", 50, {"mask": ["own foreground", 1]}),
                ("own background", "LoadImage", 320, {"image": "example.png"}),
            ],
            [
                (
                    "encode",
                    "T2L_EncodeLayers",
                    130,
                    {
                        "autoencoder": ["load", 0],
                        "foreground": ["own foreground", 0],
                        "background": ["own background", 0],
                        "mask": ["invert", 0],
                    },
                ),
                ("layers", "T2L_DecodeLayers", 130, {"autoencoder": ["load", 0], "latent": ["encode", 0]}),
            ],
            [picture("foreground", "layers", 0), picture("background", "layers", 1)],
            [mask("mask", "layers"), saved("layers", 3, "own")],
        ],
    ),
    Workflow(
        "layered-img2img",
        "## Layered img2img\nLayers go in, other layers of the same composition come out.\n\n"
        "*Encode Layers* takes foreground, background and mask into one latent; *KSampler* with denoise below 1 repaints both layers and "
        "the mask with new words. Lower denoise keeps more. Put your own pictures in place of the first run.",
        [
            START,
            [
                words("prompt", "a strawberry on a beach"),
                words("other", "a strawberry in the snow"),
                words("empty prompt", ""),
            ],
            [sampler("sample", 7, "prompt"), decoder("first layers", "sample")],
            [
                encoder("first layers", 0),
                sampler("repaint", 9, "other", "encode", 0.75),
            ],
            [decoder("layers", "repaint"), picture("before", "first layers", 3)],
            [mask("mask", "layers"), saved("layers", 3, "img2img")],
        ],
    ),
    Workflow(
        "batch-of-four",
        "## A batch of four\nFour pictures in one run: *batch size* of the empty latent.\n\n"
        "Every output holds four pictures; *layers* gives four documents.",
        [
            [loader(), canvas(4)],
            [words("prompt", "a butterfly in a meadow"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [picture("foreground", "layers", 0), picture("background", "layers", 1)],
            [mask("mask", "layers"), saved("layers", 3, "batch")],
        ],
    ),
    Workflow(
        "sticker-sheet",
        "## Sticker sheet\nFour things cut out in one run, each saved as a PNG with transparency.\n\n"
        "*Clean Edges* takes the background's colours out of the soft edge and draws the mask in by half a pixel: no grey rim on "
        "any page. Its *cutout* has a colour under the transparency too, so it scales without a fringe.",
        [
            [loader(), canvas(4)],
            [words("prompt", "a butterfly in a meadow"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [
                (
                    "clean",
                    "T2L_CleanEdges",
                    230,
                    {
                        "layers": ["layers", 4],
                        "refine": 0,
                        "decontaminate": True,
                        "shrink": 0.5,
                        "feather": 0.0,
                        "layer": "top",
                    },
                ),
                picture("before", "layers", 3),
            ],
            [saved("clean", 1, "sticker")],
        ],
    ),
    Workflow(
        "best-of-n",
        "## Best of four\nFour pictures in one run, the one whose layers fit together best is saved.\n\n"
        "*Best of Layers* ranks them by how far foreground, background and mask are from the picture that the autoencoder "
        "predicts (*auxiliary*), and by how well the mask's edge lies on an edge of the picture. Connect the mask of a "
        "segmentation node to *mask* and their overlap counts instead. It knows what fits, not what is beautiful: raise *keep*.",
        [
            [loader(), canvas(4)],
            [words("prompt", "a strawberry on a beach"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [
                (
                    "best",
                    "T2L_BestLayers",
                    170,
                    {"layers": ["layers", 4], "composite": ["layers", 5], "keep": 1, "layer": "top"},
                ),
                picture("all four", "layers", 3),
            ],
            [("figures", "PreviewAny", 160, {"source": ["best", 2]}), saved("best", 1, "best")],
        ],
    ),
    Workflow(
        "save-and-reload-a-psd",
        "## Save and reload a PSD\nLayers for Photoshop, Krita and GIMP, and back.\n\n"
        "- *Save Layers* writes background and foreground, the foreground with all its colours and a real layer mask.\n"
        "- *Load Layers* shows an example file. Choose the one you saved (it ends in *[output]*; press **R** to refresh) or upload "
        "one you edited. *layer* says which of its layers is the foreground.\n- What cannot be shown as in your editor is "
        "named in *notes*.",
        [
            START,
            [words("prompt", "a strawberry on a beach"), words("empty prompt", "")],
            [sampler("sample", 7, "prompt"), decoder("layers", "sample")],
            [written("layers", 4, "strawberry")],
            [read("file"), ("notes", "PreviewAny", 120, {"source": ["file", 5]})],
            [picture("foreground", "file", 1), picture("background", "file", 2)],
            [mask("mask", "file", 3), saved("file", 4, "reloaded")],
        ],
    ),
    Workflow(
        "photoshop-round-trip",
        "## Photoshop round trip\nA PSD goes in, its layers are repainted with new words, a PSD comes out.\n\n"
        "Choose your own file in *Load Layers*: the highest visible layer is the foreground, all others the background. "
        "Lower *denoise* keeps more of both. Edit the PSD that *Save Layers* writes, and take it in again.",
        [
            [loader(), read("file")],
            [words("prompt", "a strawberry in the snow"), words("empty prompt", "")],
            [
                encoder("file", 1),
                sampler("repaint", 9, "prompt", "encode", 0.75),
            ],
            [decoder("layers", "repaint"), picture("before", "file", 4)],
            [written("layers", 4, "repainted")],
            [mask("mask", "layers"), saved("layers", 3, "round-trip")],
        ],
    ),
]


class Drawing:
    """One workflow on its way into the frontend's format."""

    def __init__(self, workflow: Workflow, nodes: dict[str, Any]) -> None:
        self.workflow = workflow
        self.known = nodes
        names = [node[0] for column in workflow.columns for node in column]
        self.ids = {name: number for number, name in enumerate(names, 2)}  # 1 is the note
        self.links: list[list[Any]] = []

    def ui(self) -> dict[str, Any]:
        """The whole file."""
        nodes = [self._note(), *self._nodes()]
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
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [110, 480]}},
            "version": 0.4,
        }

    def _note(self) -> dict[str, Any]:
        return {
            "id": 1,
            "type": "MarkdownNote",
            "pos": [0, -320],
            "size": [2 * COLUMN + GAP, 270],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [self.workflow.note],
        }

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = []
        for number, column in enumerate(self.workflow.columns):
            y = 0
            for name, kind, height, inputs in column:
                nodes.append(self._node(name, kind, [number * (COLUMN + GAP), y], [COLUMN, height], inputs))
                y += height + 2 * GAP
        return nodes

    def _node(self, name: str, kind: str, pos: list[int], size: list[int], given: dict[str, Any]) -> dict[str, Any]:
        about = self.known[kind]
        sockets, values = [], []
        for group in ("required", "optional"):
            for key, spec in about["input"].get(group, {}).items():
                if isinstance(given.get(key), list):
                    sockets.append(self._wire(key, spec[0], given[key], self.ids[name], len(sockets)))
                elif isinstance(spec[0], list) or spec[0] in WIDGETS:
                    values += self._widget(key, spec, given[key])
        outputs = zip(about["output_name"], about["output"], strict=True)
        return {
            "id": self.ids[name],
            "type": kind,
            "pos": pos,
            "size": size,
            "flags": {},
            "order": self.ids[name],
            "mode": 0,
            "inputs": sockets,
            "outputs": [{"name": label, "type": type_, "links": None} for label, type_ in outputs],
            "properties": {"Node name for S&R": kind},
            "widgets_values": values,
        } | ({} if kind.startswith("T2L") or name == "save" else {"title": name})

    def _wire(self, key: str, type_: str, source: list[Any], target: int, slot: int) -> dict[str, Any]:
        link = len(self.links) + 1
        self.links.append([link, self.ids[source[0]], source[1], target, slot, type_])
        return {"name": key, "type": type_, "link": link}

    def _widget(self, key: str, spec: list[Any], value: Any) -> list[Any]:
        options = spec[1] if len(spec) > 1 else {}
        extra = ["fixed"] if options.get("control_after_generate") or key == "seed" else []
        return [value, *extra, *(["image"] if options.get("image_upload") else [])]


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

    def pictures(self, prompt: dict[str, Any]) -> list[Image.Image]:
        """Run a prompt; what its nodes show, from left to right in the graph."""
        self.post("/free", {"free_memory": True})  # what is in the server's cache shows no pictures again
        number = json.loads(self.post("/prompt", {"prompt": prompt}))["prompt_id"]
        while not (history := json.loads(self.get(f"/history/{number}"))):
            time.sleep(0.2)
        outputs = history[number]["outputs"]
        files = [file for node in sorted(outputs, key=int) for file in outputs[node].get("images", [])]
        return [Image.open(io.BytesIO(self.get(f"/view?{urllib.parse.urlencode(file)}"))) for file in files]


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side in rows of two to four, transparency on grey."""
    columns = 4 if len(pictures) > 9 else 2 if len(pictures) in (1, 2, 4) else 3
    rows = -(-len(pictures) // columns)
    result = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + 8) + 8), "#202020")
    for number, picture in enumerate(pictures):
        tile = Image.new("RGBA", picture.size, "#808080")
        tile.alpha_composite(picture.convert("RGBA"))
        place = (8 + number % columns * (TILE + 8), 8 + number // columns * (TILE + 8))
        result.paste(tile.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC), place)
    return result


def screenshot(url: str, workflow: Path) -> Image.Image:
    """A workflow in the frontend, after its run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1760, "height": 900})
        page.goto(url)
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        page.wait_for_timeout(4000)
        page.evaluate("graph => app.loadGraphData(graph)", json.loads(workflow.read_text()))
        page.evaluate("app.queuePrompt(0, 1)")
        shown = "() => app.graph._nodes.filter(n => n.type == 'PreviewImage').every(n => n.imgs && n.imgs.length)"
        page.wait_for_function(shown, timeout=300_000)
        page.evaluate("app.canvas.ds.scale = 0.68; app.canvas.ds.offset = [110, 560]; app.canvas.setDirty(true, true)")
        page.wait_for_timeout(1500)
        below_the_bars = {"x": 0, "y": 80, "width": 1760, "height": 820}
        return Image.open(io.BytesIO(page.screenshot(clip=below_the_bars))).convert("RGB")


def main(url: str, names: list[str]) -> None:
    server = Server(url)
    nodes = json.loads(server.get("/object_info"))
    for workflow in (w for w in WORKFLOWS if w.name in names or not names):
        drawing = Drawing(workflow, nodes)
        ui = json.dumps(drawing.ui(), indent=1)
        path = ROOT / "workflows" / f"{workflow.name}.json"
        path.write_text(ui + "\n")
        prompt = {str(drawing.ids[name]): node for name, node in workflow.prompt().items()}
        for node in prompt.values():
            wires = {k: [str(drawing.ids[v[0]]), v[1]] for k, v in node["inputs"].items() if isinstance(v, list)}
            node["inputs"] |= wires
        twin = ROOT / "tests" / "comfy" / "workflows" / f"{workflow.name}.json"
        twin.write_text(json.dumps(prompt, indent=1) + "\n")
        sheet(server.pictures(prompt)).save(path.with_suffix(".jpg"), quality=88)
    server.post("/free", {"free_memory": True})
    server.post(
        "/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
    )  # nothing lies over the graph
    picture = screenshot(url, ROOT / "workflows" / "text-to-layers.json")
    picture.save(ROOT / "docs" / "images" / "comfyui.jpg", quality=88)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
