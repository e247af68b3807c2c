"""The networks of a build as callables: whoever builds hands them over, this room knows none.

All take pixels in [0, 1], (N, C, H, W) of any size, and answer for every picture; mask 1 = foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Saliency = Callable[[Tensor], Tensor]  # pictures -> soft masks (N, 1, H, W)
Inpainter = Callable[[Tensor, Tensor], Tensor]  # pictures, holes (N, 1, H, W) with 1 = to be painted -> pictures
Judge = Callable[..., Tensor]  # -> scores (N,), 1 = surely good
INPAINTING, MASK = "inpainting", "mask"  # the judges: of (background,), and of (picture, mask)


@dataclass(frozen=True)
class Models:
    """What a worker computes with."""

    saliency: Saliency
    inpaint: Inpainter
    judges: Mapping[str, Judge] = field(default_factory=dict)  # by MASK and INPAINTING; those that are there


class ModelFactory(Protocol):
    """Opens the models, once in every worker. It travels to other processes and is compared there: a frozen dataclass."""

    def __call__(self) -> Models: ...

    def identity(self) -> dict[str, Any]:
        """What config.json says of the models, JSON values: another run with others is refused."""
