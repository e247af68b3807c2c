"""Trains CaT2I-AE, or an autoencoder of another layout, on layered pictures (paper, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.ahead import explain_worker_death
from ..data.crops import CropBatches, crop_batches, pixels_from_bytes
from ..data.several import Data, SeveralShards, open_shards
from ..data.shards import Shards
from ..draws import sample_noise, step_generator
from ..io.image import contact_sheet, save_png
from ..layers import Layers
from ..model.autoencoder import Autoencoder, Decoded, LayeredAutoencoder, Posterior, latent_size
from ..model.device import memory_of
from ..model.discriminator import PatchDiscriminator
from ..model.from_sd import is_foreign, license_of
from ..model.perceptual import Perceptual
from ..model.precision import at_least_float32, precision_context, weight_dtype
from ..model.systems import standardized
from ..model.text2layer import save_autoencoder
from . import losses
from .configs import AutoencoderTrainConfig
from .fit import StepResult, Task, Tell, check_memory, fit
from .loop import make_optimizer, set_learning_rate, update_ema
from .losses import LossWeights, PerceptualDistance, autoencoder_loss
from .processes import Processes
from .run import Run
from .start import starting_autoencoder
from .update import Updater

PROBES = 64  # batches that the spread of the latents is measured on


@explain_worker_death()
def train_autoencoder(
    config: AutoencoderTrainConfig,
    data: Data,
    run: Path,
    init: Path | None = None,
    validation: Data | None = None,
    any_processes: bool = False,
    accept_changes: bool = False,
    device: str = "auto",
    tell: Tell = lambda sentence: None,
) -> Path:
    """Train until config.num_steps, from the run folder's last state when there is one; returns the snapshot's path.

    data: a folder of shards or several. init: a checkpoint whose autoencoder is the start, ours or Stable Diffusion
    1.x. validation: shards to try the EMA weights on at each save, always the same batch. any_processes,
    accept_changes: as in Run. device: as in `pick_device`. tell: gets what is worth saying. Raises as `fit` does.
    """
    torch.manual_seed(config.seed)
    processes = Processes(device)
    folder = Run(run, config, processes, {"data": data, "init": init}, any_processes, accept_changes)
    shards, held_out = open_shards(data), None if validation is None else open_shards(validation)
    task = AutoencoderTask(config, processes, init, shards, held_out)

    def batches(start: int) -> Iterator[Tensor]:
        pin = task.device.type == "cuda"
        return crop_batches(
            shards, config.data, config.seed, start, config.num_steps, config.num_workers, task.local_indices, pin
        )

    return fit(task, batches, folder, tell)


class Reconstruction(nn.Module):
    """The autoencoder there and back in one call, which is what several processes and torch.compile need."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, layers: Layers, noise: Tensor, extra: Tensor, halved: bool) -> tuple[Posterior, Decoded]:
        """noise: (N, C, h, w). halved: decode latents of half the height and width.

        extra: std of more noise than the posterior's own, (N, 1, 1, 1), as a share of the latents' root mean square.
        """
        posterior = self.autoencoder.encode(layers)
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


