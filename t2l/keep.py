"""One layer is kept and the other painted anew: what the UNet is told of it, and how it comes back.

A UNet that was trained for it has more input channels, as inpainting models have (Rombach et al. 2022, section 4.5):
behind the noisy latents come the kept layer's own scaled latents, where the kept foreground's mask is, and which of the
two layers is kept. All of them are 0 where nothing is kept, so that the same weights paint from nothing. The paper
names this as its future work.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Layers

Kept = Literal["foreground", "background"]
KINDS: tuple[Kept, ...] = get_args(Kept)
FLAGS = 3  # channels beside the kept layer's latents: its mask, and one for each kind
SHOWS, COVERS = 0.1, 0.9  # a mask that nowhere shows more is empty, one that nowhere shows less covers all
GRAY = 0.5  # of what is not there yet


def keep_channels(latent_channels: int) -> int:
    """Input channels that a UNet has for a kept layer, beside its latents."""
    return latent_channels + FLAGS


def layers_to_encode(layers: Layers, kept: Kept) -> Layers:
    """What the autoencoder encodes of a kept layer: the foreground before gray, or the background with nothing before.

    The other layer plays no part in it.
    """
    if kept == "foreground":
        return Layers(layers.foreground, torch.full_like(layers.background, GRAY), layers.mask)
    return Layers(layers.background, layers.background, torch.zeros_like(layers.mask))


def check_kept_mask(mask: Tensor, source: str, invert: str = "turn it round") -> None:
    """Raises ValueError for a kept foreground's mask (N, 1, H, W) that shows nothing, or hides all that lies behind.

    source: what it came from, which begins the sentence. invert: how a mask is turned round.
    """
    if float(mask.amax(dim=(1, 2, 3)).min()) <= SHOWS:
        raise ValueError(
            f"{source} shows nothing of the foreground, so that there is nothing to keep: a mask must be 1 (white) "
            f"where the foreground shows; {invert} if it is the other way"
        )
    if float(mask.amin(dim=(1, 2, 3)).max()) >= COVERS:
        raise ValueError(
            f"{source} covers all of the picture, so that no background would be seen: a mask must be 0 (black) where "
            "the background shows; give a cut-out with transparency, or a mask"
        )


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask (N, 1, H, W) as the share of each latent's pixels, (N, 1, h, w)."""
    return F.adaptive_avg_pool2d(mask, grid)


def keep_condition(latents: Tensor, mask: Tensor, kept: Kept) -> Tensor:
    """What the UNet sees of a kept layer: (N, C + FLAGS, h, w).

    latents: (N, C, h, w), scaled, of `layers_to_encode`. mask: (N, 1, h, w), of a kept foreground; of a kept
    background it says nothing.
    """
    flags = latents.new_zeros(len(latents), len(KINDS), *latents.shape[-2:])
    flags[:, KINDS.index(kept)] = 1
    shown = mask if kept == "foreground" else torch.zeros_like(mask)
    return torch.cat([latents, shown, flags], dim=1)


def put_back(painted: Layers, layers: Layers, kept: Kept) -> Layers:
    """The composite rule: painted layers with the kept one, and with a foreground its mask, in their place, untouched.

    painted, layers: of one size; a kept layer of one picture goes to all.
    """
    own = Layers.from_stacked(layers.stacked.expand_as(painted.stacked))
    if kept == "foreground":
        return Layers(own.foreground, painted.background, own.mask)
    return Layers(painted.foreground, own.background, painted.mask)
