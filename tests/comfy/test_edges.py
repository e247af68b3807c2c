"""Clean Edges, Recompose Check, Upscale Layers and Best of Layers in a real ComfyUI server, over HTTP."""

import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

DEMO = "text2layer-demo.safetensors"
CLEAN = {"refine": 0, "decontaminate": True, "shrink": 0.0, "feather": 0.0}
LARGER = {"factor": 2.0, "width": 0, "height": 0, "method": "lanczos"}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def decoded(batch=3):
    """A batch of flat pictures through the autoencoder: documents, and what the autoencoder predicts them to be."""
    return {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "front": node("EmptyImage", width=72, height=64, batch_size=batch, color=0xC03020),
        "back": node("EmptyImage", width=72, height=64, batch_size=1, color=0x2060A0),
        "half": node("SolidMask", value=0.5, width=72, height=64),
        "encode": node(
            "T2L_EncodeLayers",
            autoencoder=["load", 0],
            foreground=["front", 0],
            background=["back", 0],
            mask=["half", 0],
        ),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["encode", 0]),
    }


def seen(source, output=0):
    return node("PreviewImage", images=[source, output])


@pytest.fixture(scope="module")
def disc(server):
    """Layers of a red disc that was saved on transparent black, over white."""
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    picture.save(server.folder / "input" / "disc.png")
    return {
        "disc": node("LoadImage", image="disc.png"),
        "white": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFFFFFF),
        "shows": node("InvertMask", mask=["disc", 1]),
        "layers": node("T2L_JoinLayers", foreground=["disc", 0], background=["white", 0], mask=["shows", 0]),
    }


@pytest.fixture(scope="module")
def doubling(server):
    """A network that spandrel reads as SRVGGNetCompact; its weights are 0, which leaves the enlarged input it adds."""
    weights = {f"body.{i}.weight": torch.zeros(4, 3 if i == 0 else 4, 3, 3) for i in (0, 2)}
    weights |= {f"body.{i}.weight": torch.zeros(4) for i in (1, 3)} | {"body.4.weight": torch.zeros(12, 4, 3, 3)}
    weights |= {f"body.{i}.bias": torch.zeros(12 if i == 4 else 4) for i in (0, 2, 4)}
    path = server.folder / "models" / "upscale_models" / "double.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return node("UpscaleModelLoader", model_name=path.name)


def test_the_auxiliary_composite_is_close_to_the_composite(server):
    graph = decoded(batch=1) | {"predicted": seen("decode", 5), "stacked": seen("decode", 3)}
    pictures = server.run(graph).pictures
    (predicted,), (stacked,) = pictures["predicted"], pictures["stacked"]
    assert predicted.shape == stacked.shape and np.abs(predicted.astype(int) - stacked).mean() < 10


def test_every_document_of_a_batch_is_cleaned_with_its_own_picture(server):
    graph = decoded(batch=3) | {
        "clean": node("T2L_CleanEdges", layers=["decode", 4], composite=["decode", 5], **CLEAN),
        "cutouts": seen("clean", 1),
    }
    result = server.run(graph)
    assert result.error is None and [x.shape for x in result.pictures["cutouts"]] == [(64, 72, 4)] * 3


def test_a_corrected_picture_shows_what_was_predicted(server):
    check = {"composite": ["decode", 5], "gain": 8.0}
    graph = decoded(batch=2) | {
        "check": node("T2L_RecomposeCheck", layers=["decode", 4], correct=True, **check),
        "again": node("T2L_RecomposeCheck", layers=["check", 0], correct=False, **check),
        "difference": seen("again", 1),
    }
    result = server.run(graph)
    assert result.error is None and len(result.texts["check"][0].splitlines()) == 2
    lines = result.texts["again"][0].splitlines()
    assert all(re.fullmatch(r"\d: mean 0\.00, max 0\.0\d of 255", line) for line in lines) and len(lines) == 2
    assert max(picture.max() for picture in result.pictures["difference"]) == 0


@pytest.mark.parametrize("with_model", [False, True])
def test_an_upscaled_disc_has_no_dark_rim(server, disc, doubling, with_model):
    model = {"upscale_model": ["model", 0]} if with_model else {}
    graph = disc | {
        "model": doubling,
        "larger": node("T2L_UpscaleLayers", layers=["layers", 0], **LARGER, **model),
        "split": node("T2L_SplitLayers", layers=["larger", 0]),
        "seen": seen("split", 3),
    }
    result = server.run(graph)
    (picture,) = result.pictures["seen"]
    assert result.error is None and picture.shape[:2] == (128, 128)
    assert picture[..., 0].min() >= 254 and picture[64, 64, 1] == 0 and picture[0, 0].min() == 255


