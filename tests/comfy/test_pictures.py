"""Cut-outs, pictures stacked into documents, shadows and views of before and after, in a real ComfyUI server over
HTTP.
"""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

DEMO = "text2layer-demo.safetensors"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def seen(source, output=0):
    return node("PreviewImage", images=[source, output])


def flat(width, height, color, batch=1):
    return node("EmptyImage", width=width, height=height, batch_size=batch, color=color)


@pytest.fixture(scope="module")
def disc(server):
    """A red disc on transparent black: picture, the mask of Load Image (1 = transparent), and ours."""
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    picture.save(server.folder / "input" / "red disc.png")
    return {
        "disc": node("LoadImage", image="red disc.png"),
        "shows": node("InvertMask", mask=["disc", 1]),
        "white": flat(64, 64, 0xFFFFFF),
        "joined": node("T2L_JoinLayers", foreground=["disc", 0], background=["white", 0], mask=["shows", 0]),
    }


# --- Cut-outs --------------------------------------------------------------------------------------------------------


def test_the_cutout_of_split_layers_has_the_mask_as_alpha_and_colours_under_it(server, disc):
    graph = disc | {"split": node("T2L_SplitLayers", layers=["joined", 0]), "seen": seen("split", 4)}
    (cutout,) = server.run(graph).pictures["seen"]
    alpha = np.array(Image.open(server.folder / "input" / "red disc.png"))[..., 3]
    assert np.array_equal(cutout[..., 3], alpha)
    assert cutout[..., 0].min() >= 254 and cutout[..., 1:3].max() <= 1, "red goes on where it is transparent"


@pytest.mark.parametrize(("suffix", "tiles"), [("", {}), ("Tiled", {"tile_size": 64, "overlap": 0})])
def test_decode_layers_gives_a_cutout_for_every_picture(server, disc, suffix, tiles):
    two = {"disc": node("RepeatImageBatch", image=["one", 0], amount=2), "one": disc["disc"]}
    two["shows"] = node("InvertMask", mask=["one", 1])
    layers = {"foreground": ["disc", 0], "background": ["white", 0], "mask": ["shows", 0]}
    graph = disc | two | {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "encode": node("T2L_EncodeLayers", autoencoder=["load", 0], **layers),
        "decode": node(f"T2L_DecodeLayers{suffix}", autoencoder=["load", 0], latent=["encode", 0], **tiles),
        "grey": node("MaskToImage", mask=["decode", 2]),
        "mask": seen("grey"),
        "seen": seen("decode", 6),
    }  # fmt: skip
    pictures = server.run(graph).pictures
    assert [x.shape for x in pictures["seen"]] == [(64, 64, 4)] * 2
    assert all(np.array_equal(a[..., 3], b[..., 0]) for a, b in zip(pictures["seen"], pictures["mask"], strict=True))


# --- Images to Layers ------------------------------------------------------------------------------------------------

PILE = {"names": "", "offsets": "", "x": 0, "y": 0, "opacity": 1.0, "blend_mode": "normal", "visible": True}
PILE |= {"invert_masks": False, "width": 0, "height": 0}


def piled(**inputs):
    return node("T2L_ImagesToLayers", **PILE | inputs)


def test_pictures_of_any_size_are_stacked_by_name_and_place(server):
    graph = {
        "blue": flat(40, 30, 0x0000FF),
        "red": flat(10, 8, 0xFF0000, batch=2),
        "pile": piled(image=["blue", 0], image_2=["red", 0], names="sky\nleft\n\n", offsets="\n-4, 2\n28, 20", x=1),
        "composite": seen("pile", 1),
        "one": node("T2L_SplitLayers", layers=["pile", 0], layer="left"),
        "mask": node("MaskToImage", mask=["one", 2]),
        "left": seen("mask"),
        "two": node("T2L_SplitLayers", layers=["pile", 0], layer="layer 3"),
        "third": node("MaskToImage", mask=["two", 2]),
        "right": seen("third"),
    }
    pictures = server.run(graph).pictures
    (left,), (right,), (composite,) = ([p[..., 0] for p in pictures[x]] for x in ("left", "right", "composite"))
    assert composite.shape == (30, 40)
    assert left[2:10, :7].all() and (left > 0).sum() == 8 * 7
    assert right[20:28, 29:39].all() and (right > 0).sum() == 8 * 10


def test_masks_of_load_image_are_turned_and_alpha_counts(server, disc):
    graph = disc | {
        "green": flat(64, 64, 0x00FF00),
        "with alpha": node("JoinImageWithAlpha", image=["disc", 0], alpha=["disc", 1]),
        "a": piled(image=["green", 0], image_2=["disc", 0], mask_2=["disc", 1], invert_masks=True),
        "b": piled(image=["green", 0], image_2=["with alpha", 0]),
        "c": piled(image=["green", 0], image_2=["disc", 0], mask_2=["shows", 0]),
        "seen a": seen("a", 1), "seen b": seen("b", 1), "seen c": seen("c", 1),
    }  # fmt: skip
    pictures = server.run(graph).pictures
    (a,), (b,), (c,) = (pictures[f"seen {x}"] for x in "abc")
    assert np.array_equal(a, c) and np.array_equal(a, b)
    assert a[32, 32].tolist() == [255, 0, 0] and a[0, 0].tolist() == [0, 255, 0]


