"""Layer files and layer documents over HTTP: saved, listed, shown, loaded again, and refused."""

import base64
import io
import json
import os
import time
import urllib.parse

import numpy as np
import pytest
import torch
from PIL import Image

from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_file import save_layer_file


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def split(layers, output=0, **rule):
    """Split Layers and what it shows."""
    graph = {"split": node("T2L_SplitLayers", layers=[layers, output], **rule)}
    for i, name in enumerate(("foreground", "background", "mask", "composite")):
        if name == "mask":
            graph["mask_image"] = node("MaskToImage", mask=["split", i])
        graph[name] = node("PreviewImage", images=["mask_image", 0] if name == "mask" else ["split", i])
    return graph


@pytest.fixture(scope="module")
def pictures(server):
    """A cut-out and a background of noise in the input folder."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(2, 48, 64, 4, generator=generator) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(values[0]).save(server.folder / "input" / "front.png")
    Image.fromarray(values[1, ..., :3].copy()).save(server.folder / "input" / "back.png")
    return values


def saving(**options):
    """The pictures -> Join Layers -> Save Layers, and what Split Layers makes of them."""
    defaults = {"filename_prefix": "text2layer/layers", "format": "psd", "bits": "8", "mask_as": "layer mask"}
    return {
        "front": node("LoadImage", image="front.png"),
        "back": node("LoadImage", image="back.png"),
        "shows": node("InvertMask", mask=["front", 1]),
        "join": node("T2L_JoinLayers", foreground=["front", 0], background=["back", 0], mask=["shows", 0]),
        "save": node("T2L_SaveLayers", layers=["join", 0], **defaults | options),
        **split("join"),
    }


def loading(file, **rule):
    return {"load": node("T2L_LoadLayers", file=file, **rule), **split("load", **rule)}


def largest_difference(a, b) -> int:
    return int(np.abs(a.astype(int) - b).max())


def files_of(server, prefix):
    return sorted(path.name for path in (server.folder / "output").rglob("*") if path.name.startswith(prefix))


def offered(server):
    about = json.loads(server.get("/object_info/T2L_LoadLayers"))["T2L_LoadLayers"]["input"]["required"]["file"]
    return about[1]["options"] if about[0] == "COMBO" else about[0]


@pytest.mark.parametrize(("format", "bits"), [("psd", "8"), ("psd", "16"), ("ora", "8")])
def test_saved_layers_are_shown_offered_and_loaded_again_equal(server, pictures, format, bits):
    saved = server.run(saving(format=format, bits=bits, filename_prefix=f"text2layer/{format}{bits}"))
    assert saved.error is None and not saved.node_errors
    assert np.array_equal(saved.pictures["save"][0][..., :3], saved.pictures["composite"][0][..., :3])
    name = f"text2layer/{format}{bits}_00001_.{format} [output]"
    assert name in offered(server)
    loaded = server.run(loading(name))
    assert loaded.error is None
    for part in ("foreground", "background"):
        assert np.array_equal(loaded.pictures[part][0], saved.pictures[part][0]), part
    for part in ("mask", "composite"):  # the mask is 1 - (1 - alpha), and previews are cut off, not rounded
        assert largest_difference(loaded.pictures[part][0], saved.pictures[part][0]) <= 1, part
    assert np.array_equal(loaded.pictures["foreground"][0], pictures[0, ..., :3]), "colours under the mask too"


def test_a_png_set_is_shown_and_gives_the_graph_back(server, pictures):
    graph = saving(format="png set", filename_prefix="set")
    result = server.run(graph)
    assert largest_difference(result.pictures["save"][0], result.pictures["composite"][0]) <= 1  # rounded, cut off
    names = ["background", "composite", "cutout", "foreground", "mask"]
    assert files_of(server, "set_") == [f"set_00001_{name}.png" for name in names]
    for name in names:
        stored = json.loads(Image.open(server.folder / "output" / f"set_00001_{name}.png").text["prompt"])
        for part in stored.values():
            part.pop("is_changed", None)  # ComfyUI's own remark
        assert stored == graph


def test_files_are_numbered_and_none_is_overwritten(server, pictures):
    for format, mask_as in (("psd", "layer mask"), ("psd", "transparency"), ("ora", "layer mask")):
        assert server.run(saving(format=format, mask_as=mask_as, filename_prefix="again")).error is None
    assert files_of(server, "again") == ["again_00001_.psd", "again_00002_.psd", "again_00003_.ora"]


def test_a_name_that_no_system_can_hold_is_cleaned(server, pictures):
    assert server.run(saving(filename_prefix="odd/a: b*\U0001f600?")).error is None
    assert files_of(server, "a-b") == ["a-b_00001_.psd"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"filename_prefix": "../evil"}, "Save Layers: filename_prefix: must stay inside the output folder"),
        ({"filename_prefix": "/evil"}, "Save Layers: filename_prefix: must stay inside the output folder"),
        ({"format": "tiff"}, "Save Layers: format must be one of psd, ora, png set, got 'tiff'"),
        ({"format": "ora", "bits": "16"}, "Save Layers: OpenRaster is written with 8 bits per channel, got 16"),
        ({"mask_as": "alpha"}, "Save Layers: mask_as must be one of layer mask, transparency, got 'alpha'"),
    ],
)
def test_what_cannot_be_saved_is_refused_in_one_sentence(server, pictures, options, sentence):
    before = files_of(server, "")
    assert sentence in server.run(saving(**options)).error
    assert files_of(server, "") == before


def small_file(path, names=("plain",), value=0.0):
    """A layer file of 8 x 8 pixels, its layers from the bottom up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [Layer(image=torch.full((3, 8, 8), value), mask=torch.ones(1, 8, 8), name=name) for name in names]
    save_layer_file(Stack(8, 8, tuple(layers)), path)
    return path


