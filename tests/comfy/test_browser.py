"""The pack in ComfyUI's own frontend, in a real browser: workflows, help pages, the template browser."""

import base64
import json
import re
from datetime import date
from pathlib import Path

import pytest
import torch
from playwright.sync_api import sync_playwright

from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_file import save_layer_file
from tests.comfy.conftest import in_few_steps
from tests.tools import launch_browser

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
READY = (
    "window.app && window.app.graph && window.app.extensionManager "
    "&& Object.keys(LiteGraph.registered_node_types).length > 100"
)
RED_WIRES = """() => [...app.graph.links.values()].filter(link => {
    const from = app.graph.getNodeById(link.origin_id), to = app.graph.getNodeById(link.target_id);
    return !from || !to ||
        !LiteGraph.isValidConnection(from.outputs[link.origin_slot].type, to.inputs[link.target_slot].type);
}).map(link => link.id)"""
PROMPT_ALONE = """() => {
    app.graph.clear();
    for (const type of ["T2L_LoadCheckpoint", "CLIPTextEncode", "PreviewAny"])
        app.graph.add(LiteGraph.createNode(type));
    const [load, prompt, seen] = app.graph._nodes;
    load.connect(1, prompt, prompt.findInputSlot("clip"));
    prompt.connect(0, seen, 0);
    prompt.widgets[0].value = "a zeppelin";
}"""
HINT = (
    """() => app.graph._nodes[1].widgets.find(({ name }) => name === "text2layer_hint")?.element.textContent ?? '' """
)
GROWN = """() => app.graph._nodes.filter(node => {
    const [width, height] = node.computeSize();
    return width > node.size[0] + 40 || height > node.size[1];  // long titles are cut, not wrapped
}).map(node => node.type)"""
VUE_BOXES = """() => {
    const boxes = [...document.querySelectorAll("[data-node-id]")]
        .map(node => [node.dataset.nodeId, node.getBoundingClientRect()]);
    const touch = (a, b) =>
        a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    return boxes.flatMap(([one, a], i) =>
        boxes.slice(i + 1).filter(([, b]) => touch(a, b)).map(([two]) => `${one} ${two}`));
}"""
WIRED = """() => {
    const [blueprint] = app.graph._nodes, source = LiteGraph.createNode("T2L_LoadLayers");
    const seen = LiteGraph.createNode("PreviewImage");
    source.widgets.find(({ name }) => name === "file").value = "strawberry.psd [example]";  // others may lie in input/
    app.graph.add(source);
    app.graph.add(seen);
    for (const [i, { type, widget }] of blueprint.inputs.entries())
        if (!widget) source.connect(type === "LAYERS" ? 0 : 2, blueprint, i);
    blueprint.connect(blueprint.outputs.findIndex(({ type }) => type === "IMAGE"), seen, 0);
    if (!seen.inputs[0].link) blueprint.connect(0, seen, 0);
}"""
FEW_STEPS = """() => {
    app.graph._nodes.find(n => n.type == 'KSampler').widgets.find(widget => widget.name == 'steps').value = 5;
}"""
MISSING_NODES = "() => app.graph._nodes.map(n => n.type).filter(type => !LiteGraph.registered_node_types[type])"


@pytest.fixture(scope="module")
def page(server):
    """The frontend, open and idle; what its console said is in page.said."""
    settings = server.folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}))
    with sync_playwright() as playwright:
        browser = launch_browser(playwright)
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
def test_a_workflow_opens_whole_and_is_its_twin(page, server, path):
    if missing := nodes_missing(server, path):
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
    assert page.evaluate(MISSING_NODES) == []
    assert page.evaluate(RED_WIRES) == []
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        del node["_meta"]
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # the frontend's own text box
    assert prompt == json.loads((Path(__file__).parent / "workflows" / path.name.removeprefix("1-")).read_text())


def nodes_missing(server, path):
    """Core's nodes that a workflow needs and an older ComfyUI does not have."""
    kinds = {node["type"] for node in json.loads(path.read_text())["nodes"]} - {"MarkdownNote"}
    return sorted(kinds - json.loads(server.get("/object_info")).keys())


