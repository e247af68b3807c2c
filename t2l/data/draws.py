"""Randomness that belongs to one sample of a run, so that a process draws only what is its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STREAMS = ("crop", "posterior", "noise", "strength")
Stream = Literal["crop", "posterior", "noise", "strength"]


def sample_generator(seed: int, position: int, stream: Stream) -> torch.Generator:
    """The source of one sample's randomness. position: its number in the run, step * batch size + place in the batch.

    The hash keeps the streams apart: torch's CPU generator looks at no more than 32 bits of its seed.
    """
    sequence = np.random.SeedSequence([seed % 2**63, position, STREAMS.index(stream)])
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))


def sample_noise(seed: int, positions: Iterable[int], shape: Iterable[int], stream: Stream) -> Tensor:
    """Unit Gaussian noise for some samples of a run, (N, *shape) float32 on the CPU."""
    shape = tuple(shape)
    return torch.stack([torch.randn(shape, generator=sample_generator(seed, p, stream)) for p in positions])


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of what is drawn for a step as a whole."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
