"""Which of several layered pictures to keep: metrics of one picture each, and an order made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..layers import Layers
from .metrics import mask_iou


def edge_contrast(mask: Tensor, picture: Tensor) -> Tensor:
    """How much stronger the picture's edges are along the edge of the mask than everywhere, in units of colour: (N,).

    sum(|grad m| |grad C|) / sum(|grad m|) - mean(|grad C|), for mask (N, 1, H, W) and picture (N, 3, H, W) in [0, 1].
    High where the mask ends at an edge that is seen, 0 where it ends anywhere, NaN without an edge. A guess: a mask
    around the wrong thing scores high too.
    """
    along, seen = _slope(mask), _slope(picture)
    total = along.sum(dim=(1, 2, 3))
    return (along * seen).sum(dim=(1, 2, 3)) / total.where(total > 0, total.new_tensor(math.nan)) - seen.mean(
        dim=(1, 2, 3)
    )


def rank_candidates(
    layers: Sequence[Layers], masks: Sequence[Tensor] | None = None, errors: Sequence[float] | None = None
) -> tuple[list[int], list[str]]:
    """Candidates of batch 1 from the best to the worst, and a line with the figures of each in that order.

    masks: second opinions (1, 1, H, W), which a mask should overlap; without them it should end at edges that are seen.
    errors: how far each is from the picture that it should make.
    """
    if masks is None:
        name, opinions = "edge contrast", [edge_contrast(x.mask, x.composite()).item() for x in layers]
    else:
        name, opinions = "mask IOU", [mask_iou(x.mask, mask).item() for x, mask in zip(layers, masks, strict=True)]
    figures = {name: opinions} if errors is None else {"recompose error": errors, name: opinions}
    order = best_first(*([] if errors is None else [errors]), [-opinion for opinion in opinions])
    lines = [f"{i + 1}: " + ", ".join(f"{name} {values[i]:.3f}" for name, values in figures.items()) for i in order]
    return order, lines


def best_first(*costs: Sequence[float]) -> list[int]:
    """Indices from best to worst: by the sum of the ranks under every cost, lower being better, then in their order.

    Ranks, so that no cost needs a weight or a unit. NaN counts as the worst.
    """
    finite = [[math.inf if math.isnan(value) else value for value in cost] for cost in costs]
    ranks = [[sum(other < value for other in cost) for value in cost] for cost in finite]
    totals = [sum(rank) for rank in zip(*ranks, strict=True)]
    return sorted(range(len(totals)), key=lambda i: totals[i])


def _slope(x: Tensor) -> Tensor:
    """The gradient's length between diagonal neighbours, mean of channels: (N, C, H, W) -> (N, 1, H - 1, W - 1)."""
    falling, rising = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return ((falling.square() + rising.square()) / 2).sqrt().mean(dim=1, keepdim=True)
