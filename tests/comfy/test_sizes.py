"""Sizes and words that a checkpoint was not trained on: said in the log and on the node; and documents fitted to its
size.
"""

import asyncio
import json

import aiohttp
import numpy as np
import pytest
import torch

from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_file import save_layer_file

DEMO = "text2layer-demo.safetensors"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def drawing(text="a cat in the snow", size=64, seed=0, clip=("load", 1)):
    """A prompt -> layers in one step."""
    wires = {"model": ["load", 0], "positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["latent", 0]}
    look = {"cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "load": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "prompt": node("CLIPTextEncode", clip=list(clip), text=text),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "sample": node("KSampler", seed=seed, steps=1, **wires, **look),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["sample", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
    }


def hints(server, graph):
    """Run a prompt as the frontend does: every hint as (node, sentence)."""

    async def watch():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(
                f"{server.url.replace('http', 'ws')}/ws?clientId=sizes", max_msg_size=0
            ) as socket:
                await session.post(f"{server.url}/prompt", json={"prompt": graph, "client_id": "sizes"})
                said = []
                async for message in socket:
                    event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
                    if event.get("type") == "text2layer.hint":
                        said.append((event["data"]["node"], event["data"]["text"]))
                    if event.get("type") in ("execution_success", "execution_error"):
                        assert event["type"] == "execution_success", event
                        return said

    return asyncio.run(watch())


def logged(server, sentence):
    return server.log.read_text().count(sentence)


def test_unknown_words_are_read_as_the_nearest_and_named_on_the_node_and_in_the_log(server):
    ((where, sentence),) = hints(server, drawing("a (basilica:1.3) in the pacific, aurora", size=256))
    assert where == "prompt"
    for part in (
        DEMO,
        "'basilica' (read as 'castle')",
        "'pacific' (read as 'above the sea')",
        "'aurora' (left out)",
        "help of Load Text2Layer Checkpoint",
    ):
        assert part in sentence
    assert logged(server, sentence) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a (cat:1.2), in the ((snow))",
        "[A dog] \\(in a forest\\)!",
        "a fox embedding:not-there in a forest",
        "(embedding:not-there:1.1) a kitten\nin the woods",
        "",
    ],
)
def test_weights_brackets_embeddings_and_an_empty_prompt_are_no_words(server, text):
    assert hints(server, drawing(text, size=256, seed=1)) == []


def test_a_clip_that_was_cloned_or_merged_still_knows_its_words(server):
    changed = {
        "last": node("CLIPSetLastLayer", clip=["load", 1], stop_at_clip_layer=-2),
        "again": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "merged": node("CLIPMergeSimple", clip1=["last", 0], clip2=["again", 1], ratio=0.5),
    }
    ((where, sentence),) = hints(server, drawing("a zeppelin", size=256, clip=("merged", 0)) | changed)
    assert where == "prompt" and "'zeppelin' (read as 'balloon')" in sentence


def test_another_size_is_said_at_every_run_on_the_node_and_once_in_the_log(server):
    for seed in (2, 3):
        ((where, sentence),) = hints(server, drawing(size=512, seed=seed))
        assert where == "decode" and "Decode Layers: this is 512 x 512" in sentence
        assert "was trained on 256 x 256" in sentence and "Empty Latent Image to 256 x 256" in sentence
    assert logged(server, "this is 512 x 512") == 1


