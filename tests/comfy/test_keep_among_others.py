"""Keep Layer among core's nodes and those of strangers: the kept layer comes out bit for bit, or one sentence comes."""

import asyncio
import copy
import json

import numpy as np
import pytest

from tests.comfy.test_files import largest_difference
from tests.comfy.test_keep import KEEPING, PLAIN, drawn, graph, node, source
from tests.comfy.test_keep import files as files  # a fixture
from tests.comfy.test_live import watch
from tests.comfy.test_sizes import hints

BOTH = pytest.mark.parametrize("checkpoint", [PLAIN, KEEPING])
AREA = {"width": 64, "height": 64, "x": 24, "y": 8, "strength": 1.0}
NOT_TOLD = "was not trained to be told a kept layer"


def foreign(**recipe):
    return node("ForeignAnything", recipe=json.dumps(recipe))


def kept(server, nodes, kind="background"):
    """What comes out, after a look at the layer that must not have changed."""
    pictures = drawn(server, nodes)
    assert all(np.array_equal(picture, source(server)) for picture in pictures[kind])
    return pictures


# --- Conditioning ----------------------------------------------------------------------------------------------------


def combined(graph, first, second, after):
    """Two prompts as one; `after` Keep Layer, which then keeps the first alone, or before it."""
    graph["second"] = node("CLIPTextEncode", clip=["load", 1], text="a car on a beach")
    graph |= {"both": node("ConditioningCombine", conditioning_1=first, conditioning_2=second)}
    graph["sample" if after else "keep"]["inputs"]["positive"] = ["both", 0]
    return graph


@pytest.mark.parametrize("after", [False, True])
@BOTH
def test_prompts_combined_before_and_after(server, checkpoint, after):
    kept(server, combined(graph(checkpoint), ["keep" if after else "prompt", 0], ["second", 0], after))


