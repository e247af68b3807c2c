"""Trains CaT2I-AE, or an autoencoder of another layout, on layered pictures (paper, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.ahead import worker_deaths_told
from ..data.crops import CropBatches, CropConfig, crop_batches, pixels_from_bytes
from ..data.draws import sample_noise
from ..data.shards import Shards
from ..io.image import contact_sheet, save_png
from ..layers import Layers
from ..model.autoencoder import Autoencoder, AutoencoderConfig, Decoded, LayeredAutoencoder, Posterior, latent_size
from ..model.discriminator import DiscriminatorConfig, PatchDiscriminator
from ..model.from_sd import is_foreign, license_of
from ..model.text2layer import save_autoencoder
from . import losses
from .loop import (
    LoopConfig,
    Meter,
    learning_rate,
    make_8bit_optimizer,
    make_optimizer,
    set_learning_rate,
    step_generator,
    update_ema,
)
from .losses import LossWeights, PerceptualDistance, autoencoder_loss
from .perceptual import Perceptual
from .precision import at_least_float32, precision_context, weight_dtype
from .processes import Processes
from .run import Run
from .start import starting_autoencoder
from .update import Updater


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainConfig(LoopConfig):
    """Everything that decides what a training run of the autoencoder gives."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    data: CropConfig = field(default_factory=CropConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    steps: int = 250_000
    lr: float = 4.5e-6
    scale_equivariance: float = 0.0  # share of steps that decode halved latents to halved pictures (EQ-VAE, 2502.09509)
    latent_noise: float = 0.0  # of noise on the latents before they are decoded, beside their own size (see `_noise`)
    fold_batchnorm: bool = False  # start from heads without BatchNorm: in small batches its statistics are noise
    freeze_encoder: bool = False  # train the decoder alone: latents made before stay valid
    workers: int = 1  # processes that read pictures, for each process that trains


@worker_deaths_told()
def train_autoencoder(
    config: AutoencoderTrainConfig,
    data: Path,
    run: Path,
    init: Path | None = None,
    validation: Path | None = None,
    any_processes: bool = False,
) -> Path:
    """Train until config.steps, from the run folder's last state when there is one; returns the snapshot's path.

    data: a folder of shards. init: a checkpoint whose autoencoder is the starting point, ours or Stable Diffusion 1.x.
    validation: shards the EMA weights are tried on whenever the state is saved, always the same batch. any_processes: as Run takes it.
    """
    torch.manual_seed(config.seed)
    processes = Processes()
    folder = Run(run, config, processes, any_processes)
    trainer = Trainer(config, processes, init)
    start = trainer.load(folder.load_state())
    shards = Shards(data)
    batches = crop_batches(shards, config.data, config.seed, start, config.steps, config.workers, trainer.share)
    fixed = None if validation is None else CropBatches(Shards(validation), config.data, config.seed, trainer.share)[0]
    meter = Meter()
    bar = folder.progress(meter.timed(batches), start, config.steps, "autoencoder")
    for step, batch in enumerate(bar, start):
        layers, done = trainer.layers(batch), step + 1
        meter.add(trainer.step(layers, step))
        if folder.logs(done):
            stats = processes.means(meter.flush()) | {"lr": trainer.lr(step), "skipped": trainer.guard.skipped}
            folder.log({"step": done, **stats})
            bar.set_postfix(total=f"{stats.get('total', float('nan')):.4f}", wait=f"{stats['data_wait']:.1%}")
        if folder.saves(done):
            if fixed is not None:
                loss = trainer.validation_loss(trainer.layers(fixed))
                folder.log({"step": done, "validation_loss": loss})
            if (folder.keeps(done) or done == config.steps) and processes.is_main:
                finished = trainer.finished(crop_batches(shards, config.data, config.seed + 1, 0, 64, config.workers))
                info = {"steps": str(done)} | trainer.license
                folder.write_snapshot(partial(save_autoencoder, finished, info=info), done)
            folder.save_state(trainer.state(done))
            if processes.is_main:
                with folder.writing(f"the sample of step {done}"):
                    trainer.write_sample(layers[:8], folder.samples / f"{done:07d}.png")
    folder.close()
    return folder.snapshot


