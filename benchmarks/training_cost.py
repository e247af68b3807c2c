"""What a training step costs, counted and not guessed: python benchmarks/training_cost.py prints the table of docs/training.md.

Nothing is computed: the networks run forward and backward on torch's meta device, which knows shapes alone. FLOPs are those of
convolutions, matrix products and attention, two per multiply-add. Memory is
    20 bytes a parameter that is trained (weights 4, gradients 4, AdamW's moments 8, EMA 4), 8 a frozen one (weights, EMA),
    + what the backward pass keeps for each sample, at 2 bytes a value (bf16),
and leaves out the workspaces of the kernels, the discriminator and LPIPS. Hours are FLOPs / (peak x UTILISATION).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2l.config import load_config
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import build_autoencoder
from t2l.model.text_encoder import TextEncoder
from t2l.model.unet import build_unet
from t2l.training.start import freeze
from t2l.training.train_autoencoder import AutoencoderTrainConfig
from t2l.training.train_unet import Conditioned, UNetTrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"

GPUS = {"RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}  # dense bf16 FLOPs a second, from their makers' data sheets
UTILISATION = 0.35
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of one sample in one training step."""

    trained: int  # parameters
    frozen: int
    flops: float  # forward and backward
    kept: int  # values that the backward pass keeps

    def memory(self, batch_size: int, processes: int = 1) -> float:
        """Bytes on each of so many cards; FSDP spreads what belongs to the parameters."""
        return (20 * self.trained + 8 * self.frozen) / processes + 2 * batch_size * self.kept

    def hours(self, samples: float, flops_per_second: float) -> float:
        return samples * self.flops / (flops_per_second * UTILISATION) / 3600


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: object = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: object,
) -> Tensor:
    """What a GPU does; the meta device would write out the matrix of all pairs, which nothing keeps in training."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]


class Ledger:
    """How many values the backward pass keeps, now and at most; a tensor that is kept twice counts once."""

    def __init__(self, weights: set[int]) -> None:
        self.now = self.most = 0
        self._holders: dict[int, int] = {storage: 1 for storage in weights}  # weights are counted elsewhere

    def keep(self, tensor: Tensor) -> Tensor:
        storage, held = tensor.untyped_storage(), tensor.detach()
        key, values = storage._cdata, storage.nbytes() // tensor.element_size()
        if key not in self._holders:
            self.now += values
            self.most = max(self.most, self.now)
        self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(held, self._release, key, values)
        return held

    def _release(self, key: int, values: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= values


def count(networks: list[nn.Module], run: Callable[[], Tensor]) -> Cost:
    """run: gives a sum of outputs to go backward from."""
    parameters = [p for network in networks for p in network.parameters()]
    ledger = Ledger({p.untyped_storage()._cdata for p in parameters})
    hooks = torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda x: x)
    with FlopCounterMode(display=False) as flops, hooks:
        run().backward()
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return Cost(trained, sum(p.numel() for p in parameters) - trained, flops.get_total_flops(), ledger.most)


def autoencoder(config: AutoencoderConfig, size: int, checkpointing: bool) -> Cost:
    with torch.device("meta"):
        model = build_autoencoder(config)
        pixels = Layers.from_stacked(torch.zeros(1, 7, size, size))
    model.checkpoint_blocks(checkpointing)

    def run() -> Tensor:
        decoded = model.decode(model.encode(pixels).mean, clamp=False)
        total = decoded.layers.stacked().sum()
        return total if decoded.auxiliary is None else total + decoded.auxiliary.sum()

    return count([model], run)


def unet(config: UNetTrainConfig, size: int, checkpointing: bool) -> Cost:
    """At 8 pixels a latent."""
    with torch.device("meta"):
        model = Conditioned(build_unet(config.unet).train(), TextEncoder(config.text_encoder))
        latents = torch.zeros(1, config.unet.in_channels, size // 8, size // 8)
        t, tokens = torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
    freeze(model, config.frozen)
    if checkpointing:
        model.unet.enable_gradient_checkpointing()
    return count([model], lambda: model(latents, t, tokens).sum())


def row(name: str, size: int, checkpointing: bool, card_batch: int) -> str:
    """A line of the table for a config of configs/."""
    path = CONFIGS / f"{name}.json"
    config: AutoencoderTrainConfig | UNetTrainConfig
    if "autoencoder" in name:
        config = load_config(AutoencoderTrainConfig, path)
        cost, batch_size, spread = autoencoder(config.model, size, checkpointing), config.data.batch_size, "-"
    else:
        config = load_config(UNetTrainConfig, path)
        cost, batch_size = unet(config, size, checkpointing), config.batch_size
        spread = f"{cost.memory(card_batch, 8) / GIB:.1f}"
    parameters = f"{cost.trained / 1e6:.1f}" + (f" + {cost.frozen / 1e6:.1f}" if cost.frozen else "")
    figures = [f"{cost.flops / 1e12:.2f}", f"{cost.flops * batch_size / 1e12:,.0f}", f"{2 * cost.kept / GIB:.2f}"]
    memory = [str(card_batch), f"{cost.memory(card_batch) / GIB:.1f}", spread]
    hours = [f"{cost.hours(config.steps * batch_size, flops):,.1f}" for flops in GPUS.values()]
    about = [name, str(size), "yes" if checkpointing else "", parameters]
    return f"| {' | '.join([*about, *figures, *memory, f'{config.steps:,} x {batch_size}', *hours])} |"


def main() -> None:
    F.scaled_dot_product_attention = fused_attention  # type: ignore[assignment]
    head = ["config", "pixels", "checkpointing", "million parameters (+ frozen)", "TFLOP a sample", "TFLOP a step"]
    head += ["activations a sample, GiB", "samples a card", "GiB a card", "GiB a card, FSDP on 8", "steps x batch"]
    head += [f"{name}, hours" for name in GPUS]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for size in (256, 512):
        for name in ("paper-autoencoder", "paper-unet", "paper-unet-separate"):
            card_batch = 2 if name == "paper-autoencoder" else 4
            for checkpointing in (False, True):
                print(row(name, size, checkpointing, card_batch), flush=True)


if __name__ == "__main__":
    main()