@pytest.mark.slow
def test_every_node_of_a_workflow_has_the_room_it_needs(canvas, server):
    for path in (path for path in WORKFLOWS if not nodes_missing(server, path)):
        canvas.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
        canvas.wait_for_timeout(700)
        assert canvas.evaluate(VUE_BOXES if canvas.vue else GROWN) == [], path.stem


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_runs_as_one_node(page, server, path):
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(path.read_text()))
    page.evaluate(WIRED)
    result = server.run(in_few_steps(page.evaluate("async () => (await app.graphToPrompt()).output")))
    assert result.error is None and not result.node_errors
    assert all(picture.std() > 10 for pictures in result.pictures.values() for picture in pictures)
    assert result.pictures


def test_text_to_layers_runs_to_its_end_in_the_frontend(page, server):
    graph = json.loads((ROOT / "workflows" / "1-text-to-layers.json").read_text())
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.evaluate(FEW_STEPS)
    page.evaluate("app.queuePrompt(0, 1)")
    shown = "() => app.graph._nodes.filter(n => n.type == 'PreviewImage').every(n => n.imgs && n.imgs.length)"
    page.wait_for_function(shown)
    server.wait_until_idle()  # the last picture is shown a moment before the run has ended


def test_a_hint_stays_on_the_node_until_it_runs_again_and_is_no_part_of_the_workflow(page, server):
    page.evaluate(PROMPT_ALONE)
    height = page.evaluate("app.graph._nodes[1].size[1]")
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => ({HINT})().includes(\"'zeppelin' (read as 'balloon')\")")
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


DROP = """([files, x, y, shiftKey]) => {
    const dataTransfer = new DataTransfer();
    for (const [name, bytes] of files)
        dataTransfer.items.add(new File([Uint8Array.from(atob(bytes), sign => sign.charCodeAt(0))], name));
    const event = {bubbles: true, cancelable: true, dataTransfer, clientX: x, clientY: y, shiftKey};
    for (const kind of ['dragover', 'drop']) document.elementFromPoint(x, y).dispatchEvent(new DragEvent(kind, event));
}"""
SHOWN = """() => app.graph._nodes.filter(n => n.type === 'T2L_LoadLayers').map(n => ({
    file: n.widgets[0].value, layer: n.widgets[1].value, size: n.widgets[3].element.querySelector('div').textContent,
    names: [...n.widgets[3].element.querySelectorAll('option')].map(option => option.textContent)}))"""
INSIDE = """() => {
    const node = app.graph._nodes[0], element = document.querySelector(`[data-node-id="${node.id}"]`);
    const box = element?.getBoundingClientRect(), [x, y] = app.canvas.ds.offset;
    return box ? [box.right - 40, Math.max(box.top, 150) + 20] : [node.pos[0] + x + 100, node.pos[1] + y + 40];
}"""
HTML = "<img src=x onerror='window.ran = true'>"


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def canvas(page, request):
    """An empty graph, on the classic canvas and with nodes as HTML."""
    page.evaluate("vue => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", request.param)
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.reset(); }")
    page.vue = request.param
    yield page
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def layer_file(path, names=("ground", "sky"), **texts):
    """A file of 64 x 48 pixels, its layers from the bottom up, with texts as Save Layers writes them."""
    layers = [Layer(image=torch.full((3, 48, 64), 0.5), mask=torch.ones(1, 48, 64), name=name) for name in names]
    save_layer_file(Stack(48, 64, tuple(layers)), path, texts=texts)
    return path


def drop(page, *paths, at=(900, 400), shift=False):
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    page.evaluate(DROP, [files, *at, shift])


def wait_for_files(page, *files):
    """Until Load Layers nodes show these, and no others; what they show."""
    page.wait_for_function(
        f"files => {{ const shown = ({SHOWN})(); return shown.length === files.length"
        " && shown.every(({file, size}, i) => file === files[i] && size); }",
        arg=list(files),
    )
    return page.evaluate(SHOWN)


