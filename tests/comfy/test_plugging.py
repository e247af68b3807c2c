"""Our MODEL, VAE and LATENT on the nodes of ComfyUI's own core."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from t2l import AutoencoderConfig, DiffusionConfig, LayeredAutoencoder, Text2Layer
from t2l.model.text2layer import save_autoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

DEMO = "text2layer-demo.safetensors"
TWIN = json.loads((Path(__file__).parent / "workflows" / "text-to-layers.json").read_text())


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def text_to_layers(seed=7, steps=4):
    """The shortest way from a prompt to a composite and a mask."""
    wires = {"model": ["load", 0], "positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["canvas", 0]}
    look = {"cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "load": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a robot in the snow"),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
        "canvas": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sample": node("KSampler", seed=seed, steps=steps, **wires, **look),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["sample", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
    }


def composite(server, graph):
    result = server.run(graph)
    assert result.error is None and not result.node_errors
    return result.pictures["composite"][0].astype(float)


@pytest.fixture(scope="module")
def plain(server):
    return composite(server, text_to_layers())


def test_sampler_custom_advanced_gives_what_ksampler_gives(server, plain):
    custom = {
        "noise": node("RandomNoise", noise_seed=7),
        "guider": node("CFGGuider", model=["load", 0], positive=["prompt", 0], negative=["empty", 0], cfg=4.0),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["load", 0], scheduler="normal", steps=4, denoise=1.0),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["canvas", 0],
        ),
    }
    assert np.array_equal(composite(server, text_to_layers() | custom), plain)


def test_a_lora_changes_the_picture_and_at_strength_zero_it_does_not(server, plain):
    path = server.folder / "models" / "loras" / "test.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    target = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    up, down = torch.randn(192, 4, generator=generator), torch.randn(4, 192, generator=generator)
    save_file({f"{target}.lora_up.weight": up, f"{target}.lora_down.weight": down}, path)
    pictures = []
    for strength in (0.0, 1.0):
        graph = text_to_layers()
        graph["lora"] = node("LoraLoaderModelOnly", model=["load", 0], lora_name=path.name, strength_model=strength)
        graph["sample"]["inputs"]["model"] = ["lora", 0]
        pictures.append(composite(server, graph))
    assert np.array_equal(pictures[0], plain)
    assert np.abs(pictures[1] - plain).mean() > 2
    assert "lora key not loaded" not in server.log.read_text()


def test_a_model_merged_with_itself_is_itself(server, plain):
    graph = text_to_layers() | {
        "again": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "merge": node("ModelMergeSimple", model1=["load", 0], model2=["again", 0], ratio=0.5),
    }
    graph["sample"]["inputs"]["model"] = ["merge", 0]
    assert np.abs(composite(server, graph) - plain).mean() < 1


def repainted(mask_left: float):
    """Layers into a latent; a noise mask, `mask_left` on its left half and 1 on its right, says what is painted
    anew.
    """
    graph = text_to_layers(seed=11)
    layers = {"foreground": ["first", 0], "background": ["first", 1], "mask": ["first", 2]}
    graph |= {
        "first": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["base", 0]),
        "base": copy.deepcopy(text_to_layers()["sample"]),
        "left": node("SolidMask", value=mask_left, width=128, height=128),
        "right": node("SolidMask", value=mask_left, width=64, height=128),
        "new": node("SolidMask", value=1.0, width=64, height=128),
        "halves": node("MaskComposite", destination=["left", 0], source=["new", 0], x=64, y=0, operation="add"),
        "encode": node("T2L_EncodeLayers", autoencoder=["load", 2], **layers),
        "masked": node("SetLatentNoiseMask", samples=["encode", 0], mask=["halves", 0]),
        "kept": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["encode", 0]),
        "kept_composite": node("PreviewImage", images=["kept", 3]),
    }
    graph["sample"]["inputs"]["latent_image"] = ["masked", 0]
    return graph


def test_a_noise_mask_keeps_what_it_does_not_cover(server):
    result = server.run(repainted(0.0))
    assert result.error is None
    before, after = (result.pictures[x][0].astype(float) for x in ("kept_composite", "composite"))
    change = np.abs(after - before).mean(axis=(0, 2))
    assert change[:40].mean() < 2 < change[80:].mean()


def test_unknown_keys_and_batch_index_of_a_latent_do_no_harm(server):
    graph = text_to_layers(seed=13)
    graph["canvas"]["inputs"]["batch_size"] = 3
    graph["second"] = node("LatentFromBatch", samples=["canvas", 0], batch_index=1, length=2)
    graph["sample"]["inputs"]["latent_image"] = ["second", 0]
    result = server.run(graph)
    assert result.error is None and len(result.pictures["composite"]) == 2


def test_masks_of_core_and_ours_meet_and_nothing_is_inverted(server):
    """A PNG with transparency -> Load Image -> Invert Mask -> layers -> Invert Mask -> Join Image with Alpha -> the
    same PNG.
    """
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :, 0], rgba[:, :32, 3], rgba[:, 32:, 3] = 200, 255, 51
    Image.fromarray(rgba).save(server.folder / "input" / "half.png")
    graph = {
        "file": node("LoadImage", image="half.png"),
        "shows": node("InvertMask", mask=["file", 1]),
        "join": node("T2L_JoinLayers", foreground=["file", 0], background=["file", 0], mask=["shows", 0]),
        "split": node("T2L_SplitLayers", layers=["join", 0]),
        "hidden": node("InvertMask", mask=["split", 2]),
        "cutout": node("JoinImageWithAlpha", image=["split", 0], alpha=["hidden", 0]),
        "seen": node("PreviewImage", images=["cutout", 0]),
    }
    result = server.run(graph)
    assert result.error is None
    assert np.abs(result.pictures["seen"][0].astype(int) - rgba).max() <= 1


def test_an_image_with_an_alpha_channel_is_taken(server):
    graph = {
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x3070C0),
        "mask": node("SolidMask", value=0.5, width=64, height=48),
        "four": node("JoinImageWithAlpha", image=["picture", 0], alpha=["mask", 0]),
        "join": node("T2L_JoinLayers", foreground=["four", 0], background=["four", 0], mask=["mask", 0]),
        "split": node("T2L_SplitLayers", layers=["join", 0]),
        "seen": node("PreviewImage", images=["split", 3]),
    }
    result = server.run(graph)
    assert result.error is None and result.pictures["seen"][0][0, 0, :3].tolist() == [0x30, 0x70, 0xC0]


@pytest.fixture(scope="module")
def full_size(server):
    """An autoencoder and a whole checkpoint of Stable Diffusion 1.x geometry in ComfyUI's own folders; gives the log's
    length.

    Of random weights, or the checkpoint T2L_FULL_SIZE names, as benchmarks/full_size_training.py trains one.
    """
    torch.manual_seed(0)
    autoencoder = LayeredAutoencoder(AutoencoderConfig()).eval()
    vae, checkpoint = (server.folder / "models" / kind / "full.safetensors" for kind in ("vae", "checkpoints"))
    for path in (vae, checkpoint):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_autoencoder(autoencoder, vae, fold=True)
    if trained := os.environ.get("T2L_FULL_SIZE"):
        shutil.copyfile(trained, checkpoint)  # our loader opens nothing that lies outside of ComfyUI
    else:
        unet, text_encoder = build_unet(UNetConfig()), TextEncoder(TextEncoderConfig())
        Text2Layer(autoencoder, unet, text_encoder, DiffusionConfig(prediction="eps")).save(checkpoint)
    ours = server.folder / "models" / "text2layer"
    ours.mkdir(exist_ok=True)
    (ours / "full.safetensors").symlink_to(checkpoint)
    yield len(server.log.read_text())
    checkpoint.unlink()


def loaders(kind):
    """Ours, or core's own, with MODEL, CLIP and VAE in the same order."""
    if kind == "ours":
        return node("T2L_LoadCheckpoint", checkpoint="full.safetensors"), 3
    return node("CheckpointLoaderSimple", ckpt_name="full.safetensors"), 2