def shown_before(server, file):
    """What the node asks for when a file is chosen."""
    return json.loads(server.get(f"/text2layer/layers?{urllib.parse.urlencode({'file': file})}"))


OUTSIDE = [
    "../../outside.psd",
    "..\\..\\outside.psd [input]",
    "../input/here.psd",
    "here.psd/../here.psd",
    "C:\\outside.psd",
    "\\\\host\\share\\outside.psd",
    "link.psd",
    "linked/outside.psd",
    ".hidden.psd",
    ".folder/here.psd",
    "words.txt",
    "fifo.psd",
    "nul\0.psd",
    "",
    ".. [output]",
    "here.psd [models]",
    "\ud800.psd",
    7,
    ["here.psd", "x", "y"],
    "a/" * 250_000 + "x.psd",
]


@pytest.fixture(scope="module")
def folders(server, tmp_path_factory):
    """Input and output folders with what may lie in them."""
    outside, folder = tmp_path_factory.mktemp("outside"), server.folder / "input"
    small_file(outside / "outside.psd")
    for name in ("here.psd", "sub/a.psd", "sub/er/b.ora", ".hidden.psd", ".folder/here.psd", "<b>.psd"):
        small_file(folder / name)
    small_file(server.folder / "output" / "one" / "two" / "c.psd")
    small_file(server.folder / "temp" / "d.psd")
    (folder / "link.psd").symlink_to(outside / "outside.psd")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "sub" / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "circle.psd").symlink_to(folder / "circle.psd")
    (folder / "words.txt").write_text("words")
    os.mkfifo(folder / "fifo.psd")
    return outside


def test_files_are_listed_at_any_depth_and_what_is_hidden_or_leads_out_is_not(server, folders):
    listed = offered(server)
    assert [name for name in listed if name.endswith("a.psd")] == ["sub/a.psd"]
    assert {"here.psd", "sub/er/b.ora", "one/two/c.psd [output]"} <= set(listed)
    assert not [name for name in listed if "hidden" in name or "/." in name or "[temp]" in name or "<" in name]
    assert not {"link.psd", "linked/outside.psd", "circle.psd", "fifo.psd"} & set(listed)