def test_a_chosen_file_shows_its_picture_and_its_names_and_a_name_can_be_chosen(canvas, server):
    layer_file(server.folder / "input" / "chosen.psd", ["ground", HTML])
    canvas.evaluate("() => { app.graph.add(LiteGraph.createNode('T2L_LoadLayers')); }")
    choose = "([i, value]) => { const w = app.graph._nodes[0].widgets[i]; w.value = value; w.callback?.(value); }"
    canvas.evaluate(choose, [0, "chosen.psd"])
    (shown,) = wait_for_files(canvas, "chosen.psd")
    assert shown["names"] == ["top: the highest visible layer", HTML, "ground"] and shown["size"] == "64 x 48"
    canvas.wait_for_function("() => document.querySelector('img[src^=\"data:image/jpeg\"]').clientWidth > 100")
    canvas.get_by_role("listbox", name="layer", exact=True).select_option("ground")
    (prompt,) = canvas.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert prompt["inputs"] == {"file": "chosen.psd", "layer": "ground"}
    canvas.evaluate(choose, [1, "clouds"])
    assert canvas.evaluate(SHOWN)[0]["size"] == "64 x 48, no layer is called clouds"
    assert not canvas.evaluate("() => window.ran")


def test_what_cannot_be_read_is_said_in_the_node_before_it_runs(canvas, server):
    (server.folder / "input" / "torn.psd").write_bytes(b"8BPS\0\1")
    canvas.evaluate("() => { app.graph.add(LiteGraph.createNode('T2L_LoadLayers')); }")
    canvas.evaluate("() => { const w = app.graph._nodes[0].widgets[0]; w.value = 'torn.psd'; w.callback?.(w.value); }")
    canvas.wait_for_function(f"() => ({SHOWN})()[0].size.includes('torn.psd cannot be read as a PSD')")


def test_dropped_files_become_nodes_that_hold_them(canvas, tmp_path):
    paths = [layer_file(tmp_path / name) for name in (f"two {canvas.vue}.psd", f"two {canvas.vue}.ora")]
    drop(canvas, *paths)
    wait_for_files(canvas, *(path.name for path in paths))


def test_a_file_dropped_on_a_node_is_chosen_in_it(canvas, tmp_path):
    canvas.evaluate("() => { const n = LiteGraph.createNode('T2L_LoadLayers'); n.pos = [400, 200]; app.graph.add(n); }")
    canvas.wait_for_timeout(1000)
    drop(canvas, path := layer_file(tmp_path / f"on {canvas.vue}.ora"), at=canvas.evaluate(INSIDE))
    wait_for_files(canvas, path.name)


