"""The one value everything passes around: a picture made of two layers and the mask that joins them.

Four words for four things, everywhere in t2l:
- pixels: floats in [0, 1], NCHW, inside `Layers`. Colours are straight, never premultiplied; mask 1 = foreground shows.
- latents: the autoencoder's output; what ComfyUI's LATENT carries.
- scaled latents: latents * latent_scale, unit variance; what the UNet sees and its loss is taken on.
- conditioning: the text encoder's tokens x width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, eq=False, init=False)
class Layers:
    """A foreground over a background, and the mask that joins them: one tensor, of which the three are views.

    All values are floats in [0, 1]. Colours are straight, not premultiplied: the foreground has a
    colour also where the mask is 0. Raises ValueError when the three do not fit together.
    """

    foreground: Tensor  # (N, 3, H, W), RGB
    background: Tensor  # (N, 3, H, W), RGB
    mask: Tensor  # (N, 1, H, W), 1 = foreground
    stacked: Tensor = field(init=False, repr=False)  # (N, 7, H, W): the three along the channels, the paper's order

    def __init__(self, foreground: Tensor, background: Tensor, mask: Tensor) -> None:
        shapes = [tuple(x.shape) for x in (foreground, background, mask)]
        fits = len(shapes[0]) == 4 and shapes[0][1] == 3
        if not fits or shapes[1] != shapes[0] or shapes[2] != (shapes[0][0], 1, *shapes[0][2:]):
            raise ValueError(
                "a layered picture needs foreground (N, 3, H, W), background (N, 3, H, W) and mask (N, 1, H, W) "
                f"of one size, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        self._take(torch.cat([foreground, background, mask], dim=1))

    def _take(self, stacked: Tensor) -> None:
        parts = zip(("foreground", "background", "mask"), stacked.split([3, 3, 1], dim=1), strict=True)
        for name, value in [*parts, ("stacked", stacked)]:
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Layers.from_stacked, (self.stacked,)

    def composite(self) -> Tensor:
        """The image seen when the layers are stacked, (N, 3, H, W).

        C = m F + (1 - m) B, the paper's definition of a composed image (Zhang et al. 2023, arXiv 2307.09781).
        """
        return torch.lerp(self.background, self.foreground, self.mask)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.mask.shape[-2], self.mask.shape[-1]

    def __len__(self) -> int:
        return len(self.stacked)

    def __getitem__(self, index: slice) -> Layers:
        return Layers.from_stacked(self.stacked[index])

    def to(self, *args: Any, **kwargs: Any) -> Layers:
        """The same layers on another device or in another dtype; takes what Tensor.to takes."""
        return Layers.from_stacked(self.stacked.to(*args, **kwargs))

    @classmethod
    def from_stacked(cls, stacked: Tensor) -> Layers:
        """Layers of a tensor (N, 7, H, W) in the paper's order, which is not copied."""
        layers = cls.__new__(cls)
        layers._take(stacked)
        return layers

    @classmethod
    def flat(cls, image: Tensor) -> Layers:
        """An ordinary picture (N, 3, H, W) as layers: F = B = I, m = 1/2, so that it composes to itself."""
        return cls(image, image, torch.full_like(image[:, :1], 0.5))

    @classmethod
    def cat(cls, parts: Sequence[Layers]) -> Layers:
        """Several layered pictures as one batch. Raises ValueError when their sizes differ."""
        if len(sizes := {part.size for part in parts}) > 1:
            shown = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:2])
            raise ValueError(f"pictures of one size are needed here, got {shown}")
        return cls.from_stacked(torch.cat([part.stacked for part in parts]))


# Processes and compilers look for tensors in what a network takes and returns: layers are one.
pytree.register_pytree_node(
    Layers, lambda layers: ([layers.stacked], None), lambda parts, _: Layers.from_stacked(*parts)
)
