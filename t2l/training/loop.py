"""What both training loops share: precision, learning rate, EMA, and what happens when a step goes wrong.

A step's randomness is a function of (seed, step) alone, and so is its data. A run that was killed therefore goes on
from its last state exactly as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..layers import Layers
from .precision import Precision, precision_context


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What both training loops are told."""

    steps: int
    lr: float
    warmup: int = 100
    betas: tuple[float, ...] = (0.9, 0.99)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # 8 bits: moments in a quarter of the memory (bitsandbytes)
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1  # parts that a process's share of the batch is computed in, to need less memory
    checkpointing: bool = False  # compute activations again in the backward pass: a third slower, far less memory
    compile: bool = False  # torch.compile: pays after some thousand steps
    precision: Precision = "auto"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    keep_every: int = 0  # steps between snapshots that are kept under a name of their own; 0 = only the last is
    tensorboard: bool = False  # write what is logged for TensorBoard too

    def __post_init__(self) -> None:
        if wrong := [name for name in ("steps", "accumulate", "log_every", "save_every") if getattr(self, name) < 1]:
            raise ValueError(
                f"{type(self).__name__}: {', '.join(wrong)} must be at least 1, got {[getattr(self, n) for n in wrong]}"
            )


class TrainingStopped(RuntimeError):
    """The run cannot go on; its folder holds the last good state. The message says why."""


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attention_context(device: torch.device) -> AbstractContextManager:
    """Plain attention on the CPU, where flash attention's backward takes a fifth of a small UNet's step (LOG.md)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def latent_encoder(autoencoder: Any, device: torch.device) -> Callable[[Layers], tuple[Tensor, Tensor]]:
    """Layers -> mean and std of an autoencoder's posterior, as the latent cache takes it; moves the network to the device."""
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(layers: Layers) -> tuple[Tensor, Tensor]:
        with precision_context(device, "auto"):  # bf16 changes the latents by 0.5 % of their spread
            posterior = autoencoder.encode(layers.to(device))
        return posterior.mean, posterior.std

    return encode


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all randomness in one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Linear warm-up, then a cosine from `peak` down to `floor` * peak at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, ...], eps: float = 1e-8
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that are trained (3 times faster than foreach on CPU; LOG.md)."""
    trained = [p for p in parameters if p.requires_grad]
    first, second = betas
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=(first, second), eps=eps, fused=True)


def make_8bit_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, ...], eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits (Dettmers et al. 2022). Raises ImportError when bitsandbytes is missing."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            'optimizer "adamw8bit" needs the package bitsandbytes: pip install bitsandbytes, or take "adamw"'
        ) from error
    trained = [p for p in parameters if p.requires_grad]
    return AdamW8bit(trained, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- d ema + (1 - d) model, with d = min(decay, (1 + step) / (10 + step)); buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(_own(ema.parameters()), _own(model.parameters()), 1 - decay)
    for averaged, current in zip(ema.buffers(), model.buffers(), strict=True):
        averaged.copy_(current)


def _own(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The weights, or this process's part of weights that are spread over several (DTensor)."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in parameters]


class Guard:
    """Skips steps whose loss or gradient is not finite, and stops the run at the fifth in a row."""

    def __init__(self, limit: int = 5, skipped: int = 0) -> None:
        self.limit = limit
        self.skipped = skipped  # over the whole run
        self._in_a_row = 0

    def allows(self, step: int, loss: Tensor, gradient_norm: Tensor) -> bool:
        """True when the optimiser may step. Raises TrainingStopped at `limit` refusals in a row."""
        if torch.isfinite(loss) and torch.isfinite(gradient_norm):
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.limit:
            raise TrainingStopped(
                f"the loss or its gradient was not finite in {self.limit} steps in a row, the last at step {step} "
                f"(loss {float(loss)}, gradient norm {float(gradient_norm)}); lower lr, or look at the data"
            )
        return False


class Meter:
    """Means of logged values, steps per second, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time to get each is counted as waiting."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def flush(self) -> dict[str, float]:
        """Means since the last flush, with `steps_per_second` and `data_wait` (a fraction)."""
        elapsed = time.perf_counter() - self._since
        means = {name: total / self._count for name, total in self._sums.items()}
        rates = {"steps_per_second": self._count / elapsed, "data_wait": self._waited / elapsed}
        self.__init__()  # type: ignore[misc]
        return means | rates
