"""Picture to Layers in a real ComfyUI server over HTTP: with the network that ships, and with better parts on its
wires.
"""

import asyncio
import json

import numpy as np
import pytest
from PIL import Image

from t2l.model.salient import FILE
from tests.comfy.test_live import watch


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def seen(source, output=0):
    return node("PreviewImage", images=[source, output])


@pytest.fixture(scope="module")
def ball(server):
    """A soft red ball on a meadow of 200 x 160 pixels, and its mask, white = ball, at half the size."""
    y, x = np.mgrid[:160, :200]
    alpha = np.clip((48 - np.hypot(x - 100, y - 80)) / 6, 0, 1)[..., None]
    grass = np.array([70, 140, 40]) + np.random.default_rng(0).normal(0, 14, (160, 200, 1))
    picture = (alpha * [200, 30, 30] + (1 - alpha) * grass).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(server.folder / "input" / "ball.png")
    mask = (alpha[..., 0] * 255).round().astype(np.uint8)
    Image.fromarray(mask).resize((100, 80), Image.Resampling.BOX).save(server.folder / "input" / "ball mask.png")
    return {
        "ball": node("LoadImage", image="ball.png"),
        "shows": node("LoadImageMask", image="ball mask.png", channel="red"),
    }


def apart(mask=("shows", 0), **wires):
    """The node and previews of all it gives."""
    inputs = {"image": ["ball", 0], **({"mask": list(mask)} if mask else {}), **wires}
    return {
        "apart": node("T2L_PictureToLayers", **inputs),
        "foreground": seen("apart", 0),
        "background": seen("apart", 1),
        "grey": node("MaskToImage", mask=["apart", 2]),
        "mask": seen("grey"),
        "stacked": node("T2L_SplitLayers", layers=["apart", 3]),
        "composite": seen("stacked", 3),
    }


def original(server):
    return np.array(Image.open(server.folder / "input" / "ball.png")).astype(int)


def test_the_ball_is_red_in_front_and_the_meadow_goes_on_behind_it(server, ball):
    shown = server.run(ball | apart()).pictures
    foreground, background, composite = (shown[x][0].astype(int) for x in ("foreground", "background", "composite"))
    assert np.abs(foreground[70:90, 55:60] - [200, 30, 30]).max() < 30, "no green in its soft edge"
    assert background[60:100, 80:120, 0].mean() < 100 < background[60:100, 80:120, 1].mean()
    assert np.abs(composite - original(server)).mean() < 5
    assert np.abs(composite - original(server))[:10].max() <= 1, "far from the ball the picture is itself"


@pytest.mark.skipif(not FILE.is_file(), reason="the network is not there")
def test_without_a_mask_the_ball_is_found(server, ball):
    mask = server.run(ball | apart(mask=False)).pictures["mask"][0][..., 0]
    assert mask[70:90, 90:110].mean() > 200 and mask[:20].mean() < 40


def test_a_given_background_is_taken_at_the_size_of_the_image(server, ball):
    blue = {"blue": node("EmptyImage", width=50, height=90, batch_size=1, color=0x0000FF)}
    background = server.run(ball | blue | apart(background=["blue", 0])).pictures["background"][0]
    assert background.shape == (160, 200, 3) and (background == [0, 0, 255]).all()


def test_a_batch_gives_a_document_for_each_picture(server, ball):
    batch = {"two": node("RepeatImageBatch", image=["ball", 0], amount=2)}
    shown = server.run(ball | batch | apart(image=["two", 0])).pictures
    assert [len(shown[x]) for x in ("foreground", "mask", "composite")] == [2, 2, 2]


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (333, 65)])
def test_every_size_is_taken(server, ball, size):
    flat = {"ball": node("EmptyImage", width=size[0], height=size[1], batch_size=1, color=0x3070C0)}
    shown = server.run(ball | flat | apart()).pictures
    assert shown["background"][0].shape[:2] == (size[1], size[0])


def test_an_empty_mask_leaves_the_picture_as_background_and_says_so(server, ball):
    nothing = {"shows": node("SolidMask", value=0.0, width=64, height=64)}
    shown = server.run(ball | nothing | apart()).pictures
    assert np.array_equal(shown["background"][0], original(server)) and shown["mask"][0].max() == 0
    assert "the mask of picture 1 is empty, all of it is background" in server.log.read_text()


def test_batches_of_two_sizes_are_refused_by_name(server, ball):
    three = {"three": node("RepeatImageBatch", image=["ball", 0], amount=3)}
    two = {"two": node("RepeatImageBatch", image=["ball", 0], amount=2)}
    result = server.run(ball | three | two | apart(image=["three", 0], background=["two", 0]))
    assert "Picture to Layers: batches must hold 3 pictures, as the largest does, or one, got" in result.error