PLACEMENT = {"x": 0.0, "y": 0.0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False}
PLACEMENT |= {"opacity": 1.0, "blend_mode": "normal", "colour_space": "srgb"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("composite", {"feather": 3.0}), ("clean", {"feather": 3.0}), ("clean", {"shrink": -5.0})],
)
def test_a_disc_whose_mask_grows_has_no_dark_rim(server, disc, name, settings):
    """Transparent black came out from under the mask: 209 of 255 at a feather of 3, 43 at a shrink below 0."""
    front = {"foreground": ["disc", 0], "background": ["white", 0], "mask": ["shows", 0]}
    graph = disc | {
        "composite": node(
            "T2L_CompositeLayers", **front, **PLACEMENT, **(settings if name == "composite" else {"feather": 0.0})
        ),
        "clean": node("T2L_CleanEdges", layers=["layers", 0], **CLEAN | {"decontaminate": False}),
        "split": node("T2L_SplitLayers", layers=["clean", 0]),
        "seen": seen("composite") if name == "composite" else seen("split", 3),
    }
    if name == "clean":
        graph["clean"]["inputs"] |= settings
    result = server.run(graph)
    assert result.error is None and result.pictures["seen"][0][..., 0].min() >= 254


def test_the_best_of_a_batch_comes_first(server, disc):
    """Of three masks, the one that ends where the disc does."""
    shifted = {f"shown {i}": node("SolidMask", value=0.0, width=64, height=64) for i in range(2)}
    graph = disc | shifted
    for i in range(2):
        where = {"x": 10 * i + 5, "y": 10, "operation": "add"}
        graph[f"mask {i}"] = node("MaskComposite", destination=[f"shown {i}", 0], source=["shows", 0], **where)
    graph |= {
        "first": node("MaskToImage", mask=["mask 0", 0]),
        "second": node("MaskToImage", mask=["shows", 0]),
        "third": node("MaskToImage", mask=["mask 1", 0]),
        "two": node("ImageBatch", image1=["first", 0], image2=["second", 0]),
        "three": node("ImageBatch", image1=["two", 0], image2=["third", 0]),
        "masks": node("ImageToMask", image=["three", 0], channel="red"),
        "many": node("T2L_JoinLayers", foreground=["disc", 0], background=["white", 0], mask=["masks", 0]),
        "best": node("T2L_BestLayers", layers=["many", 0], keep=2, mask=["shows", 0]),
        "seen": seen("best", 1),
        "words": node("PreviewAny", source=["best", 2]),
    }
    result = server.run(graph)
    assert result.error is None and len(result.pictures["seen"]) == 2
    assert result.texts["words"][0].startswith("2: mask IOU 1.000")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"last": node("T2L_CleanEdges", layers=["layers", 0], composite=["small", 0], **CLEAN)},
            "Clean Edges: composite must be as large as the layers, 64 x 64, got 9 x 9",
        ),
        (
            {"last": node("T2L_CleanEdges", layers=["layers", 0], layer="hat", **CLEAN)},
            "Clean Edges: layer: no layer is called 'hat'; there are 'background', 'foreground'",
        ),
        (
            {"last": node("T2L_CleanEdges", layers=["layers", 0], composite=["two", 0], **CLEAN)},
            "Clean Edges: composite must hold one picture, or one for each of the 1 documents of layers, got 2",
        ),
        (
            {"last": node("T2L_UpscaleLayers", layers=["layers", 0], **LARGER | {"method": "cubic"})},
            "Upscale Layers: method must be one of lanczos, .*got 'cubic'|Value not in list",
        ),
        (
            {
                "last": node(
                    "T2L_UpscaleLayers", layers=["layers", 0], **LARGER | {"width": 16384, "height": 0, "factor": 2}
                )
            }
            | {"white": node("EmptyImage", width=8, height=64, batch_size=1, color=0)}
            | {"disc": node("EmptyImage", width=8, height=64, batch_size=1, color=0)}
            | {"shows": node("SolidMask", value=1.0, width=8, height=64)},
            "Upscale Layers: factor, width and height must give at most 16384 pixels a side, got 16384 x 131072",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(server, disc, change, sentence):
    graph = disc | {
        "small": node("EmptyImage", width=9, height=9, batch_size=1, color=0),
        "two": node("EmptyImage", width=64, height=64, batch_size=2, color=0),
        "split": node("T2L_SplitLayers", layers=["last", 0]),
        "seen": seen("split", 3),
    }
    result = server.run(graph | change)
    assert re.search(sentence, f"{result.error} {result.node_errors}")