@pytest.mark.parametrize("ending", ["psd", "ora"])
def test_a_file_of_ours_brings_its_workflow_and_with_the_shift_key_it_does_not(canvas, server, tmp_path, ending):
    graph = json.loads((ROOT / "workflows" / "1-text-to-layers.json").read_text())
    graph["nodes"][1]["title"] = HTML
    path = layer_file(tmp_path / f"ours {canvas.vue}.{ending}", workflow=json.dumps(graph))
    drop(canvas, path, shift=True)
    wait_for_files(canvas, path.name)
    assert canvas.evaluate("() => app.graph._nodes.length") == 1
    drop(canvas, path, at=(400, 600))
    canvas.wait_for_function("count => app.graph._nodes.length === count", arg=len(graph["nodes"]) + 1)
    wait_for_files(canvas, path.name)
    assert canvas.evaluate(MISSING_NODES) == [] and not canvas.evaluate("() => window.ran")
    assert not any(json.loads(server.get("/queue")).values()), "nothing runs by itself"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is damaged and was left out"),
        ("[" * 100_000, "is damaged and was left out"),
        ("7", "is no workflow of ComfyUI"),
        ('{"nodes": [null], "links": []}', "is no workflow of ComfyUI"),
        ('{"nodes": {"length": 1e9}}', "is no workflow of ComfyUI"),
        ('{"nodes": [], "links": [], "x": ' + "[" * 5000 + "]" * 5000 + "}", "is larger than any that people draw"),
        ('{"nodes": [' + ",".join(['{"type": "Note"}'] * 6000) + '], "links": []}', "is larger than any"),
        (f'{{"nodes": "{HTML}"}}', "is no workflow of ComfyUI"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("ending", ["psd", "ora"])
def test_a_hostile_workflow_is_left_out_in_a_sentence(page, server, tmp_path, request, text, sentence, ending):
    page.evaluate("() => app.graph.clear()")
    name = f"bad {request.node.callspec.id}.{ending}"
    drop(page, path := layer_file(tmp_path / name.replace("-", " "), workflow=text))
    page.get_by_text(f"The workflow in {path.name} {sentence}").first.wait_for()
    wait_for_files(page, path.name)
    assert not page.evaluate("() => window.ran") and not any(json.loads(server.get("/queue")).values())


def test_a_zip_that_grows_beyond_all_bounds_is_no_workflow(page, tmp_path):
    page.evaluate("() => app.graph.clear()")
    drop(page, path := layer_file(tmp_path / "bomb.ora", workflow=" " * (200 << 20)))
    page.get_by_text(f"The workflow in {path.name} is larger than any that people draw").first.wait_for()


def test_a_prefix_is_filled_in_as_that_of_save_image(canvas):
    canvas.evaluate("""() => { for (const type of ['T2L_SaveLayers', 'SaveImage', 'KSampler']) {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const widget of node.widgets)
            if (widget.name === 'filename_prefix') widget.value = '%date:yyyy%/%KSampler.seed%';
            else if (widget.name === 'seed') widget.value = 77;
    } }""")
    ours, core, _ = canvas.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert ours["inputs"]["filename_prefix"] == core["inputs"]["filename_prefix"] == f"{date.today():%Y}/77"


def test_a_template_whose_checkpoint_is_missing_says_what_to_do(page):
    graph = json.loads((ROOT / "workflows" / "1-text-to-layers.json").read_text())
    loader = next(node for node in graph["nodes"] if node["type"] == "T2L_LoadCheckpoint")
    loader["widgets_values"] = ["elsewhere.safetensors"]
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    sentence = "Load Text2Layer Checkpoint: checkpoint must be one of the files in models/text2layer"
    with page.expect_response("**/prompt") as refusal:
        page.evaluate("() => { app.queuePrompt(0, 1); }")
    assert sentence in refusal.value.text()
    details = page.get_by_role("button", name=re.compile("View details|See Errors"))  # newer ones keep it behind
    page.get_by_text(sentence).or_(details).first.wait_for()
    page.keyboard.press("Escape")


def test_the_help_page_of_a_node_shows(page):
    page.evaluate(
        "graph => app.loadGraphData(graph)", json.loads((ROOT / "workflows/1-text-to-layers.json").read_text())
    )
    page.evaluate("app.canvas.selectNode(app.graph._nodes.find(n => n.type == 'T2L_DecodeLayers'))")
    page.get_by_test_id("info-button").click()
    help_page = (ROOT / "web" / "docs" / "T2L_DecodeLayers.md").read_text()
    first_sentence = next(line for line in help_page.splitlines() if line and not line.startswith("#"))
    page.get_by_text(first_sentence[:40]).first.wait_for()


def test_the_template_browser_offers_every_workflow(page):
    offered = page.evaluate("async () => await (await fetch('/api/workflow_templates')).json()")
    (pack,) = (names for names in offered.values() if "1-text-to-layers" in names)
    assert sorted(pack) == sorted(path.stem for path in WORKFLOWS)
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("text2layer", exact=True).click()
    page.get_by_text("1-text-to-layers").first.wait_for()


def test_the_console_holds_no_error_of_ours(page):
    """The frontend asks its own registry about every node shown, and for a help page in its language before it takes
    the English one; what a machine without a network or a page makes of that is not ours.
    """
    asked = ("https://api.comfy.org", "/en.md")
    errors = [text for kind, text in page.said if kind == "error" and not any(part in text for part in asked)]
    assert [text for text in errors if "text2layer" in text.lower() or "T2L" in text] == []
