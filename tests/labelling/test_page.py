"""The label page in a real browser: what a labeller sees, presses and takes back."""

import json
import threading

import pytest
import torch
from playwright.sync_api import sync_playwright

from t2l.data.example import Example
from t2l.data.labels import LabelFile, read_labels
from t2l.data.shards import Shards, write_shard
from t2l.labelling.samples import Samples
from t2l.labelling.server import LabelServer
from t2l.layers import Layers
from tests.tools import launch_browser

COUNT = 5
READY = "body[aria-busy=false]"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = launch_browser(playwright)
        yield browser
        browser.close()


class Desk:
    """A labeller before the page. Used in `with`; the same folder again is the same labeller after a pause."""

    def __init__(self, browser, folder, kind="mask"):
        self.browser, self.folder, self.kind = browser, folder, kind
        if not (folder / "data").is_dir():
            generator = torch.Generator().manual_seed(0)
            pictures = [Layers.from_stacked(torch.rand(1, 7, 48, 64, generator=generator)) for _ in range(COUNT)]
            write_shard(folder / "data", 0, [Example(f"k{i}", x, f"caption {i}") for i, x in enumerate(pictures)])

    def __enter__(self):
        self.file = LabelFile(self.folder / "labels.jsonl", self.kind)
        self.server = LabelServer(Samples(Shards(self.folder / "data"), self.file))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.page = self.browser.new_page(viewport={"width": 1200, "height": 800})
        self.said = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(self.server.url)
        self.page.wait_for_selector(READY)
        return self

    def __exit__(self, *error):
        self.page.close()
        self.server.shutdown()
        self.server.server_close()
        self.file.__exit__()

    def press(self, *keys):
        for key in keys:
            before = self.number
            self.page.keyboard.press(key)
            self.page.wait_for_selector(f"{READY}:not([data-number='{before}'])")

    @property
    def number(self):
        return self.page.get_attribute("body", "data-number")

    @property
    def labels(self):
        found = read_labels(self.folder / "labels.jsonl", self.kind).values()
        return [(label.good, label.reason) for label in found]


def test_keys_say_what_they_say_and_undo_takes_it_back(browser, tmp_path):
    with Desk(browser, tmp_path) as desk:
        first = desk.number
        desk.press("g", "1", "2", "u", "u")
        assert desk.labels == [(True, "")] and "1 of 5" in desk.page.inner_text("#count")
        desk.press("3", "z", "Control+z")
        assert desk.labels == [] and desk.number == first and desk.said == []


def test_what_was_skipped_comes_again_and_the_end_is_told(browser, tmp_path):
    with Desk(browser, tmp_path) as desk:
        skipped = desk.number
        desk.press("Space", "g", "g", "ArrowRight", "g")
        assert desk.number == skipped
        desk.press("1", "2")
        assert len(desk.labels) == COUNT and desk.number == ""
        assert "Every sample has a label" in desk.page.inner_text("#said")
        desk.press("u")
        assert len(desk.labels) == COUNT - 1 and desk.number != ""


def test_after_a_pause_it_goes_on_with_the_next(browser, tmp_path):
    with Desk(browser, tmp_path) as desk:
        desk.press("g", "g")
        expected = desk.number
    with Desk(browser, tmp_path) as desk:
        assert desk.number == expected and "2 of 5" in desk.page.inner_text("#count")


@pytest.mark.parametrize("kind, pictures", [("mask", 3), ("inpainting", 3)])
def test_the_sample_is_shown_whole_and_h_takes_the_line_away(browser, tmp_path, kind, pictures):
    with Desk(browser, tmp_path, kind) as desk:
        shown = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
        assert desk.page.eval_on_selector_all(".stage img", shown) == [[64, 48]] * pictures
        over = desk.page.locator(".over")
        assert over.is_visible()
        desk.page.keyboard.press("h")
        assert not over.is_visible() and desk.labels == []


def test_the_buttons_do_what_the_keys_do(browser, tmp_path):
    with Desk(browser, tmp_path, "inpainting") as desk:
        before = desk.number
        desk.page.get_by_role("button", name="Does not go with the rest").click()
        desk.page.wait_for_selector(f"{READY}:not([data-number='{before}'])")
        assert desk.labels == [(False, "cohesion")]


def test_a_page_of_an_earlier_start_and_a_server_that_ended_are_told(browser, tmp_path):
    with Desk(browser, tmp_path) as desk:
        desk.server.token = "another"
        desk.page.keyboard.press("g")
        desk.page.wait_for_selector("#said.wrong")
        assert "load it again" in desk.page.inner_text("#said") and desk.labels == []
        desk.page.context.set_offline(True)
        desk.page.keyboard.press("g")
        desk.page.wait_for_selector("#said:has-text('has ended')")


def test_another_sites_page_can_neither_read_nor_write(browser, tmp_path):
    """A page of another origin, on the same machine, that knows the token."""
    with Desk(browser, tmp_path) as desk, Desk(browser, tmp_path / "other") as other:
        attack = """async ([url, token]) => {
            const post = { method: "POST", mode: "no-cors", body: JSON.stringify({ number: 0, good: true, reason: "" }),
                           headers: { "X-T2L-Token": token, "Content-Type": "text/plain" } };
            const tried = [fetch(url + "label", post), fetch(url + "next?after=-1"), fetch(url)];
            const read = await Promise.all(tried.map(
                answer => answer.then(a => a.type !== "opaque" && a.ok, () => false)));
            const image = new Image();
            image.src = url + "sample/0/picture";
            return [...read, await image.decode().then(() => true, () => false)];
        }"""
        other.page.goto("data:text/html,<p>elsewhere")
        assert other.page.evaluate(attack, [desk.server.url, desk.server.token]) == [False] * 4
        assert desk.labels == [] and json.dumps(desk.said) == "[]"
