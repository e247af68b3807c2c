"""Cut-outs, pictures stacked into documents, shadows and views of before and after, in a real ComfyUI server over HTTP."""

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
