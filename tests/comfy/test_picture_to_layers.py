"""Picture to Layers in a real ComfyUI server over HTTP: with the network that ships, and with better parts on its
wires.
"""

import numpy as np
import pytest
from PIL import Image

from t2l.model.salient import FILE


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


def apart(mask=True, **wires):
    """The node and previews of all it gives."""
    inputs = {"image": ["ball", 0], **({"mask": ["shows", 0]} if mask else {}), **wires}
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