def test_a_full_size_checkpoint_opens_in_the_stock_loaders_and_paints_the_same(server, full_size):
    pictures = []
    for kind in ("stock", "ours"):
        graph = text_to_layers(steps=1)
        graph["load"], vae = loaders(kind)
        graph["canvas"]["inputs"] |= {"width": 64, "height": 64}
        del graph["decode"]
        graph["decode_flat"] = node("VAEDecode", samples=["sample", 0], vae=["load", vae])
        graph["composite"] = node("PreviewImage", images=["decode_flat", 0])
        pictures.append(composite(server, graph))
    assert pictures[0].shape == (64, 64, 3)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_full_size_autoencoder_is_an_ordinary_vae(server, full_size):
    graph = {
        "vae": node("VAELoader", vae_name="full.safetensors"),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0x3070C0),
        "encode": node("VAEEncode", pixels=["picture", 0], vae=["vae", 0]),
        "decode": node("VAEDecode", samples=["encode", 0], vae=["vae", 0]),
        "composite": node("PreviewImage", images=["decode", 0]),
    }
    assert composite(server, graph).shape == (64, 64, 3)
    new = server.log.read_text()[full_size:]
    assert not [line for line in new.splitlines() if re.search("missing|unexpected|warn|error", line, re.IGNORECASE)]


def test_a_model_of_cores_own_is_not_told_of_a_kept_layer_and_somebody_says_so(server, full_size):
    graph = text_to_layers(steps=1)
    told = {"positive": ["keep", 0], "negative": ["keep", 1], "latent_image": ["keep", 2]}
    graph |= {
        "load": loaders("stock")[0],
        "autoencoder": node("T2L_LoadAutoencoder", autoencoder="full.safetensors"),
        "place": node("EmptyImage", width=64, height=64, batch_size=1, color=0x3070C0),
        "decode": node("T2L_DecodeLayers", autoencoder=["autoencoder", 0], latent=["sample", 0]),
        "background": node("PreviewImage", images=["decode", 1]),
    }
    wires = {"positive": ["prompt", 0], "negative": ["empty", 0], "background": ["place", 0]}
    graph["keep"] = node("T2L_KeepLayer", autoencoder=["autoencoder", 0], **wires)
    graph["sample"]["inputs"] |= told
    result = server.run(graph)
    assert result.error is None
    assert result.pictures["background"][0].reshape(-1, 3).tolist() == [[0x30, 0x70, 0xC0]] * 64 * 64
    assert "no model was told of the kept background" in server.log.read_text()
