"""The processes of a run, one device each: which samples of a batch are whose, and what they agree on.

`accelerate launch` and torchrun start several, on one machine or on many; without them there is one. A step's batch is
the same whatever their number: each takes a slice; gradients, losses and BatchNorm are the whole's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.batchnorm import make_batchnorm_global
from ..model.device import pick_device

PATIENCE = timedelta(hours=2)  # how long the others wait while the first one writes and draws


class Processes:
    """This process among those of the run. Raises ImportError without accelerate, ValueError for a device there is not.

    device: as `pick_device` takes it; of several processes each has a card of its own, so that a number is refused.
    patience: how long one waits for the others before it takes them for dead.
    """

    def __init__(self, device: str = "auto", patience: timedelta = PATIENCE) -> None:
        from accelerate import PartialState

        picked = pick_device(device)
        state = PartialState(cpu=picked.type == "cpu", timeout=patience)
        self.rank: int = state.process_index
        self.world_size: int = state.num_processes
        if self.world_size > 1 and picked.index is not None:
            raise ValueError(
                f"{self.world_size} processes take a card each, so the device is cuda without a number, got {device}"
            )
        self.device: torch.device = picked if self.world_size == 1 or picked.type == "cpu" else state.device

    @property
    def is_main(self) -> bool:
        """True for the one process that writes."""
        return self.rank == 0

    def local_indices(self, batch_size: int, accumulate: int) -> range:
        """Which samples of a batch are this process's. Raises ValueError when it cannot be divided evenly."""
        if batch_size % (multiple := self.world_size * accumulate):
            below = batch_size // multiple * multiple
            raise ValueError(
                f"batch_size must be a multiple of processes x gradient_accumulation_steps, got {batch_size} for "
                f"{self.world_size} x {accumulate}; it is the batch of one optimiser step over all processes: take "
                f"{f'{below} or ' if below else ''}{below + multiple}"
            )
        size = batch_size // self.world_size
        return range(self.rank * size, (self.rank + 1) * size)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes, without a gradient."""
        if self.world_size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of every value over all processes, which must have the same names."""
        if self.world_size == 1:
            return values
        means = self.mean(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
        return dict(zip(values, means.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is True in one of the processes; all must ask."""
        return flag if self.world_size == 1 else bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in training: its gradients become means over all processes (DistributedDataParallel).

        One that is spread over them (FSDP2) sees to that itself.
        """
        if self.world_size == 1 or hasattr(module, "set_requires_gradient_sync"):
            return module
        devices = None if self.device.type == "cpu" else [self.device]
        wrapped = nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        wrapped.broadcast_buffers = False  # BatchNorm's are the same everywhere; the option's name changes
        return wrapped

    def synchronize_batchnorm(self, module: nn.Module) -> None:
        """Let BatchNorm2d be over all processes, in place, when there are several."""
        if self.world_size > 1:
            make_batchnorm_global(module)


def leave_processes() -> None:
    """Part from the others at the end of a command: a process that is connected still may be aborted when it exits."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def skip_gradient_sync(module: nn.Module) -> Iterator[None]:
    """Gradients of what runs inside stay in this process, for all but the last part of a step."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
        return
    switch = getattr(module, "set_requires_gradient_sync", lambda enabled: None)  # FSDP2's
    switch(False)
    yield
    switch(True)
