"""Trains the diffusion UNet on cached latents, with its text encoder when that is ours to train (paper, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DiffusionConfig
from ..data.ahead import read_ahead
from ..data.buckets import BucketOrder, cover
from ..data.draws import sample_noise
from ..data.latents import Latents
from ..diffusion import add_noise, min_snr_weight, scaled_linear_schedule, training_target
from ..io.image import contact_sheet, save_png
from ..layers import Layers
from ..model.autoencoder import Autoencoder
from ..model.device import device_of
from ..model.from_sd import license_of
from ..model.low_rank import add_low_rank, merged, save_lora
from ..model.text2layer import Text2Layer, fit_latent_rgb, load_autoencoder
from ..model.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from ..model.tokenizer import MAX_TOKENS, START_ID, Tokenizer
from ..model.unet import UNetConfig
from . import sharded
from .fit import StepResult, Task, Tell, check_memory, fit, memory_of
from .loop import LoopConfig, attention_context, make_optimizer, set_learning_rate, step_generator, update_ema
from .precision import at_least_float32, precision_context, weight_dtype
from .processes import Processes
from .run import Run
from .start import check_cache, freeze, starting_networks, trains_text, with_vocabulary
from .update import Updater

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

FIRST_WORD = 256  # token ids below are single bytes: spelling, not words
SAMPLES = 4  # pictures drawn at every save
AHEAD = 4  # batches made before they are needed


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
    sample_prompts: tuple[
        str, ...
    ] = ()  # what is drawn at every save; none = some of the captions, held-out ones if there are any
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
        return Batch(*(x.to(device, dtype if x.is_floating_point() else None, non_blocking=True) for x in self))


SampleHook = Callable[
    [Text2Layer, Sequence[str], Path], None
]  # model with EMA weights, prompts, where to write a picture


def train_unet(
    config: UNetTrainConfig,
    latents: Path,
    run: Path,
    init: Path | None = None,
    sample: SampleHook | None = None,
    validation: Path | None = None,
    any_processes: bool = False,
    accept_changes: bool = False,
    device: str = "auto",
    tell: Tell = lambda sentence: None,
) -> Path:
    """Train until config.steps, from the run folder's last state when there is one; returns the snapshot's path.

    latents: a folder made by cache_latents. init: a checkpoint whose UNet and text encoder are the start, ours or Stable
    Diffusion 1.x.
    sample: called whenever a snapshot is written, to draw pictures of it. validation: latents the EMA weights are tried on
    then, always the same batch. any_processes, accept_changes: as Run takes them. device: as `pick_device` takes it. tell: gets
    what is worth saying. Raises as `fit` does.
    """
    torch.manual_seed(config.seed)
    processes = Processes(device)
    folder = Run(run, config, processes, {"latents": latents, "init": init}, any_processes, accept_changes)
    cached, held_out = Latents(latents), None if validation is None else Latents(validation)
    before = folder.snapshot if folder.has_state() else None
    task = UNetTask(config, processes, cached, init, held_out, sample, before, tell)

    def batches(start: int) -> Iterator[Batch]:
        return read_ahead(
            (task.batches[step] for step in range(start, config.steps)), AHEAD, task.device.type == "cuda"
        )

    return fit(task, batches, folder, tell)


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


class UNetTask(Task):
    """Training a UNet, with its text encoder when that is ours to train.

    init, sample, tell: as `train_unet` takes them. cached: what it is trained on. held_out: what it is tried on. before: the
    snapshot of a run that goes on.
    """

    name = "unet"

    def __init__(
        self,
        config: UNetTrainConfig,
        processes: Processes,
        cached: Latents,
        init: Path | None = None,
        held_out: Latents | None = None,
        sample: SampleHook | None = None,
        before: Path | None = None,
        tell: Tell = lambda sentence: None,
    ) -> None:
        super().__init__(config, processes)
        self.config: UNetTrainConfig = config
        self.dtype = weight_dtype(config.precision)
        self.sharded = config.sharding == "fsdp" and processes.count > 1
        self.cached, self.held_out, self.sample = cached, held_out, sample
        share = processes.share(config.batch_size, config.accumulate)
        self.autoencoder = load_autoencoder(cached.autoencoder).to(self.device)
        self.batches = LatentBatches(cached, config, self.autoencoder.config.latent_scale, share)
        self._fixed = None if held_out is None else _validation_batch(held_out, cached, config, self.batches)
        # FSDP takes contiguous weights only
        layout = torch.contiguous_format if self.sharded else torch.channels_last
        self.license = config.license if init is None else license_of(init)
        misfit = check_cache(cached, config, self.autoencoder, init)
        config, new_words = with_vocabulary(config, cached.texts(), init, before)
        for sentence in filter(None, (misfit, new_words)):
            tell(sentence)
        self.model: Conditioned = Conditioned(*starting_networks(config, init))
        if config.lora_rank:
            add_low_rank(self.model, config.lora_rank)
        freeze(self.model, config.frozen)
        check_memory(self, memory_of(self.device))
        self.model.to(self.device, self.dtype).to(memory_format=layout).train()
        if config.checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self._whole = self.ema  # what snapshots are made of
        if cached.embeddings is not None:
            self.check_embeddings(cached)
        if self.sharded:
            self._whole = copy.deepcopy(self.ema).cpu()
            for spread in (self.model, self.ema):
                sharded.shard(spread, self.device, config.precision)
        network: Any = torch.compile(self.model) if config.compile else self.model
        self.update = Updater(network, make_optimizer(self.model.parameters(), config), config, processes)
        self.alphas_cumprod = scaled_linear_schedule(config.diffusion).to(self.device)
        self._preview = latent_preview(self.autoencoder, cached)
        self._drawn: Text2Layer | None = None

    def check_embeddings(self, cached: Latents) -> None:
        """Raise ValueError when a cache's text embeddings are not what this run's text encoder would say at every step."""
        remedy = "or make the cache without --text-encoder"
        if trains_text(self.config):
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

    def step(self, batch: Batch, step: int) -> StepResult:
        """One optimiser step on the mean squared error of the prediction (paper, Eq. 5), on a process's share of a batch."""
        batch = batch.to(self.device, self.dtype)
        set_learning_rate(self.update.optimizer, self.lr(step))
        losses = []
        with attention_context(self.device):  # checkpointing computes attention again in the backward pass
            for part in self.update.parts(len(batch.t)):
                loss = self.loss(Batch(*(x[part] for x in batch)), self.update.network)
                self.update.backward(loss)
                losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        norm, fine = self.update.step(loss)
        update_ema(self.ema, self.model, self.config.ema_decay, step, fine)
        return StepResult({"loss": loss, "gradient_norm": norm}, fine)

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """The loss of the EMA weights on a held-out batch over all processes."""
        if self._fixed is None:
            return None
        with attention_context(self.device):
            return float(self.processes.mean(self.loss(self._fixed.to(self.device, self.dtype), self.ema)))

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

    def stateful(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "ema": self.ema} | self.update.stateful()
        if self.sharded:
            parts["optimizer"] = sharded.ShardedOptimizer(self.model, self.update.optimizer)
        return parts

    def snapshot(self, step: int) -> Callable[[Path], None]:
        """Writes EMA weights and the autoencoder that decodes their latents; a model that is spread is put together first."""
        if self.sharded:
            sharded.gather(self.ema, self._whole if self.processes.is_main else None)
        self._drawn = Text2Layer(
            autoencoder=self.autoencoder,
            unet=merged(self._whole.unet).eval() if self.config.lora_rank else self._whole.unet.eval(),
            text_encoder=self._whole.text_encoder.eval(),
            diffusion=self.config.diffusion,
            latent_rgb_factors=self._preview[0],
            latent_rgb_bias=self._preview[1],
            info={
                "system": self.config.system,
                "steps": str(step),
                "size": str(self.cached.size),
                "license": self.license,
            },
        )
        return partial(self._write, self._drawn)

    def _write(self, model: Text2Layer, path: Path) -> None:
        model.save(path, torch.float32)
        if self.config.lora_rank:
            save_lora(path.with_name("lora.safetensors"), self._whole.unet, model.info)

    def write_sample(self, step: int, folder: Path) -> None:
        """What the snapshot draws for the prompts, where its weights are; once, the held-out pictures they describe."""
        if self.sample is None or self._drawn is None:
            return
        prompts, pictures = self.sample_prompts()
        if pictures is not None and not (folder / "true.png").exists():
            save_png(
                contact_sheet(self._decoded(pictures), prompts, self.autoencoder.config.has_layers), folder / "true.png"
            )
        try:
            self.sample(self._drawn.to(self.device), prompts, folder / f"{step:07d}.png")
        finally:
            if self.sharded:
                self._whole.cpu()  # beside the parts there is no room for it while training

    def sample_prompts(self) -> tuple[list[str], Tensor | None]:
        """The config's prompts; else captions of held-out pictures, or of those trained on, and the pictures' numbers."""
        if self.config.sample_prompts:
            return list(self.config.sample_prompts), None
        cached = self.held_out or self.cached
        numbers = torch.arange(len(cached))[:: max(1, len(cached) // SAMPLES)][:SAMPLES]
        return [said[0] for said in cached.captions[numbers]], numbers

    @torch.no_grad()
    def _decoded(self, numbers: Tensor) -> Layers:
        """Pictures of the cache that the prompts come from, each cropped to a square of the trained size."""
        cached, side = self.held_out or self.cached, self.cached.size
        pictures = [self.autoencoder.decode(cached.read(number[None])[0].to(self.device)).layers for number in numbers]
        return Layers.cat([cover(layers.to("cpu", torch.float32), (side, side)) for layers in pictures])


def _validation_batch(held_out: Latents, cached: Latents, config: UNetTrainConfig, batches: LatentBatches) -> Batch:
    """This process's share of the batch that validation is always done on, every caption in it as it is."""
    folder = held_out.autoencoder.parent
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
    device = device_of(autoencoder)
    composites = torch.cat([autoencoder.decode(part.to(device)).layers.composite().cpu() for part in latents.split(8)])
    return fit_latent_rgb(latents * autoencoder.config.latent_scale, composites)
