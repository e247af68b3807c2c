"""What nodes of strangers put on a wire: refused in one sentence before anything is allocated. Most of it tests/fuzz
found.
"""

import json
import time
import urllib.request

import pytest

from tests.comfy.test_files import node, saving
from tests.comfy.test_files import pictures as pictures  # a fixture
from tests.comfy.test_nodes import DEMO
from tests.fuzz.raw_text import raw_words

SOCKET = {"IMAGE": 0, "MASK": 1, "LATENT": 2, "LAYERS": 3, "AUTOENCODER": 4, "UPSCALE_MODEL": 5, "FLOAT": 6, "INT": 7}
SOCKET["CONDITIONING"] = 11
TOLD = [[{"tensor": [1, 77, 8]}, {}]]
LARGE = {"tensor": [1, 16384, 16384, 3], "kind": "expanded"}  # takes a few bytes itself
BIG = {"tensor": [1, 1024, 1024, 3], "kind": "noise", "fill": 1}
PICTURE, MASK = {"tensor": [1, 16, 24, 3]}, {"tensor": [1, 16, 24]}
RASTER = {"type": "raster", "image": PICTURE, "name": "a"}
MOST, TOGETHER = "takes at most 100,000,000 pixels", "takes at most 200,000,000 pixels in all"
UPSCALE = {"factor": 1.0, "width": 0, "height": 0, "method": "lanczos"}
FIT = {"autoencoder": ["load", 0], "fit": "keep aspect", "method": "lanczos"}
IMAGES = {
    "names": "",
    "offsets": "",
    "x": 0,
    "y": 0,
    "opacity": 1.0,
    "blend_mode": "normal",
    "visible": True,
    "invert_masks": False,
}
COMPOSITE = {
    "x": 0.0, "y": 0.0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False, "opacity": 1.0,
    "blend_mode": "normal", "feather": 0.0, "colour_space": "srgb",
}  # fmt: skip
TILES = {"tile_size": 128, "overlap": 32}


def one(kind, wires, makes="ForeignAnything", **widgets):
    """A node of ours with foreign values on its wires: name -> (type of the wire, recipe)."""
    graph = {"load": node("T2L_LoadAutoencoder", autoencoder=DEMO)}
    for name, (_, recipe) in wires.items():
        graph[f"foreign_{name}"] = node(makes, recipe=json.dumps(recipe))
    sockets = {name: [f"foreign_{name}", SOCKET[type_]] for name, (type_, _) in wires.items()}
    return graph | {"ours": node(kind, **widgets, **sockets), "seen": node("Swallow", value=["ours", 0])}


def said(server, graph):
    """The sentence of a node of ours; no gigabyte is taken for it."""
    before = server.memory()
    result = server.run(graph)
    assert result.error and not raw_words(result.error.strip()), result.error
    assert server.memory() - before < 2**30
    return result.error


def document(*items, **top):
    return {"layers": ("LAYERS", {"version": 1, "layers": list(items), **top})}


def decoding(latent, kind="T2L_DecodeLayers", **tiles):
    return one(kind, {"latent": ("LATENT", latent)}, autoencoder=["load", 0], **tiles)


SAMPLES = "Decode Layers: latent needs samples of shape (N, 8, h, w), as text2layer-demo.safetensors makes them, got"


@pytest.mark.parametrize(
    ("latent", "sentence"),
    [
        ({"samples": {"tensor": [0, 8, 4, 4]}}, f"{SAMPLES} (0, 8, 4, 4)"),
        ({"samples": {"tensor": [1, 8, 0, 4]}}, f"{SAMPLES} (1, 8, 0, 4)"),
        ({"samples": {"tensor": [1, 8, 4, 4], "kind": "sparse"}}, f"{SAMPLES} (1, 8, 4, 4) (sparse_coo)"),
        ({"samples": {"tensor": [1, 8, 4, 4], "kind": "meta"}}, f"{SAMPLES} (1, 8, 4, 4) (meta)"),
        ({"samples": {"tensor": [1, 8, 4, 4], "kind": "nested"}}, f"{SAMPLES} tensors of several shapes (nested)"),
        ({"samples": {"tensor": [1, 8, 4, 4], "kind": "quantised"}}, f"{SAMPLES} (1, 8, 4, 4) (quint8)"),
        ({"samples": {"tensor": [1, 8, 4, 4], "dtype": "complex64"}}, f"{SAMPLES} (1, 8, 4, 4) (complex64)"),
        ({"samples": "strings"}, f"{SAMPLES} a str"),
        ({"samples": None}, f"{SAMPLES} nothing"),
        ("strings", f"{SAMPLES} a str"),
        (
            {"samples": {"tensor": [1, 8, 4, 4], "fill": "nan"}},
            "Decode Layers: latent holds NaN, infinite or huge values",
        ),
        (
            {"samples": {"tensor": [1, 8, 4, 4], "fill": 1e30}},
            "Decode Layers: latent holds NaN, infinite or huge values",
        ),
        (
            {"samples": {"tensor": [1, 8, 2048, 2048], "kind": "expanded"}},
            f"Decode Layers: latent {MOST}, got 16384 x 16384",
        ),
        (
            {"samples": {"tensor": [4096, 8, 64, 64], "kind": "expanded"}},
            f"Decode Layers: latent {TOGETHER}, got 4096 pictures of 512 x 512",
        ),
    ],
)
def test_latents_of_other_kinds_are_refused(server, latent, sentence):
    assert sentence in said(server, decoding(latent))


