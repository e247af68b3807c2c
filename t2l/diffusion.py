"""Noise schedule, forward diffusion and what a model is trained to predict. Knows no model.

t is an integer step in [0, num_train_steps), 0 = least noise. `noise` is what was drawn, `eps` what a model predicts
for it. x are scaled latents, (N, C, H, W), unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .config import check_ranges

PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}  # ours -> diffusers'


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule a UNet was trained with, and what it predicts. Every checkpoint carries it."""

    num_train_steps: int = 1000
    beta_start: float = 0.00085  # Stable Diffusion's scaled-linear schedule
    beta_end: float = 0.012
    prediction: Literal["eps", "v"] = "eps"
    zero_terminal_snr: bool = False  # the last step is noise alone (Lin et al. 2023); v prediction only

    def __post_init__(self) -> None:
        check_ranges(self, num_train_steps=(2, 100_000), beta_start=(1e-8, 0.9), beta_end=(1e-8, 0.9))
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "zero_terminal_snr needs prediction 'v': where nothing but noise is seen, eps says nothing about the "
                "picture"
            )

    def for_diffusers(self) -> dict[str, Any]:
        """The same in the words of diffusers' schedulers."""
        return {
            "num_train_timesteps": self.num_train_steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": PREDICTION_TYPES[self.prediction],
            "rescale_betas_zero_snr": self.zero_terminal_snr,
        }


def scaled_linear_schedule(config: DiffusionConfig | None = None) -> Tensor:
    """alphas_cumprod of Stable Diffusion: betas linear in their square roots (Rombach et al. 2022, ldm's "linear").

    Returns (num_train_steps,), float32, falling from near 1 to near 0, or with zero_terminal_snr to 0 exactly.
    """
    config = config or DiffusionConfig()
    roots = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_steps, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - roots**2, dim=0)
    return (zero_terminal_snr(alphas_cumprod) if config.zero_terminal_snr else alphas_cumprod).float()


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule, sqrt(a) shifted and scaled to end at 0, its start kept (Lin et al. 2023, 2305.08891, Alg. 1)."""
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()


def add_noise(x: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse clean latents to time t: x_t = sqrt(a_t) x + sqrt(1 - a_t) noise (Ho et al. 2020, Eq. 4)."""
    signal, sigma = _signal_and_sigma(t, alphas_cumprod)
    return signal * x + sigma * noise


def velocity(x: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The v target: sqrt(a_t) noise - sqrt(1 - a_t) x (Salimans & Ho 2022, appendix D)."""
    signal, sigma = _signal_and_sigma(t, alphas_cumprod)
    return signal * noise - sigma * x


def training_target(x: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """What the model must predict: the noise (paper, Eq. 5) or v."""
    return velocity(x, noise, t, alphas_cumprod) if prediction == "v" else noise


def clean_estimate(prediction: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor, kind: str) -> Tensor:
    """The clean latents that a prediction at time t means: the inverse of `add_noise` with what was predicted."""
    signal, sigma = _signal_and_sigma(t, alphas_cumprod)
    return signal * x_t - sigma * prediction if kind == "v" else (x_t - sigma * prediction) / signal


def prediction_of(clean: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor, kind: str) -> Tensor:
    """The prediction at time t that means these clean latents: the inverse of `clean_estimate`."""
    signal, sigma = _signal_and_sigma(t, alphas_cumprod)
    return (signal * x_t - clean) / sigma if kind == "v" else (x_t - signal * clean) / sigma


def min_snr_weight(t: Tensor, alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v, with SNR = a_t / (1 - a_t): (N,).

    Hang et al. 2023 (arXiv 2303.09556): the error of the clean estimate counts min(SNR, gamma), at t where
    a picture is nearly clean no more than at others. At SNR 0, the last t of a schedule with zero terminal SNR, that is
    nothing for v: the step that every picture begins with would never be learnt. It counts 1 there, as without weights
    (trainers for Stable Diffusion do the same; diffusers' examples leave it at 0).
    """
    a = alphas_cumprod[t]
    snr = a / (1 - a)
    if prediction == "v":
        return torch.where(snr > 0, snr.clamp(max=gamma) / (snr + 1), 1.0)
    return (gamma / snr).clamp(max=1)


def guided(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance: uncond + guidance_scale (cond - uncond) (Ho & Salimans 2022, Eq. 6)."""
    return torch.lerp(uncond, cond, guidance_scale)


def _signal_and_sigma(t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    return a.sqrt(), (1 - a).sqrt()
