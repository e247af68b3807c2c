"""Training at Stable Diffusion 1.x size for two steps on this machine: python benchmarks/full_size_training.py FOLDER

A Stable Diffusion file of random weights is the start, as a downloaded one would be; then the commands of
docs/training.md with the paper's own configs, LPIPS and discriminator on, batches of 2, gradient checkpointing. Prints
time and peak memory of each. FOLDER takes 20 GB, the UNet 22 GB of memory; the folder may be deleted afterwards; its
checkpoint.safetensors opens in ComfyUI:

    T2L_FULL_SIZE=FOLDER/checkpoint.safetensors pytest tests/comfy/test_plugging.py -k full_size
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STABLE_DIFFUSION = "stable-diffusion.safetensors"
GIB = 2**30


def write_pictures(folder: Path, count: int = 4) -> None:
    """Smooth random layers of 256 x 256 as a shard."""
    from t2l import Layers
    from t2l.data.example import Example
    from t2l.data.shards import write_shard

    generator = torch.Generator().manual_seed(0)
    words = {
        "caption": "a cup on a table",
        "foreground_caption": "a cup",
        "background_caption": "on a table",
        "labels": {"thing": "cup", "place": "table"},
    }
    examples = []
    for number in range(count):
        pixels = F.interpolate(torch.rand(1, 7, 8, 8, generator=generator), size=(256, 256), mode="bicubic").clamp(0, 1)
        examples.append(Example(f"k-{number:06d}", Layers.from_stacked(pixels), **words))
    write_shard(folder, 0, examples)


def write_stable_diffusion(path: Path) -> None:
    """A single file of version 1.x with random weights in fp16, in ldm's names."""
    from safetensors.torch import save_file

    from t2l.model.autoencoder import AutoencoderConfig
    from t2l.model.systems import CompositeAutoencoder
    from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
    from t2l.model.unet import UNetConfig, build_unet, unet_to_ldm

    torch.manual_seed(0)
    parts = {
        "first_stage_model.": CompositeAutoencoder(AutoencoderConfig(layout="composite")).state_dict(),
        "model.diffusion_model.": unet_to_ldm(build_unet(UNetConfig()).state_dict(), UNetConfig()),
        "cond_stage_model.transformer.": TextEncoder(TextEncoderConfig()).state_dict(),
    }
    save_file(
        {prefix + name: x.half().contiguous() for prefix, part in parts.items() for name, x in part.items()}, path
    )


def measured(name: str, *command: str | Path) -> None:
    """Run Python with these arguments in a process of its own and say what it took."""
    started = time.monotonic()
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *map(str, command)])
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{name} failed")
    took = time.monotonic() - started
    sys.stdout.write(f"{name}: {took:.0f} s, peak memory {usage.ru_maxrss * 1024 / GIB:.1f} GiB\n")
    sys.stdout.flush()


def t2l(command: str, *arguments: str | Path) -> None:
    measured(command, "-m", "t2l", command, *arguments)


def train_unet(folder: Path) -> None:
    """What `t2l train-unet` does, but for its sample grid: eight pictures of 50 steps take an hour at this size."""
    from t2l.config import load_config
    from t2l.training.configs import UNetTrainConfig
    from t2l.training.train_unet import train_unet as train

    config = load_config(UNetTrainConfig, CONFIGS / "paper-unet.json")
    config = replace(
        config, num_steps=2, log_every=1, batch_size=2, gradient_checkpointing=True, unet_from_scratch=False
    )
    train(config, folder / "latents", folder / "unet", folder / STABLE_DIFFUSION)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data, autoencoder = folder / "train", folder / "autoencoder"
    write_pictures(data)
    write_stable_diffusion(folder / STABLE_DIFFUSION)
    changes = (
        "loss.adversarial_start=0",
        "data.batch_size=2",
        "num_steps=2",
        "log_every=1",
        "gradient_checkpointing=true",
        "num_workers=1",
    )
    start = ("--data", data, "--run", autoencoder, "--init", folder / STABLE_DIFFUSION)
    t2l("train-autoencoder", CONFIGS / "paper-autoencoder.json", *changes, *start)
    snapshot = autoencoder / "snapshot.safetensors"
    t2l("cache-latents", "--checkpoint", snapshot, "--data", data, "--size", "256", "--out", folder / "latents")
    measured("train-unet", __file__, folder, "unet")
    t2l("export", "--run", folder / "unet", "--out", folder / "checkpoint.safetensors")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.stdout.write(f"left out: name a folder with 20 GB of room, {sys.argv[0]} FOLDER\n")
    else:
        (train_unet if sys.argv[2:] == ["unet"] else main)(Path(sys.argv[1]))
