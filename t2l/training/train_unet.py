"""Trains the diffusion UNet on cached latents, with its text encoder if that is to be trained (paper, section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.ahead import read_ahead
from ..data.batches import Batch, LatentBatches
from ..data.buckets import center_crop
from ..data.latents import Latents
from ..diffusion import add_noise, min_snr_weight, scaled_linear_schedule, training_target
from ..io.image import contact_sheet, save_png
from ..layers import Layers
from ..model.device import memory_of
from ..model.from_sd import license_of
from ..model.low_rank import add_low_rank, merged, save_lora
from ..model.precision import at_least_float32, precision_context, weight_dtype
from ..model.text2layer import Text2Layer, latent_preview, load_autoencoder
from ..model.text_encoder import fingerprint
from ..model.tokenizer import Tokenizer
from ..model.unet import Conditioned
from . import sharded
from .configs import UNetTrainConfig
from .fit import StepResult, Task, Tell, check_memory, fit
from .loop import attention_context, make_optimizer, set_learning_rate, update_ema
from .processes import Processes
from .run import Run
from .start import add_vocabulary, check_cache, freeze, starting_networks, trains_text_encoder
from .update import Updater

SAMPLES = 4  # pictures drawn at every save
PROBES = 64  # pictures that a preview's colours are fitted on
AHEAD = 4  # batches made before they are needed


SampleHook = Callable[[Text2Layer, Sequence[str], Path], None]  # EMA weights, prompts, where to write a picture


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
    """Train until config.num_steps, from the run folder's last state when there is one; returns the snapshot's path.

    latents: a folder made by cache_latents. init: a checkpoint whose UNet and text encoder are the start, ours or
    Stable Diffusion 1.x. sample: called whenever a snapshot is written, to draw pictures of it. validation: latents the
    EMA weights are tried on then, always the same batch. any_processes, accept_changes: as Run takes them. device: as
    `pick_device` takes it. tell: gets what is worth saying. Raises as `fit` does.
    """
    torch.manual_seed(config.seed)
    processes = Processes(device)
    folder = Run(run, config, processes, {"latents": latents, "init": init}, any_processes, accept_changes)
    cached, held_out = Latents(latents), None if validation is None else Latents(validation)
    before = folder.snapshot if folder.has_state() else None
    task = UNetTask(config, processes, cached, init, held_out, sample, before, tell)

    def batches(start: int) -> Iterator[Batch]:
        made = (task.batches[step] for step in range(start, config.num_steps))
        return read_ahead(made, AHEAD, task.device.type == "cuda")

    return fit(task, batches, folder, tell)


class UNetTask(Task):
    """Training a UNet, with its text encoder when that is ours to train.

    init, sample, tell: as `train_unet` takes them. cached: what it is trained on. held_out: what it is tried on.
    before: the snapshot of a run that goes on.
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
        self.sharded = config.sharding == "fsdp" and processes.world_size > 1
        self.cached, self.held_out, self.sample = cached, held_out, sample
        local = processes.local_indices(config.batch_size, config.gradient_accumulation_steps)
        self.autoencoder = load_autoencoder(cached.autoencoder).to(self.device)
        self.batches = LatentBatches(cached, config.batches, self.autoencoder.config.latent_scale, Tokenizer(), local)
        self._fixed_batch = None if held_out is None else _validation_batch(held_out, self.batches)
        # FSDP takes contiguous weights only
        layout = torch.contiguous_format if self.sharded else torch.channels_last
        self.license = config.license if init is None else license_of(init)
        misfit = check_cache(cached, config, self.autoencoder, init)
        config, new_words = add_vocabulary(config, cached.texts(), init, before)
        for sentence in filter(None, (misfit, new_words)):
            tell(sentence)
        self.model: Conditioned = Conditioned(*starting_networks(config, init))
        if config.lora_rank:
            add_low_rank(self.model, config.lora_rank)
        freeze(self.model, config.frozen)
        check_memory(self, memory_of(self.device))
        self.model.to(self.device, self.dtype).to(memory_format=layout).train()
        if config.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self._whole = self.ema  # what snapshots are made of
        if cached.embeddings is not None:
            self.check_embeddings(cached)
        if self.sharded:
            self._whole = copy.deepcopy(self.ema).cpu()
            for network in (self.model, self.ema):
                sharded.shard(network, self.device, config.precision)
        compiled: Any = torch.compile(self.model) if config.compile else self.model
        self.update = Updater(compiled, make_optimizer(self.model.parameters(), config), config, processes)
        self.alphas_cumprod = scaled_linear_schedule(config.diffusion).to(self.device)
        self._preview = latent_preview(self.autoencoder, cached.sample_means(PROBES))
        self._drawn: Text2Layer | None = None

    def check_embeddings(self, cached: Latents) -> None:
        """Raise ValueError when a cache's text embeddings are not what this run's text encoder says at every step."""
        remedy = "or make the cache without --text-encoder"
        if trains_text_encoder(self.config):
            raise ValueError(
                f'the latents come with text embeddings, which stand for a frozen text encoder: put "text_encoder" '
                f"into "
                f"frozen, {remedy}"
            )
        if self.config.unknown_word:
            raise ValueError(
                f"words cannot be replaced in text embeddings: set unknown_word to 0, got {self.config.unknown_word}, "
                f"{remedy}"
            )
        if fingerprint(self._whole.text_encoder) != cached.about["text"]["encoder"]:
            raise ValueError(
                "the latents come with text embeddings of another text encoder than that of --init: start from the "
                f"checkpoint they were made with, {remedy}"
            )

    def step(self, batch: Batch, step: int) -> StepResult:
        """One optimiser step on the prediction's mean squared error (paper, Eq. 5), on this process's samples."""
        batch = batch.to(self.device, self.dtype)
        set_learning_rate(self.update.optimizer, self.lr(step))
        losses = []
        with attention_context(self.device):  # checkpointing computes attention again in the backward pass
            for part in self.update.micro_batches(len(batch.t)):
                loss = self.loss(Batch(*(x[part] for x in batch)), self.update.network)
                self.update.backward(loss)
                losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        norm, finite = self.update.step(loss)
        update_ema(self.ema, self.model, self.config.ema_decay, step, finite)
        return StepResult({"loss": loss, "gradient_norm": norm}, finite)

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """The loss of the EMA weights on a held-out batch over all processes."""
        if self._fixed_batch is None:
            return None
        with attention_context(self.device):
            return float(self.processes.mean(self.loss(self._fixed_batch.to(self.device, self.dtype), self.ema)))

    def loss(self, batch: Batch, network: nn.Module) -> Tensor:
        """The mean squared error of a network's prediction over some samples, a scalar."""
        kind = self.config.diffusion.prediction
        x_t = add_noise(batch.latents, batch.noise, batch.t, self.alphas_cumprod)
        target = training_target(batch.latents, batch.noise, batch.t, self.alphas_cumprod, kind)
        with precision_context(self.device, self.config.precision):
            prediction = network(torch.cat([x_t, batch.kept], dim=1), batch.t, batch.text)
        error = F.mse_loss(at_least_float32(prediction), target, reduction="none").mean(dim=(1, 2, 3))
        if self.config.min_snr_gamma:
            error = error * min_snr_weight(batch.t, self.alphas_cumprod, self.config.min_snr_gamma, kind)
        return error.mean()

    def stateful(self) -> dict[str, Any]:
        optimizer = {"optimizer": sharded.ShardedOptimizer(self.model, self.update.optimizer)} if self.sharded else {}
        return super().stateful() | optimizer

    def snapshot(self, step: int) -> Callable[[Path], None]:
        """Writes EMA weights and the autoencoder that decodes their latents; a sharded model is put together first."""
        if self.sharded:
            sharded.gather(self.ema, self._whole if self.processes.is_main else None)
        self._drawn = Text2Layer(
            autoencoder=self.autoencoder,
            unet=merged(self._whole.unet).eval() if self.config.lora_rank else self._whole.unet.eval(),
            text_encoder=self._whole.text_encoder.eval(),
            diffusion=self.config.diffusion,
            latent_rgb_factors=self._preview[0],
            latent_rgb_bias=self._preview[1],
            info=dict(system=self.config.system, steps=str(step), size=str(self.cached.size), license=self.license),
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
            sheet = contact_sheet(self._decoded(pictures), prompts, self.autoencoder.config.has_layers)
            save_png(sheet, folder / "true.png")
        try:
            self.sample(self._drawn.to(self.device), prompts, folder / f"{step:07d}.png")
        finally:
            if self.sharded:
                self._whole.cpu()  # there is no room for it while training

    def sample_prompts(self) -> tuple[list[str], Tensor | None]:
        """The config's prompts; else captions of pictures held out, or else trained on, and the pictures' numbers."""
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
        return Layers.cat([center_crop(layers.to("cpu", torch.float32), (side, side)) for layers in pictures])


def _validation_batch(held_out: Latents, batches: LatentBatches) -> Batch:
    """This process's samples of the batch that validation is always done on, every caption in it as it is."""
    folder, cached = held_out.autoencoder.parent, batches.cached
    if held_out.about["autoencoder"] != cached.about["autoencoder"]:
        raise ValueError(f"the validation latents {folder} were made by another autoencoder than those trained on")
    if held_out.about.get("text", {}).get("encoder") != cached.about.get("text", {}).get("encoder"):
        raise ValueError(
            f"the validation latents {folder} must have text embeddings of the same encoder as those trained on, or "
            "none if they have none; make them with the same --text-encoder"
        )
    plain = replace(batches.config, cond_drop_prob=0.0, unknown_word=0.0)
    return LatentBatches(held_out, plain, batches.latent_scale, batches.tokenize, batches.local_indices)[0]