def test_a_chain_holds_any_number_up_to_fifty(server):
    graph = {"one": flat(8, 8, 0xFF0000, batch=25), "a": piled(image=["one", 0])}
    graph |= {"b": piled(image=["one", 0], layers=["a", 0], opacity=0.5), "seen": seen("b", 1)}
    assert server.run(graph).error is None
    graph["last"] = piled(image=["one", 0], layers=["b", 0])
    graph["seen"] = seen("last", 1)
    assert "Images to Layers: a document holds at most 50 layers, got 75; merge some" in server.run(graph).error


def test_every_document_gets_its_own_picture_or_the_one_there_is(server):
    graph = {
        "back": flat(16, 16, 0x0000FF, batch=2),
        "mask": node("SolidMask", value=0.0, width=16, height=16),
        "two": node("T2L_JoinLayers", foreground=["back", 0], background=["back", 0], mask=["mask", 0]),
        "red": flat(4, 4, 0xFF0000),
        "pile": piled(image=["red", 0], image_2=["back", 0], layers=["two", 0], opacity=1.0, x=20),
        "seen": seen("pile", 1),
    }
    assert len(server.run(graph).pictures["seen"]) == 2
    graph["red"] = flat(4, 4, 0xFF0000, batch=3)
    assert re.search("image must hold one picture, or one for each of the 2 documents", server.run(graph).error)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"offsets": "1, 2\nthree"}, "Images to Layers: offsets: line 2 must hold two whole numbers.* got 'three'"),
        ({"mask_3": ["shows", 0]}, "Images to Layers: mask_3 needs a picture, got none; connect image_3"),
        ({"mask": ["shows", 0]}, "Images to Layers: mask must hold one mask, or one for each of the 2 pictures, got 3"),
        ({"blend_mode": "burn"}, "blend_mode must be one of|not in list"),
        ({"layers": ["shows", 0]}, "return_type_mismatch"),
    ],
)
def test_a_pile_that_cannot_be_is_refused_in_a_sentence(server, change, sentence):
    graph = {
        "red": flat(8, 8, 0xFF0000, batch=2),
        "three": flat(8, 8, 0, batch=3),
        "shows": node("ImageToMask", image=["three", 0], channel="red"),
        "pile": piled(image=["red", 0], **change),
        "seen": seen("pile", 1),
    }
    result = server.run(graph)
    assert re.search(sentence, f"{result.error} {result.node_errors}")


# --- Contact shadow --------------------------------------------------------------------------------------------------

PLACED = {"x": 0, "y": 0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False}
PLACED |= {"opacity": 1.0, "blend_mode": "normal", "feather": 0.0, "colour_space": "srgb"}


def composited(**inputs):
    layers = {"foreground": ["disc", 0], "background": ["white", 0], "mask": ["shows", 0]}
    return node("T2L_CompositeLayers", **layers, **PLACED | inputs)


def test_a_shadow_lies_under_the_thing_and_without_one_nothing_changes(server, disc):
    graph = disc | {
        "old": composited(), "none": composited(shadow=0.0), "cast": composited(shadow=0.8, colour_space="linear"),
        "seen old": seen("old"), "seen none": seen("none"), "seen cast": seen("cast"),
    }  # fmt: skip
    pictures = server.run(graph).pictures
    (old,), (none,), (cast,) = (pictures[f"seen {x}"] for x in ("old", "none", "cast"))
    assert np.array_equal(old, none)
    assert (cast <= old).all() and cast[49, 32].max() < 200 and np.array_equal(cast[:24], old[:24])


def test_a_shadow_that_cannot_be_is_refused_in_a_sentence(server, disc):
    result = server.run(disc | {"cast": composited(shadow=2.0), "seen": seen("cast")})
    assert re.search("shadow must be from 0 to 1|bigger than max", f"{result.error} {result.node_errors}")


# --- Before and after ------------------------------------------------------------------------------------------------


def test_clean_edges_and_upscale_layers_show_before_and_after_only_where_they_are_asked_for(server, disc):
    clean = {"refine": 0, "decontaminate": True, "shrink": 2.0, "feather": 0.0}
    larger = {"factor": 2.0, "width": 0, "height": 0, "method": "lanczos"}
    graph = disc | {
        "clean": node("T2L_CleanEdges", layers=["joined", 0], **clean),
        "larger": node("T2L_UpscaleLayers", layers=["clean", 0], **larger),
        "unused": node("T2L_CleanEdges", layers=["joined", 0], **clean | {"shrink": 3.0}),  # a twin would share a cache
        "split": node("T2L_SplitLayers", layers=["larger", 0]),
        "seen": seen("split", 3),
    }
    pictures = server.run(graph).pictures
    assert "unused" not in pictures
    for name in ("clean", "larger"):
        (shown,) = pictures[name]
        assert shown.shape == (648, 648, 3) and not np.array_equal(shown[:, :320], shown[:, 328:])
