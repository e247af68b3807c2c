"""Trains CaT2I-AE, or an autoencoder of another layout, on layered pictures (paper, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.crops import CropConfig, crop_batches
from ..data.shards import Shards
from ..io.image import contact_sheet
from ..layers import Layers
from ..model.autoencoder import Autoencoder, AutoencoderConfig, Decoded, Posterior
from ..model.discriminator import DiscriminatorConfig, PatchDiscriminator
from ..model.from_sd import is_foreign, license_of
from ..model.text2layer import save_autoencoder
from . import losses
from .loop import (
    Guard,
    Meter,
    Precision,
    learning_rate,
    make_optimizer,
    pick_device,
    precision_context,
    set_learning_rate,
    step_generator,
    update_ema,
)
from .losses import LossWeights, autoencoder_loss
from .perceptual import Perceptual
from .run import Run
from .start import starting_autoencoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainConfig:
    """Everything that decides what a training run of the autoencoder gives."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    data: CropConfig = field(default_factory=CropConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    steps: int = 250_000
    lr: float = 4.5e-6
    warmup: int = 100
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    scale_equivariance: float = 0.0  # share of steps that decode halved latents to halved pictures (EQ-VAE, 2502.09509)
    fold_batchnorm: bool = False  # start from heads without BatchNorm: in small batches its statistics are noise
    freeze_encoder: bool = False  # train the decoder alone: latents made before stay valid
    precision: Precision = "auto"
    seed: int = 0
    workers: int = 1
    log_every: int = 50
    save_every: int = 500


def train_autoencoder(config: AutoencoderTrainConfig, data: Path, run: Path, init: Path | None = None) -> Path:
    """Train until config.steps, from the run folder's last state when there is one; returns the snapshot's path.

    data: a folder of shards. init: a checkpoint whose autoencoder is the starting point, ours or Stable Diffusion 1.x.
    """
    torch.manual_seed(config.seed)
    folder, device = Run(run, config), pick_device()
    trainer = Trainer(config, device, init)
    start = trainer.load(folder.load_state(device))
    shards = Shards(data)
    batches = crop_batches(shards, config.data, config.seed, start, config.steps, config.workers)
    meter = Meter()
    bar = tqdm(meter.timed(batches), initial=start, total=config.steps, unit="step", desc="autoencoder")
    for step, batch in enumerate(bar, start):
        meter.add(trainer.step(Layers.from_stacked(batch.to(device)), step))
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            stats = meter.flush() | {"lr": trainer.lr(step), "skipped": trainer.guard.skipped}
            folder.log({"step": done, **stats})
            bar.set_postfix(total=f"{stats['total']:.4f}", wait=f"{stats['data_wait']:.1%}")
        if done % config.save_every == 0 or done == config.steps:
            folder.save_state(trainer.state(done))
            trainer.write_sample(Layers.from_stacked(batch[:8].to(device)), folder.samples / f"{done:07d}.png")
    finished = trainer.ema
    if not config.freeze_encoder and not config.loss.reference_kl:  # else the latents are to stay as they are
        probes = crop_batches(shards, config.data, config.seed + 1, 0, 64, config.workers)
        finished = standardized(finished, probes, device)
    info = {"steps": str(config.steps)} | ({} if init is None else {"license": license_of(init)})
    save_autoencoder(finished, folder.snapshot, info)
    return folder.snapshot