class Reconstruction(nn.Module):
    """The autoencoder there and back in one call, which is what several processes and torch.compile need."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, stacked: Tensor, noise: Tensor, extra: Tensor, halved: bool) -> tuple[Posterior, Decoded]:
        """stacked (N, 7, H, W), noise (N, C, h, w). halved: decode latents of half the height and width.

        extra: std of more noise than the posterior's own, (N, 1, 1, 1), as a share of the latents' root mean square.
        """
        posterior = self.autoencoder.encode(Layers.from_stacked(stacked))
        mean, std = at_least_float32(posterior.mean), at_least_float32(posterior.std)
        size = mean.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()  # no use in growing away from the noise
        latents = mean + torch.hypot(std, extra * size) * noise
        return posterior, self.autoencoder.decode(_halve(latents) if halved else latents, clamp=False)


class Adversary(nn.Module):
    """The discriminator's loss on real and predicted pictures in one call (hinge)."""

    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """real, fake: (N, 3, H, W), pixels."""
        real_logits = self.discriminator(2 * real - 1)
        return losses.hinge_discriminator_loss(real_logits, self.discriminator(2 * fake - 1))


class Trainer:
    """The networks and optimisers of a run, and what one step does with them.

    share: which samples of a batch are this process's.
    """

    def __init__(self, config: AutoencoderTrainConfig, processes: Processes, init: Path | None) -> None:
        self.config = config
        self.processes = processes
        self.device = device = processes.device
        self.dtype = dtype = weight_dtype(config.precision)
        self.share = processes.share(config.data.batch_size, config.accumulate)
        self.license = {} if init is None else {"license": license_of(init)}
        model = starting_autoencoder(config.model, init)
        self.reference = _reference(model, init).to(device, dtype) if config.loss.reference_kl else None
        if config.fold_batchnorm:
            model.fold_batchnorm()
        self.model = processes.synchronized(model.to(device, dtype).to(memory_format=torch.channels_last).train())
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            model.post_quant_conv.requires_grad_(False)
        _freeze_what_no_loss_reaches(model, config.loss)
        model.checkpoint_blocks(config.checkpointing)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        make = make_8bit_optimizer if config.optimizer == "adamw8bit" else make_optimizer
        self.perceptual = _perceptual(config, device) if config.loss.lpips else None
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_update: Updater | None = None
        if config.loss.adversarial:
            self.discriminator = PatchDiscriminator(config.discriminator).to(device, dtype)
            processes.synchronized(self.discriminator)
            betas = (0.5, 0.9)  # ldm
            optimizer = make(self.discriminator.parameters(), config.lr, 0.0, betas, config.adam_eps)
            self.discriminator_update = Updater(Adversary(self.discriminator), optimizer, config, processes)
        watched = [] if self.discriminator is None else [self.discriminator]  # its BatchNorm sees what it judges
        optimizer = make(self.model.parameters(), config.lr, config.weight_decay, config.betas, config.adam_eps)
        self.update = Updater(Reconstruction(self.model), optimizer, config, processes, watched)
        self.guard = self.update.guard

    def layers(self, batch: Tensor) -> Layers:
        """What CropBatches gives, (N, 7, H, W) in 8 bits, where and as the networks take it."""
        return Layers.from_stacked(pixels_from_bytes(batch.to(self.device, non_blocking=True), self.dtype))

    def lr(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.lr, self.config.warmup)

    def step(self, target: Layers, step: int) -> Mapping[str, Tensor]:
        """One optimiser step; a step that is not finite changes nothing. Returns what to log."""
        set_learning_rate(self.update.optimizer, self.lr(step))
        halved = (
            float(torch.rand((), generator=step_generator(self.config.seed, step))) < self.config.scale_equivariance
        )
        noise, extra = self._noise(target, step)
        logged, seen = [], []
        for part in self.update.parts(len(self.share)):
            total, parts, decoded, true = self._losses(target[part], noise[part], extra[part], halved, step)
            self.update.backward(total)
            logged.append({"total": total.detach(), **parts})
            seen.append((decoded, true))
        means = {name: torch.stack([parts[name] for parts in logged]).mean() for name in logged[0]}
        norm = self.update.step(step, means["total"])
        if norm is None:
            return {}
        update_ema(self.ema, self.model, self.config.ema_decay, step)
        if self.discriminator_update is not None:
            means["discriminator"] = self._train_discriminator(self.discriminator_update, seen, step)
        return means | {"gradient_norm": norm}

    def _noise(self, target: Layers, step: int) -> tuple[Tensor, Tensor]:
        """What the posteriors of this process's share are sampled with, (N, C, h, w), and the `extra` of Reconstruction.

        The latter, (N, 1, 1, 1), is |n| latent_noise with n ~ N(0, 1). What a UNet leaves a little noisy then still
        becomes a picture (Zheng et al. 2025, RAE, 2510.11690, for a decoder alone); an encoder that learns too
        says what matters louder than the noise.
        """
        model, size = self.model.config, self.config.data.batch_size
        positions = [step * size + number for number in self.share]
        shape = (model.latent_channels, *latent_size(*target.size, model.downscale))
        noise = sample_noise(self.config.seed, positions, shape, "posterior")
        strength = sample_noise(self.config.seed, positions, (1, 1, 1), "strength").abs()
        return noise.to(self.device), (strength * self.config.latent_noise).to(self.device)

    def _losses(
        self, target: Layers, noise: Tensor, extra: Tensor, halved: bool, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Decoded, Layers]:
        """The loss of some samples, its parts, what was decoded and what that should have been."""
        with precision_context(self.device, self.config.precision):
            known = None if self.reference is None else _known(self.reference, target)
            posterior, decoded = self.update.network(target.stacked(), noise, extra, halved)
            if halved:
                target = Layers.from_stacked(_halve(target.stacked()))
            total, parts = autoencoder_loss(decoded, posterior, target, self.config.loss, self.perceptual, known)
            if self.discriminator is not None:
                adversarial = self._adversarial(self.discriminator, decoded, total, step)
                total, parts = total + adversarial, parts | {"adversarial": adversarial.detach()}
        return total, parts | {"latent_std": at_least_float32(posterior.mean.detach()).std()}, decoded, target

    def _adversarial(self, discriminator: PatchDiscriminator, decoded: Decoded, total: Tensor, step: int) -> Tensor:
        """The adversarial part of L_img for F, B and I, each balanced at the last layer that makes it (paper, Eq. 4)."""
        weight = self.config.loss.adversarial * losses.adversarial_factor(step, self.config.loss.adversarial_start)
        result = torch.zeros((), device=self.device)
        if weight == 0:
            return result
        last_layers = self.model.last_layers()
        discriminator.requires_grad_(False)  # it judges here, and learns afterwards
        for name, image in self._pictures(decoded.layers, decoded.auxiliary).items():
            fooled = losses.generator_adversarial_loss(discriminator(2 * image - 1))
            balance = losses.adaptive_weight(total, fooled, last_layers[name], self.processes.mean)
            result = result + weight * balance * fooled
        discriminator.requires_grad_(True)
        return result

    def _pictures(self, layers: Layers, composed: Tensor | None) -> dict[str, Tensor]:
        """What L_img is taken on: F, B and I, as far as they exist and have a weight."""
        pictures = {"foreground": layers.foreground, "background": layers.background, "composed": composed}
        return {name: x for name, x in pictures.items() if x is not None and getattr(self.config.loss, name)}

    def _train_discriminator(self, update: Updater, seen: list[tuple[Decoded, Layers]], step: int) -> Tensor:
        """One step of the PatchGAN on real and predicted F, B and I."""
        if losses.adversarial_factor(step, self.config.loss.adversarial_start) == 0:
            return torch.zeros((), device=self.device)
        parts = []
        for (decoded, target), _ in zip(seen, update.parts(len(self.share)), strict=True):
            composite = None if decoded.auxiliary is None else target.composite()
            real = torch.cat([*self._pictures(target, composite).values()])
            fake = torch.cat([*self._pictures(decoded.layers, decoded.auxiliary).values()]).detach()
            with precision_context(self.device, self.config.precision):
                loss = update.network(real, fake)
            update.backward(loss)
            parts.append(loss.detach())
        loss = torch.stack(parts).mean()
        update.step(step, loss, clip=False)
        return loss

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
        if self.discriminator_update is not None:
            parts |= {"discriminator": self.discriminator} | self.discriminator_update.stateful("discriminator_")
        return parts

    @torch.no_grad()
    def validation_loss(self, target: Layers) -> float:
        """The loss of the EMA weights, without the adversarial term, on pictures over all processes."""
        self.ema.eval()
        with precision_context(self.device, self.config.precision):
            posterior = self.ema.encode(target)
            decoded = self.ema.decode(posterior.mean, clamp=False)
            known = None if self.reference is None else _known(self.reference, target)
            total, _ = autoencoder_loss(decoded, posterior, target, self.config.loss, self.perceptual, known)
        return float(self.processes.mean(total))

    def finished(self, probes: Iterator[Tensor]) -> Autoencoder:
        """The EMA weights for use. probes: pictures on which scaled latents shall have unit variance."""
        if self.config.freeze_encoder or self.config.loss.reference_kl:  # the latents are to stay as they are
            return self.ema
        return standardized(self.ema, probes)

    @torch.no_grad()
    def write_sample(self, layers: Layers, path: Path) -> None:
        """Pictures and their reconstruction by the EMA weights, one under the other."""
        self.ema.eval()
        decoded = self.ema.decode(self.ema.encode(layers).mean)
        save_png(contact_sheet(Layers.cat([layers, decoded.layers])), path)


