"""What a training loop adds to a bare step: python benchmarks/training_step.py [STEPS].

The bare step is forward, loss, backward and AdamW on one batch in memory, the same networks and precision. Both are timed in
turn in one process, and the ratio of the medians is printed: 1.00 is a loop that costs nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from t2l.config import load_config
from t2l.layers import Layers
from t2l.training import train_autoencoder, train_unet
from t2l.training.loop import make_optimizer, precision_context
from t2l.training.losses import autoencoder_loss
from t2l.training.start import starting_autoencoder, starting_networks

CONFIGS = Path(__file__).parent.parent / "configs"
CPU = torch.device("cpu")


def autoencoder_steps() -> tuple[Callable[[int], object], Callable[[int], object]]:
    config = load_config(train_autoencoder.AutoencoderTrainConfig, CONFIGS / "demo-autoencoder.json")
    config = replace(config, scale_equivariance=0.0)  # the bare step does not halve either
    trainer = train_autoencoder.Trainer(config, CPU, None)
    model = starting_autoencoder(config.model, None).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay, config.betas)
    target = Layers.from_stacked(torch.rand(config.data.batch_size, 7, config.data.crop, config.data.crop))

    def bare(step: int) -> None:
        with precision_context(CPU, config.precision):
            posterior = model.encode(target)
            decoded = model.decode(posterior.sample().float(), clamp=False)
            loss, _ = autoencoder_loss(decoded, posterior, target, config.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda step: trainer.step(target, step), bare


def unet_steps() -> tuple[Callable[[int], object], Callable[[int], object]]:
    config = load_config(train_unet.UNetTrainConfig, CONFIGS / "demo-unet.json")
    trainer = train_unet.Trainer(config, CPU, None)
    model = train_unet.Conditioned(*starting_networks(config, None))
    model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay, config.betas)
    shape = (config.batch_size, config.unet.in_channels, 16, 16)
    t = torch.randint(0, 1000, shape[:1])
    batch = train_unet.Batch(torch.randn(shape), torch.randn(shape), t, torch.randint(0, 49000, (shape[0], 77)))

    def bare(step: int) -> None:
        with precision_context(CPU, config.precision):
            prediction = model(batch.latents, batch.t, batch.tokens)
        loss = F.mse_loss(prediction.float(), batch.noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda step: trainer.step(batch, step), bare


def median_seconds(steps: tuple[Callable[[int], object], ...], count: int) -> list[float]:
    """Medians of the steps, run in turn so that a drift of the machine meets all of them alike."""
    times: list[list[float]] = [[] for _ in steps]
    for k in range(count + 1):
        for seconds, step in zip(times, steps, strict=True):
            start = time.perf_counter()
            step(k)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in times]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for name, steps in (("autoencoder", autoencoder_steps()), ("unet", unet_steps())):
        ours, bare = median_seconds(steps, count)
        print(f"{name}: our step {ours:.3f} s, bare step {bare:.3f} s, ratio {ours / bare:.2f}")


if __name__ == "__main__":
    main()
