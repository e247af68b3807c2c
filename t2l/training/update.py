"""From losses to new weights: the parts of a step, their gradients over all processes, scaling, clipping, the guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .loop import Guard, LoopConfig
from .processes import Processes, without_sync


class Updater:
    """One optimiser and the network whose weights it changes.

    network: what to call in training; its gradients are those of the batch over all processes and parts.
    watched: further networks that the losses call in training mode; a skipped step changes none of their buffers either.
    scaler: keeps small gradients from vanishing in fp16; does nothing at other precisions.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: LoopConfig,
        processes: Processes,
        watched: Sequence[nn.Module] = (),
    ) -> None:
        self.network = processes.wrap(torch.compile(module) if config.compile else module)  # type: ignore[arg-type]
        self.optimizer = optimizer
        self.guard = Guard()
        self._buffers = [buffer for network in (module, *watched) for buffer in network.buffers()]
        self._before: list[Tensor] = []  # the buffers as they were before the step
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulate = config.accumulate
        self._clip = config.gradient_clip
        self._processes = processes
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "fp16")

    def parts(self, size: int) -> Iterator[slice]:
        """The parts of a batch of `size` samples, one forward and backward pass each; gradients are exchanged in the last."""
        self.optimizer.zero_grad()
        self._before = [buffer.clone() for buffer in self._buffers]
        length = size // self._accumulate
        for number in range(self._accumulate - 1):
            with without_sync(self.network):
                yield slice(number * length, (number + 1) * length)
        yield slice((self._accumulate - 1) * length, size)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one part's loss, a mean over its samples."""
        self.scaler.scale(loss / self._accumulate).backward()

    def step(self, step: int, loss: Tensor, clip: bool = True) -> Tensor | None:
        """Change the weights, unless loss or gradient are not finite in any process: then nothing changes. Returns the
        gradient's norm.

        loss: of this process's share, detached. Raises TrainingStopped as the guard does. None: the step was skipped.
        """
        loss = self._processes.mean(loss)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip if clip else float("inf"))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of weights that are spread over processes
        if self._too_large_for_fp16(loss, norm):
            self.guard.skipped += 1
            allowed = False
        else:
            allowed = self.guard.allows(step, loss, norm)
        if allowed:
            self.scaler.step(self.optimizer)
        else:
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)  # BatchNorm's statistics have seen what was not finite
        self.scaler.update()
        return norm if allowed else None

    def _too_large_for_fp16(self, loss: Tensor, norm: Tensor) -> bool:
        """An overflow that a smaller scale will cure: how fp16 training finds its scale."""
        scaling = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        return scaling and bool(torch.isfinite(loss)) and not bool(torch.isfinite(norm))

    def stateful(self, prefix: str = "") -> dict[str, Any]:
        """What a state keeps of it, by name."""
        parts: dict[str, Any] = {f"{prefix}optimizer": self.optimizer}
        return parts | ({f"{prefix}scaler": self.scaler} if self.scaler.is_enabled() else {})
