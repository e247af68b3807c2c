"""What a model does to a kept layer that it was not trained to be told, in one process of its own: number types, memory
that runs out, copies, areas.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.keep_layer import without_channels
from t2l.cli.options import default_checkpoint
from t2l.model.text2layer import Text2Layer

TRY = """
import copy, importlib, json, sys
comfyui, custom_nodes, checkpoint, unet = sys.argv[1:5]
sys.path[:0] = [comfyui, custom_nodes]
import comfy.cli_args
comfy.cli_args.args.cpu = True
if unet:
    setattr(comfy.cli_args.args, f"{unet}_unet", True)
import comfy.sd
import torch
import folder_paths
load = importlib.import_module("text2layer.nodes.load")
keep = importlib.import_module("text2layer.nodes.keep")
diffusion_model = importlib.import_module("text2layer.nodes.diffusion_model")
KEPT = keep.KEPT
folder_paths.add_model_folder_path("text2layer", checkpoint.rpartition("/")[0])
model, clip, autoencoder, vae = load.LoadCheckpoint.execute(checkpoint.rpartition("/")[2]).args
model = model.model
generator = torch.Generator().manual_seed(0)
coarse = torch.rand(1, 3, 5, 6, generator=generator)
photo = torch.nn.functional.interpolate(coarse, (72, 96), mode="bicubic").clamp(0, 1).movedim(1, -1)
others = {"pooled_output": torch.ones(1, 8), "control": object(), "area": (4, 6, 2, 3), "anything": [1]}
with torch.inference_mode():
    cond = clip.encode_from_tokens(clip.tokenize("a robot in the snow"))
    prompt = [[cond, dict(others)], [cond, {}]]
    wires = {"positive": [prompt], "negative": [[[cond, {}]]], "autoencoder": [autoencoder], "background": [photo]}
    made = keep.KeepLayer.execute(**wires)
    (positive,), _, (latent,) = made.args
    kept = positive[0][1][KEPT]
    x = torch.randn(2, 8, 9, 12, generator=generator)
    given = {"c_crossattn": cond.expand(2, -1, -1), "transformer_options": {"cond_or_uncond": [1, 0]}}
    def painted():
        return model.apply_model(x, torch.tensor([3.0, 3.0]), **given, **{KEPT: kept})
    denoised = painted()
    layers = autoencoder.decode(model.latent_format.process_out(denoised)).layers
    run, memory = autoencoder._run, ["full", "full"]
    def out_of_memory_twice(network, x):
        if len(memory) == 2 or memory and network.__name__ == "_encode":
            raise comfy.model_management.OOM_EXCEPTION(memory.pop())
        return run(network, x)
    autoencoder._run = out_of_memory_twice
    in_tiles = painted()
    strange = model.extra_conds(noise=x, device=x.device, cross_attn=cond, **{KEPT: "strings"})
    condition = diffusion_model.KeptCondition(kept)
    area = condition.process_cond(1, area=(4, 6, 2, 3)).cond
wanted = photo.movedim(-1, 1)
print(json.dumps({
    "dtype": str(model.get_dtype()),
    "types": [str(x.dtype), str(denoised.dtype), str(latent["samples"].dtype)],
    "devices": [str(x.device), str(denoised.device), str(latent["samples"].device)],
    "others": all(positive[0][1][name] is value for name, value in others.items()) and len(prompt[0][1]) == len(others),
    "every": all(KEPT in entry for _, entry in positive),
    "kept": (layers.background - wanted).abs().mean().item(),
    "painted": (layers.foreground - wanted).abs().mean().item(),
    "in_tiles": (in_tiles - denoised).abs().max().item(),
    "memory": memory,
    "copied": copy.deepcopy(positive)[0][1][KEPT] is kept and copy.deepcopy(latent)[KEPT] is kept,
    "together": condition.can_concat(diffusion_model.KeptCondition(kept)),
    "whole": condition.process_cond(1, area=None).cond is kept,
    "area": [list(area.window.grid), torch.equal(area.layers.background, wanted[..., 16:48, 24:72])],
    "strange": KEPT in strange,
}))
"""


@pytest.fixture(scope="module", params=["", "bf16", "fp16"])
def found(request, comfyui, base, tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    without_channels(Text2Layer.load(default_checkpoint())).save(checkpoint)
    command = [sys.executable, "-c", TRY, str(comfyui), str(base / "custom_nodes"), str(checkpoint), request.param]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert result.returncode == 0, result.stderr
    names = {"": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}
    return json.loads(result.stdout.splitlines()[-1]) | {"expected": names[request.param]}


def test_latents_keep_their_type_and_device_beside_a_unet_of_any_type(found):
    assert found["dtype"] == found["expected"]
    assert found["types"] == ["torch.float32"] * 3 and found["devices"] == ["cpu"] * 3


def test_the_kept_layer_is_in_its_place_after_a_step(found):
    assert found["kept"] < 0.08 and found["painted"] > 2 * found["kept"]


def test_out_of_memory_in_the_autoencoder_goes_on_in_tiles(found):
    assert found["memory"] == [] and found["in_tiles"] < 1e-2


def test_what_else_lies_beside_a_prompt_stays(found):
    assert found["others"] and found["every"]


def test_a_deep_copy_brings_no_autoencoder_along(found):
    """Some packs copy conditioning in depth: a network was copied, and both prompts went through the UNet alone."""
    assert found["copied"] and found["together"] and found["whole"]


def test_an_area_has_the_part_of_the_layer_that_lies_in_it(found):
    assert found["area"] == [[4, 6], True]


def test_a_value_of_strangers_under_its_name_is_none(found):
    assert not found["strange"]
