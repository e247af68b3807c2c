"""Keep Layer in a real ComfyUI: the kept layer comes out bit for bit, the other is painted to it, bad input is a
sentence.

With the shipped checkpoint, whose UNet has channels for a kept layer, and with the same one without them.
"""

import numpy as np
import pytest
from PIL import Image

from benchmarks.keep_layer import without_channels
from t2l.cli.options import default_checkpoint
from t2l.model.text2layer import Text2Layer

KEEPING, PLAIN = "text2layer-demo.safetensors", "plain.safetensors"
PARTS = {"foreground": 0, "background": 1, "composite": 3}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module", autouse=True)
def files(server):
    """Two photographs, a mask and a checkpoint that cannot be told a kept layer."""
    generator = np.random.default_rng(0)
    for name, size in (("photo", (96, 72)), ("other", (96, 72)), ("large", (128, 128))):
        picture = Image.fromarray(generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        picture.save(server.folder / "input" / f"{name}.png")
    mask = Image.new("L", (96, 72))
    mask.paste(255, (30, 20, 60, 60))
    for name, value in (("mask", mask), ("nothing", Image.new("L", (96, 72))), ("all", Image.new("L", (96, 72), 255))):
        value.convert("RGB").save(server.folder / "input" / f"{name}.png")
    model = without_channels(Text2Layer.load(default_checkpoint()))
    path = server.folder / "models" / "text2layer" / PLAIN
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    yield
    path.unlink()


def graph(checkpoint=KEEPING, kept="background", photo="photo", mask="mask", custom=False, seed=1, steps=2):
    """A kept layer, sampled and decoded; every part shown."""
    wires = {kept: ["photo", 0]} | ({"mask": ["mask", 0]} if kept == "foreground" else {})
    nodes = {
        "load": node("T2L_LoadCheckpoint", checkpoint=checkpoint),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a tiger in the snow"),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
        "photo": node("LoadImage", image=f"{photo}.png"),
        "mask": node("LoadImageMask", image=f"{mask}.png", channel="red"),
        "keep": node("T2L_KeepLayer", positive=["prompt", 0], negative=["empty", 0], autoencoder=["load", 2], **wires),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["sample", 0]),
    }
    told = {"positive": ["keep", 0], "negative": ["keep", 1]}
    if custom:
        nodes |= {
            "noise": node("RandomNoise", noise_seed=seed),
            "guider": node("CFGGuider", model=["load", 0], cfg=3.0, **told),
            "sampler": node("KSamplerSelect", sampler_name="euler"),
            "sigmas": node("BasicScheduler", model=["load", 0], scheduler="normal", steps=steps, denoise=1.0),
            "sample": node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=["guider", 0],
                sampler=["sampler", 0],
                sigmas=["sigmas", 0],
                latent_image=["keep", 2],
            ),
        }
    else:
        look = {
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "seed": seed,
            "steps": steps,
        }
        nodes["sample"] = node("KSampler", model=["load", 0], latent_image=["keep", 2], **told, **look)
    return nodes | {part: node("PreviewImage", images=["decode", number]) for part, number in PARTS.items()}


def drawn(server, nodes):
    result = server.run(nodes)
    assert result.error is None, result.error
    return {part: result.pictures[part] for part in PARTS}


def source(server, name="photo"):
    return np.array(Image.open(server.folder / "input" / f"{name}.png"))


@pytest.mark.parametrize("custom", [False, True], ids=["KSampler", "SamplerCustomAdvanced"])
@pytest.mark.parametrize("kept", ["foreground", "background"])
@pytest.mark.parametrize("checkpoint", [PLAIN, KEEPING])
def test_the_kept_layer_comes_out_bit_for_bit_and_the_other_is_painted(server, checkpoint, kept, custom):
    (first, second) = (drawn(server, graph(checkpoint, kept, custom=custom, seed=seed)) for seed in (1, 2))
    other = "background" if kept == "foreground" else "foreground"
    assert np.array_equal(first[kept][0], source(server)) and np.array_equal(second[kept][0], source(server))
    assert not np.array_equal(first[other][0], second[other][0])


@pytest.mark.parametrize("kept", ["foreground", "background"])
@pytest.mark.parametrize("checkpoint", [PLAIN, KEEPING])
def test_the_kept_layer_has_a_say_in_the_other(server, checkpoint, kept):
    one, other = (drawn(server, graph(checkpoint, kept, photo=photo)) for photo in ("photo", "other"))
    painted = "background" if kept == "foreground" else "foreground"
    assert not np.array_equal(one[painted][0], other[painted][0])


def test_a_batch_of_the_latent_keeps_the_layer_in_every_picture(server):
    nodes = graph(KEEPING)
    nodes["batch"] = node("RepeatLatentBatch", samples=["keep", 2], amount=3)
    nodes["sample"]["inputs"]["latent_image"] = ["batch", 0]
    pictures = drawn(server, nodes)
    assert len(pictures["background"]) == 3
    assert all(np.array_equal(x, source(server)) for x in pictures["background"])
    assert not np.array_equal(pictures["foreground"][0], pictures["foreground"][1])


def test_a_checkpoint_with_channels_paints_from_nothing_as_before(server):
    nodes = graph(KEEPING)
    nodes["canvas"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    plain = {"positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["canvas", 0]}
    pictures = {}
    for checkpoint in (PLAIN, KEEPING):
        nodes["load"]["inputs"]["checkpoint"] = checkpoint
        nodes["sample"]["inputs"] |= plain
        pictures[checkpoint] = drawn(server, nodes)["composite"][0]
    assert np.abs(pictures[PLAIN].astype(int) - pictures[KEEPING]).max() <= 1


def test_a_latent_that_is_turned_is_decoded_without_the_kept_layer(server):
    nodes = graph(KEEPING)
    nodes["turn"] = node("LatentRotate", samples=["sample", 0], rotation="90 degrees")
    nodes["decode"]["inputs"]["latent"] = ["turn", 0]
    assert drawn(server, nodes)["background"][0].shape == (96, 72, 3)
    assert "turned, cropped, enlarged or divided since Keep Layer" in server.log.read_text()


@pytest.mark.parametrize(
    ("wires", "sentence"),
    [
        ({"foreground": ["photo", 0], "background": ["photo", 0]}, "both connected, so that nothing is left to paint"),
        ({}, "a layer is needed, got neither foreground nor background; connect foreground"),
        ({"foreground": ["photo", 0], "mask": ["nothing", 0]}, "mask shows nothing of the foreground"),
        ({"foreground": ["photo", 0], "mask": ["all", 0]}, "mask covers all of the picture"),
        ({"foreground": ["photo", 0]}, "mask covers all of the picture"),
    ],
)
def test_what_cannot_be_kept_is_said(server, wires, sentence):
    nodes = graph()
    for name in ("nothing", "all"):
        nodes[name] = node("LoadImageMask", image=f"{name}.png", channel="red")
    nodes["keep"]["inputs"].pop("background")
    nodes["keep"]["inputs"] |= wires
    error = server.run(nodes).error
    assert error.startswith("Keep Layer: ") and sentence in error


@pytest.mark.parametrize("checkpoint", [PLAIN, KEEPING])
def test_a_latent_of_another_size_is_said(server, checkpoint):
    nodes = graph(checkpoint)
    nodes["canvas"] = node("EmptyLatentImage", width=128, height=128, batch_size=1)
    nodes["sample"]["inputs"]["latent_image"] = ["canvas", 0]
    error = server.run(nodes).error
    assert "the latent that is sampled is of 128 x 128 pixels, the kept layer of 96 x 72" in error
