"""ComfyUI's networks with our weights against ours, in one process of their own."""

import json
import os
import subprocess
import sys

import pytest

COMPARE = """
import importlib, json, sys
comfyui, custom_nodes, demo = sys.argv[1:4]
sys.path[:0] = [comfyui, custom_nodes]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import comfy.sd  # brings transformers, as every ComfyUI does
import torch
before = set(sys.modules)
load = importlib.import_module("text2layer.nodes.load")
importlib.import_module("text2layer.nodes")
heavy = sorted({name.split(".")[0] for name in set(sys.modules) - before} & {"diffusers", "transformers"})

nodes = load.LoadCheckpoint.execute("text2layer-demo.safetensors")
model, clip, autoencoder, vae = nodes.args
ours = importlib.import_module("text2layer.t2l.model.text2layer").Text2Layer.load(demo)
generate = importlib.import_module("text2layer.t2l.generate")
Layers = importlib.import_module("text2layer.t2l.layers").Layers
generator = torch.Generator().manual_seed(0)
with torch.inference_mode():
    prompts = ["a red teapot on a wooden table", "a tiger in a forest, "]
    cond = torch.cat([clip.encode_from_tokens(clip.tokenize(p)) for p in prompts])
    expected_cond = generate.encode_prompts(ours, prompts)
    x = torch.randn(2, ours.unet.config.in_channels, 16, 16, generator=generator)
    t = torch.tensor([10, 700])
    network = model.model.diffusion_model
    predicted = network(x, t, context=expected_cond)
    expected = ours.unet(x, t, encoder_hidden_states=expected_cond).sample
    schedule = importlib.import_module("text2layer.t2l.diffusion").scaled_linear_schedule(ours.diffusion)
    sigmas = ((1 - schedule) / schedule).sqrt()
    layers = Layers.from_stacked(torch.rand(2, 7, 72, 40, generator=generator))
    latents, expected_latents = autoencoder.encode(layers), ours.autoencoder.encode(layers).mean
    decoded, expected_decoded = autoencoder.decode(latents), ours.autoencoder.decode(latents)
    flat = vae.decode(latents)
    run, memory = autoencoder._run, ["full"]
    def out_of_memory_once(network, x):
        if memory:
            raise comfy.model_management.OOM_EXCEPTION(memory.pop())
        return run(network, x)
    autoencoder._run = out_of_memory_once
    in_tiles = autoencoder.decode(latents)
print(json.dumps({
    "heavy": heavy,
    "prediction": str(model.model.model_type),
    "conditioning": (cond - expected_cond).abs().max().item(),
    "unet": (predicted - expected).abs().max().item(),
    "sigmas": (model.model.model_sampling.sigmas - sigmas).abs().max().item(),
    "latents": (latents - expected_latents).abs().max().item(),
    "decoded": (decoded.layers.stacked - expected_decoded.layers.stacked).abs().max().item(),
    "auxiliary": (decoded.auxiliary - expected_decoded.auxiliary).abs().max().item(),
    "flat": list(flat.shape),
    "in_tiles": (in_tiles.layers.stacked - decoded.layers.stacked).abs().max().item(),
    "memory": memory,
}))
"""


@pytest.fixture(scope="module")
def difference(comfyui, base):
    demo = base / "custom_nodes" / "text2layer" / "models" / "text2layer-demo.safetensors"
    command = [sys.executable, "-c", COMPARE, str(comfyui), str(base / "custom_nodes"), str(demo)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_loading_the_nodes_imports_neither_diffusers_nor_transformers(difference):
    assert difference["heavy"] == []


def test_the_text_encoders_agree(difference):
    assert difference["conditioning"] < 1e-3


def test_the_unets_agree(difference):
    assert difference["unet"] < 1e-3


def test_the_schedules_agree(difference):
    assert difference["sigmas"] < 1e-3 and difference["prediction"] == "ModelType.V_PREDICTION"


def test_the_autoencoders_agree(difference):
    assert difference["latents"] < 1e-3 and difference["decoded"] < 1 / 255
    assert difference["auxiliary"] < 1 / 255


def test_the_ordinary_vae_gives_pictures(difference):
    assert difference["flat"] == [2, 72, 40, 3]


def test_out_of_memory_goes_on_in_tiles(difference):
    assert difference["memory"] == [] and difference["in_tiles"] < 1 / 255