class AutoencoderTask(Task):
    """Training an autoencoder of any layout.

    init: as `train_autoencoder` takes it. shards: what it is trained on. held_out: what it is tried on.
    """

    name = "autoencoder"

    def __init__(
        self,
        config: AutoencoderTrainConfig,
        processes: Processes,
        init: Path | None = None,
        shards: Shards | SeveralShards | None = None,
        held_out: Shards | SeveralShards | None = None,
    ) -> None:
        super().__init__(config, processes)
        self.config: AutoencoderTrainConfig = config
        self.dtype = dtype = weight_dtype(config.precision)
        self.local_indices = processes.local_indices(config.data.batch_size, config.gradient_accumulation_steps)
        self.shards, self.held_out = shards, held_out
        self._first_batches: dict[Shards | SeveralShards, Layers] = {}
        self.license = {} if init is None else {"license": license_of(init)}
        model = starting_autoencoder(config.model, init)
        reference = _reference(model, init) if config.loss.reference_kl else None
        if config.fold_batchnorm:
            model.fold_batchnorm()
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            model.post_quant_conv.requires_grad_(False)
        _freeze_what_no_loss_reaches(model, config.loss)
        self.model: Autoencoder = model
        check_memory(self, memory_of(self.device))
        self.reference = None if reference is None else reference.to(self.device, dtype)
        processes.synchronize_batchnorm(model.to(self.device, dtype).to(memory_format=torch.channels_last).train())
        model.checkpoint_blocks(config.gradient_checkpointing)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.perceptual = _perceptual(config, self.device) if config.loss.lpips else None
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_update: Updater | None = None
        if config.loss.adversarial:
            self.discriminator = PatchDiscriminator(config.discriminator).to(self.device, dtype)
            processes.synchronize_batchnorm(self.discriminator)
            learns = self.discriminator.parameters()
            optimizer = make_optimizer(learns, config, weight_decay=0.0, betas=(0.5, 0.9))  # ldm's
            adversary: Any = Adversary(self.discriminator)
            adversary = torch.compile(adversary) if config.compile else adversary
            self.discriminator_update = Updater(adversary, optimizer, config, processes)
        watched = [] if self.discriminator is None else [self.discriminator]  # its BatchNorm sees what it judges
        optimizer = make_optimizer(self.model.parameters(), config)
        self.update = Updater(_compiled(Reconstruction(self.model), config), optimizer, config, processes, watched)

    def layers(self, batch: Tensor) -> Layers:
        """What CropBatches gives, (N, 7, H, W) in 8 bits, where and as the networks take it."""
        return Layers.from_stacked(pixels_from_bytes(batch.to(self.device, non_blocking=True), self.dtype))

    def step(self, batch: Tensor, step: int) -> StepResult:
        """One optimiser step on this process's samples of a batch, as `layers` takes them."""
        target = self.layers(batch)
        set_learning_rate(self.update.optimizer, self.lr(step))
        halved = self._decodes_halved(step)
        noise, extra = self._noise(target, step)
        logged, seen = [], []
        for part in self.update.micro_batches(len(self.local_indices)):
            total, parts, decoded, true = self._losses(target[part], noise[part], extra[part], halved, step)
            self.update.backward(total)
            logged.append({"total": total.detach(), **parts})
            seen.append((decoded, true))
        means = {name: torch.stack([parts[name] for parts in logged]).mean() for name in logged[0]}
        norm, finite = self.update.step(means["total"])
        update_ema(self.ema, self.model, self.config.ema_decay, step, finite)
        if self.discriminator_update is not None:
            means["discriminator"] = self._train_discriminator(self.discriminator_update, seen, step, finite)
        return StepResult(means | {"gradient_norm": norm}, finite)

    def _decodes_halved(self, step: int) -> bool:
        """Whether the step decodes halved latents."""
        probability = self.config.scale_equivariance
        return probability > 0 and float(torch.rand((), generator=step_generator(self.config.seed, step))) < probability

    def _noise(self, target: Layers, step: int) -> tuple[Tensor, Tensor]:
        """What this process's posteriors are drawn with, (N, C, h, w), and the `extra` of Reconstruction.

        The latter, (N, 1, 1, 1), is |n| latent_noise with n ~ N(0, 1). What a UNet leaves a little noisy then still
        becomes a picture (Zheng et al. 2025, RAE, 2510.11690, for a decoder alone); an encoder that learns too
        says what matters louder than the noise.
        """
        model, size = self.model.config, self.config.data.batch_size
        positions = [step * size + number for number in self.local_indices]
        shape = (model.latent_channels, *latent_size(*target.size, model.downscale))
        noise = sample_noise(self.config.seed, positions, shape, "posterior")
        strength = sample_noise(self.config.seed, positions, (1, 1, 1), "strength").abs()
        return noise.to(self.device), (strength * self.config.latent_noise).to(self.device)

    def _losses(
        self, target: Layers, noise: Tensor, extra: Tensor, halved: bool, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Decoded, Layers]:
        """The loss of some samples, its parts, what was decoded and what that should have been."""
        with precision_context(self.device, self.config.precision):
            reference = self._encode_reference(target)
            posterior, decoded = self.update.network(target, noise, extra, halved)
            pixels = target.foreground[0].numel()  # of what was encoded, whatever is decoded of it
            if halved:
                target = Layers.from_stacked(_halve(target.stacked))
            total, parts = autoencoder_loss(
                decoded, posterior, target, self.config.loss, self.perceptual, reference, pixels
            )
            if self.discriminator is not None:
                adversarial = self._adversarial(self.discriminator, decoded, total, step)
                total, parts = total + adversarial, parts | {"adversarial": adversarial.detach()}
        return total, parts | {"latent_std": at_least_float32(posterior.mean.detach()).std()}, decoded, target

    @torch.no_grad()
    def _encode_reference(self, target: Layers) -> Posterior | None:
        """What Stable Diffusion's encoder makes of the composite, where the loss draws to it."""
        return None if self.reference is None else self.reference.encode(Layers.flat(target.composite()))

    def _adversarial(self, discriminator: PatchDiscriminator, decoded: Decoded, total: Tensor, step: int) -> Tensor:
        """The adversarial part of L_img for F, B and I, each balanced at its last layer (paper, Eq. 4)."""
        weight, result = self.config.loss.adversarial, torch.zeros((), device=self.device)
        if step < self.config.loss.adversarial_start:
            return result
        last_layers = self.model.last_layers()
        discriminator.requires_grad_(False)  # it judges here, and learns afterwards
        for name, image in self._pictures(decoded.layers, decoded.auxiliary).items():
            generator_loss = losses.generator_adversarial_loss(discriminator(2 * image - 1))
            scaled = self.update.scaler.scale  # fp16's small gradients would vanish on their way to the last layer
            balance = losses.adaptive_weight(total, generator_loss, last_layers[name], self.processes.mean, scaled)
            result = result + weight * balance * generator_loss
        discriminator.requires_grad_(True)
        return result

    def _pictures(self, layers: Layers, composed: Tensor | None) -> dict[str, Tensor]:
        """What L_img is taken on: F, B and I, as far as they exist and have a weight."""
        pictures = {"foreground": layers.foreground, "background": layers.background, "composed": composed}
        return {name: x for name, x in pictures.items() if x is not None and getattr(self.config.loss, name)}

    def _train_discriminator(
        self, update: Updater, seen: list[tuple[Decoded, Layers]], step: int, allowed: Tensor
    ) -> Tensor:
        """One step of the PatchGAN on real and predicted F, B and I. allowed: as `Updater.step` takes it."""
        start = self.config.loss.adversarial_start
        if step < start:
            return torch.zeros((), device=self.device)
        warm = min(1.0, (step - start + 1) / max(1, self.config.lr_warmup_steps))  # from its own first step
        set_learning_rate(update.optimizer, warm * self.lr(step))
        parts = []
        for (decoded, target), _ in zip(seen, update.micro_batches(len(self.local_indices)), strict=True):
            composite = None if decoded.auxiliary is None else target.composite()
            real = torch.cat([*self._pictures(target, composite).values()])
            fake = torch.cat([*self._pictures(decoded.layers, decoded.auxiliary).values()]).detach()
            with precision_context(self.device, self.config.precision):
                loss = update.network(real, fake)
            update.backward(loss)
            parts.append(loss.detach())
        loss = torch.stack(parts).mean()
        update.step(loss, clip=False, allowed=allowed)
        return loss

    def updaters(self) -> list[Updater]:
        return [self.update] if self.discriminator_update is None else [self.update, self.discriminator_update]

    def stateful(self) -> dict[str, Any]:
        if self.discriminator_update is None:
            return super().stateful()
        learnt = {"discriminator": self.discriminator} | self.discriminator_update.stateful("discriminator_")
        return super().stateful() | learnt

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """The loss of the EMA weights, without the adversarial term, on held-out pictures over all processes."""
        if self.held_out is None:
            return None
        target = self._fixed_batch(self.held_out)
        self.ema.eval()
        with precision_context(self.device, self.config.precision):
            posterior = self.ema.encode(target)
            decoded = self.ema.decode(posterior.mean, clamp=False)
            reference = self._encode_reference(target)
            total, _ = autoencoder_loss(decoded, posterior, target, self.config.loss, self.perceptual, reference)
        return float(self.processes.mean(total))

    def _fixed_batch(self, shards: Shards | SeveralShards) -> Layers:
        """This process's samples of the first batch of a data set."""
        if shards not in self._first_batches:
            self._first_batches[shards] = self.layers(
                CropBatches(shards, self.config.data, self.config.seed, self.local_indices)[0]
            )
        return self._first_batches[shards]

    def snapshot(self, step: int) -> Callable[[Path], None]:
        return lambda path: save_autoencoder(self.ema_for_use(), path, info={"steps": str(step)} | self.license)

    def ema_for_use(self) -> Autoencoder:
        """The EMA weights for use: on training pictures scaled latents have unit variance."""
        if self.config.freeze_encoder or self.config.loss.reference_kl:  # the latents are to stay as they are
            return self.ema
        assert self.shards is not None, "train_autoencoder gives the pictures it trains on"
        config = self.config
        probes = crop_batches(self.shards, config.data, config.seed + 1, 0, PROBES, config.num_workers)
        return standardized(self.ema, (self.layers(batch) for batch in probes))

    @torch.no_grad()
    def write_sample(self, step: int, folder: Path) -> None:
        """Up to eight pictures, held-out ones where there are any, and their reconstruction under them."""
        shards = self.held_out or self.shards
        assert shards is not None, "train_autoencoder gives the pictures it trains on"
        layers = self._fixed_batch(shards)[:8]
        self.ema.eval()
        decoded = self.ema.decode(self.ema.encode(layers).mean)
        save_png(contact_sheet(Layers.cat([layers, decoded.layers])), folder / f"{step:07d}.png")


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
    return torch.compile(network) if config.compile and not config.loss.adversarial else network


def _compiled(network: Reconstruction, config: AutoencoderTrainConfig) -> nn.Module:
    """torch.compile on what pays: the whole, or with a discriminator what its adaptive weight does not look through.

    That weight asks for gradients at the last layers while the graph is kept. A compiled graph gives all its gradients
    or none, and may overwrite what a second pass needs; so the last layers and what follows stay as they are then.
    """
    if not config.compile:
        return network
    if not config.loss.adversarial:
        return torch.compile(network)  # type: ignore[return-value]
    network.autoencoder.encoder.compile()
    decoder = network.autoencoder.decoder
    decoder.trunk, decoder.last = torch.compile(decoder.trunk), torch.compile(decoder.last)
    return network


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
