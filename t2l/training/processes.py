"""The processes of a run, one device each: whose share of a batch is whose, and what they agree on.

`accelerate launch` and torchrun start several, on one machine or on many; without them there is one. The batch of a step
is the same whatever their number: each takes its slice of it, and gradients, losses and BatchNorm are those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from ..model.device import pick_device
from .precision import at_least_float32

Network = TypeVar("Network", bound=nn.Module)
PATIENCE = timedelta(hours=2)  # how long the others wait while the first one writes and draws


class Processes:
    """This process among those of the run. Raises ImportError when accelerate is missing, ValueError for a device there is not.

    device: as `pick_device` takes it; of several processes each has a card of its own, so that a number is refused.
    patience: how long one waits for the others before it takes them for dead.
    """

    def __init__(self, device: str = "auto", patience: timedelta = PATIENCE) -> None:
        from accelerate import PartialState

        picked = pick_device(device)
        state = PartialState(cpu=picked.type == "cpu", timeout=patience)
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        if self.count > 1 and picked.index is not None:
            raise ValueError(
                f"{self.count} processes take a card each, so the device is cuda without a number, got {device}"
            )
        self.device: torch.device = picked if self.count == 1 or picked.type == "cpu" else state.device

    @property
    def is_main(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    def share(self, batch_size: int, accumulate: int) -> range:
        """Which samples of a batch are this process's. Raises ValueError when it cannot be divided evenly."""
        if batch_size % (self.count * accumulate):
            raise ValueError(
                f"batch_size must be a multiple of processes x accumulate, got {batch_size} for {self.count} x "
                f"{accumulate}; it is the batch of one optimiser step over all processes: take {_multiples(batch_size, self.count * accumulate)}"
            )
        size = batch_size // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes, without a gradient."""
        if self.count == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of every value over all processes, which must have the same names."""
        if self.count == 1:
            return values
        means = self.mean(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
        return dict(zip(values, means.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is True in one of the processes; all must ask."""
        return flag if self.count == 1 else bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in training: its gradients become means over all processes (DistributedDataParallel).

        One that is spread over them (FSDP2) sees to that itself.
        """
        if self.count == 1 or hasattr(module, "set_requires_gradient_sync"):
            return module
        devices = None if self.device.type == "cpu" else [self.device]
        wrapped = nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        wrapped.broadcast_buffers = (
            False  # BatchNorm's are the same everywhere; the option's name changes between versions
        )
        return wrapped

    def synchronized(self, module: Network) -> Network:
        """The module with BatchNorm2d over all processes, in place, when there are several."""
        if self.count > 1:
            for parent in list(module.modules()):
                for name, child in parent.named_children():
                    if type(child) is nn.BatchNorm2d:
                        setattr(parent, name, GlobalBatchNorm2d.of(child))
        return module


def _multiples(near: int, of: int) -> str:
    """The multiples on both sides of a number that is none."""
    below = near // of * of
    return f"{below} or {below + of}" if below else str(of)


@contextmanager
def without_sync(module: nn.Module) -> Iterator[None]:
    """Gradients of what runs inside stay in this process, for all but the last part of a step."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
        return
    switch = getattr(module, "set_requires_gradient_sync", lambda enabled: None)  # FSDP2's
    switch(False)
    yield
    switch(True)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batch over all processes, on any device.

    torch's SyncBatchNorm needs a GPU. Statistics are float32 at least, the result has the input's dtype, as in BatchNorm2d.
    """

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> GlobalBatchNorm2d:
        """With the very parameters and buffers of an ordinary one."""
        assert module.affine and module.track_running_stats and module.momentum, (
            "the project's BatchNorms have all three"
        )
        ours = cls(module.num_features, eps=module.eps, momentum=module.momentum).train(module.training)
        ours.weight, ours.bias = module.weight, module.bias
        ours.running_mean, ours.running_var = module.running_mean, module.running_var
        ours.num_batches_tracked = module.num_batches_tracked
        return ours

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        mean = _global_mean(x.mean(dim=(0, 2, 3)))
        centred = x - mean.view(1, -1, 1, 1)
        variance = _global_mean(centred.square().mean(dim=(0, 2, 3)))
        self._track(mean.detach(), variance.detach(), count=dist.get_world_size() * x.numel() // x.shape[1])
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _global_mean(x: Tensor) -> Tensor:
    """The mean over all processes; so is its gradient, because what is minimised is the mean of their losses."""
    return all_reduce(x.contiguous()) / dist.get_world_size()