def test_the_autoencoder_alone_knows_the_size_too_and_layers_are_hinted_at_once(server):
    graph = {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "photo": node("EmptyImage", width=400, height=304, batch_size=1, color=0x3070C0),
        "mask": node("SolidMask", value=1.0, width=8, height=8),
        "encode": node(
            "T2L_EncodeLayers",
            autoencoder=["load", 0],
            foreground=["photo", 0],
            background=["photo", 0],
            mask=["mask", 0],
        ),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["encode", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
    }
    ((where, sentence),) = hints(server, graph)
    assert where == "encode" and "400 x 304" in sentence and "Fit Layers" in sentence


@pytest.fixture(scope="module")
def photograph(server):
    """A document of 768 x 576: soft colours, a hidden note, and a red disc that lies off the middle."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 576), torch.linspace(0, 1, 768), indexing="ij")
    disc = (((torch.arange(240)[:, None] - 119.5) ** 2 + (torch.arange(240) - 119.5) ** 2) < 118**2).float()[None]
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 240, 240)
    below = Layer(image=torch.stack([x, y, 1 - x]), mask=torch.ones(1, 576, 768), name="sky")
    note = Layer(image=torch.zeros(3, 9, 9), mask=torch.ones(1, 9, 9), name="note", visible=False)
    above = Layer(image=red, mask=disc, name="disc", x=420, y=90)
    stack = Stack(576, 768, (below, note, above))
    save_layer_file(stack, server.folder / "input" / "photograph.psd")
    return stack


def fitting(fit="keep aspect", **more):
    """Load -> Fit -> Split -> Encode -> Decode -> Upscale -> Split, and what is seen of it."""
    parts = {"foreground": ["split", 0], "background": ["split", 1], "mask": ["split", 2]}
    back = {"factor": 1.0, "width": ["fit", 1], "height": ["fit", 2], "method": "lanczos"}
    return {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "file": node("T2L_LoadLayers", file="photograph.psd"),
        "fit": node("T2L_FitLayers", layers=["file", 0], autoencoder=["load", 0], fit=fit, method="lanczos", **more),
        "split": node("T2L_SplitLayers", layers=["fit", 0]),
        "small": node("PreviewImage", images=["split", 3]),
        "encode": node("T2L_EncodeLayers", autoencoder=["load", 0], **parts),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["encode", 0]),
        "larger": node("T2L_UpscaleLayers", layers=["decode", 4], **back),
        "again": node("T2L_SplitLayers", layers=["larger", 0]),
        "grey": node("MaskToImage", mask=["again", 2]),
        "mask": node("PreviewImage", images=["grey", 0]),
        "composite": node("PreviewImage", images=["again", 3]),
    }


def seen(stack):
    """What a viewer shows, (H, W, 3), 0 to 255."""
    return 255 * stack.composite().movedim(0, -1).numpy()


@pytest.mark.parametrize(("fit", "size"), [("keep aspect", (224, 296)), ("stretch", (256, 256))])
def test_a_photograph_comes_back_at_its_size_with_the_thing_in_its_place(server, photograph, fit, size):
    assert hints(server, fitting(fit)) == []
    pictures = server.run(fitting(fit, size=256)).pictures
    assert pictures["small"][0].shape[:2] == size and pictures["mask"][0].shape[:2] == (576, 768)
    there, back = photograph.to_layers().mask[0, 0].numpy() > 0.5, pictures["mask"][0][..., 0] > 127
    assert (there & back).sum() / (there | back).sum() > 0.97
    assert np.abs(pictures["composite"][0] - seen(photograph)).mean() < 12


def test_crop_gives_the_middle_at_its_own_size(server, photograph):
    pictures = server.run(fitting("crop")).pictures
    assert pictures["small"][0].shape[:2] == (256, 256) and pictures["composite"][0].shape[:2] == (576, 576)
    assert np.abs(pictures["composite"][0] - seen(photograph)[:, 96:672]).mean() < 12


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fit": "cover"}, "fit"),
        ({"method": "best"}, "method"),
        ({"size": 7}, "Fit Layers: size must be 0 or from 64 to 16384, got 7"),
        ({"autoencoder": ["file", 1]}, "autoencoder"),
    ],
)
def test_what_fit_layers_cannot_take_is_refused_in_a_sentence(server, photograph, change, sentence):
    graph = fitting()
    graph["fit"]["inputs"] |= change
    result = server.run(graph)
    assert sentence in (result.error or json.dumps(result.node_errors))
