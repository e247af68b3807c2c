"""A LoRA that a run trained, on ComfyUI's own Load LoRA: what it paints is what the merged checkpoint paints.

Both are of float32, so what differs is the order of sums: the latents of three steps agree to a ten-thousandth of their
spread, where the LoRA itself moves them by more than a tenth.
"""

import pytest
import torch
from safetensors.torch import load_file

from t2l import AutoencoderConfig, DiffusionConfig, LayeredAutoencoder, Text2Layer
from t2l.cli.options import default_checkpoint
from t2l.model.low_rank import LowRank, add_low_rank, merged, save_lora
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

TOLERANCE = 1e-4  # of the latents' standard deviation


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def stable_diffusion():
    """A checkpoint of Stable Diffusion 1.x's geometry, of random weights."""
    torch.manual_seed(0)
    autoencoder = LayeredAutoencoder(AutoencoderConfig()).eval()
    return Text2Layer(autoencoder, build_unet(UNetConfig()), TextEncoder(TextEncoderConfig()), DiffusionConfig())


MODELS = {  # name: the model, the folder of its files, the loader
    "small": (lambda: Text2Layer.load(default_checkpoint()), "text2layer", "T2L_LoadCheckpoint", "checkpoint"),
    "full": (stable_diffusion, "checkpoints", "CheckpointLoaderSimple", "ckpt_name"),
}


@pytest.fixture(params=["small", pytest.param("full", marks=pytest.mark.slow)])
def lora(request, server):
    """Base and merged checkpoint and the LoRA in ComfyUI's folders; gives a function: file, strength -> latents."""
    build, folder, loader, name = MODELS[request.param]
    models = server.folder / "models"
    files = [models / folder / f"lora-{kind}.safetensors" for kind in ("base", "merged")]
    files.append(models / "loras" / f"{request.param}.safetensors")
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    model = build()
    model.save(files[0], torch.float32)
    add_low_rank(model.unet, rank=4)
    generator = torch.Generator().manual_seed(0)
    for module in model.unet.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.3, generator=generator)
    save_lora(files[2], model.unet, {"license": "Apache-2.0"})
    model.unet = merged(model.unet)
    model.save(files[1], torch.float32)
    del model

    def latents(kind, strength=None):
        wires = {"positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["canvas", 0]}
        look = {"cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 7, "steps": 3}
        graph = {
            "load": node(loader, **{name: f"lora-{kind}.safetensors"}),
            "prompt": node("CLIPTextEncode", clip=["load", 1], text="a robot in the snow"),
            "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
            "canvas": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "sample": node("KSampler", model=["load", 0], **wires, **look),
            "save": node("SaveLatent", samples=["sample", 0], filename_prefix=f"{kind}-{strength}"),
        }
        if strength is not None:
            graph["lora"] = node(
                "LoraLoaderModelOnly", model=["load", 0], lora_name=files[2].name, strength_model=strength
            )
            graph["sample"]["inputs"]["model"] = ["lora", 0]
        result = server.run(graph)
        assert result.error is None and not result.node_errors
        (path,) = (server.folder / "output").glob(f"{kind}-{strength}_*.latent")
        found = load_file(path)["latent_tensor"]
        path.unlink()
        return found

    before = len(server.log.read_text())
    yield latents
    assert "lora key not loaded" not in server.log.read_text()[before:]
    for path in files:
        path.unlink()


def test_load_lora_on_the_base_gives_what_the_merged_checkpoint_gives(lora):
    base, adapted, whole = lora("base"), lora("base", 1.0), lora("merged")
    assert (adapted - whole).abs().max() <= TOLERANCE * whole.std()
    assert (whole - base).abs().max() > 0.1 * whole.std()
    assert torch.equal(lora("base", 0.0), base)
