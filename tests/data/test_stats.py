"""What is counted of a data set, against shapes whose answer is known, and the page that shows it."""

import json
import re
import tracemalloc
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from t2l.data.example import Example
from t2l.data.report import render_page, save_sheet, sheet_of, write_report
from t2l.data.shards import write_shard
from t2l.data.stats import Histogram, Names, component_areas, count_pieces, origin_of, statistics, summarise_lengths
from t2l.io.image import contact_sheet
from t2l.layers import Layers


def write(folder, masks, captions=None, **more):
    """A shard of pictures with these masks."""
    examples = []
    for number, mask in enumerate(masks):
        mask = torch.as_tensor(mask, dtype=torch.float32)[None, None]
        pixels = torch.full((1, 6, *mask.shape[-2:]), 0.5)
        caption = "a cup" if captions is None else captions[number]
        examples.append(Example(f"{number:08d}", Layers.from_stacked(torch.cat([pixels, mask], 1)), caption, **more))
    write_shard(folder, 0, examples)
    return folder


def square(side=64, inside=32, value=1.0):
    mask = np.zeros((side, side), np.float32)
    mask[:inside, :inside] = value
    return mask


# ---- pieces


def by_flood(mask):
    """The same areas, one pixel after the other."""
    left, areas = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        waiting, area = [left.pop()], 0
        while waiting:
            y, x = waiting.pop()
            area += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
        areas.append(area)
    return sorted(areas)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_pieces_are_those_of_a_flood_fill(share):
    generator = np.random.default_rng(int(100 * share))
    for height, width in ((1, 1), (1, 40), (40, 1), (17, 33), (32, 32)):
        mask = generator.random((height, width)) < share
        assert sorted(component_areas(mask)) == by_flood(mask)


def test_a_spiral_is_one_piece_and_corners_join():
    assert list(component_areas(np.eye(9, dtype=bool))) == [9]
    spiral = np.ones((65, 65), bool)
    for ring in range(1, 32, 2):
        spiral[ring : 65 - ring, ring] = spiral[ring : 65 - ring, 64 - ring] = False
        spiral[ring, ring : 65 - ring] = spiral[64 - ring, ring : 65 - ring] = False
        spiral[ring + 1, ring] = True
    assert len(component_areas(spiral)) == 1 and component_areas(np.zeros((5, 5), bool)).size == 0


@pytest.mark.parametrize(("side", "small"), [(512, 9), (256, 4), (1024, 19)])
def test_pieces_under_100_pixels_of_512_x_512_or_as_much_of_another_size_are_left_out(side, small):
    """100 pixels of 512 x 512 are 25 of 256 x 256 and 400 of 1024 x 1024."""
    mask = np.zeros((side, side), bool)
    mask[: small + 1, : small + 1] = mask[40 : 40 + small, 40 : 40 + small] = True
    assert count_pieces(mask) == 1


# ---- numbers


def test_areas_are_counted_above_each_threshold(tmp_path):
    masks = [square(value=0.4), square(value=0.6), square(value=0.8), square(), square(inside=64), square(inside=0)]
    found = statistics(write(tmp_path, masks))["mask_area"]
    quarter = {at: found[at]["counts"][5] for at in found}
    assert quarter == {"0.3": 4, "0.5": 3, "0.7": 2, "0.9": 1}
    assert found["0.9"]["counts"][-1] == 1 and found["0.9"]["counts"][0] == 4
    assert found["0.3"]["mean"] == pytest.approx((4 * 0.25 + 1) / 6) and found["0.3"]["max"] == 1


def test_pieces_are_counted_at_0_5_and_0_9(tmp_path):
    two = square(inside=20)
    two[40:60, 40:60] = 0.7
    assert statistics(write(tmp_path, [two, square()]))["mask_pieces"] == {"0.5": {"1": 1, "2": 1}, "0.9": {"1": 2}}


def test_percentiles_are_numpy_s_of_all_numbers():
    numbers = np.random.default_rng(0).geometric(0.1, 1000)
    found = summarise_lengths(Counter(numbers.tolist()))
    for percent, number in found["percentiles"].items():
        assert number == np.percentile(numbers, int(percent), method="inverted_cdf")
    assert found["mean"] == pytest.approx(numbers.mean()) and found["max"] == numbers.max()


def test_captions_are_counted_in_words_and_tokens_and_those_too_long_named(tmp_path):
    folder = write(tmp_path, [square()] * 4, ["a", "a b", "a b c", "w " * 90])
    found = statistics(folder, lambda captions: [len(caption.split()) + 2 for caption in captions])
    assert (
        found["words"]["percentiles"]["50"] == 2 and found["tokens"]["max"] == 92 and found["tokens"]["too_long"] == 1
    )


def test_scores_sources_and_licences_are_counted(tmp_path):
    more = {
        "scores": {"mask": 0.93, "odd": float("nan")},
        "sources": ("cats/1.png", "https://example.org/2.jpg"),
        "licences": ("CC0",),
    }
    found = statistics(write(tmp_path, [square()] * 3, **more))
    assert found["scores"]["mask"]["counts"][18] == 3 and "odd" not in found["scores"]
    assert found["sources"] == {"cats": 3, "example.org": 3} and found["licences"] == {"CC0": 3}
    assert [origin_of(x) for x in ("a.png", "http://[x/y", "s3://b/k")] == [
        "files in no folder",
        "an address that is none",
        "b",
    ]


