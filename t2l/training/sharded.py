"""A UNet that is sharded over the processes of a run (FSDP2): each holds a part of weights, moments and EMA.

Its state is a folder that all processes write together (torch.distributed.checkpoint), readable by any number of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..model.precision import Precision, computes_in_bf16
from ..model.unet import Conditioned


def shard(model: Conditioned, device: torch.device, precision: Precision) -> None:
    """Shard the weights over all processes, in place; a block's are together only while it computes.

    Where the step computes in bf16 the weights travel in it too, half the bytes; gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    travels = torch.bfloat16 if computes_in_bf16(device, precision) else None
    policy = MixedPrecisionPolicy(
        param_dtype=travels, reduce_dtype=torch.float32 if travels else None, cast_forward_inputs=False
    )
    unet: Any = model.unet
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks, model.text_encoder]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def gather(model: nn.Module, into: nn.Module | None) -> None:
    """Copy the weights of a sharded model into an ordinary one, in the process that has one; all must call."""
    whole = into.state_dict() if into is not None else {}
    for name, part in model.state_dict().items():
        tensor = part.full_tensor() if hasattr(part, "full_tensor") else part
        if into is not None:
            whole[name].copy_(tensor)


class ShardedOptimizer:
    """state_dict and load_state_dict of an optimiser over a sharded model, by the names of its parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self.model, self.optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(self.model, self.optimizer, state)


def save(state: dict[str, Any], folder: Path, step: int) -> None:
    """Write the state of a step under a name of its own and remove the one before; all processes must call.

    Raises OSError in all of them when one cannot write.
    """
    from torch.distributed.checkpoint import save

    partial, finished = folder / f"state-{step:07d}.partial", folder / f"state-{step:07d}"
    with _raises(OSError, str):
        save(state, checkpoint_id=partial)
    if dist.get_rank() == 0:
        shutil.rmtree(finished, ignore_errors=True)
        partial.rename(finished)
        for old in _finished(folder)[:-1]:
            shutil.rmtree(old)
    dist.barrier()


def load(template: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any] | None:
    """The last state written, or None when there is none; all processes must call.

    template: today's state, whose tensors are filled. Asked for only when needed: to have moments to fill, torch takes
    an empty optimiser step, which would count in a run that starts. Raises ValueError for a damaged state.
    """
    from torch.distributed.checkpoint import load

    found = _finished(folder)
    if not found:
        return None
    state = template()
    remedy = "remove it to start this run again, its snapshot stays usable"
    with _raises(ValueError, lambda cause: f"{found[-1]} cannot be read ({cause}); {remedy}"):
        load(state, checkpoint_id=found[-1])
    return state


def remove_unfinished(folder: Path) -> None:
    """What a kill left half written."""
    for left in folder.glob("state-*.partial"):
        shutil.rmtree(left)


@contextmanager
def _raises(kind: type[Exception], sentence: Callable[[BaseException], str]) -> Iterator[None]:
    """What a process failed with, in a sentence: torch collects it from all in an error that is no Exception."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise kind(sentence(cause)) from error


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*") if path.suffix != ".partial")
