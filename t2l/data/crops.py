"""Batches for the autoencoder: random pieces of layered pictures, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..layers import Layers
from .draws import sample_generator
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
    """Item k is the batch of step k, or a process's share of it: (share, 7, crop, crop), stacked layers in [0, 1].

    share: which pieces of the batch; only their pictures are read, and every piece has a generator of its own.
    """

    def __init__(self, shards: Shards, config: CropConfig, seed: int, share: Sequence[int] | None = None) -> None:
        self.shards = shards
        self.config = config
        self.seed = seed
        self.share = range(config.batch_size) if share is None else share
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        config = self.config
        pictures = -(-config.batch_size // config.crops_per_example)  # of one step
        pieces = []
        for picture, numbers in groupby(self.share, lambda number: number // config.crops_per_example):
            stacked = self.shards[self._index(step * pictures + picture)].layers.stacked()
            for number in numbers:
                generator = sample_generator(self.seed, step * config.batch_size + number, "crop")
                pieces.append(_piece(stacked, config, generator))
        return torch.cat(pieces)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.shards))
        if epoch not in self._orders:
            self._orders = {epoch: torch.as_tensor(self.shards.order(self.seed, epoch))}
        return int(self._orders[epoch][offset])


def crop_batches(
    shards: Shards,
    config: CropConfig,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    share: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The batches of steps start..stop-1, or a share of each, read ahead by `workers` processes.

    Raises ValueError for unreadable pictures. For a worker that dies see `worker_deaths_told`.
    """
    batches = _Answers(CropBatches(shards, config, seed, share))
    return _read(DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=workers))


class _Answers(Dataset):
    """Batches, or why there is none: an error that leaves a worker by itself drags the worker's traceback along."""

    def __init__(self, batches: CropBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Tensor | Exception:
        try:
            return self.batches[step]
        except (ValueError, OSError) as error:
            return error


def _read(loader: DataLoader) -> Iterator[Tensor]:
    for answer in loader:
        if isinstance(answer, Exception):
            raise answer
        yield answer


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Says in a sentence that a worker of `crop_batches` died. torch notices by a signal, whatever is going on just then."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a process that reads pictures died, perhaps for want of memory ({str(error).splitlines()[0]}); "
            "run the same command again to go on from the last state, with fewer workers if it happens again"
        ) from error


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