def test_the_tiled_decoder_refuses_them_as_well(server):
    large = {"samples": {"tensor": [1, 8, 8192, 8192], "kind": "expanded"}}
    assert f"Decode Layers (Tiled): latent {MOST}" in said(server, decoding(large, "T2L_DecodeLayersTiled", **TILES))


@pytest.mark.parametrize("key", ["noise_mask", "t2l_size", "t2l_kept", "batch_index", "type"])
@pytest.mark.parametrize("strange", ["strings", {"tensor": [0], "kind": "sparse"}, {"object": None}])
def test_what_else_lies_in_a_latent_is_not_our_business(server, key, strange):
    assert server.run(decoding({"samples": {"tensor": [1, 8, 2, 3]}, key: strange})).error is None


@pytest.mark.parametrize(
    ("kind", "wires", "widgets", "sentence"),
    [
        (
            "T2L_JoinLayers",
            {"foreground": ("IMAGE", LARGE), "background": ("IMAGE", PICTURE), "mask": ("MASK", MASK)},
            {},
            f"Join Layers: foreground {MOST}, got 16384 x 16384",
        ),
        (
            "T2L_JoinLayers",
            {
                "foreground": ("IMAGE", {"tensor": [1, 512, 512, 3]}),
                "background": ("IMAGE", PICTURE),
                "mask": ("MASK", {"tensor": [4000, 1, 2], "kind": "expanded"}),
            },
            {},
            f"Join Layers: mask {TOGETHER}, got 4000 pictures of 512 x 512",
        ),
        (
            "T2L_JoinLayers",
            {
                "foreground": ("IMAGE", {"tensor": [10**6, 1, 2, 3], "kind": "expanded"}),
                "background": ("IMAGE", PICTURE),
                "mask": ("MASK", MASK),
            },
            {},
            "Join Layers: foreground takes at most 4096 pictures, got 1000000",
        ),
        (
            "T2L_JoinLayers",
            {
                "foreground": ("IMAGE", {**PICTURE, "kind": "nested"}),
                "background": ("IMAGE", PICTURE),
                "mask": ("MASK", MASK),
            },
            {},
            "Join Layers: foreground needs an IMAGE of shape (N, H, W, 3), got tensors of several shapes (nested)",
        ),
        (
            "T2L_CompositeLayers",
            {"foreground": ("IMAGE", PICTURE), "background": ("IMAGE", LARGE), "mask": ("MASK", MASK)},
            COMPOSITE,
            f"Composite Layers: background {MOST}, got 16384 x 16384",
        ),
        (
            "T2L_CompositeLayers",
            {
                "foreground": ("IMAGE", {"tensor": [300, 1, 1, 3]}),
                "background": ("IMAGE", {"tensor": [1, 1024, 1024, 3], "kind": "expanded"}),
                "mask": ("MASK", MASK),
            },
            COMPOSITE,
            f"Composite Layers: background {TOGETHER}, got 300 pictures of 1024 x 1024",
        ),
        (
            "T2L_UpscaleLayers",
            document(RASTER),
            UPSCALE | {"width": 16384, "height": 16384},
            f"Upscale Layers: factor, width and height: layers {MOST}, its canvas has 16384 x 16384",
        ),
        (
            "T2L_UpscaleLayers",
            document(RASTER | {"w": 9000, "h": 9000}, canvas=[24, 16]),
            UPSCALE | {"factor": 16.0},
            f"Upscale Layers: factor, width and height: layers {MOST}, 'a' has 144000 x 144000",
        ),
        (
            "T2L_FitLayers",
            document(RASTER, canvas=[16384, 1]),
            FIT,
            f"Fit Layers: layers {MOST}, its canvas has 2097152 x 128",
        ),
        (
            "T2L_ImagesToLayers",
            {"image": ("IMAGE", PICTURE)},
            IMAGES | {"width": 16384, "height": 16384},
            f"Images to Layers: width and height: {MOST}, its canvas has 16384 x 16384",
        ),
        (
            "T2L_ImagesToLayers",
            {"image": ("IMAGE", LARGE)},
            IMAGES | {"width": 0, "height": 0},
            f"Images to Layers: image {MOST}, got 16384 x 16384",
        ),
        (
            "T2L_EncodeLayers",
            {"foreground": ("IMAGE", LARGE), "background": ("IMAGE", PICTURE), "mask": ("MASK", MASK)},
            {"autoencoder": ["load", 0]},
            f"Encode Layers: foreground {MOST}, got 16384 x 16384",
        ),
        (
            "T2L_KeepLayer",
            {"background": ("IMAGE", LARGE)} | {wire: ("CONDITIONING", TOLD) for wire in ("positive", "negative")},
            {"autoencoder": ["load", 0]},
            f"Keep Layer: background {MOST}, got 16384 x 16384",
        ),
    ],
)
def test_sizes_that_take_gigabytes_are_refused_before(server, kind, wires, widgets, sentence):
    assert sentence in said(server, one(kind, wires, **widgets))


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (
            [RASTER | {"w": 9000, "h": 9000}] * 9,
            "Split Layers: layers takes at most 200,000,000 pixels in all layers, got 729,000,000 in 9 layers",
        ),
        (
            [RASTER | {"image": {"tensor": [40, 4000, 4000, 3], "kind": "expanded"}}],
            "pixels in all layers, got 1,920,000,000 numbers",
        ),
        (
            [RASTER | {"name": {"text": "n", "times": 500_000}}],
            "Split Layers: layers: the name of layer 1 has 500,000 characters",
        ),
        ([RASTER | {"type": {"tensor": [2]}}], "layer 'a' must be of type raster, got a Tensor"),
        ([RASTER | {"image": {"tensor": [1, 4, 4, 3], "kind": "sparse"}}], "layer 'a': image needs an IMAGE"),
        ([RASTER | {"image": {"tensor": [1, 0, 4, 3]}}], "layer 'a': image needs an IMAGE"),
        ([RASTER | {"mask": {"tensor": [1, 4], "kind": "meta"}}], "layer 'a': mask needs a MASK"),
        ([RASTER | {"blend_mode": "m" * 5000}], "the blend mode of layer 'a' must be one of normal"),
    ],
)
def test_documents_that_cannot_be_are_refused(server, items, sentence):
    assert sentence in said(server, one("T2L_SplitLayers", document(*items)))


