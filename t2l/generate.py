"""A prompt becomes layers, headless: text encoder, UNet, diffusers' scheduler, autoencoder.

The schedulers are diffusers', set up from the checkpoint's DiffusionConfig. All noise is drawn on the CPU from one
generator per picture, so a picture depends on its prompt, its seed and the config, and not on its batch or its device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from .diffusion import DiffusionConfig, clean_estimate, guided, prediction_of, scaled_linear_schedule
from .draws import seeded_generator
from .keep import Kept, keep_channels, keep_condition, layers_to_encode, mask_on_grid, put_back
from .layers import Layers
from .model.autoencoder import Decoded, latent_size
from .model.device import device_of
from .model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .model.text2layer import Text2Layer

SMALLEST = 64  # pixels along a side
Progress = Callable[[int, int], None]  # steps done, steps in all
Sampler = Literal["sde", "dpm", "ddim"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How to sample. The paper's figures: sampler="ddim", num_steps=50, guidance_scale=7.5."""

    height: int = 256
    width: int = 256
    num_steps: int = 50
    guidance_scale: float = 3.0  # 1 = none
    seed: int = 0  # picture i is drawn from seed + i
    sampler: Sampler = "sde"  # adds fresh noise at every step, which mends what a small model got wrong before (LOG.md)
    batch_size: int = 8  # pictures at once
    OLD_NAMES: ClassVar[dict[str, str]] = {"steps": "num_steps", "guidance": "guidance_scale"}

    def __post_init__(self) -> None:
        if min(self.height, self.width) < SMALLEST:
            raise ValueError(f"width and height must be at least {SMALLEST} pixels, got {self.width} x {self.height}")
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(f"num_steps and batch_size must be at least 1, got {self.num_steps} and {self.batch_size}")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler must be one of {', '.join(get_args(Sampler))}, got {self.sampler!r}")


@dataclass(frozen=True, eq=False)
class KeptLayer:
    """A layer that every picture shall have: the other one is painted to it. The rest of `layers` plays no part."""

    layers: Layers  # (1, 7, height, width) of the GenerateConfig
    kind: Kept

    def put_back_into(self, painted: Layers) -> Layers:
        """Painted layers with this one in its place."""
        return put_back(painted, self.layers, self.kind)


@torch.inference_mode()
def generate(
    model: Text2Layer,
    prompts: Sequence[str],
    config: GenerateConfig | None = None,
    progress: Progress | None = None,
    keep: KeptLayer | None = None,
) -> Decoded:
    """One layered picture per prompt, float32 pixels on the CPU, height x width.

    keep: a layer that comes out as it is, bit for bit. A UNet with channels for it paints the other one to it; for one
    without, it is put back through the autoencoder at every step. The auxiliary picture is what the UNet saw of both.
    Raises ValueError for no prompts, for more steps than the model was trained with and a kept layer of another size.
    """
    config = config or GenerateConfig()
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"generate takes a list of at least one prompt, got {prompts!r}")
    if config.num_steps > model.diffusion.num_train_steps:
        raise ValueError(f"num_steps must be at most {model.diffusion.num_train_steps}, got {config.num_steps}")
    if keep is not None and (keep.layers.size != (config.height, config.width) or len(keep.layers) != 1):
        raise ValueError(
            f"the kept layer must be one picture of {config.width} x {config.height} pixels, got {len(keep.layers)} of "
            f"{keep.layers.size[1]} x {keep.layers.size[0]}"
        )
    conditioning = encode_prompts(model, ["", *prompts])
    starts = range(0, len(prompts), config.batch_size)
    parts = []
    for part, start in enumerate(starts):
        stop = min(start + config.batch_size, len(prompts))
        generators = [seeded_generator(seed) for seed in range(config.seed + start, config.seed + stop)]

        def report(step: int, before: int = part * config.num_steps) -> None:
            if progress is not None:
                progress(before + step, len(starts) * config.num_steps)

        scaled_latents = sample(
            model, generators, conditioning[1 + start : 1 + stop], conditioning[:1], config, report, keep
        )
        decoded = decode_latents(model, scaled_latents, config)
        parts.append(decoded if keep is None else replace(decoded, layers=keep.put_back_into(decoded.layers)))
    auxiliary = [part.auxiliary for part in parts if part.auxiliary is not None]
    return Decoded(Layers.cat([part.layers for part in parts]), torch.cat(auxiliary) if auxiliary else None)


def encode_prompts(model: Text2Layer, prompts: Sequence[str]) -> Tensor:
    """Prompts -> conditioning (N, 77, width), where the UNet is."""
    return model.text_encoder(Tokenizer()(prompts).to(device_of(model.text_encoder))).to(model.device)