# --- Lists, as core's Rebatch Images and data set nodes give them
# ------------------------------------------------------

SIZES = [(40, 60), (64, 32), (33, 47)]  # height and width
GREYS = [0, 0.5, 1]


def values(recipes):
    """A list on sockets of every type: 0 is IMAGE, 1 is MASK."""
    return node("ForeignList", recipe=json.dumps(recipes))


def noise(*shape, seed=1):
    return {"tensor": shape, "kind": "noise", "fill": seed}


def three():
    """Three pictures of different sizes in a list, through a node of core's."""
    pictures = values([noise(1, *size, 3, seed=i) for i, size in enumerate(SIZES)])
    return {"pictures": pictures, "list": node("RebatchImages", images=["pictures", 0], batch_size=1)}


def sizes_of(pictures):
    return [picture.shape[:2] for picture in pictures]


def is_flat(picture, grey):
    return np.abs(picture[..., :3] - 255.0 * grey).max() <= 1


def test_each_of_a_list_is_taken_apart_with_its_own_mask_and_background(server):
    graph = three() | {
        "masks": values([{"tensor": [1, 20, 20], "fill": grey} for grey in GREYS]),
        "flat": values([{"tensor": [1, 50, 50 + 10 * i, 3], "fill": grey} for i, grey in enumerate(GREYS)]),
    }
    shown = server.run(graph | apart(image=["list", 0], mask=["masks", 1], background=["flat", 0])).pictures
    for name in ("foreground", "background", "mask", "composite"):
        assert sizes_of(shown[name]) == SIZES, name
    for name in ("background", "mask"):
        assert all(is_flat(x, grey) for x, grey in zip(shown[name], GREYS, strict=True)), name


@pytest.mark.skipif(not FILE.is_file(), reason="the network is not there")
def test_a_list_gives_what_its_pictures_give_alone(server):
    graph = three()
    together = server.run(graph | apart(mask=False, image=["list", 0])).pictures
    for i, size in enumerate(SIZES):
        graph["pictures"] = values([noise(1, *size, 3, seed=i)])
        alone = server.run(graph | apart(mask=False, image=["list", 0])).pictures
        for name in ("foreground", "background", "mask", "composite"):
            assert np.array_equal(together[name][i], alone[name][0]), (i, name)


def test_a_batch_of_masks_is_dealt_out_to_a_list_of_batches(server):
    """Two pictures of one size and one of another, beside three masks: the first two go to the first two."""
    pictures = values([noise(2, *SIZES[0], 3), noise(1, *SIZES[1], 3, seed=2)])
    masks = {f"m{i}": node("SolidMask", value=grey, width=16, height=16) for i, grey in enumerate(GREYS)}
    masks |= {f"i{i}": node("MaskToImage", mask=[f"m{i}", 0]) for i in range(3)}
    masks["two"] = node("ImageBatch", image1=["i0", 0], image2=["i1", 0])
    masks["all"] = node("ImageBatch", image1=["two", 0], image2=["i2", 0])
    masks["batch"] = node("ImageToMask", image=["all", 0], channel="red")
    one = {"flat": node("EmptyImage", width=9, height=9, batch_size=1, color=0x808080)}
    wires = {"image": ["pictures", 0], "mask": ["batch", 0], "background": ["flat", 0]}
    shown = server.run({"pictures": pictures} | masks | one | apart(**wires)).pictures
    assert sizes_of(shown["mask"]) == [SIZES[0], SIZES[0], SIZES[1]]
    assert all(is_flat(x, grey) for x, grey in zip(shown["mask"], GREYS, strict=True))
    assert all(is_flat(x, 0.5) for x in shown["background"]), "one background serves them all"


def test_lists_of_two_lengths_are_refused_by_name(server):
    two = {"masks": values([noise(1, 16, 16), noise(1, 16, 16, seed=2)])}
    error = server.run(three() | two | apart(image=["list", 0], mask=["masks", 1])).error
    assert "Picture to Layers: lists must hold 3 entries, as the longest does, or one, got {'mask': 2}" in error


# --- Cancel
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "list"])
def test_cancel_ends_after_the_picture_in_work_and_the_next_prompt_runs(server, ball, kind):
    many = {"batch": noise(40, 256, 256, 3), "list": [noise(1, 256, 256, 3, seed=i) for i in range(40)]}[kind]
    graph = ball | {"many": values([many] if kind == "batch" else many)} | apart(image=["many", 0])

    async def cancel(session):
        await session.post(f"{server.url}/interrupt")

    said, _ = asyncio.run(watch(server.url, graph, cancel))
    assert said[-1]["type"] == "execution_interrupted" and said[-1]["data"]["node_type"] == "T2L_PictureToLayers"
    assert sum(event["type"] == "progress" for event in said) < 10
    assert server.run(ball | apart()).error is None