@pytest.mark.parametrize(
    "key", ["visible", "flip_h", "opacity", "x", "w", "rotation", "z_index", "blend_mode", "name", "t2l_blend_mode"]
)
@pytest.mark.parametrize(
    "strange", [{"tensor": [2, 2]}, {"object": None}, [1, 2], {"number": "1" + "0" * 400}, None, {"a": 1}]
)
def test_a_value_of_the_wrong_kind_in_a_document_is_as_if_it_were_not_there(server, key, strange):
    assert server.run(one("T2L_SplitLayers", document(RASTER | {key: strange}))).error is None


@pytest.mark.parametrize("recipe", [[], [None]])
def test_a_list_without_entries_is_no_wire(server, recipe):
    joining = {"foreground": ("IMAGE", recipe), "background": ("IMAGE", [PICTURE]), "mask": ("MASK", [MASK])}
    assert "Join Layers: foreground is needed, got nothing" in said(
        server, one("T2L_JoinLayers", joining, "ForeignList")
    )
    best = document(RASTER)["layers"]
    optional = {"layers": (best[0], [best[1]]), "composite": ("IMAGE", recipe), "keep": ("INT", [1])}
    assert server.run(one("T2L_BestLayers", optional, "ForeignList")).error is None


def test_a_missing_file_is_named(server):
    graph = {"load": node("T2L_LoadLayers", file=None), "seen": node("Swallow", value=["load", 0])}
    assert "file" in (server.run(graph).error or json.dumps(server.run(graph).node_errors))


def test_a_background_of_which_a_crop_leaves_nothing_is_stretched(server):
    tall = {
        "foreground": ("IMAGE", PICTURE),
        "background": ("IMAGE", {"tensor": [1, 2, 200, 3]}),
        "mask": ("MASK", MASK),
    }
    assert server.run(one("T2L_JoinLayers", tall)).error is None


