"""Colours that go on beyond the edge of a cut-out, for masks that grow, soften or are resampled.

What a cut-out hides is often black, white or an old background; whoever grows or blurs its mask sees it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNSEEN, SEEN = 0.05, 0.1  # masks up to UNSEEN have no colour of their own to keep, from SEEN on they keep theirs whole


def extend_colours(colours: Tensor, mask: Tensor) -> Tensor:
    """Colours (N, 3, H, W) extended beyond the edge: the visible ones go on where the mask (N, 1, H, W) fades out.

    From a mask of SEEN on nothing changes, and neither do pictures whose mask shows nothing.
    """
    trust = ((mask - UNSEEN) / (SEEN - UNSEEN)).clamp(0, 1)
    shows = trust.amax(dim=(1, 2, 3), keepdim=True) > 0
    return torch.where(shows, push_pull(colours, trust), colours)


def push_pull(colours: Tensor, trust: Tensor) -> Tensor:
    """Fill (N, C, H, W) where trust (N, 1, H, W) is below 1 from a picture of half the size, filled in the same way.

    The pull-push pyramid of Gortler et al. 1996, "The Lumigraph", section 3.4. Where trust is 1 nothing changes.
    """
    if max(trust.shape[-2:]) <= 1 or bool((trust == 1).all()):
        return colours
    size = [-(-n // 2) for n in trust.shape[-2:]]
    weighted, weight = (F.interpolate(x, size=size, mode="area") for x in (colours * trust, trust))
    coarse = push_pull(weighted / weight.clamp(min=1e-6), (weight * 4).clamp(max=1))
    filled = F.interpolate(coarse, size=trust.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(filled, colours, trust)
