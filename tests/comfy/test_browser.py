"""The pack in ComfyUI's own frontend, in a real browser: workflows, help pages, the template browser."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from t2l.io.layer_file import save_layer_file
from t2l.stack import Layer, Stack

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READY = "window.app && window.app.graph && window.app.extensionManager && Object.keys(LiteGraph.registered_node_types).length > 100"
RED_WIRES = """() => [...app.graph.links.values()].filter(link => {
    const from = app.graph.getNodeById(link.origin_id), to = app.graph.getNodeById(link.target_id);
    return !from || !to || !LiteGraph.isValidConnection(from.outputs[link.origin_slot].type, to.inputs[link.target_slot].type);
}).map(link => link.id)"""
PROMPT_ALONE = """() => {
    app.graph.clear();
    for (const type of ["T2L_LoadCheckpoint", "CLIPTextEncode", "PreviewAny"]) app.graph.add(LiteGraph.createNode(type));
    const [load, prompt, seen] = app.graph._nodes;
    load.connect(1, prompt, prompt.findInputSlot("clip"));
    prompt.connect(0, seen, 0);
    prompt.widgets[0].value = "a zeppelin";
}"""
HINT = (
    """() => app.graph._nodes[1].widgets.find(({ name }) => name === "text2layer_hint")?.element.textContent ?? '' """
)
MISSING_NODES = "() => app.graph._nodes.map(n => n.type).filter(type => !LiteGraph.registered_node_types[type])"


@pytest.fixture(scope="module")
def page(server):
    """The frontend, open and idle; what its console said is in page.said."""
    from playwright.sync_api import sync_playwright

    settings = server.folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}))
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        page.said = []
        page.on("console", lambda message: page.said.append((message.type, f"{message.text} {message.location}")))
        page.on("pageerror", lambda error: page.said.append(("error", error.stack or error.message)))
        page.goto(server.url)
        page.wait_for_function(READY)
        page.wait_for_timeout(2000)
        yield page
        browser.close()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_whole_and_is_its_twin(page, path):
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
    assert page.evaluate(MISSING_NODES) == []
    assert page.evaluate(RED_WIRES) == []
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        del node["_meta"]
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # the frontend's own text box
    assert prompt == json.loads((Path(__file__).parent / "workflows" / path.name).read_text())


def test_text_to_layers_runs_to_its_end_in_the_frontend(page, server):
    graph = json.loads((ROOT / "workflows" / "text-to-layers.json").read_text())
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.evaluate("app.queuePrompt(0, 1)")
    shown = "() => app.graph._nodes.filter(n => n.type == 'PreviewImage').every(n => n.imgs && n.imgs.length)"
    page.wait_for_function(shown)
    server.wait_until_idle()  # the last picture is shown a moment before the run has ended


def test_a_hint_stays_on_the_node_until_it_runs_again_and_is_no_part_of_the_workflow(page, server):
    page.evaluate(PROMPT_ALONE)
    height = page.evaluate("app.graph._nodes[1].size[1]")
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => ({HINT})().includes(\"'zeppelin' (near: balloon)\")")
    server.wait_until_idle()
    page.wait_for_timeout(500)
    assert "'zeppelin'" in page.evaluate(HINT)
    assert page.evaluate("app.graph.serialize().nodes[1].widgets_values") == ["a zeppelin"]
    page.evaluate("() => { app.graph._nodes[1].widgets[0].value = 'a balloon'; app.queuePrompt(0, 1); }")
    page.wait_for_function(f"() => ({HINT})() === ''")
    assert page.evaluate("app.graph._nodes[1].size[1]") == height
    server.wait_until_idle()


def test_a_layer_file_is_uploaded_from_the_node(page, server, tmp_path):
    layer = Layer(image=torch.zeros(3, 4, 4), mask=torch.ones(1, 4, 4))
    save_layer_file(Stack(4, 4, (layer,)), tmp_path / "mine.psd")
    page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('T2L_LoadLayers')); }")
    with page.expect_file_chooser() as chooser:
        page.evaluate("() => app.graph._nodes[0].widgets.find(widget => widget.type === 'button').callback()")
    chooser.value.set_files(tmp_path / "mine.psd")
    page.wait_for_function("() => app.graph._nodes[0].widgets.find(({ name }) => name === 'file').value === 'mine.psd'")
    assert (server.folder / "input" / "mine.psd").read_bytes() == (tmp_path / "mine.psd").read_bytes()
    (prompt,) = page.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert prompt["inputs"] == {"file": "mine.psd", "layer": "top"}  # the button is no input


def test_the_help_page_of_a_node_shows(page):
    page.evaluate("graph => app.loadGraphData(graph)", json.loads((ROOT / "workflows/text-to-layers.json").read_text()))
    page.evaluate("app.canvas.selectNode(app.graph._nodes.find(n => n.type == 'T2L_DecodeLayers'))")
    page.get_by_test_id("info-button").click()
    help_page = (ROOT / "web" / "docs" / "T2L_DecodeLayers" / "en.md").read_text()
    first_sentence = next(line for line in help_page.splitlines() if line and not line.startswith("#"))
    page.get_by_text(first_sentence[:40]).first.wait_for()


def test_the_template_browser_offers_every_workflow(page):
    offered = page.evaluate("async () => await (await fetch('/api/workflow_templates')).json()")
    (pack,) = (names for names in offered.values() if "text-to-layers" in names)
    assert sorted(pack) == [path.stem for path in WORKFLOWS]
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("text2layer", exact=True).click()
    page.get_by_text("text-to-layers").first.wait_for()


def test_the_console_holds_no_error_of_ours(page):
    """The frontend asks its own registry about every node shown; what a machine without a network makes of that is not ours."""
    errors = [text for kind, text in page.said if kind == "error" and "https://api.comfy.org" not in text]
    assert [text for text in errors if "text2layer" in text.lower() or "T2L" in text] == []
