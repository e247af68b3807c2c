"""Trains the diffusion UNet on cached latents, with its text encoder when that is ours to train (paper, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..config import DiffusionConfig
from ..data.latents import Latents
from ..diffusion import add_noise, min_snr_weight, scaled_linear_schedule, training_target
from ..model.autoencoder import Autoencoder
from ..model.from_sd import license_of
from ..model.text2layer import Text2Layer, fit_latent_rgb, load_autoencoder
from ..model.text_encoder import TextEncoder, TextEncoderConfig
from ..model.tokenizer import START_ID, Tokenizer
from ..model.unet import UNetConfig
from .loop import (
    Guard,
    Meter,
    Precision,
    attention_context,
    learning_rate,
    make_optimizer,
    pick_device,
    precision_context,
    set_learning_rate,
    step_generator,
    update_ema,
)
from .low_rank import add_low_rank, merged
from .run import Run
from .start import freeze, starting_networks

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

FIRST_WORD = 256  # token ids below are single bytes: spelling, not words


@dataclass(frozen=True, kw_only=True)
class UNetTrainConfig:
    """Everything that decides what a training run of the UNet gives."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    unet_from_scratch: bool = False  # of the checkpoint to start from, take only the text encoder
    frozen: tuple[str, ...] = ()  # parts that are not trained, e.g. text_encoder, unet.down_blocks
    lora_rank: int = 0  # train only matrices of this rank beside the UNet's attentions; 0 = train the UNet
    min_snr: float = 0.0  # gamma of min-SNR weighting (Hang et al. 2023: 5); 0 = every t counts alike
    caption_drop: float = 0.1  # share of samples that see the empty prompt, for classifier-free guidance
    unknown_word: float = 0.01  # share of tokens replaced by one the vocabulary does not have
    steps: int = 75_000
    batch_size: int = 32
    lr: float = 1e-4
    warmup: int = 100
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    compile: bool = False  # torch.compile: pays after some thousand steps
    precision: Precision = "auto"
    system: str = "CaT2I-AE-SD"  # what the paper calls it; goes into every snapshot
    license: str = "Apache-2.0"  # of weights that start from nothing; others keep that of their start
    seed: int = 0
    log_every: int = 50
    save_every: int = 500


LatentPreview = tuple[list[list[float]], list[float]]


class Batch(NamedTuple):
    """What one step is trained on."""

    latents: Tensor  # (N, C, h, w), scaled latents drawn from the posterior
    noise: Tensor  # the same shape
    t: Tensor  # (N,), integers
    tokens: Tensor  # (N, 77)


SampleHook = Callable[[Text2Layer, int, Path], None]  # model with EMA weights, step, where to write a picture


def train_unet(
    config: UNetTrainConfig, latents: Path, run: Path, init: Path | None = None, sample: SampleHook | None = None
) -> Path:
    """Train until config.steps, from the run folder's last state when there is one; returns the snapshot's path.

    latents: a folder made by cache_latents. init: a checkpoint whose UNet and text encoder are the start, ours or Stable
    Diffusion 1.x.
    sample: called whenever a snapshot is written, to draw pictures of it.
    """
    torch.manual_seed(config.seed)
    folder, device = Run(run, config), pick_device()
    cached = Latents(latents)
    autoencoder = load_autoencoder(cached.autoencoder)
    batches = LatentBatches(cached, config, autoencoder.config.latent_scale)
    trainer = Trainer(_with_vocabulary(config, cached, init), device, init)
    start = trainer.load(folder.load_state(device))
    preview = latent_preview(autoencoder, cached)
    meter = Meter()
    source = (batches[step] for step in range(start, config.steps))
    bar = tqdm(meter.timed(source), initial=start, total=config.steps, unit="step", desc="unet")
    for step, batch in enumerate(bar, start):
        meter.add(trainer.step(Batch(*(x.to(device) for x in batch)), step))
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            stats = meter.flush() | {"lr": trainer.lr(step), "skipped": trainer.guard.skipped}
            folder.log({"step": done, **stats})
            bar.set_postfix(loss=f"{stats.get('loss', float('nan')):.4f}", wait=f"{stats['data_wait']:.1%}")
        if done % config.save_every == 0 or done == config.steps:
            folder.save_state(trainer.state(done))
            model = trainer.snapshot(autoencoder, preview, cached.size, done)
            model.save(folder.snapshot)
            if sample is not None:
                sample(model, done, folder.samples / f"{done:07d}.png")
    return folder.snapshot