def draw_noise(model: Text2Layer, generators: Sequence[torch.Generator], config: GenerateConfig) -> Tensor:
    """The next noise of every picture, at its latents' size: (N, C, h, w), float32 on the CPU."""
    c = model.autoencoder.config
    shape = (1, c.latent_channels, *latent_size(config.height, config.width, c.downscale))
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def sample(
    model: Text2Layer,
    generators: Sequence[torch.Generator],
    cond: Tensor,
    uncond: Tensor,
    config: GenerateConfig,
    report: Callable[[int], None] = lambda step: None,
    keep: KeptLayer | None = None,
) -> Tensor:
    """Denoise with classifier-free guidance: cond (N, 77, W), uncond (1, 77, W) -> scaled latents (N, C, h, w).

    generators: of the noise, one per picture. The scheduler computes in float32, the UNet in its own dtype. `report`
    gets the number of steps done. keep: as `generate` takes it.
    """
    scheduler = build_scheduler(model.diffusion, config.sampler)
    scheduler.set_timesteps(config.num_steps)
    told = kept_condition(model, keep, config)
    x = draw_noise(model, generators, config).to(model.device) * scheduler.init_noise_sigma
    for done, t in enumerate(scheduler.timesteps, 1):
        prediction = predict(model, scheduler.scale_model_input(x, t), t, cond, uncond, config.guidance_scale, told)
        if keep is not None and not model.keeps:
            prediction = with_kept_put_back(model, prediction, x, t, keep, config)
        fresh = {"variance_noise": draw_noise(model, generators, config).to(x)} if config.sampler == "sde" else {}
        x = scheduler.step(prediction, t, x, **fresh).prev_sample
        report(done)
    return x


def kept_condition(model: Text2Layer, keep: KeptLayer | None, config: GenerateConfig) -> Tensor:
    """What the UNet sees of a kept layer, (1, C + 3, h, w), or zeros; (1, 0, h, w) for one without channels for it."""
    c = model.autoencoder.config
    grid = latent_size(config.height, config.width, c.downscale)
    if keep is None or not model.keeps:
        return torch.zeros(1, keep_channels(c.latent_channels) * model.keeps, *grid, device=model.device)
    latents = encode_layers(model, layers_to_encode(keep.layers, keep.kind))
    return keep_condition(latents, mask_on_grid(keep.layers.mask.to(latents), grid), keep.kind)


def with_kept_put_back(
    model: Text2Layer, prediction: Tensor, x: Tensor, t: Tensor, keep: KeptLayer, config: GenerateConfig
) -> Tensor:
    """A prediction (N, C, h, w) at time t whose clean estimate has the kept layer in its place.

    What is painted is decoded, the layer put back, and all of it encoded again: no training, at the price of both.
    """
    schedule, t = scaled_linear_schedule(model.diffusion).to(x.device), t.long().expand(len(x)).to(x.device)
    clean = clean_estimate(prediction, x, t, schedule, model.diffusion.prediction)
    layers = keep.put_back_into(decode_latents(model, clean, config).layers)
    return prediction_of(encode_layers(model, layers), x, t, schedule, model.diffusion.prediction)


def predict(
    model: Text2Layer, x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, guidance_scale: float, told: Tensor
) -> Tensor:
    """The UNet's guided prediction, float32; with and without the prompt go through it as one batch.

    told: of a kept layer, as `kept_condition` gives it.
    """
    dtype = next(model.unet.parameters()).dtype
    x = torch.cat([x, told.to(x).expand(len(x), -1, -1, -1)], dim=1)
    if guidance_scale == 1:
        return model.unet(x.to(dtype), t, encoder_hidden_states=cond.to(dtype)).sample.float()
    both = torch.cat([cond, uncond.expand_as(cond)]).to(dtype)
    prediction = model.unet(torch.cat([x, x]).to(dtype), t, encoder_hidden_states=both).sample.float()
    with_prompt, without = prediction.chunk(2)
    return guided(with_prompt, without, guidance_scale)


def encode_layers(model: Text2Layer, layers: Layers) -> Tensor:
    """Layers -> scaled latents (N, C, h, w), the posterior's mean, float32 where the UNet is."""
    autoencoder = model.autoencoder
    posterior = autoencoder.encode(layers.to(device_of(autoencoder), next(autoencoder.parameters()).dtype))
    return (posterior.mean * autoencoder.config.latent_scale).to(model.device, torch.float32)


def decode_latents(model: Text2Layer, scaled_latents: Tensor, config: GenerateConfig) -> Decoded:
    """Scaled latents (N, C, h, w) -> layers of height x width, float32 on the CPU."""
    autoencoder = model.autoencoder
    dtype = next(autoencoder.parameters()).dtype
    latents = (scaled_latents / autoencoder.config.latent_scale).to(device_of(autoencoder), dtype)
    decoded = autoencoder.decode(latents, size=(config.height, config.width))
    layers = decoded.layers.to("cpu", torch.float32)
    return Decoded(layers, None if decoded.auxiliary is None else decoded.auxiliary.to("cpu", torch.float32))


def build_scheduler(diffusion: DiffusionConfig, sampler: Sampler) -> Any:
    """diffusers' DDIM (Song et al. 2021), DPM-Solver++ or its SDE form (Lu et al. 2022) on the model's own schedule.

    The timesteps are "trailing": the first is training's last, so that sampling starts from what was trained as noise.
    """
    schedule = diffusion.for_diffusers() | {"timestep_spacing": "trailing", "steps_offset": 1}
    if sampler == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    algorithm = "sde-dpmsolver++" if sampler == "sde" else "dpmsolver++"
    return DPMSolverMultistepScheduler(**schedule, algorithm_type=algorithm, solver_order=2)
