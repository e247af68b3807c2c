"""A prompt becomes layers, headless: text encoder, UNet, diffusers' scheduler, autoencoder.

The schedulers are diffusers', set up from the checkpoint's DiffusionConfig. Noise is drawn on the CPU from one generator
per picture, so a picture depends on its prompt, its seed and the config, and not on its batch or its device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .config import DiffusionConfig
from .diffusion import guided
from .layers import Layers
from .model.autoencoder import Decoded, latent_size
from .model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .model.text2layer import Text2Layer

SMALLEST = 64  # pixels along a side
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}  # ours -> diffusers'
Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How to sample. The paper's figures: sampler="ddim", steps=50, guidance=7.5."""

    height: int = 256
    width: int = 256
    steps: int = 25
    guidance: float = 4.0  # 1 = none
    seed: int = 0  # picture i is drawn from seed + i
    sampler: Literal["dpm", "ddim"] = "dpm"  # DPM-Solver++ needs about half of DDIM's steps
    batch_size: int = 8  # pictures at once

    def __post_init__(self) -> None:
        if min(self.height, self.width) < SMALLEST:
            raise ValueError(f"width and height must be at least {SMALLEST} pixels, got {self.width} x {self.height}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if self.sampler not in ("dpm", "ddim"):
            raise ValueError(f"sampler must be dpm or ddim, got {self.sampler!r}")


@torch.inference_mode()
def generate(
    model: Text2Layer, prompts: Sequence[str], config: GenerateConfig | None = None, progress: Progress | None = None
) -> Decoded:
    """One layered picture per prompt, float32 pixels on the CPU, height x width.

    Raises ValueError for no prompts and for more steps than the model was trained with.
    """
    config = config or GenerateConfig()
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"generate takes a list of at least one prompt, got {prompts!r}")
    if config.steps > model.diffusion.num_train_steps:
        raise ValueError(f"steps must be at most {model.diffusion.num_train_steps}, got {config.steps}")
    conditioning = encode_prompts(model, ["", *prompts])
    starts = range(0, len(prompts), config.batch_size)
    parts = []
    for part, start in enumerate(starts):
        stop = min(start + config.batch_size, len(prompts))
        noise = initial_noise(model, range(config.seed + start, config.seed + stop), config)

        def report(step: int, before: int = part * config.steps) -> None:
            if progress is not None:
                progress(before + step, len(starts) * config.steps)

        scaled_latents = sample(model, noise, conditioning[1 + start : 1 + stop], conditioning[:1], config, report)
        parts.append(decode_latents(model, scaled_latents, config))
    auxiliary = [part.auxiliary for part in parts if part.auxiliary is not None]
    return Decoded(Layers.cat([part.layers for part in parts]), torch.cat(auxiliary) if auxiliary else None)


def encode_prompts(model: Text2Layer, prompts: Sequence[str]) -> Tensor:
    """Prompts -> conditioning (N, 77, width) on the model's device."""
    return model.text_encoder(Tokenizer()(prompts).to(model.device))


def initial_noise(model: Text2Layer, seeds: Sequence[int], config: GenerateConfig) -> Tensor:
    """Unit noise, one picture per seed: (N, C, h, w), float32 on the CPU."""
    c = model.autoencoder.config
    shape = (1, c.latent_channels, *latent_size(config.height, config.width, c.downscale))
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds])


def sample(
    model: Text2Layer,
    noise: Tensor,
    cond: Tensor,
    uncond: Tensor,
    config: GenerateConfig,
    report: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Denoise with classifier-free guidance: noise (N, C, h, w), cond (N, 77, W), uncond (1, 77, W) -> scaled latents.

    The scheduler computes in float32, the UNet in its own dtype. `report` gets the number of steps done.
    """
    scheduler = build_scheduler(model.diffusion, config.sampler)
    scheduler.set_timesteps(config.steps)
    x = noise.to(model.device) * scheduler.init_noise_sigma
    for done, t in enumerate(scheduler.timesteps, 1):
        prediction = predict(model, scheduler.scale_model_input(x, t), t, cond, uncond, config.guidance)
        x = scheduler.step(prediction, t, x).prev_sample
        report(done)
    return x


def predict(model: Text2Layer, x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """The UNet's guided prediction, float32; with and without the prompt go through it as one batch."""
    dtype = next(model.unet.parameters()).dtype
    if guidance == 1:
        return model.unet(x.to(dtype), t, encoder_hidden_states=cond.to(dtype)).sample.float()
    both = torch.cat([cond, uncond.expand_as(cond)]).to(dtype)
    prediction = model.unet(torch.cat([x, x]).to(dtype), t, encoder_hidden_states=both).sample.float()
    with_prompt, without = prediction.chunk(2)
    return guided(with_prompt, without, guidance)


def decode_latents(model: Text2Layer, scaled_latents: Tensor, config: GenerateConfig) -> Decoded:
    """Scaled latents (N, C, h, w) -> layers of height x width, float32 on the CPU."""
    autoencoder = model.autoencoder
    dtype = next(autoencoder.parameters()).dtype
    latents = (scaled_latents / autoencoder.config.latent_scale).to(dtype)
    decoded = autoencoder.decode(latents, size=(config.height, config.width))
    layers = decoded.layers.to("cpu", torch.float32)
    return Decoded(layers, None if decoded.auxiliary is None else decoded.auxiliary.to("cpu", torch.float32))


def build_scheduler(diffusion: DiffusionConfig, sampler: Literal["dpm", "ddim"]) -> Any:
    """diffusers' DDIM (Song et al. 2021) or DPM-Solver++ (Lu et al. 2022) on the model's own schedule.

    The timesteps are "trailing": the first is the last of training, so that sampling starts from what was trained as noise.
    """
    schedule = {
        "num_train_timesteps": diffusion.num_train_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": PREDICTION_TYPES[diffusion.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }
    if sampler == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2)
