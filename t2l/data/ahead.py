"""What is read ahead of its use: pictures by processes, what is small by a thread. Order and values stay."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")


class _Answer(NamedTuple):
    """What a thread made: an item, an error in its place, or neither at the end."""

    item: Any = None
    error: BaseException | None = None
    is_last: bool = False


def read_ahead(batches: Iterable[Item], depth: int, pin: bool = False) -> Iterator[Item]:
    """The same items in the same order, made in a thread that is at most `depth` items ahead.

    pin: tensors, also in tuples, in page-locked memory, from which a card reads while it computes. An error comes out
    in the place of its item. The thread ends with the iterator: when that is used up, closed or forgotten.
    """
    ready: Queue[_Answer] = Queue(depth)
    stopped = threading.Event()
    card = torch.cuda.current_device() if pin else None
    thread = threading.Thread(target=_fill, args=(batches, ready, stopped, card), daemon=True)
    thread.start()
    try:
        while not (answer := ready.get()).is_last:
            if answer.error is not None:
                raise answer.error
            yield answer.item
    finally:
        stopped.set()
        while thread.is_alive():  # it may be waiting for room
            with suppress(Empty):
                ready.get(timeout=0.01)


def _fill(batches: Iterable[Any], ready: Queue[_Answer], stopped: threading.Event, card: int | None) -> None:
    try:
        if card is not None:
            torch.cuda.set_device(card)  # a new thread is on the first one
        for item in batches:
            ready.put(_Answer(item if card is None else _pinned(item)))
            if stopped.is_set():
                return
        ready.put(_Answer(is_last=True))
    except BaseException as error:  # noqa: BLE001 - it is raised where the items are used
        ready.put(_Answer(error=error))


def _pinned(item: Any) -> Any:
    """Tensors, and those in a tuple, in page-locked memory; anything else as it is."""
    if isinstance(item, Tensor):
        return item.pin_memory()
    if isinstance(item, tuple):
        parts = [_pinned(part) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item


def count_processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_in_workers(items: Dataset, numbers: Iterable[int], workers: int, pin: bool = False) -> Iterator[Any]:
    """Some items of a data set in the order of their numbers, read ahead by `workers` processes; 0 reads when asked.

    pin: as in `read_ahead`. Raises an item's ValueError or OSError. For a worker that dies see `explain_worker_death`.
    """
    sampler: Any = numbers  # torch's own type asks for a length, which nothing needs
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin, "collate_fn": _keep}
    return _raise_errors(iter(DataLoader(_OrErrors(items), batch_size=None, sampler=sampler, **options)))


def _keep(item: Any) -> Any:
    return item


class _OrErrors(Dataset):
    """Items, or why there is none: an error that leaves a worker by itself drags the worker's traceback along."""

    def __init__(self, items: Dataset) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Any:
        try:
            return self.items[number]
        except (ValueError, OSError) as error:
            return error


def _raise_errors(answers: Iterator[Any]) -> Iterator[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        yield answer


@contextmanager
def explain_worker_death() -> Iterator[None]:
    """Say in a sentence that a worker of `read_in_workers` died; torch notices by a signal, whatever is going on."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a process that reads pictures died, perhaps for want of memory ({str(error).splitlines()[0]}); "
            "run the same command again to go on from the last state, with fewer workers if it happens again"
        ) from error
