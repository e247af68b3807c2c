"""What a training step costs, counted and not guessed: python benchmarks/training_cost.py prints the table of docs/training.md.

Nothing is computed: the networks run forward and backward on torch's meta device, which knows shapes alone. FLOPs are those of
convolutions, matrix products and attention, two per multiply-add. Memory is
    20 bytes a parameter that is trained (weights 4, gradients 4, AdamW's moments 8, EMA 4), 4 a frozen one,
    + what the backward pass keeps for each sample, at 2 bytes a value (bf16),
and leaves out the workspaces of the kernels, the discriminator and LPIPS. Hours are FLOPs / (peak x UTILISATION).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

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
        return (20 * self.trained + 4 * self.frozen) / processes + 2 * batch_size * self.kept

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


def autoencoder(size: int, checkpointing: bool = False) -> Cost:
    with torch.device("meta"):
        model = LayeredAutoencoder(AutoencoderConfig())
        pixels = Layers.from_stacked(torch.zeros(1, 7, size, size))
    model.checkpoint_blocks(checkpointing)

    def run() -> Tensor:
        decoded = model.decode(model.encode(pixels).mean, clamp=False)
        assert decoded.auxiliary is not None
        return decoded.layers.stacked().sum() + decoded.auxiliary.sum()

    return count([model], run)


def unet(size: int, checkpointing: bool = False) -> Cost:
    """SD 1.x's UNet with CLIP's text encoder frozen."""
    with torch.device("meta"):
        model, text_encoder = build_unet(UNetConfig()).train(), TextEncoder(TextEncoderConfig()).requires_grad_(False)
        latents = torch.zeros(1, 4, size // 8, size // 8)
        t, tokens = torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
    if checkpointing:
        model.enable_gradient_checkpointing()

    def run() -> Tensor:
        return model(latents, t, encoder_hidden_states=text_encoder(tokens)).sample.sum()

    return count([model, text_encoder], run)


def row(name: str, cost: Cost, batch_size: int, card_batch: int, steps: int, spreads: bool) -> str:
    hours = [f"{cost.hours(steps * batch_size, flops):,.0f}" for flops in GPUS.values()]
    memory = [f"{cost.memory(card_batch) / GIB:.1f}", f"{cost.memory(card_batch, 8) / GIB:.1f}" if spreads else "-"]
    parameters = f"{cost.trained / 1e6:.1f} + {cost.frozen / 1e6:.1f}" if cost.frozen else f"{cost.trained / 1e6:.1f}"
    figures = [parameters, f"{cost.flops / 1e12:.2f}", f"{2 * cost.kept / GIB:.2f}", f"{card_batch}", *memory]
    return f"| {name} | {' | '.join(figures)} | {steps:,} x {batch_size} | {' | '.join(hours)} |"


def main() -> None:
    F.scaled_dot_product_attention = fused_attention  # type: ignore[assignment]
    head = ["", "parameters, millions (+ frozen)", "TFLOP a sample", "activations a sample, GiB", "samples a card"]
    head += ["GiB a card", "GiB a card, FSDP on 8", "steps x batch", *(f"{name}, card hours" for name in GPUS)]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for size in (256, 512):
        for checkpointing in (False, True):
            suffix = f"{size} px" + (", checkpointing" if checkpointing else "")
            print(row(f"autoencoder, {suffix}", autoencoder(size, checkpointing), 32, 2, 250_000, spreads=False))
            print(row(f"UNet, {suffix}", unet(size, checkpointing), 512, 4, 75_000, spreads=True))


if __name__ == "__main__":
    main()