@pytest.mark.parametrize("strange", ["strings", 7, None, {"tensor": [1]}, {"object": None}, {}])
def test_sockets_of_ours_take_nothing_else(server, strange):
    wires = {"autoencoder": ("AUTOENCODER", strange), "latent": ("LATENT", {"samples": {"tensor": [1, 8, 2, 2]}})}
    assert "Decode Layers: autoencoder" in said(server, one("T2L_DecodeLayers", wires))
    if strange is not None:  # nothing is no model
        wires = document(RASTER) | {"upscale_model": ("UPSCALE_MODEL", strange)}
        assert "Upscale Layers: upscale_model needs an upscale model" in said(
            server, one("T2L_UpscaleLayers", wires, **UPSCALE)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "wires", "widgets"),
    [
        (
            "T2L_CleanEdges",
            {"layers": ("LAYERS", [{"version": 1, "layers": [RASTER | {"image": BIG}]}] * 60)},
            {"refine": 64, "decontaminate": True, "shrink": 9.5, "feather": 9.0},
        ),
        (
            "T2L_CompositeLayers",
            {
                "foreground": ("IMAGE", [BIG]),
                "background": ("IMAGE", [{"tensor": [150, 1024, 1024, 3], "kind": "expanded"}]),
                "mask": ("MASK", [MASK]),
            },
            COMPOSITE | {"feather": 200.0, "colour_space": "linear", "shadow": 1.0},
        ),
        (
            "T2L_DecodeLayersTiled",
            {"latent": ("LATENT", [{"samples": {"tensor": [8, 8, 128, 128]}}])},
            {"autoencoder": ["load", 0], "tile_size": 256, "overlap": 32},
        ),
    ],
    ids=["documents", "pictures", "tiles"],
)
def test_cancel_ends_long_work_in_seconds(server, kind, wires, widgets):
    graph = one(kind, wires, "ForeignList", **widgets)
    body = json.dumps({"prompt": graph}).encode()
    queued = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(queued, timeout=60).close()
    time.sleep(4)
    assert json.loads(server.get("/queue"))["queue_running"], "it takes long"
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"{}", method="POST"), timeout=60).close()
    server.wait_until_idle(60)  # seconds of a machine that does other things as well; uncancelled it takes minutes


# ---- Save Layers


def test_a_link_that_leads_out_of_the_output_folder_is_not_followed(server, pictures, tmp_path):
    (server.folder / "output").mkdir(exist_ok=True)
    (server.folder / "output" / "away").symlink_to(tmp_path, target_is_directory=True)
    for prefix in ("away/x", "away/deep/er/x", "away/%year%/x"):
        error = server.run(saving(filename_prefix=prefix)).error
        assert "Save Layers: filename_prefix: must stay inside the output folder, got 'away" in error
    assert list(tmp_path.iterdir()) == []


def test_a_link_within_the_output_folder_is_followed(server, pictures):
    (server.folder / "output" / "real").mkdir(parents=True, exist_ok=True)
    (server.folder / "output" / "other").symlink_to("real", target_is_directory=True)
    assert server.run(saving(filename_prefix="other/x")).error is None
    assert (server.folder / "output" / "real" / "x_00001_.psd").exists()


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("n" * 500_000, "Save Layers: filename_prefix must be a text of at most 100,000 characters"),
        ("a/" * 4000, "Save Layers: filename_prefix: must have at most 1000 characters, got 7,999"),
        ("taken/x", "Save Layers: filename_prefix: must name a folder that can be used, got 'taken/x': "),
    ],
)
def test_names_that_cannot_be_used_end_in_a_sentence(server, pictures, prefix, sentence):
    (server.folder / "output" / "taken").write_bytes(b"a file")
    assert sentence in said(server, saving(filename_prefix=prefix))


@pytest.mark.parametrize(
    "prefix",
    ["nul\0", "con", "aux.psd", "nul.tar.gz", "lpt1/com9", "c\n\td", "\u202eabc", "trailing. ", "\ud800", "~", "<b>"],
)
def test_odd_names_become_names_that_every_system_has(server, pictures, prefix):
    assert server.run(saving(filename_prefix=prefix)).error is None
    names = [part for path in (server.folder / "output").rglob("*") for part in path.relative_to(server.folder).parts]
    assert not [name for name in names if name.split(".")[0].lower() in ("con", "nul", "aux", "lpt1", "com9")]


def test_a_long_prompt_in_a_name_is_cut(server, pictures):
    assert server.run(saving(filename_prefix="a long prompt, " * 300)).error is None
