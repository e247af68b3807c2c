"""The other systems of the paper in ComfyUI: what has layers is sampled, what has none is refused in one sentence."""

import pytest
import torch

from t2l import DiffusionConfig, Text2Layer
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import build_autoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def save(server, layout, channels, diffusion):
    """A small random checkpoint of a layout, where ComfyUI finds it; returns its name."""
    torch.manual_seed(0)
    small = {"base_channels": 32, "channel_multipliers": (1, 1, 1), "num_res_blocks": 1, "norm": "none", "patch": 2}
    autoencoder = build_autoencoder(AutoencoderConfig(layout=layout, latent_channels=channels, **small)).eval()
    geometry = {
        "base_channels": 64,
        "channel_multipliers": (1, 3),
        "attention_levels": (1,),
        "num_res_blocks": 1,
        "num_heads": 4,
    }
    unet = build_unet(UNetConfig(**geometry, in_channels=channels, out_channels=channels, conditioning_width=64)).eval()
    text = TextEncoder(TextEncoderConfig(width=64, num_layers=1, num_heads=2, hidden_width=64, token_ids=(320,))).eval()
    folder = server.folder / "models" / "text2layer"
    folder.mkdir(parents=True, exist_ok=True)
    Text2Layer(autoencoder, unet, text, diffusion).save(folder / f"{layout}.safetensors")
    return f"{layout}.safetensors"


def sampled(checkpoint):
    wires = {"model": ["load", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["canvas", 0]}
    look = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 1.0}
    return {
        "load": node("T2L_LoadCheckpoint", checkpoint=checkpoint),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a robot"),
        "canvas": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node("KSampler", seed=1, steps=2, **wires, **look),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 2], latent=["sample", 0]),
        "picture": node("VAEDecode", vae=["load", 3], samples=["sample", 0]),
        "composite": node("PreviewImage", images=["decode", 3]),
        "flat": node("PreviewImage", images=["picture", 0]),
    }


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_layers_that_are_latents_of_their_own_are_sampled_and_decoded(server, zero_terminal_snr):
    diffusion = DiffusionConfig(prediction="v", zero_terminal_snr=zero_terminal_snr)
    result = server.run(sampled(save(server, "separate", 12, diffusion)))
    assert result.error is None and not result.node_errors
    composite, flat = (result.pictures[name][0].astype(float) for name in ("composite", "flat"))
    assert composite.shape == (64, 64, 3) and composite.std() > 0
    assert abs(composite - flat).max() <= 1  # without an auxiliary picture the VAE composes


def test_a_checkpoint_without_layers_is_refused_and_told_where_it_opens(server):
    result = server.run(sampled(save(server, "composite", 4, DiffusionConfig())))
    assert result.error is not None and result.error.startswith(
        "Load Text2Layer Checkpoint: checkpoint: composite.safetensors paints whole pictures, it has no layers; open "
        "it with"
    )
