"""The pieces of a step: learning rate, optimiser, EMA, means of what is logged.

A step's randomness is a function of (seed, step) alone, and so is its data. A run that was killed therefore goes on
from its last state exactly as if it had not been. Nothing here reads a number from the device but `Meter.flush`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.precision import at_least_float32
from .configs import LoopConfig


class TrainingStopped(RuntimeError):
    """The run cannot go on; its folder holds the last good state. The message says why."""


def attention_context(device: torch.device) -> AbstractContextManager:
    """Plain attention on the CPU, where flash attention's backward takes a fifth of a small UNet's step (LOG.md)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


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
    parameters: Iterable[nn.Parameter],
    config: LoopConfig,
    weight_decay: float | None = None,
    betas: tuple[float, ...] | None = None,
) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained: fused (3 times faster than foreach on CPU; LOG.md), or of 8 bits.

    weight_decay, betas: in place of the config's. Raises ImportError without bitsandbytes (Dettmers et al. 2022).
    """
    trained = [p for p in parameters if p.requires_grad]
    first, second = config.betas if betas is None else betas
    decay = config.weight_decay if weight_decay is None else weight_decay
    options: dict[str, Any] = {"weight_decay": decay, "betas": (first, second), "eps": config.adam_eps}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=config.lr, fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            'optimizer "adamw8bit" needs the package bitsandbytes: pip install bitsandbytes, or take "adamw"'
        ) from error
    return AdamW8bit(trained, lr=config.lr, **options)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int, finite: Tensor) -> None:
    """ema <- d ema + (1 - d) model, with d = min(decay, (1 + step) / (10 + step)), running statistics as weights.

    The statistics of BatchNorm belong to the weights that made them, so they are averaged over the same steps; counters
    are copied. finite: 0-dim; where it is False nothing changes.
    """
    averaged, current = _local(ema.parameters()), _local(model.parameters())
    weight = (1 - min(decay, (1 + step) / (10 + step))) * finite.to(averaged[0].dtype)
    torch._foreach_lerp_(averaged, current, [weight] * len(averaged))
    for kept, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(buffer, weight.to(kept))
        else:
            kept.copy_(buffer)


def _local(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The weights, or this process's part of sharded ones (DTensor)."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in parameters]


class Meter:
    """Means of logged values over the steps that counted, steps per second, and the share of time waiting for data."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counted: Tensor | None = None
        self._steps = 0
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

    def add(self, values: Mapping[str, Tensor], finite: Tensor) -> None:
        """One step's values, 0-dim on their device. finite: 0-dim; a step that was skipped has no part in the means."""
        self._steps += 1
        self._counted = finite.long() if self._counted is None else self._counted + finite
        for name, value in values.items():
            value = torch.where(finite, at_least_float32(value), 0)
            self._sums[name] = value if name not in self._sums else self._sums[name] + value

    def flush(self) -> dict[str, float]:
        """Means since the last flush, with `steps_per_second` and `data_wait` (a fraction); waits for the device."""
        counted = 0 if self._counted is None else int(self._counted)
        means = {name: float(total) / counted for name, total in self._sums.items()} if counted else {}
        elapsed = time.perf_counter() - self._since
        rates = {"steps_per_second": self._steps / elapsed, "data_wait": self._waited / elapsed}
        self.__init__()  # type: ignore[misc]
        return means | rates
