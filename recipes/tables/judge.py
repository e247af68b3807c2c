"""A judge of masks that knows this world: our saliency network, taught by its real composites and their true masks.

It stands for the people who drew the paper's masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.salient.train import TrainConfig, train
from t2l.data.shards import Shards
from t2l.model.salient import SalientConfig

FILE = "judge.safetensors"
SIZE = 128  # pixels along a side of what it looks at
CONFIG = TrainConfig(steps=800, batch_size=16, side=SIZE, minutes=60)


def train_judge(pictures: Path, run: Path, config: TrainConfig = CONFIG, seed: int = 0) -> Path:
    """Teach the judge with a folder of shards; returns its file, which is there once it has learnt all."""
    done, learnt = run / FILE, run / "salient.safetensors"
    if not done.exists():
        run.mkdir(parents=True, exist_ok=True)
        network = SalientConfig(sizes=(config.side,))
        train(config, batches(Shards(pictures), seed, config), run, None, seed, network)
        learnt.replace(done)
    return done


def batches(shards: Shards, seed: int, config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (composites, masks), (N, 3, H, W) and (N, 1, H, W): half of them mirrored, half from half their size,
    since that is how the smaller pictures will come.
    """
    rng = np.random.default_rng(seed)
    while True:
        chosen = [shards[int(i)].layers for i in rng.integers(len(shards), size=config.batch_size)]
        pixels = [torch.cat([layers.composite(), layers.mask], dim=1) for layers in chosen]
        pixels = [x.flip(-1) if rng.random() < 0.5 else x for x in pixels]
        pixels = [_resized(_resized(x, config.side // 2) if rng.random() < 0.5 else x, config.side) for x in pixels]
        both = torch.cat(pixels).clamp(0, 1)
        yield both[:, :3].contiguous(memory_format=torch.channels_last), both[:, 3:]


def _resized(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="bilinear", antialias=True)
