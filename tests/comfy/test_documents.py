"""LAYERS documents of other nodes, over HTTP: read as ComfyUI's own nodes read them, and given back as they were."""

import json

import numpy as np
import pytest

from t2l.compositing.comfyui_blend import NAMES, WITHOUT_NAME
from t2l.io.layer_file import open_layer_file
from tests.comfy.test_files import node, split

GREY, WHITE, RED = [0.4, 0.4, 0.4], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]
NAMED = [name for mode, name in NAMES.items() if mode not in WITHOUT_NAME]


def made(*layers, **top):
    document = {"version": 1, "canvas": [8, 6], "layers": [{"type": "raster", "size": [6, 8], **x} for x in layers]}
    return {"made": node("ForeignDocument", document=json.dumps(document | top))}


def document(*layers, **top):
    return made(*layers, **top) | split("made")


def described(server, graph, source, output=0):
    """What a document says, by DescribeDocument."""
    result = server.run(graph | {"said": node("DescribeDocument", layers=[source, output])})
    assert result.error is None and not result.node_errors
    return json.loads(result.texts["said"][0])


# ---- read


def test_a_moved_faded_turned_layer_lies_where_its_document_says(server):
    """A strip of 4 x 2 pixels at half opacity, turned by a quarter about its middle (4, 3)."""
    strip = {"color": RED, "size": [2, 4], "x": 2, "y": 2, "opacity": 0.5, "rotation": np.pi / 2}
    result = server.run(document({"color": GREY}, strip))
    mask = result.pictures["mask"][0][..., 0]
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 3:5] = 127
    assert np.abs(mask.astype(int) - expected).max() <= 1
    assert np.abs(result.pictures["composite"][0][2, 3, :3].astype(int) - [178, 51, 51]).max() <= 1


def test_hidden_layers_order_masks_and_batches_count(server):
    result = server.run(
        document(
            {"color": RED, "z_index": 9, "visible": False},
            {"color": [*WHITE, 0.5], "z_index": 5, "mask": 0.5, "name": "top"},
            {"color": GREY, "z_index": 1, "frames": 3, "blend_mode": "multiply"},
        )
    )
    assert (result.pictures["mask"][0] // 2 == 31).all()  # alpha 0.5, half transparent by the mask: 0.25
    assert (result.pictures["background"][0] == round(255 * 0.4**3)).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("linear-dodge", (229, 153, 127)), ("grain-merge", (204, 127, 0)), ("grain-extract", (204, 76, 102))],
)
def test_core_s_names_mean_what_they_mean_there(server, mode, expected):
    source = [0.1, 0.2, 0.3] if mode == "linear-dodge" else [0.5, 0.6, 0.3]
    picture = server.run(document({"color": [0.8, 0.4, 0.2]}, {"color": source, "blend_mode": mode})).pictures
    assert np.abs(picture["composite"][0][0, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "odd",
    [
        {"version": None},
        {"canvas": [0, 0]},
        {"canvas": "large"},
        {"layers": [{"color": GREY, "size": [6, 8]}, 7, {"name": "no picture"}]},
        {"layers": [{"color": GREY, "size": [6, 8], "opacity": 1.5, "z_index": None, "x": None, "blend_mode": None}]},
        {"layers": [{"color": GREY, "size": [6, 8], "frames": 3, "masks": 2}]},
    ],
)
def test_what_core_passes_over_is_passed_over(server, odd):
    result = server.run(document({"color": GREY}, **odd))
    assert result.error is None and result.pictures["composite"][0].shape[:2] == (6, 8)
    assert (result.pictures["composite"][0] == 102).all()


def test_a_document_without_layers_is_an_empty_picture(server):
    assert server.run(document(canvas=None)).pictures["composite"][0].shape == (64, 64, 3)
    assert (
        described(server, made() | {"best": node("T2L_BestLayers", layers=["made", 0], keep=1)}, "best")["layers"] == []
    )


@pytest.mark.parametrize(
    ("layers", "top", "sentence"),
    [
        ([{"color": GREY}], {"version": 2}, "needs a LAYERS document of version 1, got version 2"),
        ([{"color": GREY, "frames": 51}], {}, "takes at most 50 layers, got 51"),
        ([{"color": GREY, "blend_mode": "dissolve"}], {}, "the blend mode of layer 'layer 1' must be one of normal, "),
        (
            [{"color": GREY, "w": 99999, "h": 99999}],
            {},
            "takes at most 100,000,000 pixels, 'layer 1' has 16384 x 16384",
        ),
        ([{"color": GREY}], {"canvas": [16384, 16384]}, "pixels, its canvas has 16384 x 16384; make it smaller"),
        ([{"color": GREY}], {"canvas": [16385, 8]}, "a side of canvas must be a number from 1 to 16384, got 16385"),
        ([{"type": "text"}], {}, "layer 'layer 1' must be of type raster, got 'text'"),
        ([{"color": GREY, "visible": False}], {}, "Split Layers: layer: all 1 layers are hidden"),
    ],
)
def test_documents_that_cannot_be_shown_are_refused_in_one_sentence(server, layers, top, sentence):
    assert sentence in server.run(document(*layers, **top)).error


# ---- given back

TURNED = {"color": [*RED, 0.5], "size": [2, 4], "x": 2, "w": 3, "h": 5, "rotation": 0.5, "flip_h": True}
OTHER = {"color": GREY, "frames": 2, "mask": 0.25, "blend_mode": "grain-merge", "z_index": 3, "key of others": [1]}


def test_what_nobody_changed_comes_back_as_it_was(server):
    """Also its batches, its alpha channels and the keys that only others know."""
    best = {"best": node("T2L_BestLayers", layers=["made", 0], keep=1)}
    graph = made(TURNED, OTHER, topic="others'")
    assert described(server, graph | best, "best") == described(server, graph, "made")


def test_clean_edges_leaves_every_other_layer_as_it_was(server):
    settings = {"refine": 0, "decontaminate": False, "shrink": 0.0, "feather": 1.0, "layer": "mine"}
    graph = made(TURNED, {"color": WHITE, "name": "mine", "w": 4, "x": 1, "secret": 5}, OTHER)
    cleaned = graph | {"clean": node("T2L_CleanEdges", layers=["made", 0], **settings)}
    before, after = described(server, graph, "made")["layers"], described(server, cleaned, "clean")["layers"]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1].pop("mask") and after[1].pop("image")[1:3] == [6, 8]  # its own pixels, not those shown
    assert after[1] == {key: value for key, value in before[1].items() if key != "image"}


