"""Batches for the autoencoder: random pieces of layered pictures, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..draws import sample_generator
from ..layers import Layers
from .ahead import read_in_workers
from .example import Pictures, stacked_bytes
from .orders import shuffle_epochs
from .several import SeveralShards
from .shards import Shards

FLAT_MASK = 128  # the 8 bits that the mask of a flat picture, 1/2, is rounded to


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How pictures become training batches."""

    batch_size: int = 16
    crop: int = 128  # pixels, height and width of what the network sees
    crops_per_example: int = 2  # pieces taken of every picture that is read
    rescale: float = 0.4  # share of pieces cut larger and resized down to `crop`
    flat: float = 0.05  # share of flat pictures (F = B = I, m = 1/2)


class CropBatches(Dataset):
    """Item k is the batch of step k, or one process's part of it: (n, 7, crop, crop), stacked layers in 8 bits.

    Pieces that are cut out as they are stay exact, what is resized or made flat is rounded once. local_indices: which
    pieces of the batch; only their pictures are read, and every piece has a generator of its own.
    """

    def __init__(
        self, shards: Shards | SeveralShards, config: CropConfig, seed: int, local_indices: Sequence[int] | None = None
    ) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self.local_indices = range(config.batch_size) if local_indices is None else local_indices

    def __getitem__(self, step: int) -> Tensor:
        config = self.config
        of_step = -(-config.batch_size // config.crops_per_example)  # pictures
        order = shuffle_epochs(np.arange(step * of_step, (step + 1) * of_step), len(self.shards), self.seed)
        pieces = []
        for picture, numbers in groupby(self.local_indices, lambda number: number // config.crops_per_example):
            pictures = self.shards.pictures(int(order[picture]))
            for number in numbers:
                generator = sample_generator(self.seed, step * config.batch_size + number, "crop")
                pieces.append(_piece(pictures, config, generator))
        return torch.cat(pieces)


def crop_batches(
    shards: Shards | SeveralShards,
    config: CropConfig,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    local_indices: Sequence[int] | None = None,
    pin: bool = False,
) -> Iterator[Tensor]:
    """The batches of steps start..stop-1, or the local part of each, read ahead by `workers` processes.

    pin: as `read_in_workers` takes it, which also says what it raises. `pixels_from_bytes` makes floats of a batch.
    """
    return read_in_workers(CropBatches(shards, config, seed, local_indices), range(start, stop), workers, pin)


def pixels_from_bytes(batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of CropBatches, (N, 7, H, W) uint8, as floats in [0, 1], there: x / 255, and 1/2 for a flat mask."""
    is_flat = (batch[:, 6:] == FLAT_MASK).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    pixels = batch.to(dtype) / 255
    pixels[:, 6:].masked_fill_(is_flat, 0.5)
    return pixels


def _piece(pictures: Pictures, config: CropConfig, generator: torch.Generator) -> Tensor:
    """One (1, 7, crop, crop) piece in 8 bits of a picture, which is enlarged when it is too small."""

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    size = config.crop
    width, height = pictures[0].size
    whole = None
    if (largest := min(height, width)) < size:
        height, width = (max(size, round(side * size / largest)) for side in (height, width))
        whole = F.interpolate(stacked_bytes(pictures).float(), size=(height, width), mode="bilinear")
        largest = size
    side = size + round((largest - size) * uniform()) if uniform() < config.rescale else size
    top = int(uniform() * (height - side + 1))
    left = int(uniform() * (width - side + 1))
    if whole is None:
        piece = stacked_bytes(pictures, (left, top, left + side, top + side))
    else:
        piece = whole[..., top : top + side, left : left + side]
    if side != size:
        piece = F.interpolate(piece.float(), size=(size, size), mode="bilinear", antialias=True).clamp(0, 255)
    if uniform() < 0.5:
        piece = piece.flip(-1)
    if uniform() < config.flat:
        piece = Layers.flat(Layers.from_stacked(piece.float() / 255).composite()).stacked * 255
    return piece if piece.dtype == torch.uint8 else piece.round().to(torch.uint8)
