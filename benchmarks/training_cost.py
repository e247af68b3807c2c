"""What training costs, counted and not guessed: python benchmarks/training_cost.py prints the table of
docs/training.md.

A row is a config, the pixels it is trained at and the number of cards. FLOPs and memory are those of one whole step,
counted on fake tensors by training_memory.py, which says what is in them. Hours are
FLOPs x batch x steps / (cards x peak x UTILISATION): computed, not measured. Reading pictures is not in them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_memory import GIB, Config, counted, flops_of, load

from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import build_autoencoder
from t2l.training.configs import AutoencoderTrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"

GPUS = {"RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}  # dense bf16 FLOPs a second, from their makers' data sheets
UTILISATION = 0.35
LORA = ("lora_rank=64", "batch_size=8", "gradient_accumulation_steps=1", "num_steps=4000")
ROWS = (  # config, pixels, cards, what differs from the file
    ("24gb-autoencoder", 256, 1, ("num_steps=6000", "loss.adversarial=0")),
    ("24gb-autoencoder", 256, 1, ("num_steps=15000",)),
    ("24gb-autoencoder", 256, 1, ()),
    ("24gb-autoencoder", 256, 1, ("num_steps=60000",)),
    ("24gb-unet", 512, 1, LORA),
    ("24gb-unet", 512, 1, ("num_steps=10000",)),
    ("24gb-unet", 512, 1, ()),
    ("24gb-unet", 512, 1, ("num_steps=100000",)),
    ("8x80gb-autoencoder", 256, 8, ()),
    ("8x80gb-unet", 256, 8, ()),
    ("8x80gb-unet", 512, 8, ("gradient_accumulation_steps=8", "unet_from_scratch=false")),
    ("paper-autoencoder", 256, 1, ("data.batch_size=12", "precision=bf16")),
    ("paper-unet", 256, 1, ("precision=bf16", "gradient_accumulation_steps=4")),
    ("paper-unet-separate", 256, 1, ("precision=bf16", "gradient_accumulation_steps=4")),
    ("paper-unet-512", 512, 1, ("precision=bf16", "gradient_accumulation_steps=8", "gradient_checkpointing=true")),
)


def at(config: Config, pixels: int) -> Config:
    """The config at a size; a UNet's is that of its latents."""
    return (
        replace(config, data=replace(config.data, crop=pixels))
        if isinstance(config, AutoencoderTrainConfig)
        else config
    )


def row(name: str, pixels: int, cards: int, changes: tuple[str, ...]) -> str:
    config = at(load(CONFIGS / f"{name}.json", list(changes)), pixels)
    batch_size = config.data.batch_size if isinstance(config, AutoencoderTrainConfig) else config.batch_size
    flops, memory = flops_of(config, pixels), counted(config, cards, pixels)
    hours = [flops * batch_size * config.num_steps / (cards * peak * UTILISATION) / 3600 for peak in GPUS.values()]
    about = [name, " ".join(changes), str(pixels), str(cards), f"{flops / 1e12:.2f}", f"{memory.peak / GIB:.1f}"]
    return f"| {' | '.join([*about, f'{config.num_steps:,} x {batch_size:,}', *(f'{h:,.1f}' for h in hours)])} |"


def encoding_flops(pixels: int) -> int:
    """Floating-point operations of Stable Diffusion's geometry for the latents of one picture."""
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_autoencoder(AutoencoderConfig()).encode(Layers.from_stacked(torch.zeros(1, 7, pixels, pixels)))
    return counter.get_total_flops()


def main() -> None:
    head = ["config", "changes", "pixels", "cards", "TFLOP a sample", "GiB a card", "steps x batch"]
    head += [f"{name}, hours" for name in GPUS]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in ROWS:
        print(row(*line), flush=True)
    for pixels in (256, 512):
        print(
            f"encoding a picture of {pixels} pixels, as cache-latents does: {encoding_flops(pixels) / 1e12:.2f} TFLOP"
        )


if __name__ == "__main__":
    main()
