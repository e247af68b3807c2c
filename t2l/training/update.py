"""From losses to new weights: the parts of a step, their gradients over all processes, scaling, clipping, the guard.

Whether a step was finite stays on the device, which so never waits: what must not change is changed by nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .configs import LoopConfig
from .loop import TrainingStopped
from .processes import Processes, skip_gradient_sync


class Outcome(NamedTuple):
    """What came of a step, 0-dim on the device."""

    gradient_norm: Tensor
    finite: Tensor  # bool; False: loss or gradient were not finite, and nothing has changed


class Guard:
    """Counts the steps that were skipped; five in a row mean that the run cannot go on."""

    def __init__(self, device: torch.device, limit: int = 5) -> None:
        self.limit = limit
        self._skipped = torch.zeros((), dtype=torch.long, device=device)  # over the whole run
        self._in_a_row = torch.zeros_like(self._skipped)
        self._longest = torch.zeros_like(self._skipped)

    def note(self, finite: Tensor, excused: Tensor) -> None:
        """Count one step. excused: where it is True, a step that was not finite is none of those in a row."""
        self._skipped += ~finite
        self._in_a_row = torch.where(finite, 0, self._in_a_row + ~excused)
        self._longest = torch.maximum(self._longest, self._in_a_row)

    @property
    def skipped(self) -> int:
        """How many steps were skipped; waits for the device."""
        return int(self._skipped)

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._skipped.fill_(count)

    def check(self, done: int) -> None:
        """Raise TrainingStopped when `limit` steps in a row were skipped, at some time. done: steps so far."""
        if int(self._longest) >= self.limit:
            raise TrainingStopped(
                f"the loss or its gradient was not finite in {self.limit} steps in a row, before or at step {done}; "
                "lower lr, or look at the data"
            )


class Updater:
    """One optimiser and the network whose weights it changes.

    network: what to call in training; its gradients are those of the batch over all processes and parts. watched:
    further networks that the losses call in training mode; a skipped step changes none of their buffers either. scaler:
    keeps small gradients from vanishing in fp16; does nothing at other precisions.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: LoopConfig,
        processes: Processes,
        watched: Sequence[nn.Module] = (),
    ) -> None:
        self.network = processes.wrap(module)
        self.optimizer: Any = optimizer
        self.guard = Guard(processes.device)
        self._buffers = [buffer for network in (module, *watched) for buffer in network.buffers()]
        self._before: list[Tensor] = []  # the buffers as they were before the step
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulate = config.gradient_accumulation_steps
        self._clip = config.max_grad_norm
        self._processes = processes
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "fp16")

    def micro_batches(self, size: int) -> Iterator[slice]:
        """The parts of a batch of `size` samples, a forward and backward pass each; the last exchanges gradients."""
        self.optimizer.zero_grad()
        self._before = [buffer.clone() for buffer in self._buffers]
        length = size // self._accumulate
        for number in range(self._accumulate - 1):
            with skip_gradient_sync(self.network):
                yield slice(number * length, (number + 1) * length)
        yield slice((self._accumulate - 1) * length, size)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one part's loss, a mean over its samples."""
        self.scaler.scale(loss / self._accumulate).backward()

    def step(self, loss: Tensor, clip: bool = True, allowed: Tensor | None = None) -> Outcome:
        """Change the weights, unless loss or gradient are not finite in any process: then nothing changes.

        loss: over this process's samples, detached. allowed: 0-dim; where it is False nothing changes either.
        """
        loss = self._processes.mean(loss)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip if clip else float("inf"))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded weights
        finite, excused = torch.isfinite(loss) & torch.isfinite(norm), self._overflows(loss, norm)
        if allowed is not None:
            finite, excused = finite & allowed, excused | ~allowed
        self._change(finite)
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))  # BatchNorm's statistics have seen what was not finite
        self.guard.note(finite, excused)
        self.scaler.update()
        return Outcome(norm, finite)

    def _change(self, finite: Tensor) -> None:
        """The optimiser's step if it is finite: torch's fused ones look themselves, for others the device is asked."""
        is_sharded = any(hasattr(p, "full_tensor") for p in self._parameters)
        if self.optimizer.param_groups[0].get("fused") and not is_sharded:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()

    def _overflows(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a smaller scale will cure it: how fp16 training finds its scale."""
        scale = self.scaler.scale(torch.ones_like(loss))
        return (scale > 1) & torch.isfinite(loss) & ~torch.isfinite(norm)

    def stateful(self, prefix: str = "") -> dict[str, Any]:
        """What a state keeps of it, by name."""
        parts: dict[str, Any] = {f"{prefix}optimizer": self.optimizer}
        return parts | ({f"{prefix}scaler": self.scaler} if self.scaler.is_enabled() else {})