@torch.no_grad()
def standardized(model: Autoencoder, batches: Iterator[Tensor]) -> Autoencoder:
    """A copy of the model whose scaled latents have zero mean and unit variance per channel over the batches."""
    model = copy.deepcopy(model).eval()
    means, squares = [], []
    for batch in batches:
        weight = model.quant_conv.weight
        pixels = pixels_from_bytes(batch.to(weight.device, non_blocking=True), weight.dtype)
        mean = model.encode(Layers.from_stacked(pixels)).mean.double()
        means.append(mean.mean(dim=(0, 2, 3)))
        squares.append(mean.square().mean(dim=(0, 2, 3)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).sqrt()
    return model.standardize_latents(mean.float(), std.float())


def _freeze_what_no_loss_reaches(model: Autoencoder, weights: LossWeights) -> None:
    """Processes exchange the gradient of every weight that is trained, so each of them must get one."""
    if not isinstance(model, LayeredAutoencoder):
        return  # one last layer makes all pictures
    if not weights.composed and model.decoder.conv_out is not None:
        model.decoder.conv_out.requires_grad_(False)
    if weights.composition_inputs == "predicted" or weights.recompose:
        return
    for name in ("foreground", "background"):
        if not getattr(weights, name):
            model.decoder.heads()[name].requires_grad_(False)


def _perceptual(config: AutoencoderTrainConfig, device: torch.device) -> PerceptualDistance:
    network = Perceptual().to(device, weight_dtype(config.precision)).to(memory_format=torch.channels_last)
    return torch.compile(network) if config.compile else network


def _halve(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="area")


def _reference(model: Autoencoder, init: Path | None) -> Autoencoder:
    """A frozen copy of the autoencoder that a run begins with, which must be Stable Diffusion's."""
    if init is None or not is_foreign(init) or model.config.layout == "separate":
        raise ValueError(
            "loss.reference_kl keeps the latents near those of Stable Diffusion's autoencoder for the composite: give "
            "--init a Stable Diffusion 1.x checkpoint, and model.layout 'joint' or 'composite'"
        )
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def _known(reference: Autoencoder, target: Layers) -> Posterior:
    """What Stable Diffusion's encoder makes of the composite: a flat picture goes through as in it."""
    return reference.encode(Layers.flat(target.composite()))
