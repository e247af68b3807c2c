"""How much memory a config's training takes on one card, counted without one.

    python benchmarks/training_memory.py CONFIG.json|RECIPE.toml:STAGE... [name=value ...] [--processes N]
        [--size PIXELS] [--measure]

A step runs forward and backward on torch's fake tensors, which have shapes and no values, and every storage that is
made and freed is counted as it would be on a card: weights, gradients, the activations that the backward pass needs,
under autocast's own rules (bf16 convolutions and products, float32 norms), LPIPS, discriminator, adaptive weights,
checkpointing and parts of a batch. Moments and EMA are added, they lie still. What is not in it: the workspaces of
cuDNN, what the allocator cannot use of its blocks, and CUDA's own context (about 0.5 GiB); so leave 2 GiB of a card
free. --measure does the same step for real, on the GPU if there is one, and prints both. --processes: over how many
cards the batch is spread. --size: pixels of the pictures behind the latents (UNet; default 512).
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from t2l.config import load_config, override
from t2l.diffusion import add_noise, scaled_linear_schedule
from t2l.layers import Layers
from t2l.model.autoencoder import Decoded
from t2l.model.discriminator import PatchDiscriminator
from t2l.model.low_rank import add_low_rank
from t2l.model.perceptual import Perceptual
from t2l.model.precision import at_least_float32, precision_context
from t2l.model.systems import build_autoencoder
from t2l.model.text_encoder import TextEncoder
from t2l.model.unet import build_unet
from t2l.training import losses
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig
from t2l.training.recipe import load_recipe
from t2l.training.start import freeze

GIB = 2**30
Config = AutoencoderTrainConfig | UNetTrainConfig


@dataclass(frozen=True)
class Memory:
    """Bytes on one card."""

    weights: int  # of everything that is there, trained or not
    gradients: int
    moments: int
    ema: int
    work: int  # the rest of the peak: activations and what is in the air with them

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.moments + self.ema + self.work


class Allocations(TorchDispatchMode):
    """Bytes of all storages that live, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._see(x.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class AutoencoderStep:
    """The networks of an autoencoder's training, and forward and backward of one part of a batch."""

    def __init__(self, config: AutoencoderTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        model = build_autoencoder(config.model)
        self.reference = build_autoencoder(config.model).requires_grad_(False) if config.loss.reference_kl else None
        if config.fold_batchnorm:
            model.fold_batchnorm()
        self.model = model.train()
        self.model.checkpoint_blocks(config.gradient_checkpointing)
        if config.freeze_encoder:
            for part in (model.encoder, model.quant_conv, model.post_quant_conv):
                part.requires_grad_(False)
        self.perceptual = Perceptual(pretrained=False) if config.loss.lpips else None
        self.discriminator = PatchDiscriminator(config.discriminator) if config.loss.adversarial else None
        self.networks = [n for n in (self.model, self.reference, self.perceptual, self.discriminator) if n is not None]

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    def inputs(self, count: int) -> list[Tensor]:
        config = self.config
        cells = -(-config.data.crop // config.model.downscale)
        pixels = torch.rand(count, 7, config.data.crop, config.data.crop, device=self.device)
        return [pixels, torch.randn(count, config.model.latent_channels, cells, cells, device=self.device)]

    def part(self, inputs: list[Tensor]) -> tuple[Decoded, Layers]:
        """Forward and backward; returns what the discriminator is trained on after the autoencoder's step."""
        config, (pixels, noise) = self.config, inputs
        target = Layers.from_stacked(pixels)
        with precision_context(self.device, config.precision):
            known = None
            if self.reference is not None:
                with torch.no_grad():
                    known = self.reference.encode(Layers.flat(target.composite()))
            posterior = self.model.encode(target)
            latents = at_least_float32(posterior.mean) + at_least_float32(posterior.std) * noise
            decoded = self.model.decode(latents, clamp=False)
            total, _ = losses.autoencoder_loss(decoded, posterior, target, config.loss, self.perceptual, known)
            if self.discriminator is not None:
                total = total + self._adversarial(self.discriminator, decoded, total)
        total.backward()
        return decoded, target

    def _adversarial(self, discriminator: PatchDiscriminator, decoded: Decoded, total: Tensor) -> Tensor:
        result = torch.zeros((), device=self.device)
        discriminator.requires_grad_(False)
        for name, picture in self._pictures(decoded.layers, decoded.auxiliary).items():
            generator_loss = losses.generator_adversarial_loss(discriminator(2 * picture - 1))
            result = (
                result + losses.adaptive_weight(total, generator_loss, self.model.last_layers()[name]) * generator_loss
            )
        discriminator.requires_grad_(True)
        return result

    def _pictures(self, layers: Layers, composed: Tensor | None) -> dict[str, Tensor]:
        pictures = {"foreground": layers.foreground, "background": layers.background, "composed": composed}
        return {name: x for name, x in pictures.items() if x is not None and getattr(self.config.loss, name)}

    def finish(self, seen: list[tuple[Decoded, Layers]]) -> None:
        """The discriminator's own step."""
        if self.discriminator is None:
            return
        for decoded, target in seen:
            composite = None if decoded.auxiliary is None else target.composite()
            real = torch.cat([*self._pictures(target, composite).values()])
            fake = torch.cat([*self._pictures(decoded.layers, decoded.auxiliary).values()]).detach()
            with precision_context(self.device, self.config.precision):
                logits = self.discriminator(2 * real - 1)
                loss = losses.hinge_discriminator_loss(logits, self.discriminator(2 * fake - 1))
            loss.backward()


class UNetStep:
    """The networks of a UNet's training, and forward and backward of one part of a batch."""

    def __init__(self, config: UNetTrainConfig, device: torch.device, size: int) -> None:
        self.config, self.device, self.cells = config, device, size // 8
        self.model = nn.ModuleDict({"unet": build_unet(config.unet), "text_encoder": TextEncoder(config.text_encoder)})
        if config.lora_rank:
            add_low_rank(self.model, config.lora_rank)
        freeze(self.model, config.frozen)
        self.model.train()
        if config.gradient_checkpointing:
            self.model["unet"].enable_gradient_checkpointing()
        self.alphas_cumprod = scaled_linear_schedule(config.diffusion).to(device)
        self.networks: list[nn.Module] = [self.model]

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    def inputs(self, count: int) -> list[Tensor]:
        channels = self.config.unet.out_channels
        shape = (count, channels, self.cells, self.cells)
        kept = torch.zeros(count, self.config.unet.in_channels - channels, *shape[2:], device=self.device)
        t = torch.zeros(count, dtype=torch.long, device=self.device)
        tokens = torch.zeros(count, 77, dtype=torch.long, device=self.device)
        return [torch.randn(shape, device=self.device), torch.randn(shape, device=self.device), t, tokens, kept]

    def part(self, inputs: list[Tensor]) -> None:
        latents, noise, t, tokens, kept = inputs
        x_t = torch.cat([add_noise(latents, noise, t, self.alphas_cumprod), kept], dim=1)
        with precision_context(self.device, self.config.precision):
            conditioning = self.model["text_encoder"](tokens)
            prediction = self.model["unet"](x_t, t, encoder_hidden_states=conditioning).sample
        F.mse_loss(at_least_float32(prediction), noise).backward()

    def finish(self, seen: list[Any]) -> None:
        """Nothing else is trained."""


def counted(config: Config, processes: int = 1, size: int = 512) -> Memory:
    """What a step of the config takes on each of so many cards."""
    allocations = Allocations()
    with FakeTensorMode(), like_a_card(), allocations:
        step = make_step(config, torch.device("cpu"), size)
        run(step, processes)
        weights = sum(x.untyped_storage().nbytes() for x in tensors_of(step.networks))
        trained = [p for network in step.networks for p in network.parameters() if p.requires_grad]
        gradients = 4 * sum(p.numel() for p in trained)
        work = allocations.most - weights - gradients
        moments, ema = moment_bytes(config, trained), ema_bytes(step)
    spread = processes if isinstance(config, UNetTrainConfig) and config.sharding == "fsdp" else 1
    return Memory(weights // spread, gradients // spread, moments // spread, ema // spread, work)


def flops_of(config: Config, size: int = 512) -> int:
    """Floating-point operations of one sample in a training step, two per multiply-add: convolutions, products,
    attention.

    All that the step runs: LPIPS, the discriminator as generator and as learner, adaptive weights, checkpointing's
    second time.
    """
    aten = torch.ops.aten  # what fake tensors take on the CPU, which torch's counter does not know
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *_, **__: (
            sdpa_backward_flop_count(out, q, k, v)
        ),
    }
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with FakeTensorMode(), counter:
        run(make_step(one_sample(config), torch.device("cpu"), size), 1)
    return counter.get_total_flops()


def measured(config: Config, size: int = 512) -> int:
    """Bytes that the step takes here, moments and EMA included: on the GPU, or what this process grows by on the
    CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run(
        make_step(narrow(one_sample(config)), torch.device("cpu"), 64), 1
    )  # whatever is imported or set up at first use
    before = resident()
    with torch.device(device):
        step = make_step(config, device, size)
    ema = copy.deepcopy(step.model).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for n in step.networks for p in n.parameters() if p.requires_grad], fused=True)
    for _ in range(2):
        run(step, 1)
        optimizer.step()
        optimizer.zero_grad()
    del ema
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def one_sample(config: Config) -> Config:
    if isinstance(config, UNetTrainConfig):
        return replace(config, batch_size=1, gradient_accumulation_steps=1)
    return replace(config, data=replace(config.data, batch_size=1), gradient_accumulation_steps=1)


def narrow(config: Config) -> Config:
    """The same step with little in it."""
    if isinstance(config, UNetTrainConfig):
        return replace(config, unet=replace(config.unet, base_channels=32))
    return replace(config, model=replace(config.model, base_channels=32), data=replace(config.data, crop=64))


def make_step(config: Config, device: torch.device, size: int) -> AutoencoderStep | UNetStep:
    return (
        AutoencoderStep(config, device)
        if isinstance(config, AutoencoderTrainConfig)
        else UNetStep(config, device, size)
    )


def run(step: Any, processes: int) -> None:
    """One step of one process. The third part of a batch and those after it need no more than the second."""
    share, accumulate = step.batch_size // processes, step.config.gradient_accumulation_steps
    if step.batch_size % processes or share % accumulate:
        raise ValueError(
            f"a batch of {step.batch_size} is not spread evenly over {processes} processes in {accumulate} parts"
        )
    batch = step.inputs(share)
    size, seen = share // accumulate, []
    for number in range(min(accumulate, 2)):
        seen.append(step.part([x[number * size : (number + 1) * size] for x in batch]))
    step.finish(seen)


def tensors_of(networks: list[nn.Module]) -> Iterator[Tensor]:
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()


def moment_bytes(config: Config, trained: list[nn.Parameter]) -> int:
    """AdamW's two; of 8 bits with a scale per 256 values, tensors of less than 4,096 values whole (bitsandbytes)."""
    if config.optimizer == "adamw":
        return sum(8 * p.numel() for p in trained)
    return sum(8 * p.numel() if p.numel() < 4096 else 2 * p.numel() + p.numel() // 32 for p in trained)


def ema_bytes(step: Any) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors_of([step.model]))


@contextmanager
def like_a_card() -> Iterator[None]:
    """CUDA's autocast computes norms in float32, the CPU's does not; the rest of what matters here is the same in
    both.
    """
    group_norm, layer_norm = F.group_norm, F.layer_norm

    def in_float32(norm: Any) -> Any:
        return lambda x, *args, **kwargs: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    with patch.object(F, "group_norm", in_float32(group_norm)), patch.object(F, "layer_norm", in_float32(layer_norm)):
        yield


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load(path: Path, changes: list[str]) -> Config:
    """A config's file, or RECIPE.toml:STAGE for that of a recipe's stage."""
    recipe, _, stage = str(path).partition(".toml:")
    if stage:
        return override(load_recipe(f"{recipe}.toml").stage(stage).config, changes)
    kind: Any = UNetTrainConfig if "unet" in path.stem else AutoencoderTrainConfig
    return override(load_config(kind, path), changes)


def row(name: str, memory: Memory) -> str:
    parts = (memory.weights, memory.gradients, memory.moments, memory.ema, memory.work, memory.peak)
    return f"| {name} | {' | '.join(f'{part / GIB:.2f}' for part in parts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG.json|RECIPE.toml:STAGE|name=value")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    changes = [word for word in args.configs if "=" in word]
    paths = [Path(word) for word in args.configs if "=" not in word]
    if args.child:
        print(measured(load(paths[0], changes), args.size))
        return
    print(
        "| config | weights | gradients | moments | EMA | activations and work | peak, GiB |\n"
        "|---|---|---|---|---|---|---|"
    )
    for path in paths:
        memory = counted(load(path, changes), args.processes, args.size)
        print(row(path.name.removesuffix(".json"), memory), flush=True)
        if args.measure:
            command = [sys.executable, __file__, str(path), *changes, "--size", str(args.size), "--child"]
            given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed leaves the process at once
            child = subprocess.run(command, check=True, capture_output=True, text=True, env=given_back)
            real = int(child.stdout)
            print(f"measured {real / GIB:.2f} GiB, counted {memory.peak / GIB:.2f}: {real / memory.peak:.3f}")


if __name__ == "__main__":
    main()