def test_upscale_layers_enlarges_the_place_and_keeps_rotation_and_flips(server):
    size = {"factor": 2.0, "width": 0, "height": 0, "method": "lanczos"}
    graph = made(TURNED) | {"large": node("T2L_UpscaleLayers", layers=["made", 0], **size)}
    (item,) = described(server, graph, "large")["layers"]
    assert (item["x"], item["image"][1:3], item["rotation"], item["flip_h"]) == (4, [10, 6], 0.5, True)


def test_our_documents_have_core_s_names_and_an_order_that_add_layer_continues(server):
    split_up = {"load": node("T2L_LoadLayers", file="strawberry.psd [example]")}
    items = described(server, split_up, "load")["layers"]
    assert all(item["z_index"] == 0 and item["blend_mode"] in NAMED for item in items)


def test_a_mode_without_a_name_in_core_is_named_and_kept(server):
    from PIL import Image
    from psd_tools import PSDImage
    from psd_tools.constants import BlendMode

    psd = PSDImage.new("RGB", (8, 8))
    psd.create_pixel_layer(Image.new("RGB", (8, 8), (200, 100, 50)), name="below")
    for mode in (BlendMode.SOFT_LIGHT, BlendMode.LINEAR_DODGE, BlendMode.DARKER_COLOR):
        psd.create_pixel_layer(Image.new("RGB", (8, 8), (100, 50, 220)), name=mode.name).blend_mode = mode
    psd.save(server.folder / "input" / "modes.psd")
    graph = {"load": node("T2L_LoadLayers", file="modes.psd"), "notes": node("PreviewAny", source=["load", 5])}
    items = described(server, graph, "load")["layers"]
    assert [item["blend_mode"] for item in items] == ["normal", "soft-light", "linear-dodge", "normal"]
    assert [item.get("t2l_blend_mode") for item in items] == [None, None, None, "darker color"]
    notes = str([entry["outputs"].get("notes") for entry in json.loads(server.get("/history")).values()])
    assert "'DARKER_COLOR' is unknown to ComfyUI's own layer nodes: they show it as normal" in notes


def test_a_document_of_many_layers_is_saved_and_read_whole(server):
    layers = [{"color": [i / 5, 0.0, 0.0], "size": [3, 3], "x": i, "y": 1, "name": f"dot {i}"} for i in range(5)]
    graph = document({"color": WHITE}, *layers)
    options = {"filename_prefix": "dots", "format": "psd", "bits": "16", "mask_as": "transparency"}
    graph["save"] = node("T2L_SaveLayers", layers=["made", 0], **options)
    assert server.run(graph).error is None
    found = open_layer_file(server.folder / "output" / "dots_00001_.psd").stack.layers
    assert [(x.name, x.x, x.y, x.size) for x in found[1:]] == [(f"dot {i}", i, 1, (3, 3)) for i in range(5)]


# ---- beside core's own nodes, where the server has them (0.31 and newer)


@pytest.fixture(scope="module")
def core(server):
    if "ImageCompositor" not in json.loads(server.get("/object_info")):
        pytest.skip("this ComfyUI has no layer nodes of its own")


@pytest.mark.parametrize("opacity", [1.0, 0.5])
@pytest.mark.parametrize("mode", NAMED)
def test_split_layers_in_core_s_space_is_create_layered_image(server, core, mode, opacity):
    placed = {"size": [5, 4], "x": 2, "y": -1, "w": 7, "h": 6, "mask": 0.3, "blend_mode": mode, "opacity": opacity}
    graph = made({"color": [0.2, 0.8, 0.5]}, {"color": [0.7, 0.3, 0.9], **placed}, {"color": GREY, "size": [2, 2]})
    graph |= split("made", compositing="comfyui")
    graph |= {"core": node("ImageCompositor", layers=["made", 0], compositor={})}
    graph |= {"theirs": node("PreviewImage", images=["core", 0])}
    pictures = server.run(graph).pictures
    assert np.abs(pictures["composite"][0].astype(int) - pictures["theirs"][0]).max() <= 2


def test_a_layer_that_add_layer_adds_lies_above_ours(server, core):
    picture = {"image": ["red", 0], "x": 0, "y": 0, "opacity": 1.0, "blend_mode": "normal", "rotation": 0.0}
    graph = {
        "load": node("T2L_LoadLayers", file="strawberry.psd [example]"),
        "red": node("EmptyImage", width=32, height=32, batch_size=1, color=0xFF0000),
        "add": node("AddLayer", layers=["load", 0], **picture),
        **split("add"),
    }
    assert (server.run(graph).pictures["composite"][0][:32, :32] == [255, 0, 0]).all()
