"""Trains the diffusion UNet on cached latents, with its text encoder when that is ours to train (paper, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DiffusionConfig
from ..data.buckets import BucketOrder
from ..data.draws import sample_noise
from ..data.latents import Latents
from ..diffusion import add_noise, min_snr_weight, scaled_linear_schedule, training_target
from ..model.autoencoder import Autoencoder
from ..model.from_sd import license_of
from ..model.text2layer import Text2Layer, fit_latent_rgb, load_autoencoder
from ..model.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from ..model.tokenizer import MAX_TOKENS, START_ID, Tokenizer
from ..model.unet import UNetConfig
from . import sharded
from .loop import (
    LoopConfig,
    Meter,
    attention_context,
    learning_rate,
    make_8bit_optimizer,
    make_optimizer,
    set_learning_rate,
    step_generator,
    update_ema,
)
from .low_rank import add_low_rank, merged
from .precision import at_least_float32, precision_context, weight_dtype
from .processes import Processes
from .run import Run
from .start import freeze, starting_networks
from .update import Updater

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

FIRST_WORD = 256  # token ids below are single bytes: spelling, not words


@dataclass(frozen=True, kw_only=True)
class UNetTrainConfig(LoopConfig):
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
    batch_size: int = 32  # of one optimiser step, over all processes
    lr: float = 1e-4
    weight_decay: float = 0.01
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: weights, moments and EMA are spread over the processes
    system: str = "CaT2I-AE-SD"  # what the paper calls it; goes into every snapshot
    license: str = "Apache-2.0"  # of weights that start from nothing; others keep that of their start

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharding == "fsdp" and (self.precision == "fp16" or self.optimizer == "adamw8bit"):
            raise ValueError(
                f'sharding "fsdp" goes with precision bf16 or fp32 and optimizer "adamw", got {self.precision} and '
                f"{self.optimizer}"
            )


LatentPreview = tuple[list[list[float]], list[float]]


class Batch(NamedTuple):
    """What one step is trained on, or a process's share of it."""

    latents: Tensor  # (N, C, h, w), scaled latents drawn from the posterior
    noise: Tensor  # the same shape
    t: Tensor  # (N,), integers
    text: Tensor  # (N, 77), token ids; (N, 77, width) where the cache has the text encoder's output

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """On a device, and all but whole numbers in a dtype."""
        return Batch(*(x.to(device, dtype if x.is_floating_point() else None) for x in self))


SampleHook = Callable[[Text2Layer, int, Path], None]  # model with EMA weights, step, where to write a picture


def train_unet(
    config: UNetTrainConfig,
    latents: Path,
    run: Path,
    init: Path | None = None,
    sample: SampleHook | None = None,
    validation: Path | None = None,
    any_processes: bool = False,
) -> Path:
    """Train until config.steps, from the run folder's last state when there is one; returns the snapshot's path.

    latents: a folder made by cache_latents. init: a checkpoint whose UNet and text encoder are the start, ours or Stable
    Diffusion 1.x.
    sample: called whenever a snapshot is written, to draw pictures of it. validation: latents the EMA weights are tried on
    then, always the same batch. any_processes: as Run takes it.
    """
    torch.manual_seed(config.seed)
    processes = Processes()
    folder = Run(run, config, processes, any_processes)
    cached = Latents(latents)
    autoencoder = load_autoencoder(cached.autoencoder)
    share = processes.share(config.batch_size, config.accumulate)
    batches = LatentBatches(cached, config, autoencoder.config.latent_scale, share)
    fixed = None if validation is None else _validation_batch(validation, cached, config, batches)
    trainer = Trainer(_with_vocabulary(config, cached, init), processes, init)
    if cached.embeddings is not None:
        trainer.check_embeddings(cached)
    start = trainer.load(folder.load_state(partial(trainer.state, 0) if trainer.sharded else None))
    preview = latent_preview(autoencoder, cached)
    meter = Meter()
    source = (batches[step] for step in range(start, config.steps))
    bar = folder.progress(meter.timed(source), start, config.steps, "unet")
    for step, batch in enumerate(bar, start):
        meter.add(trainer.step(batch.to(trainer.device, trainer.dtype), step))
        done = step + 1
        if folder.logs(done):
            stats = processes.means(meter.flush()) | {"lr": trainer.lr(step), "skipped": trainer.guard.skipped}
            folder.log({"step": done, **stats})
            bar.set_postfix(loss=f"{stats.get('loss', float('nan')):.4f}", wait=f"{stats['data_wait']:.1%}")
        if folder.saves(done):
            if fixed is not None:
                folder.log(
                    {"step": done, "validation_loss": trainer.validation_loss(fixed.to(trainer.device, trainer.dtype))}
                )
            model = trainer.snapshot(autoencoder, preview, cached.size, done)
            folder.write_snapshot(model.save, done)
            folder.save_state(trainer.state(done), trainer.sharded)
            if sample is not None and processes.is_main:
                with folder.writing(f"the sample of step {done}"):
                    sample(model, done, folder.samples / f"{done:07d}.png")
    folder.close()
    return folder.snapshot


