"""Batches for the autoencoder: random pieces of layered pictures, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..layers import Layers
from .shards import Shards


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How pictures become training batches."""

    batch_size: int = 16
    crop: int = 128  # pixels, height and width of what the network sees
    crops_per_example: int = 2  # pieces taken of every picture that is read
    rescale: float = 0.4  # share of pieces cut larger and resized down to `crop`
    flat: float = 0.05  # share of flat pictures (F = B = I, m = 1/2)


class CropBatches(Dataset):
    """Item k is the batch of step k: (batch_size, 7, crop, crop), stacked layers in [0, 1]."""

    def __init__(self, shards: Shards, config: CropConfig, seed: int) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        config = self.config
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        count = -(-config.batch_size // config.crops_per_example)
        pieces = []
        for position in range(step * count, (step + 1) * count):
            stacked = self.shards[self._index(position)].layers.stacked()
            pieces += [_piece(stacked, config, generator) for _ in range(config.crops_per_example)]
        return torch.cat(pieces[: config.batch_size])

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.shards))
        if epoch not in self._orders:
            self._orders = {epoch: torch.as_tensor(self.shards.order(self.seed, epoch))}
        return int(self._orders[epoch][offset])


def crop_batches(
    shards: Shards, config: CropConfig, seed: int, start: int, stop: int, workers: int
) -> Iterator[Tensor]:
    """The batches of steps start..stop-1, read ahead by `workers` processes."""
    if len(shards) == 0:
        raise ValueError(f"{shards.directory} holds no pictures to train on")
    batches = CropBatches(shards, config, seed)
    return iter(DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=workers))


def _piece(stacked: Tensor, config: CropConfig, generator: torch.Generator) -> Tensor:
    """One (1, 7, crop, crop) piece of a (1, 7, H, W) picture, which is enlarged when it is too small."""

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    size = config.crop
    largest = min(stacked.shape[-2:])
    if largest < size:
        enlarged = [max(size, round(side * size / largest)) for side in stacked.shape[-2:]]
        stacked = F.interpolate(stacked, size=enlarged, mode="bilinear")
        largest = size
    side = size + round((largest - size) * uniform()) if uniform() < config.rescale else size
    top = int(uniform() * (stacked.shape[-2] - side + 1))
    left = int(uniform() * (stacked.shape[-1] - side + 1))
    piece = stacked[..., top : top + side, left : left + side]
    if side != size:
        piece = F.interpolate(piece, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
    if uniform() < 0.5:
        piece = piece.flip(-1)
    if uniform() < config.flat:
        piece = Layers.flat(Layers.from_stacked(piece).composite()).stacked()
    return piece
