"""Batches for the UNet: latents, noise, times, texts and kept layers, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import sample_noise, step_generator
from ..keep import KINDS, keep_channels, keep_condition
from .buckets import BucketOrder
from .latents import Latents

Tokenize = Callable[[list[str]], Tensor]
TOKENS = 77  # of a text, CLIP's
FIRST_WORD, END_OF_WORDS = 256, 49406  # CLIP's ids below are single bytes, those from there on are no text


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How batches are drawn; what each means is said in UNetTrainConfig."""

    seed: int
    batch_size: int
    cond_drop_prob: float
    unknown_word: float
    num_train_steps: int  # of the noise schedule
    keep_prob: float = 0.0
    keeps: bool = False  # whether the UNet has channels for a kept layer


class Batch(NamedTuple):
    """What one step is trained on, or one process's part of it."""

    latents: Tensor  # (N, C, h, w), scaled latents drawn from the posterior
    noise: Tensor  # the same shape
    t: Tensor  # (N,), integers
    text: Tensor  # (N, 77), token ids; (N, 77, width) where the cache has the text encoder's output
    kept: Tensor  # (N, C + 3, h, w), what is said of a kept layer (keep.py); (N, 0, h, w) for a UNet that keeps none

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """On a device, and all but whole numbers in a dtype."""
        return Batch(*(x.to(device, dtype if x.is_floating_point() else None, non_blocking=True) for x in self))


class LatentBatches:
    """Item k is the batch of step k, a pure function of (seed, k), or one process's part of it.

    All of one shape: `BucketOrder` says which pictures. tokenize: N texts -> their ids (N, 77).
    """

    def __init__(
        self,
        cached: Latents,
        config: BatchConfig,
        latent_scale: float,
        tokenize: Tokenize,
        local_indices: Sequence[int] | None = None,
    ) -> None:
        self.cached = cached
        self.config = config
        self.latent_scale = latent_scale
        self.local_indices = range(config.batch_size) if local_indices is None else local_indices
        self.order = BucketOrder(cached.counts, config.batch_size, config.seed)
        self.tokenize = tokenize

    def __getitem__(self, step: int) -> Batch:
        """What is small is drawn for the whole batch, latents and noise for the local part alone."""
        config, generator = self.config, step_generator(self.config.seed, step)
        size, local = config.batch_size, list(self.local_indices)
        bucket, ranks = self.order[step]
        # one t from every part of the schedule
        even = (torch.rand((), generator=generator) + torch.arange(size) / size) % 1
        t = (even * config.num_train_steps).long()[torch.randperm(size, generator=generator)]
        text = self._text(self.cached.pictures(bucket, ranks[local]), generator)
        mean, std = self.cached.read_bucket(bucket, ranks[local])
        own = [step * size + i for i in local]  # positions in the run
        latents = mean + std * sample_noise(config.seed, own, mean.shape[1:], "posterior")
        noise = sample_noise(config.seed, own, mean.shape[1:], "noise")
        kept = self._kept(bucket, ranks[local], mean, generator) if config.keeps else mean[:, :0]
        return Batch(latents * self.latent_scale, noise, t[local], text, kept)

    def _kept(self, bucket: int, ranks: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
        """What is said of a kept layer: of some pictures the foreground is kept, of as many the background."""
        size, local = self.config.batch_size, list(self.local_indices)
        drawn = torch.rand(size, generator=generator)[local] / max(self.config.keep_prob, 1e-9)
        parts = {kind: (drawn >= i / 2) & (drawn < (i + 1) / 2) for i, kind in enumerate(KINDS)}
        told = mean.new_zeros(len(local), keep_channels(mean.shape[1]), *mean.shape[2:])
        for kind, chosen in parts.items():
            if chosen.any():
                alone, mask = self.cached.read_kept(bucket, ranks[chosen], kind)
                told[chosen] = keep_condition(alone * self.latent_scale, mask, kind)
        return told

    def _text(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """One caption of each picture of the share; some dropped, some words replaced by the unknown one."""
        size, local = self.config.batch_size, list(self.local_indices)
        ways = torch.randint(self.cached.captions.each, (size,), generator=generator)[local].tolist()
        unknown = torch.rand((size, TOKENS), generator=generator)[local] < self.config.unknown_word
        dropped = (torch.rand(size, generator=generator)[local] < self.config.cond_drop_prob).tolist()
        said = self.cached.captions[pictures]
        texts = ["" if drop else of[way] for of, way, drop in zip(said, ways, dropped, strict=True)]
        if self.cached.embeddings is not None:
            return self.cached.embeddings[texts]
        tokens = self.tokenize(texts)
        unknown = unknown & (tokens >= FIRST_WORD) & (tokens < END_OF_WORDS)
        return tokens.masked_fill(unknown, 0)