@pytest.mark.parametrize(
    "area",
    [
        {"part": node("ConditioningSetArea", conditioning=["keep", 0], **AREA)},
        {"part": node("ConditioningSetAreaPercentage", conditioning=["keep", 0], width=0.5, height=1.0, x=0.5, y=0.0,
                      strength=1.0)},
        {"part": node("ConditioningSetMask", conditioning=["keep", 0], mask=["mask", 0], strength=1.0,
                      set_cond_area="mask bounds")},
        {"part": node("ConditioningSetTimestepRange", conditioning=["keep", 0], start=0.5, end=1.0)},
    ],
    ids=["pixels", "shares", "mask", "time"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["foreground", "background"])
@BOTH
def test_a_prompt_for_an_area_meets_the_same_area_of_the_kept_layer(server, checkpoint, kind, area):
    """Without channels for it the whole layer met the area's latents: a sentence about a size that nobody had set."""
    nodes = graph(checkpoint, kind)
    nodes |= combined(copy.deepcopy(nodes), ["keep", 0], ["part", 0], after=True) | copy.deepcopy(area)
    kept(server, nodes, kind)


@pytest.mark.parametrize("wire", ["positive", "negative"])
def test_a_second_keep_layer_on_the_same_prompt_is_refused(server, wire):
    nodes = graph()
    photo = {"autoencoder": ["load", 2], "foreground": ["photo", 0], "mask": ["mask", 0]}
    nodes["first"] = node("T2L_KeepLayer", positive=["prompt", 0], negative=["empty", 0], **photo)
    nodes["keep"]["inputs"][wire] = ["first", ["positive", "negative"].index(wire)]
    error = server.run(nodes).error
    assert f"Keep Layer: {wire} keeps a foreground already, by another Keep Layer, and only one layer" in error


@pytest.mark.parametrize(
    "strange", [[], [[]], ["strings"], [[1, 2]], 7, {"a": 1}, {"tensor": [1, 77, 8]}, [[[1], {}, 3]]]
)
def test_what_is_no_conditioning_is_refused(server, strange):
    nodes = graph()
    nodes["strange"] = node("ForeignAnything", recipe=json.dumps(strange))
    nodes["keep"]["inputs"]["positive"] = ["strange", 11]
    assert "Keep Layer: positive needs a CONDITIONING, got " in server.run(nodes).error


# --- Samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"cfg": 1.0}, {"denoise": 0.5}, {"sampler_name": "dpmpp_2m_sde"}], ids=str)
@BOTH
def test_settings_of_ksampler(server, checkpoint, change):
    nodes = graph(checkpoint)
    nodes["sample"]["inputs"] |= change
    kept(server, nodes)


@BOTH
def test_ksampler_advanced_gives_what_ksampler_gives(server, checkpoint):
    nodes, advanced = graph(checkpoint, "foreground"), graph(checkpoint, "foreground")
    inputs = advanced["sample"]["inputs"]
    inputs |= {"noise_seed": inputs.pop("seed"), "add_noise": "enable", "start_at_step": 0, "end_at_step": 10000}
    del inputs["denoise"]
    advanced["sample"] = node("KSamplerAdvanced", return_with_leftover_noise="disable", **inputs)
    first, second = kept(server, nodes, "foreground"), kept(server, advanced, "foreground")
    assert np.array_equal(first["background"][0], second["background"][0])


@BOTH
def test_a_merged_model_and_a_clone_keep_it_as_well(server, checkpoint):
    nodes = graph(checkpoint)
    plain = kept(server, nodes)
    nodes |= {
        "again": node("T2L_LoadCheckpoint", checkpoint=checkpoint),
        "merge": node("ModelMergeSimple", model1=["load", 0], model2=["again", 0], ratio=0.5),
        "clone": node("RescaleCFG", model=["merge", 0], multiplier=0.0),
    }
    nodes["sample"]["inputs"]["model"] = ["clone", 0]
    assert largest_difference(plain["foreground"][0], kept(server, nodes)["foreground"][0]) <= 2


# --- Pictures, masks, lists ------------------------------------------------------------------------------------------

SHAPES = {
    "mask of four axes": ("mask", {"tensor": [1, 1, 72, 96], "fill": 0.4}),
    "mask alone": ("mask", {"tensor": [72, 96], "fill": 0.4}),
    "mask with a last axis": ("mask", {"tensor": [1, 72, 96, 1], "fill": 0.4}),
    "small mask of bytes": ("mask", {"tensor": [1, 9, 12], "fill": 102, "dtype": "uint8"}),
    "grey picture": ("foreground", {"tensor": [1, 72, 96, 1], "fill": 0.2}),
    "picture alone": ("foreground", {"tensor": [72, 96, 3], "fill": 0.2}),
    "picture with alpha": ("foreground", {"tensor": [1, 72, 96, 4], "fill": 0.2}),
    "picture of bytes": ("foreground", {"tensor": [1, 72, 96, 3], "fill": 51, "dtype": "uint8"}),
}
SOCKETS = {"foreground": 0, "mask": 1}


@pytest.mark.parametrize("name", SHAPES)
def test_pictures_and_masks_of_every_shape_are_kept(server, name):
    wire, recipe = SHAPES[name]
    nodes = graph(KEEPING, "foreground") | {"strange": foreign(**recipe)}
    nodes["keep"]["inputs"][wire] = ["strange", SOCKETS[wire]]
    nodes |= {"grey": node("MaskToImage", mask=["decode", 2]), "seen": node("PreviewImage", images=["grey", 0])}
    result = server.run(nodes)
    assert result.error is None
    (shown,) = result.pictures["seen" if wire == "mask" else "foreground"]
    assert shown.shape[:2] == (72, 96) and set(np.unique(shown)) == {102 if wire == "mask" else 51}


def test_transparency_is_the_mask_where_none_is_connected(server):
    nodes = graph(KEEPING, "foreground")
    nodes["hidden"] = node("InvertMask", mask=["mask", 0])
    nodes["four"] = node("JoinImageWithAlpha", image=["photo", 0], alpha=["hidden", 0])
    nodes |= {"grey": node("MaskToImage", mask=["decode", 2]), "seen": node("PreviewImage", images=["grey", 0])}
    with_mask = server.run(nodes)
    nodes["keep"]["inputs"]["foreground"] = ["four", 0]
    del nodes["keep"]["inputs"]["mask"]
    without = server.run(nodes)
    for shown in ("seen", "composite"):
        assert np.array_equal(with_mask.pictures[shown][0], without.pictures[shown][0])


def listed(*recipes):
    return node("ForeignList", recipe=json.dumps(recipes))


def test_a_list_of_prompts_paints_one_of_each_to_one_layer(server):
    nodes = graph(KEEPING) | {"texts": listed("a cat in the snow", "a car on a beach", "a robot")}
    nodes["prompt"]["inputs"]["text"] = ["texts", 8]
    assert len(kept(server, nodes)["foreground"]) == 3


def test_a_list_of_pictures_beside_a_batch_of_masks_is_paired(server):
    """Every picture of the list met the whole batch: nine."""
    nodes = graph(KEEPING, "foreground")
    nodes["list"] = listed(*({"tensor": [1, 72, 96, 3], "fill": fill} for fill in (0.2, 0.4, 0.6)))
    nodes["batch"] = node("RepeatImageBatch", image=["white", 0], amount=3)
    nodes["white"] = node("MaskToImage", mask=["mask", 0])
    nodes["masks"] = node("ImageToMask", image=["batch", 0], channel="red")
    nodes["keep"]["inputs"] |= {"foreground": ["list", 0], "mask": ["masks", 0]}
    assert [int(picture.max()) for picture in drawn(server, nodes)["foreground"]] == [51, 102, 153]


@pytest.mark.parametrize("change", ["as it is", "repeated"])
@BOTH
def test_a_batch_of_layers_paints_one_to_each(server, checkpoint, change):
    nodes = graph(checkpoint)
    nodes["second"] = node("LoadImage", image="other.png")
    nodes["two"] = node("ImageBatch", image1=["photo", 0], image2=["second", 0])
    nodes["keep"]["inputs"]["background"] = ["two", 0]
    nodes["four"] = node("RepeatLatentBatch", samples=["keep", 2], amount=2)
    nodes["sample"]["inputs"]["latent_image"] = ["keep", 2] if change == "as it is" else ["four", 0]
    shown = drawn(server, nodes)["background"]
    expected = [source(server, name) for name in ("photo", "other")] * (1 if change == "as it is" else 2)
    assert len(shown) == len(expected) and all(map(np.array_equal, shown, expected))
    nodes["one"] = node("LatentFromBatch", samples=["keep", 2], batch_index=1, length=1)
    nodes["sample"]["inputs"]["latent_image"] = ["one", 0]
    assert "the latent that is sampled holds 1 pictures, the kept layer 2; connect" in server.run(nodes).error


# --- Latents ---------------------------------------------------------------------------------------------------------


def test_what_strangers_put_in_the_place_of_a_kept_layer_is_not_looked_at(server):
    nodes = graph(KEEPING) | {"strange": foreign(samples={"tensor": [1, 8, 9, 12]}, t2l_kept="strings")}
    nodes["decode"]["inputs"]["latent"] = ["strange", 2]
    assert drawn(server, nodes)["background"][0].shape == (72, 96, 3)


def test_an_enlarged_latent_is_decoded_without_the_kept_layer(server):
    nodes = graph(KEEPING)
    nodes["larger"] = node("LatentUpscaleBy", samples=["sample", 0], upscale_method="bilinear", scale_by=2.0)
    nodes["decode"]["inputs"]["latent"] = ["larger", 0]
    assert any("enlarged or divided since Keep Layer" in sentence for _, sentence in hints(server, nodes))
    assert drawn(server, nodes)["background"][0].shape == (144, 192, 3)


# --- Hints, progress, Cancel -----------------------------------------------------------------------------------------


def sentences(server, nodes):
    return [(where, sentence) for where, sentence in hints(server, nodes) if "was trained on" not in sentence]


def test_a_layer_that_is_put_back_is_told_on_the_sampler_and_not_at_every_step(server):
    said = sentences(server, graph(PLAIN, seed=21, steps=6))
    assert {where for where, _ in said} == {"sample"} and all(NOT_TOLD in sentence for _, sentence in said)
    assert len(said) == 2  # once for each prompt; the node shows it once
    assert sentences(server, graph(KEEPING, seed=21)) == []


def test_prompts_that_went_past_keep_layer_are_told(server):
    nodes = graph(KEEPING, photo="other", seed=22)
    nodes["sample"]["inputs"] |= {"positive": ["prompt", 0], "negative": ["empty", 0]}
    ((where, sentence),) = sentences(server, nodes)
    assert where == "decode" and "no model was told of the kept background" in sentence


def test_a_mask_beside_a_background_is_told(server):
    nodes = graph(KEEPING, seed=23)
    nodes["keep"]["inputs"]["mask"] = ["mask", 0]
    ((where, sentence),) = sentences(server, nodes)
    assert where == "keep" and "mask is of a kept foreground" in sentence


def test_the_bar_of_ksampler_goes_by_steps_while_a_layer_is_put_back(server):
    """The autoencoder's own bar ran to its end at every step."""
    said, _ = asyncio.run(watch(server.url, graph(PLAIN, seed=24, steps=4)))
    steps = [x["data"] for x in said if x["type"] == "progress" and x["data"]["node"] == "sample"]
    assert [step["max"] for step in steps] == [4] * len(steps) and len(steps) >= 4


def test_cancel_ends_a_layer_that_is_put_back(server):
    async def cancel(session):
        await session.post(f"{server.url}/interrupt")

    said, _ = asyncio.run(watch(server.url, graph(PLAIN, seed=25, steps=500), cancel))
    assert said[-1]["type"] == "execution_interrupted"
    assert max(x["data"]["value"] for x in said if x["type"] == "progress") < 20
    kept(server, graph(PLAIN, seed=26))


# --- Missing inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["positive", "negative", "autoencoder"])
def test_a_missing_input_is_named_before_anything_runs(server, name):
    nodes = graph()
    del nodes["keep"]["inputs"][name]
    (refused,) = server.run(nodes).node_errors.values()
    assert [error["extra_info"]["input_name"] for error in refused["errors"]] == [name]


def test_without_keep_layer_nothing_is_left_to_sample(server):
    """A muted Keep Layer is no part of the prompt; a bypassed one passes both prompts on, and no latent."""
    nodes = graph()
    del nodes["keep"], nodes["sample"]["inputs"]["latent_image"]
    nodes["sample"]["inputs"] |= {"positive": ["prompt", 0], "negative": ["empty", 0]}
    (refused,) = server.run(nodes).node_errors.values()
    assert refused["errors"][0]["extra_info"]["input_name"] == "latent_image"
