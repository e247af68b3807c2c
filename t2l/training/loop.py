"""What both training loops share: precision, learning rate, EMA, and what happens when a step goes wrong.

A step's randomness is a function of (seed, step) alone, and so is its data. A run that was killed therefore goes on
from its last state exactly as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import autocast
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["auto", "bf16", "fp32"]


class TrainingStopped(RuntimeError):
    """The run cannot go on; its folder holds the last good state. The message says why."""


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (CPU: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def precision_context(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast to bf16 when asked for, or by "auto" where the device is fast at it."""
    enabled = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return autocast(device.type, torch.bfloat16, enabled=enabled)


def attention_context(device: torch.device) -> AbstractContextManager:
    """Plain attention on the CPU, where flash attention's backward takes a fifth of a small UNet's step (LOG.md)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


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
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, ...]
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that are trained (3 times faster than foreach on CPU; LOG.md)."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), fused=True)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- d ema + (1 - d) model, with d = min(decay, (1 + step) / (10 + step)); buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for averaged, current in zip(ema.buffers(), model.buffers(), strict=True):
        averaged.copy_(current)


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

    def add(self, values: dict[str, Tensor | float]) -> None:
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
