"""The networks of a build as callables: whoever builds hands them over, this room knows none.

All take pixels in [0, 1], (N, C, H, W) of any size, and answer for every picture; mask 1 = foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Saliency = Callable[[Tensor], Tensor]  # pictures -> soft masks (N, 1, H, W)
Inpainter = Callable[[Tensor, Tensor], Tensor]  # pictures, holes (N, 1, H, W) with 1 = to be painted -> pictures
Judge = Callable[[Tensor, Tensor], Tensor]  # pictures, masks -> scores (N,), 1 = surely good
MASK, INPAINTING = "mask", "inpainting"  # the judges: of (picture, mask), and of (background, mask)
HALF = 0.5


@dataclass(frozen=True)
class Models:
    """What a worker computes with."""

    saliency: Saliency
    inpaint: Inpainter
    judges: Mapping[str, Judge] = field(default_factory=dict)  # by MASK and INPAINTING; those that are there
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of the judges: the least score that is good
    device: torch.device = torch.device("cpu")  # where pictures wait for them

    def threshold(self, name: str, wanted: float | None) -> float:
        """The one asked for, or else the judge's own."""
        return self.thresholds.get(name, HALF) if wanted is None else wanted


class ModelFactory(Protocol):
    """Opens the models, once in every worker. It travels to other processes and is compared there: a frozen dataclass."""

    def __call__(self) -> Models: ...

    def __hash__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """What config.json says of the models, JSON values: another run with others is refused."""
