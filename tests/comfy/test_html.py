"""HTML in the names of files and layers, in prompts and in what a node says of them: shown as it is written, and never
run.
"""

import json
import re

import pytest

from tests.comfy.test_browser import HTML, READY, SHOWN, canvas, drop, layer_file, page  # noqa: F401

RUNS = "() => window.ran || document.querySelectorAll(\"img[src='x']\").length"
EMPTY = "() => { app.graph.clear(); delete window.ran; }"
QUEUE = "() => { app.queuePrompt(0, 1); }"
FAILING = """([type, values]) => {
    const node = LiteGraph.createNode(type), seen = LiteGraph.createNode("PreviewAny");
    app.graph.add(node);
    app.graph.add(seen);
    for (const widget of node.widgets)
        if (widget.name in values) { widget.value = values[widget.name]; widget.callback?.(widget.value); }
    node.connect(0, seen, 0);
}"""
DETAILS = re.compile("View details|Show report|See errors|Details", re.IGNORECASE)


def nothing_ran(page):  # noqa: F811
    """After a moment in which a picture that cannot be loaded would have said so."""
    page.wait_for_timeout(800)
    assert not page.evaluate(RUNS)


def opened_details(page):  # noqa: F811
    """Whatever a frontend keeps behind buttons of its error dialog, shown."""
    for _ in range(3):
        buttons = page.get_by_role("button", name=DETAILS)
        for i in range(buttons.count()):
            if buttons.nth(i).is_visible():
                buttons.nth(i).click(timeout=3000)
                page.wait_for_timeout(300)
                break


@pytest.mark.parametrize(
    ("values", "part"),
    [({"file": "html.psd", "layer": HTML}, "no layer is called"), ({"file": f"{HTML}.psd"}, "file must be one of the")],
    ids=["fails", "refused"],
)
def test_an_error_with_html_in_it_runs_nothing_its_dialog_included(page, server, values, part):  # noqa: F811
    layer_file(server.folder / "input" / "html.psd", ["ground", "sky"])
    page.evaluate(EMPTY)
    page.evaluate(FAILING, ["T2L_LoadLayers", values])
    page.evaluate(QUEUE)
    page.wait_for_timeout(1500)
    server.wait_until_idle()
    said = page.get_by_text(re.compile(part)).or_(page.get_by_role("button", name=DETAILS))
    said.first.wait_for()
    opened_details(page)
    page.get_by_text(re.compile(part)).first.wait_for()
    assert "<img" in page.evaluate("() => document.body.innerText"), "it is shown as it is written"
    nothing_ran(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")


def test_a_dropped_file_whose_name_is_html_is_no_html(page):  # noqa: F811
    page.evaluate(EMPTY)
    page.evaluate(
        """name => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([Uint8Array.of(56, 66, 80, 83, 0, 1)], name));
            const event = {bubbles: true, cancelable: true, dataTransfer, clientX: 900, clientY: 400};
            for (const kind of ["dragover", "drop"])
                document.elementFromPoint(900, 400).dispatchEvent(new DragEvent(kind, event));
        }""",
        f"{HTML}.psd",
    )
    page.wait_for_timeout(2500)
    nothing_ran(page)


def test_files_and_folders_named_in_html_are_not_offered(page, server):  # noqa: F811
    layer_file(server.folder / "input" / f"{HTML}.psd")
    (server.folder / "input" / HTML).mkdir(exist_ok=True)
    layer_file(server.folder / "input" / HTML / "in.psd")
    listed = server.get("/object_info/T2L_LoadLayers").decode()
    assert "<img" not in listed
    page.reload()
    page.wait_for_function(READY)
    nothing_ran(page)


def test_layers_named_in_html_are_shown_as_they_are_named_while_they_are_saved(page, server):  # noqa: F811
    layer_file(server.folder / "input" / "named.psd", ["ground", HTML])
    page.evaluate(EMPTY)
    page.evaluate(FAILING, ["T2L_LoadLayers", {"file": "named.psd"}])
    page.evaluate("""name => {
        const save = LiteGraph.createNode("T2L_SaveLayers");
        app.graph.add(save);
        app.graph._nodes[0].connect(0, save, 0);
        save.widgets[0].value = name;
    }""", HTML)  # fmt: skip
    page.evaluate(QUEUE)
    page.wait_for_timeout(1500)
    server.wait_until_idle()
    assert HTML in page.evaluate(SHOWN)[0]["names"]
    nothing_ran(page)


def test_words_of_a_prompt_that_are_html_are_hinted_at_as_text(page, server):  # noqa: F811
    page.evaluate(EMPTY)
    page.evaluate("""text => {
        for (const type of ["T2L_LoadCheckpoint", "CLIPTextEncode", "PreviewAny"])
            app.graph.add(LiteGraph.createNode(type));
        const [load, prompt, seen] = app.graph._nodes;
        load.connect(1, prompt, prompt.findInputSlot("clip"));
        prompt.connect(0, seen, 0);
        prompt.widgets[0].value = text;
    }""", f"zeppelin {HTML}")  # fmt: skip
    page.evaluate(QUEUE)
    page.wait_for_timeout(2500)
    server.wait_until_idle()
    nothing_ran(page)
    assert json.loads(server.get("/queue"))["queue_pending"] == []