class LatentBatches:
    """Item k is the batch of step k, a pure function of (seed, k), or a process's share of it.

    All of one shape: `BucketOrder` says which pictures.
    """

    def __init__(
        self, cached: Latents, config: UNetTrainConfig, latent_scale: float, share: Sequence[int] | None = None
    ) -> None:
        self.cached = cached
        self.config = config
        self.latent_scale = latent_scale
        self.share = range(config.batch_size) if share is None else share
        self.order = BucketOrder(cached.counts, config.batch_size, config.seed)
        self.tokenizer = Tokenizer()

    def __getitem__(self, step: int) -> Batch:
        """What is small is drawn for the whole batch, latents and noise for the share alone."""
        config, generator = self.config, step_generator(self.config.seed, step)
        size, share = config.batch_size, list(self.share)
        bucket, ranks = self.order[step]
        even = (
            torch.rand((), generator=generator) + torch.arange(size) / size
        ) % 1  # one t from every part of the schedule
        t = (even * config.diffusion.num_train_steps).long()[torch.randperm(size, generator=generator)]
        text = self._text(self.cached.pictures(bucket, ranks[share]), generator)
        mean, std = self.cached.of_bucket(bucket, ranks[share])
        own = [step * size + i for i in share]  # positions in the run
        latents = mean + std * sample_noise(config.seed, own, mean.shape[1:], "posterior")
        noise = sample_noise(config.seed, own, mean.shape[1:], "noise")
        return Batch(latents * self.latent_scale, noise, t[share], text)

    def _text(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """One caption of each picture of the share; some dropped, some words replaced by the unknown one."""
        size, share = self.config.batch_size, list(self.share)
        ways = torch.randint(self.cached.captions.each, (size,), generator=generator)[share].tolist()
        unknown = torch.rand((size, MAX_TOKENS), generator=generator)[share] < self.config.unknown_word
        dropped = (torch.rand(size, generator=generator)[share] < self.config.caption_drop).tolist()
        said = self.cached.captions[pictures]
        texts = ["" if drop else of[way] for of, way, drop in zip(said, ways, dropped, strict=True)]
        if self.cached.embeddings is not None:
            return self.cached.embeddings[texts]
        tokens = self.tokenizer(texts)
        unknown = unknown & (tokens >= FIRST_WORD) & (tokens < START_ID)
        return tokens.masked_fill(unknown, 0)


class Conditioned(nn.Module):
    """The two networks trained together: the text conditions the UNet through the text encoder, or as its output."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        conditioning = text if text.is_floating_point() else self.text_encoder(text)
        return self.unet(x_t, t, encoder_hidden_states=conditioning).sample


class Trainer:
    """The networks and the optimiser of a run, and what one step does with them."""

    def __init__(self, config: UNetTrainConfig, processes: Processes, init: Path | None) -> None:
        self.config = config
        self.device = device = processes.device
        self.dtype = weight_dtype(config.precision)
        self.processes = processes
        self.sharded = config.sharding == "fsdp" and processes.count > 1
        # FSDP takes contiguous weights only
        layout = torch.contiguous_format if self.sharded else torch.channels_last
        self.license = config.license if init is None else license_of(init)
        self.model = Conditioned(*starting_networks(config, init))
        if config.lora_rank:
            add_low_rank(self.model.unet, config.lora_rank)
        freeze(self.model, config.frozen)
        self.model.to(device, self.dtype).to(memory_format=layout).train()
        if config.checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self._whole = self.ema  # what snapshots are made of
        if self.sharded:
            self._whole = copy.deepcopy(self.ema).cpu()
            for network in (self.model, self.ema):
                sharded.shard(network, device)
        make = make_8bit_optimizer if config.optimizer == "adamw8bit" else make_optimizer
        optimizer = make(self.model.parameters(), config.lr, config.weight_decay, config.betas, config.adam_eps)
        self.update = Updater(self.model, optimizer, config, processes)
        self.guard = self.update.guard
        self.alphas_cumprod = scaled_linear_schedule(config.diffusion).to(device)

    def check_embeddings(self, cached: Latents) -> None:
        """Raise ValueError when a cache's text embeddings are not what this run's text encoder would say at every step."""
        remedy = "or make the cache without --text-encoder"
        if "text_encoder" not in self.config.frozen:
            raise ValueError(
                f'the latents come with text embeddings, which stand for a frozen text encoder: put "text_encoder" into '
                f"frozen, {remedy}"
            )
        if self.config.unknown_word:
            raise ValueError(
                f"words cannot be replaced in text embeddings: set unknown_word to 0, got {self.config.unknown_word}, {remedy}"
            )
        if fingerprint(self._whole.text_encoder) != cached.about["text"]["encoder"]:
            raise ValueError(
                "the latents come with text embeddings of another text encoder than that of --init: start from the checkpoint "
                f"they were made with, {remedy}"
            )

    def lr(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.lr, self.config.warmup)

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One optimiser step on the mean squared error of the prediction (paper, Eq. 5); returns what to log."""
        set_learning_rate(self.update.optimizer, self.lr(step))
        losses = []
        with attention_context(self.device):  # checkpointing computes attention again in the backward pass
            for part in self.update.parts(len(batch.t)):
                loss = self.loss(Batch(*(x[part] for x in batch)), self.update.network)
                self.update.backward(loss)
                losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        norm = self.update.step(step, loss)
        if norm is None:
            return {}
        update_ema(self.ema, self.model, self.config.ema_decay, step)
        return {"loss": loss, "gradient_norm": norm}

    @torch.no_grad()
    def validation_loss(self, batch: Batch) -> float:
        """The loss of the EMA weights on a batch over all processes."""
        with attention_context(self.device):
            return float(self.processes.mean(self.loss(batch, self.ema)))

    def loss(self, batch: Batch, network: nn.Module) -> Tensor:
        """The mean squared error of a network's prediction over some samples, a scalar."""
        kind = self.config.diffusion.prediction
        x_t = add_noise(batch.latents, batch.noise, batch.t, self.alphas_cumprod)
        target = training_target(batch.latents, batch.noise, batch.t, self.alphas_cumprod, kind)
        with precision_context(self.device, self.config.precision):
            prediction = network(x_t, batch.t, batch.text)
        error = F.mse_loss(at_least_float32(prediction), target, reduction="none").mean(dim=(1, 2, 3))
        if self.config.min_snr:
            error = error * min_snr_weight(batch.t, self.alphas_cumprod, self.config.min_snr, kind)
        return error.mean()

    def state(self, step: int) -> dict[str, Any]:
        """Everything that resuming needs; `step` steps are done."""
        state = {name: module.state_dict() for name, module in self._stateful().items()}
        return {"step": step, "skipped": self.guard.skipped} | state

    def load(self, state: dict[str, Any] | None) -> int:
        """Take over a saved state; returns the step to go on with."""
        if state is None:
            return 0
        self.guard.skipped = state["skipped"]
        for name, module in self._stateful().items():
            module.load_state_dict(state[name])
        return state["step"]

    def _stateful(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "ema": self.ema} | self.update.stateful()
        if self.sharded:
            parts["optimizer"] = sharded.ShardedOptimizer(self.model, self.update.optimizer)
        return parts

    def snapshot(self, autoencoder: Autoencoder, preview: LatentPreview, size: int, step: int) -> Text2Layer:
        """The model for use: EMA weights and the autoencoder that decodes their latents. size: of its pictures, pixels.

        Every process must call it; a model that is spread over them is put together in the first.
        """
        if self.sharded:
            sharded.gather(self.ema, self._whole if self.processes.is_main else None)
        return Text2Layer(
            autoencoder=autoencoder,
            unet=merged(self._whole.unet).eval() if self.config.lora_rank else self._whole.unet.eval(),
            text_encoder=self._whole.text_encoder.eval(),
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


def _validation_batch(folder: Path, cached: Latents, config: UNetTrainConfig, batches: LatentBatches) -> Batch:
    """This process's share of the batch that validation is always done on, every caption in it as it is."""
    held_out = Latents(folder)
    if held_out.about["autoencoder"] != cached.about["autoencoder"]:
        raise ValueError(f"the validation latents {folder} were made by another autoencoder than those trained on")
    if held_out.about.get("text", {}).get("encoder") != cached.about.get("text", {}).get("encoder"):
        raise ValueError(
            f"the validation latents {folder} must have text embeddings of the same encoder as those trained on, or none if "
            "they have none; make them with the same --text-encoder"
        )
    plain = replace(config, caption_drop=0.0, unknown_word=0.0)
    return LatentBatches(held_out, plain, batches.latent_scale, batches.share)[0]


@torch.no_grad()
def latent_preview(autoencoder: Autoencoder, cached: Latents, count: int = 64) -> LatentPreview:
    """Factors (C, 3) and bias (3,) that turn scaled latents into a small composite, fitted on `count` cached pictures.

    Of pictures of several shapes, on what all of them have of their first rows and columns.
    """
    numbers = torch.arange(len(cached))[:: max(1, len(cached) // count)][:count]
    means = [cached.read(number[None])[0] for number in numbers]
    height, width = (min(mean.shape[side] for mean in means) for side in (2, 3))
    latents = torch.cat([mean[..., :height, :width] for mean in means])
    composites = torch.cat([autoencoder.decode(part).layers.composite() for part in latents.split(8)])
    return fit_latent_rgb(latents * autoencoder.config.latent_scale, composites)


def _with_vocabulary(config: UNetTrainConfig, cached: Latents, init: Path | None) -> UNetTrainConfig:
    """The config with the token ids of the captions as the text encoder's vocabulary, unless it names its own."""
    if init is not None or config.text_encoder.token_ids is not None:
        return config
    return replace(config, text_encoder=replace(config.text_encoder, token_ids=Tokenizer().ids_in(cached.texts())))