class Trainer:
    """The networks and optimisers of a run, and what one step does with them."""

    def __init__(self, config: AutoencoderTrainConfig, device: torch.device, init: Path | None) -> None:
        self.config = config
        self.device = device
        model = starting_autoencoder(config.model, init)
        self.reference = _reference(model, init).to(device) if config.loss.reference_kl else None
        if config.fold_batchnorm:
            model.fold_batchnorm()
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            model.post_quant_conv.requires_grad_(False)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.model.parameters(), config.lr, config.weight_decay, config.betas)
        self.perceptual = Perceptual().to(device) if config.loss.lpips else None
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if config.loss.adversarial:
            self.discriminator = PatchDiscriminator(config.discriminator).to(device)
            betas = (0.5, 0.9)  # ldm
            self.discriminator_optimizer = make_optimizer(self.discriminator.parameters(), config.lr, 0.0, betas)
        self.guard = Guard()

    def lr(self, step: int) -> float:
        return learning_rate(step, self.config.steps, self.config.lr, self.config.warmup)

    def step(self, target: Layers, step: int) -> dict[str, Tensor | float]:
        """One optimiser step; a step that is not finite changes nothing. Returns what to log."""
        generator = step_generator(self.config.seed, step)
        set_learning_rate(self.optimizer, self.lr(step))
        halved = float(torch.rand((), generator=generator)) < self.config.scale_equivariance
        with precision_context(self.device, self.config.precision):
            posterior = self.model.encode(target)
            known = None if self.reference is None else _known(self.reference, target)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
            latents = posterior.mean.float() + posterior.std.float() * noise
            if halved:
                latents, target = _halve(latents), Layers.from_stacked(_halve(target.stacked()))
            decoded = self.model.decode(latents, clamp=False)
            total, parts = autoencoder_loss(decoded, posterior, target, self.config.loss, self.perceptual, known)
            if self.discriminator is not None:
                adversarial = self._adversarial(decoded, total, step)
                total, parts = total + adversarial, parts | {"adversarial": adversarial.detach()}
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        if not self.guard.allows(step, total.detach(), norm):
            return {}
        self.optimizer.step()
        update_ema(self.ema, self.model, self.config.ema_decay, step)
        if self.discriminator is not None:
            parts["discriminator"] = self._train_discriminator(decoded, target, step)
        latent_std = posterior.mean.detach().float().std()
        return {"total": total.detach(), "gradient_norm": norm, "latent_std": latent_std, **parts}

    def _adversarial(self, decoded: Decoded, total: Tensor, step: int) -> Tensor:
        """The adversarial part of L_img for F, B and I, each balanced at the last layer that makes it (paper, Eq. 4)."""
        weight = self.config.loss.adversarial * losses.adversarial_factor(step, self.config.loss.adversarial_start)
        if weight == 0 or self.discriminator is None:
            return torch.zeros((), device=self.device)
        last_layers = self.model.last_layers()
        result = torch.zeros((), device=self.device)
        for name, image in self._pictures(decoded.layers, decoded.auxiliary).items():
            fooled = losses.generator_adversarial_loss(self.discriminator(2 * image - 1))
            result = result + weight * losses.adaptive_weight(total, fooled, last_layers[name]) * fooled
        return result

    def _pictures(self, layers: Layers, composed: Tensor | None) -> dict[str, Tensor]:
        """What L_img is taken on: F, B and I, as far as they exist and have a weight."""
        pictures = {"foreground": layers.foreground, "background": layers.background, "composed": composed}
        return {name: x for name, x in pictures.items() if x is not None and getattr(self.config.loss, name)}

    def _train_discriminator(self, decoded: Decoded, target: Layers, step: int) -> Tensor:
        """One step of the PatchGAN on real and predicted F, B and I (hinge loss)."""
        factor = losses.adversarial_factor(step, self.config.loss.adversarial_start)
        if factor == 0 or self.discriminator is None or self.discriminator_optimizer is None:
            return torch.zeros((), device=self.device)
        composite = None if decoded.auxiliary is None else target.composite()
        with precision_context(self.device, self.config.precision):
            real = self.discriminator(2 * torch.cat([*self._pictures(target, composite).values()]) - 1)
            predicted = self._pictures(decoded.layers, decoded.auxiliary)
            fake = self.discriminator(2 * torch.cat([*predicted.values()]).detach() - 1)
            loss = losses.hinge_discriminator_loss(real, fake)
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()

    def state(self, step: int) -> dict[str, Any]:
        """Everything that resuming needs; `step` steps are done."""
        modules: dict[str, Any] = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}
        if self.discriminator is not None:
            modules |= {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
        return {"step": step, "skipped": self.guard.skipped} | {k: m.state_dict() for k, m in modules.items()}

    def load(self, state: dict[str, Any] | None) -> int:
        """Take over a saved state; returns the step to go on with."""
        if state is None:
            return 0
        self.guard.skipped = state["skipped"]
        for name in state.keys() - {"step", "skipped"}:
            getattr(self, name).load_state_dict(state[name])
        return state["step"]

    @torch.no_grad()
    def write_sample(self, layers: Layers, path: Path) -> None:
        """Pictures and their reconstruction by the EMA weights, one under the other."""
        self.ema.eval()
        decoded = self.ema.decode(self.ema.encode(layers).mean)
        contact_sheet(Layers.cat([layers, decoded.layers])).save(path)


@torch.no_grad()
def standardized(model: Autoencoder, batches: Iterator[Tensor], device: torch.device) -> Autoencoder:
    """A copy of the model whose scaled latents have zero mean and unit variance per channel over the batches."""
    model = copy.deepcopy(model).eval()
    means, squares = [], []
    for batch in batches:
        mean = model.encode(Layers.from_stacked(batch.to(device))).mean.double()
        means.append(mean.mean(dim=(0, 2, 3)))
        squares.append(mean.square().mean(dim=(0, 2, 3)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).sqrt()
    return model.standardize_latents(mean.float(), std.float())


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
