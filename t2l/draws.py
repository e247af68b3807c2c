"""Random numbers that belong to a seed, and within a run to one sample or one step: nobody draws what is another's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Stream = Literal["crop", "posterior", "noise", "strength"]


def seeded_generator(seed: int, *more: int) -> torch.Generator:
    """A generator on the CPU for any whole numbers; more of them than one are hashed together.

    torch's looks at 32 bits of its seed, so a larger one, such as ComfyUI draws, is hashed too: 2**32 is not 0 again.
    """
    if more or not 0 <= seed < 2**32:
        seed = int(np.random.SeedSequence([seed % 2**63, *more]).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def sample_generator(seed: int, position: int, stream: Stream) -> torch.Generator:
    """For one sample of a run. position: its number in the run, step * batch size + place in the batch."""
    return seeded_generator(seed, position, get_args(Stream).index(stream))


def sample_noise(seed: int, positions: Iterable[int], shape: Iterable[int], stream: Stream) -> Tensor:
    """Unit Gaussian noise for some samples of a run, (N, *shape) float32 on the CPU."""
    shape = tuple(shape)
    return torch.stack([torch.randn(shape, generator=sample_generator(seed, p, stream)) for p in positions])


def step_generator(seed: int, step: int) -> torch.Generator:
    """For what is drawn for a step as a whole."""
    if not 0 <= seed < 2**32:
        return seeded_generator(seed, step)
    return seeded_generator((seed * 1_000_003 + step) % 2**32)
