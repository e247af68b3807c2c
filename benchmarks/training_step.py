"""What a training loop adds to a bare step: python benchmarks/training_step.py [STEPS].

The bare step is forward, loss, backward and AdamW on one batch in memory, the same networks and precision. For the UNet
a third step does what diffusers' text-to-image example does, without its encoding of pictures: accelerate, noise and t
drawn anew, the scheduler's add_noise, clipping, its EMA. All are timed in turn in one process, and the ratio of the
medians is printed: 1.00 is a loop that costs nothing. Our UNet step draws its batch from the latent cache; our
autoencoder step gets its pictures in memory.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from t2l.config import load_config
from t2l.data.example import Example
from t2l.data.latents import Latents, cache_latents
from t2l.data.shards import write_shard
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.precision import bf16_is_fast, precision_context
from t2l.model.text2layer import save_autoencoder
from t2l.model.tokenizer import VOCABULARY_SIZE
from t2l.training import train_autoencoder, train_unet
from t2l.training.loop import make_optimizer
from t2l.training.losses import autoencoder_loss
from t2l.training.processes import Processes
from t2l.training.start import starting_autoencoder

CONFIGS = Path(__file__).parent.parent / "configs"
CPU = torch.device("cpu")


Steps = dict[str, Callable[[int], object]]


def autoencoder_steps() -> Steps:
    config = load_config(train_autoencoder.AutoencoderTrainConfig, CONFIGS / "demo-autoencoder.json")
    config = replace(config, scale_equivariance=0.0)  # the bare step does not halve either
    task = train_autoencoder.AutoencoderTask(config, Processes("cpu"))
    model = starting_autoencoder(config.model, None).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters(), config)
    pictures = torch.randint(256, (config.data.batch_size, 7, config.data.crop, config.data.crop), dtype=torch.uint8)
    target = task.layers(pictures)

    def bare(step: int) -> None:
        with precision_context(CPU, config.precision):
            posterior = model.encode(target)
            decoded = model.decode(posterior.sample().float(), clamp=False)
            loss, _ = autoencoder_loss(decoded, posterior, target, config.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"ours": lambda step: task.step(pictures, step), "bare": bare}


def random_cache(folder: Path, channels: int, count: int = 256) -> Latents:
    """A latent cache of random latents (channels, 16, 16), with two captions for every picture."""
    pixels = torch.rand(1, 7, 128, 128)
    said = {"caption": "a cat", "foreground_caption": "a cat", "background_caption": "a dog"}
    write_shard(folder / "data", 0, [Example(f"{i:06d}", Layers.from_stacked(pixels), **said) for i in range(count)])
    shape = {"latent_channels": channels, "base_channels": 32, "num_res_blocks": 1}
    save_autoencoder(LayeredAutoencoder(AutoencoderConfig(**shape)), folder / "autoencoder.safetensors")

    def encode(layers: Layers) -> tuple[Tensor, Tensor]:
        return torch.randn(len(layers), channels, 16, 16), torch.rand(len(layers), channels, 16, 16)

    cache_latents(encode, folder / "autoencoder.safetensors", folder / "data", folder / "cache", size=128, workers=0)
    return Latents(folder / "cache")


def unet_steps(folder: Path) -> Steps:
    config = load_config(train_unet.UNetTrainConfig, CONFIGS / "demo-unet.json")
    almost_all = tuple(number for number in range(VOCABULARY_SIZE) if number != 1000)  # whatever the captions say
    config = replace(config, text_encoder=replace(config.text_encoder, token_ids=almost_all))
    cached = random_cache(folder, config.unet.in_channels)
    task = train_unet.UNetTask(config, Processes("cpu"), cached)
    model = copy.deepcopy(task.model)
    optimizer = make_optimizer(model.parameters(), config)
    shape = (config.batch_size, config.unet.in_channels, 16, 16)
    t = torch.randint(0, 1000, shape[:1])
    batch = train_unet.Batch(torch.randn(shape), torch.randn(shape), t, task.batches[0].text)

    def bare(step: int) -> None:
        with precision_context(CPU, config.precision):
            prediction = model(batch.latents, batch.t, batch.text)
        loss = F.mse_loss(prediction.float(), batch.noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        "ours": lambda step: task.step(task.batches[step], step),
        "bare": bare,
        "example": example_step(config, cached, copy.deepcopy(task.model), batch.text),
    }


def example_step(
    config: train_unet.UNetTrainConfig, cached: Latents, model: train_unet.Conditioned, tokens: Tensor
) -> Callable[[int], object]:
    """A step written like diffusers' examples/text_to_image, on the same networks and latents."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    mean, std = cached.read(torch.arange(len(cached)))
    accelerator = Accelerator(mixed_precision="bf16" if bf16_is_fast(CPU) else "no")
    ema = EMAModel(model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    rates = get_scheduler("constant", optimizer)
    model, optimizer, rates = accelerator.prepare(model, optimizer, rates)
    noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def step(number: int) -> float:
        index = torch.arange(number * len(tokens), (number + 1) * len(tokens)) % len(cached)
        latents = mean[index] + std[index] * torch.randn(len(index), *mean.shape[1:])
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(index),))
        noisy = noise_scheduler.add_noise(latents, noise, t)
        loss = F.mse_loss(model(noisy, t, tokens).float(), noise)
        loss_of_all = accelerator.gather(loss.repeat(len(index))).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        return loss_of_all

    return step


def median_seconds(steps: Steps, count: int) -> dict[str, float]:
    """Medians of the steps, run in turn so that a drift of the machine meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(count + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(k)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        for network, steps in (("autoencoder", autoencoder_steps()), ("unet", unet_steps(Path(folder)))):
            medians = median_seconds(steps, count)
            others = [f"{name} step {seconds:.3f} s" for name, seconds in medians.items()]
            ratios = [f"ours / {name} {medians['ours'] / medians[name]:.3f}" for name in list(medians)[1:]]
            print(f"{network}: {', '.join(others + ratios)}")


if __name__ == "__main__":
    main()
