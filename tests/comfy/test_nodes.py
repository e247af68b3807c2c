"""The nodes in a real ComfyUI server, over HTTP, with the shipped checkpoint."""

import json
import re

import numpy as np
import pytest

DEMO = "text2layer-demo.safetensors"
NODES = {
    "T2L_LoadCheckpoint",
    "T2L_LoadAutoencoder",
    "T2L_EncodeLayers",
    "T2L_EncodeLayersTiled",
    "T2L_DecodeLayers",
    "T2L_DecodeLayersTiled",
    "T2L_JoinLayers",
    "T2L_SplitLayers",
    "T2L_CompositeLayers",
    "T2L_CleanEdges",
    "T2L_RecomposeCheck",
    "T2L_UpscaleLayers",
    "T2L_BestLayers",
    "T2L_ImagesToLayers",
    "T2L_PictureToLayers",
    "T2L_SaveLayers",
    "T2L_LoadLayers",
    "T2L_FitLayers",
    "T2L_KeepLayer",
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def picture(width, height, batch=1, color=0x3070C0):
    return node("EmptyImage", width=width, height=height, batch_size=batch, color=color)


def own_pictures(width, height, batch=1, mask=0.5, tiled=False):
    """Two pictures and a mask of other sizes -> latent -> layers -> previews."""
    suffix, tiles = ("Tiled", {"tile_size": 128, "overlap": 32}) if tiled else ("", {})
    layers = {"foreground": ["front", 0], "background": ["back", 0], "mask": ["mask", 0]}
    return {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "front": picture(width, height, batch),
        "back": picture(width // 2 + 9, height // 2 + 5, color=0x60A030),
        "mask": node("SolidMask", value=mask, width=50, height=70),
        "encode": node(f"T2L_EncodeLayers{suffix}", autoencoder=["load", 0], **layers, **tiles),
        "decode": node(f"T2L_DecodeLayers{suffix}", autoencoder=["load", 0], latent=["encode", 0], **tiles),
        "foreground": node("PreviewImage", images=["decode", 0]),
        "background": node("PreviewImage", images=["decode", 1]),
        "shown_mask": node("MaskToImage", mask=["decode", 2]),
        "mask_picture": node("PreviewImage", images=["shown_mask", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
    }


def text_to_layers(sampler=None, **settings):
    """A prompt -> layers, by stock nodes but for the loader and the decoder."""
    sampling = {
        "seed": settings.get("seed", 7),
        "steps": 4,
        "cfg": 4.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    latent = {"width": settings.get("width", 128), "height": 128, "batch_size": settings.get("batch", 1)}
    conditions = {"positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["latent", 0]}
    return {
        "load": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a strawberry on a beach"),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
        "latent": node("EmptyLatentImage", **latent),
        "sample": sampler or node("KSampler", model=["load", 0], **conditions, **sampling),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["sample", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
        "split": node("T2L_SplitLayers", layers=["decode", 4]),
        "split_composite": node("PreviewImage", images=["split", 3]),
        "vae": node("VAEDecode", samples=["sample", 0], vae=["load", 3]),
        "flat": node("PreviewImage", images=["vae", 0]),
    }


def advanced_sampler():
    return node(
        "KSamplerAdvanced",
        model=["load", 0],
        positive=["prompt", 0],
        negative=["empty", 0],
        latent_image=["latent", 0],
        add_noise="enable",
        noise_seed=8,
        steps=4,
        cfg=4.0,
        sampler_name="dpmpp_2m",
        scheduler="normal",
        start_at_step=0,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )


def test_every_node_is_there_and_says_what_its_sockets_are(server):
    listed = json.loads(server.get("/object_info"))
    assert listed.keys() >= NODES
    for name in NODES:
        info = listed[name]
        assert info["description"] and info["category"].startswith("text2layer/")
        for kind, options in info["input"]["required"].values():
            assert options["tooltip"], f"{name}: an input of type {kind} has no tooltip"
        assert all(info["output_tooltips"])


def test_a_node_is_found_by_other_words_than_its_name_where_comfyui_knows_such_words(server):
    listed = json.loads(server.get("/object_info"))
    if "search_aliases" not in listed["KSampler"]:
        pytest.skip("this ComfyUI finds nodes by their names alone")
    assert all(len(listed[name]["search_aliases"]) >= 3 for name in NODES)
    for word in ("psd", "photoshop", "krita", "cutout", "matte", "alpha", "transparent", "sticker", "layer"):
        assert any(word in alias for name in NODES for alias in listed[name]["search_aliases"]), word


def test_the_shipped_checkpoint_is_offered_without_a_download(server):
    options = json.loads(server.get("/object_info/T2L_LoadCheckpoint"))["T2L_LoadCheckpoint"]["input"]["required"]
    assert DEMO in json.dumps(options["checkpoint"])


def test_a_prompt_becomes_layers_with_the_stock_sampler(server):
    result = server.run(text_to_layers())
    assert result.error is None and not result.node_errors
    (composite,), (again,), (flat,) = (result.pictures[x] for x in ("composite", "split_composite", "flat"))
    assert composite.shape[:2] == (128, 128) and composite.std() > 10
    assert np.abs(composite.astype(int) - again).max() == 0
    assert np.abs(composite.astype(int) - flat).mean() < 26, "the ordinary VAE shows the composite"


def test_ksampler_advanced_gives_what_ksampler_gives(server):
    simple, advanced = (server.run(text_to_layers(sampler, seed=8)) for sampler in (None, advanced_sampler()))
    assert np.array_equal(simple.pictures["composite"][0], advanced.pictures["composite"][0])


def test_a_batch_has_as_many_pictures_and_documents(server):
    result = server.run(text_to_layers(batch=3))
    assert [len(result.pictures[x]) for x in ("composite", "split_composite")] == [3, 3]


@pytest.mark.parametrize("size", [(64, 64), (200, 72), (257, 513)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_comes_back_at_its_own_size(server, size, batch):
    result = server.run(own_pictures(*size, batch=batch))
    assert result.error is None
    pictures = result.pictures["composite"]
    assert [(x.shape[1], x.shape[0]) for x in pictures] == [size] * batch


def test_large_pictures_come_back_at_their_size_whole_and_in_tiles(server):
    for size, tiled in (((683, 384), False), ((1030, 700), True)):
        graph = own_pictures(*size, tiled=tiled)
        for name in ("encode", "decode"):
            graph[name]["inputs"] |= {"tile_size": 512, "overlap": 64} if tiled else {}
        result = server.run(graph, timeout=550)
        assert result.error is None and result.pictures["composite"][0].shape[:2] == size[::-1]


def test_a_batch_of_sixteen(server):
    assert len(server.run(own_pictures(64, 64, batch=16)).pictures["composite"]) == 16


@pytest.mark.parametrize("mask", [0, 1])
def test_mask_one_shows_the_foreground_and_zero_the_background(server, mask):
    result = server.run(own_pictures(64, 64, mask=mask))
    shown, other = ("foreground", "background") if mask else ("background", "foreground")
    (composite,), (right,), (wrong,) = (result.pictures[x] for x in ("composite", shown, other))
    assert np.abs(result.pictures["mask_picture"][0] / 255 - mask).mean() < 0.1
    assert np.abs(composite.astype(int) - right).mean() < np.abs(composite.astype(int) - wrong).mean()


def test_tiles_give_the_whole_picture(server):
    whole, tiled = (server.run(own_pictures(300, 280, tiled=tiled)).pictures["composite"][0] for tiled in (False, True))
    assert whole.shape == tiled.shape
    assert np.abs(whole.astype(int) - tiled).mean() < 4


def test_join_and_split_are_inverse_and_invert_no_mask(server):
    graph = own_pictures(64, 48, mask=0.25) | {
        "join": node("T2L_JoinLayers", foreground=["front", 0], background=["front", 0], mask=["mask", 0]),
        "split": node("T2L_SplitLayers", layers=["join", 0]),
        "grey": node("MaskToImage", mask=["split", 2]),
        "seen": node("PreviewImage", images=["grey", 0]),
        "front_seen": node("PreviewImage", images=["split", 0]),
    }
    pictures = server.run(graph).pictures
    assert np.abs(pictures["seen"][0].astype(int) - 64).max() <= 1
    assert np.array_equal(pictures["front_seen"][0][0, 0, :3], [0x30, 0x70, 0xC0])


def test_composite_layers_moves_the_foreground_over_another_background(server):
    placement = {"x": 10, "y": 0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False}
    look = {"opacity": 1.0, "blend_mode": "normal", "feather": 0.0, "colour_space": "srgb"}
    layers = {"foreground": ["front", 0], "background": ["back", 0], "mask": ["mask", 0]}
    graph = {
        "front": picture(20, 30, color=0xFF0000),
        "back": picture(50, 30, color=0x0000FF),
        "mask": node("SolidMask", value=1.0, width=20, height=30),
        "place": node("T2L_CompositeLayers", **layers, **placement, **look),
        "seen": node("PreviewImage", images=["place", 0]),
    }
    (seen,) = server.run(graph).pictures["seen"]
    red = seen[:, :, 0] == 255
    assert seen.shape[:2] == (30, 50) and red[:, 10:30].all() and red.sum() == 30 * 20


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"load": node("T2L_LoadAutoencoder", autoencoder="../../../etc/passwd")},
            "autoencoder must be one of the files",
        ),
        (
            {"load": node("T2L_LoadAutoencoder", autoencoder="/etc/passwd")},
            "Load Layered Autoencoder: autoencoder must",
        ),
        (
            {"encode": node("EmptyLatentImage", width=64, height=64, batch_size=1)},
            r"Decode Layers: latent needs samples of shape \(N, 8, h, w\).* got \(1, 4, 8, 8\); connect",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_the_server_goes_on(server, change, sentence):
    result = server.run(own_pictures(64, 64) | change)
    assert re.search(sentence, result.error)
    assert server.run(own_pictures(64, 64)).error is None


def test_a_wrong_blend_mode_is_refused(server):
    graph = {
        "front": picture(20, 30),
        "mask": node("SolidMask", value=1.0, width=20, height=30),
        "place": node(
            "T2L_CompositeLayers",
            **{"foreground": ["front", 0], "background": ["front", 0], "mask": ["mask", 0]},
            **{"x": 0, "y": 0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False},
            **{"opacity": 1.0, "blend_mode": "burn", "feather": 0.0, "colour_space": "srgb"},
        ),
        "seen": node("PreviewImage", images=["place", 0]),
    }
    result = server.run(graph)
    assert "burn" in (result.error or json.dumps(result.node_errors))


def test_two_hundred_prompts_leave_the_memory_as_it_was(server):
    """Every prompt has a seed of its own, so that all of it runs anew."""
    held = []
    for seed in range(200):
        graph = text_to_layers(seed=1000 + seed, width=64)
        graph["latent"]["inputs"]["height"] = 64
        graph["sample"]["inputs"]["steps"] = 1
        assert server.run(graph).error is None
        held.append(server.memory())
    assert max(held[-10:]) - max(held[10:20]) < 64 * 2**20


def test_the_server_never_warned_about_us(server):
    server.run(own_pictures(64, 64))
    log = server.log.read_text()
    assert "IMPORT FAILED): " not in log
    ours = [line for line in log.splitlines() if "text2layer" in line or "T2L" in line]
    assert not [line for line in ours if "warn" in line.lower() and "trained on" not in line]  # those are hints