@pytest.mark.parametrize(
    "name",
    [
        "sub/er/b.ora",
        "sub\\er\\b.ora",
        "sub\\a.psd [input]",
        "here.psd [input]",
        "here.psd[input]",
        "one/two/c.psd [output]",
        "one\\two\\c.psd [output]",
        "d.psd [temp]",
        "strawberry.psd [example]",
    ],
)
def test_a_file_is_named_as_comfyui_names_it_and_as_windows_does(server, folders, name):
    assert server.run(loading(name)).error is None
    assert shown_before(server, name)["picture"]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_only_files_of_comfyui_s_own_folders_are_read(server, folders, name):
    names = [str(folders / "outside.psd")] if name == "" else []
    for given in [name, *names]:
        start = time.monotonic()
        said = server.run(loading(given)).error
        assert "Load Layers: file must be one of the .psd, .psb, .ora files in ComfyUI's input folder" in said
        assert len(said) < 2000 and time.monotonic() - start < 2


@pytest.mark.parametrize("name", [name for name in OUTSIDE if isinstance(name, str) and "\ud800" not in name][:-1])
def test_what_the_node_refuses_it_does_not_show_either(server, folders, name):
    error = "Load Layers: file must be one of the .psd, .psb, .ora files in ComfyUI's input folder"
    assert shown_before(server, name)["error"].startswith(error)


def test_a_chosen_file_is_shown_with_the_names_of_its_layers_from_the_top(server):
    small_file(server.folder / "input" / "named.psd", ["below", "twice", "<b>bold</b>", "twice"], value=1.0)
    answer = shown_before(server, "named.psd")
    picture = Image.open(io.BytesIO(base64.b64decode(answer.pop("picture").split(",")[1])))
    assert answer == {"layers": ["twice", "<b>bold</b>", "below"], "width": 8, "height": 8, "notes": []}
    assert picture.size == (8, 8) and picture.getpixel((4, 4)) == (255, 255, 255)
    (server.folder / "input" / "named.psd").write_bytes(b"8BPS\0\1")
    assert "named.psd cannot be read as a PSD" in shown_before(server, "named.psd")["error"]


def test_a_damaged_file_is_named(server):
    (server.folder / "input" / "broken.psd").write_bytes(b"8BPS\0\1")
    assert "Load Layers: file: broken.psd cannot be read as a PSD" in server.run(loading("broken.psd")).error


def test_a_file_replaced_under_its_name_is_loaded_anew(server):
    for value in (0.0, 1.0):
        layer = Layer(image=torch.full((3, 8, 8), value), mask=torch.ones(1, 8, 8), name="plain")
        save_layer_file(Stack(8, 8, (layer,)), server.folder / "input" / "same.psd")
        assert (server.run(loading("same.psd")).pictures["composite"][0] == 255 * value).all()


def test_a_layer_is_chosen_by_its_name_and_a_wrong_name_is_answered(server):
    layers = [
        Layer(image=torch.full((3, 8, 8), i / 5), mask=torch.full((1, 8, 8), 1 if i == 0 else 0.5), name=f"layer {i}")
        for i in range(3)
    ]
    save_layer_file(Stack(8, 8, tuple(layers)), server.folder / "input" / "three.psd")
    assert (server.run(loading("three.psd", layer="layer 1")).pictures["foreground"][0] == 51).all()
    said = server.run(loading("three.psd", layer="layer 7")).error
    assert "Load Layers: layer: no layer is called 'layer 7'; there are 'layer 0', 'layer 1', 'layer 2'" in said


def test_the_notes_of_a_file_are_on_the_wire(server):
    from psd_tools import PSDImage

    psd = PSDImage.new("RGB", (8, 8))
    psd.create_pixel_layer(Image.new("RGB", (8, 8), (9, 9, 9)), name="snow").blend_mode = b"diss"
    psd.save(server.folder / "input" / "snow.psd")
    graph = {"load": node("T2L_LoadLayers", file="snow.psd"), "seen": node("PreviewAny", source=["load", 5])}
    assert server.run(graph).error is None
    history = json.loads(server.get("/history"))
    texts = [str(entry["outputs"].get("seen", "")) for entry in history.values()]
    assert any("the blend mode dissolve of 'snow' is shown as normal" in text for text in texts)


def test_the_upload_button_s_script_is_served(server):
    assert b"text2layer.load_layers" in server.get("/extensions/text2layer/js/load_layers.js")