def test_the_splits_of_a_data_set_are_counted_together(tmp_path):
    write(tmp_path / "train", [square()] * 3)
    write(tmp_path / "validation", [square()])
    write(tmp_path / "dropped" / "train", [square()])
    (tmp_path / "dataset.json").write_text('{"dropped": {"mask": 2}}')
    found = statistics(tmp_path)
    assert (found["pictures"], found["splits"], found["dropped"]) == (4, {"train": 3, "validation": 1}, {"mask": 2})
    with pytest.raises(
        FileNotFoundError, match="there are no shards .* in .*nowhere, nor in train or validation below"
    ):
        statistics(tmp_path / "nowhere")


def test_histograms_and_names_stay_small():
    histogram, names = Histogram(), Names()
    for number in range(10_000):
        histogram.add(number / 9_999)
        names.add(f"n{number}")
    assert sum(histogram.counts) == 10_000 and set(histogram.counts) == {500}
    assert len(names.counts) == 201 and list(names.summary().items())[-1] == ("others", 9_800)


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    peaks = []
    for count in (20, 120):
        write(tmp_path / str(count), [square()] * count)
        tracemalloc.start()
        statistics(tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 19)


# ---- the page


class Tags(HTMLParser):
    """The tags of a page, and what they link to."""

    def __init__(self):
        super().__init__()
        self.names, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_is_whole_in_itself_and_every_word_of_the_data_is_escaped(tmp_path):
    bad = "<script>alert(1)</script><img src=http://x/y>"
    more = {"sources": (f"{bad}/a",), "licences": (bad,), "scores": {bad: 0.5}}
    folder = write(tmp_path / "<b>&", [square()] * 3, [f"{bad} \udc80 {i}" for i in range(3)], **more)
    write_report(folder, tmp_path / "r.html", lambda captions: [9 for _ in captions], workers=0)
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "<title>&lt;b&gt;&amp;</title>" in text
    tags = Tags()
    tags.feed(text)
    assert tags.names.isdisjoint({"script", "link", "iframe", "object"}) and len(tags.links) == 1
    assert tags.links[0].startswith("data:image/jpeg;base64,")
    assert "default-src 'none'" in text


def test_the_same_data_gives_the_same_page_and_numbers(tmp_path):
    folder = write(tmp_path / "d", [square(), square(inside=10)])
    for name in ("a", "b"):
        write_report(folder, tmp_path / f"{name}.html")
    for ending in ("html", "json"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["pictures"] == 2
    with pytest.raises(ValueError, match="its name ends in .html, got r.txt"):
        write_report(folder, tmp_path / "r.txt")


def test_a_build_s_sheet_of_what_it_dropped_is_in_the_page_and_a_damaged_one_is_not(tmp_path):
    folder = write(tmp_path, [square()])
    save_sheet(Image.new("RGB", (80, 60), "red"), tmp_path / "dropped.jpg")
    write_report(folder, tmp_path / "r.html")
    assert "Dropped pictures" in (tmp_path / "r.html").read_text()
    (tmp_path / "dropped.jpg").write_bytes(b"%!PS")
    write_report(folder, tmp_path / "r.html")
    assert "Dropped pictures" not in (tmp_path / "r.html").read_text()


def test_bars_are_as_high_as_their_counts(tmp_path):
    found = statistics(write(tmp_path, [square()] * 3 + [square(inside=64)]))
    text = render_page("x", found, Image.new("RGB", (9, 9)))
    heights = re.findall(r'height="([\d.]+)"><title>(\d+)</title>', text)[:2]
    assert [(float(height), int(count)) for height, count in heights] == [
        (110.0, 3),
        (pytest.approx(110 / 3, abs=0.1), 1),
    ]


# ---- sheets


def test_a_sheet_takes_pictures_of_all_sizes_and_flat_ones():
    layers = [Layers.from_stacked(torch.rand(1, 7, *size)) for size in ((64, 200), (200, 64), (3, 3))]
    sheet = contact_sheet([*layers, Image.new("RGB", (300, 20), "red")], ["a", "b", "c", "d"])
    assert sheet.width > 4 * 160 and (np.asarray(sheet) == (255, 0, 0)).all(axis=-1).sum() > 1000
    alone = contact_sheet([Image.new("RGB", (64, 64))], has_layers=False)
    assert alone.height < contact_sheet(layers[:1]).height


def test_the_marked_come_first_on_a_sheet(tmp_path):
    from t2l.data.shards import Shards

    shards = Shards(write(tmp_path, [square()] * 3))
    assert sheet_of(shards, {2: "wrong"}).size == sheet_of(shards, {}).size
    assert sheet_of(shards, {2: "wrong"}).tobytes() != sheet_of(shards, {}).tobytes()
