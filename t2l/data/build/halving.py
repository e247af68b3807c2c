"""A model and a batch that it cannot take: halves, down to the one picture that is at fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ...io.picture_file import BROKEN

IN_A_ROW = 32  # pictures that fail one after another: then it is not the pictures
Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


class Halving:
    """compute(batch) -> its answers; for a picture that fails also alone, a reason in words.

    Raises RuntimeError when IN_A_ROW pictures fail one after another: a card that was lost must not empty a data set.
    """

    def __init__(self) -> None:
        self.failed = 0

    def __call__(
        self, compute: Callable[[Sequence[Sample]], Sequence[Answer]], batch: Sequence[Sample]
    ) -> list[Answer | str]:
        try:
            answers: list[Answer | str] = [*compute(batch)]
            self.failed = 0
            return answers
        except BROKEN as error:
            reason = _reason(error)
        _free_memory()  # out of the except: the traceback holds what did not fit
        if len(batch) > 1:
            half = len(batch) // 2
            return self(compute, batch[:half]) + self(compute, batch[half:])
        self.failed += 1
        if self.failed == IN_A_ROW:
            raise RuntimeError(
                f"{IN_A_ROW} pictures in a row failed, the last one: {reason}; the shard is not written, "
                "run the same command again when the cause is gone"
            )
        return [reason]


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in text:
        return "needs more memory than there is, also alone"
    return f"failed: {text}"


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
