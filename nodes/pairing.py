"""Lists beside batches: ComfyUI runs a node once for each entry of a list, and would give a whole batch to every run.

Three pictures in a list and three in a batch are three pairs, not nine. What pairs in no one way is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from .inputs import until_cancelled


def paired(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Makes an `execute` of single values one of lists, for a node with is_input_list whose outputs are all lists."""

    @wraps(execute)
    def execute_lists(cls: Any, **inputs: list[Any]) -> io.NodeOutput:
        runs = [execute(cls, **run).args for run in until_cancelled(runs_of(inputs))]  # as core before runs of its own
        return io.NodeOutput(*(_joined(values) for values in zip(*runs, strict=True)))

    return execute_lists


def runs_of(inputs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """What each run of a node gets: entries of lists as long as the longest, single values, and batches taken apart.

    Raises ValueError for lists of two lengths, and for a batch with neither one picture nor one for each of the list.
    """
    count = max(len(values) for values in inputs.values())
    if wrong := {name: len(values) for name, values in inputs.items() if len(values) not in (1, count)}:
        raise ValueError(f"lists must hold {count} entries, as the longest does, or one, got {wrong}")
    if count == 1:
        return [{name: values[0] for name, values in inputs.items()}]
    lists = {name: values for name, values in inputs.items() if len(values) == count}
    frames = [max(_frames(values[i]) for values in lists.values()) for i in range(count)]
    for name in inputs.keys() - lists.keys():
        lists[name] = _shared(inputs[name][0], frames, name)
    return [{name: lists[name][i] for name in inputs} for i in range(count)]


def _shared(value: Any, frames: list[int], source: str) -> list[Any]:
    """A single value for runs of so many pictures each."""
    number = _frames(value)
    if number == 1 or all(count == number for count in frames):
        return [value] * len(frames)
    if number != sum(frames):
        raise ValueError(
            f"{source} must hold one picture, or one for each of the {sum(frames)} of the list beside it, got a batch "
            f"of {number}; make them equally many"
        )
    return list(value.split(frames))


def _frames(value: Any) -> int:
    """Pictures in an IMAGE or a MASK; 1 for everything else."""
    if not isinstance(value, Tensor) or value.is_nested or value.ndim not in (3, 4):
        return 1
    return len(value) if value.ndim == 4 or value.shape[-1] not in (1, 3, 4) else 1


def _joined(values: tuple[Any, ...]) -> list[Any]:
    """One output of all runs; an output that is a list already is made longer."""
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]