class LatentBatches:
    """Item k is the batch of step k, a pure function of (seed, k)."""

    def __init__(self, cached: Latents, config: UNetTrainConfig, latent_scale: float) -> None:
        self.cached = cached
        self.config = config
        self.latent_scale = latent_scale
        tokenizer = Tokenizer()
        ways = [tokenizer(list(way)) for way in zip(*cached.captions, strict=True)]
        self.tokens = torch.stack(ways, dim=1)  # (n, ways to say it, 77)
        self.empty = tokenizer([""])[0]
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Batch:
        config, generator = self.config, step_generator(self.config.seed, step)
        size = config.batch_size
        index = torch.stack([self._index(position) for position in range(step * size, (step + 1) * size)])
        mean, std = self.cached.mean[index].float(), self.cached.std[index].float()
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        even = (
            torch.rand((), generator=generator) + torch.arange(size) / size
        ) % 1  # one t from every part of the schedule
        t = (even * config.diffusion.num_train_steps).long()[torch.randperm(size, generator=generator)]
        return Batch(latents * self.latent_scale, noise, t, self._tokens(index, generator))

    def _tokens(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One caption of each picture; some dropped, some words replaced by the unknown one."""
        ways = torch.randint(self.tokens.shape[1], (len(index),), generator=generator)
        tokens = self.tokens[index, ways].clone()
        unknown = torch.rand(tokens.shape, generator=generator) < self.config.unknown_word
        unknown &= (tokens >= FIRST_WORD) & (tokens < START_ID)
        dropped = torch.rand(len(index), generator=generator) < self.config.caption_drop
        tokens = torch.where(unknown, 0, tokens)
        return torch.where(dropped[:, None], self.empty, tokens)

    def _index(self, position: int) -> Tensor:
        epoch, offset = divmod(position, len(self.cached))
        if epoch not in self._orders:
            generator = step_generator(self.config.seed + 7, epoch)
            self._orders = {epoch: torch.randperm(len(self.cached), generator=generator)}
        return self._orders[epoch][offset]


class Conditioned(nn.Module):
    """The two networks trained together: tokens condition the UNet through the text encoder."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x_t, t, encoder_hidden_states=self.text_encoder(tokens)).sample


class Trainer:
    """The networks and the optimiser of a run, and what one step does with them."""

    def __init__(self, config: UNetTrainConfig, device: torch.device, init: Path | None) -> None:
        self.config = config
        self.device = device
        self.license = config.license if init is None else license_of(init)
        self.model = Conditioned(*starting_networks(config, init))
        if config.lora_rank:
            add_low_rank(self.model.unet, config.lora_rank)
        freeze(self.model, config.frozen)
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.model.parameters(), config.lr, config.weight_decay, config.betas)
        self.alphas_cumprod = scaled_linear_schedule(config.diffusion).to(device)
        self.guard = Guard()
        self._predict = torch.compile(self.model) if config.compile else self.model

    def lr(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.lr, self.config.warmup)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor | float]:
        """One optimiser step on the mean squared error of the prediction (paper, Eq. 5); returns what to log."""
        set_learning_rate(self.optimizer, self.lr(step))
        kind = self.config.diffusion.prediction
        x_t = add_noise(batch.latents, batch.noise, batch.t, self.alphas_cumprod)
        target = training_target(batch.latents, batch.noise, batch.t, self.alphas_cumprod, kind)
        with precision_context(self.device, self.config.precision), attention_context(self.device):
            prediction = self._predict(x_t, batch.t, batch.tokens)
        error = F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))
        if self.config.min_snr:
            error = error * min_snr_weight(batch.t, self.alphas_cumprod, self.config.min_snr, kind)
        loss = error.mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        if not self.guard.allows(step, loss.detach(), norm):
            return {}
        self.optimizer.step()
        update_ema(self.ema, self.model, self.config.ema_decay, step)
        return {"loss": loss.detach(), "gradient_norm": norm}

    def state(self, step: int) -> dict[str, Any]:
        """Everything that resuming needs; `step` steps are done."""
        modules: dict[str, Any] = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}
        return {"step": step, "skipped": self.guard.skipped} | {k: m.state_dict() for k, m in modules.items()}

    def load(self, state: dict[str, Any] | None) -> int:
        """Take over a saved state; returns the step to go on with."""
        if state is None:
            return 0
        self.guard.skipped = state["skipped"]
        for name in ("model", "ema", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        return state["step"]

    def snapshot(self, autoencoder: Autoencoder, preview: LatentPreview, size: int, step: int) -> Text2Layer:
        """The model for use: EMA weights and the autoencoder that decodes their latents. size: of its pictures, pixels."""
        return Text2Layer(
            autoencoder=autoencoder,
            unet=merged(self.ema.unet).eval() if self.config.lora_rank else self.ema.unet.eval(),
            text_encoder=self.ema.text_encoder.eval(),
            diffusion=self.config.diffusion,
            latent_rgb_factors=preview[0],
            latent_rgb_bias=preview[1],
            info={
                "system": self.config.system,
                "steps": str(step),
                "size": str(size),
                "license": self.license,
            },
        )


@torch.no_grad()
def latent_preview(autoencoder: Autoencoder, cached: Latents, count: int = 64) -> LatentPreview:
    """Factors (C, 3) and bias (3,) that turn scaled latents into a small composite, fitted on `count` cached pictures."""
    latents = cached.mean[:: max(1, len(cached) // count)][:count].float()
    composites = torch.cat([autoencoder.decode(part).layers.composite() for part in latents.split(8)])
    return fit_latent_rgb(latents * autoencoder.config.latent_scale, composites)


def _with_vocabulary(config: UNetTrainConfig, cached: Latents, init: Path | None) -> UNetTrainConfig:
    """The config with the token ids of the captions as the text encoder's vocabulary, unless it names its own."""
    if init is not None or config.text_encoder.token_ids is not None:
        return config
    captions = sorted({caption for ways in cached.captions for caption in ways})
    return replace(config, text_encoder=replace(config.text_encoder, token_ids=Tokenizer().ids_in(captions)))
