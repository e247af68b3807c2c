"""Batches shared by the processes of `accelerate launch` or torchrun: each takes some, all get every result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

Item = TypeVar("Item")
PATIENCE = timedelta(days=14)  # for the slowest; when one dies the launcher ends them all. Milliseconds fit an int32


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the evaluation. With one there is nothing to wait for."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its own machine

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and speaks."""
        return self.rank == 0

    def local_part(self, batches: Sequence[Item]) -> Sequence[Item]:
        """This process's batches: every world_size-th. What a batch holds does not depend on their number."""
        return batches[self.rank :: self.world_size]

    def gather(self, parts: Sequence[Item]) -> list[Item]:
        """All batches' results, in order, from every process's of `local_part`. Tensors must lie on the CPU."""
        if self.world_size == 1:
            return list(parts)
        found: list[Sequence[Item]] = [[]] * self.world_size
        torch.distributed.all_gather_object(found, parts)
        return [found[i % self.world_size][i // self.world_size] for i in range(sum(len(part) for part in found))]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def pick_card(self, device: torch.device) -> torch.device:
        """A card of its own for every process of a machine, unless one was named."""
        if self.world_size == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


@contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """This process among the others while they are connected; alone where no launcher started any."""
    rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world_size < 2:
        yield ProcessGroup()
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)  # results are small and lie on the CPU
    try:
        yield ProcessGroup(rank, world_size, local_rank)
    finally:
        torch.distributed.destroy_process_group()
