"""The losses of CaT2I-AE as pure functions (Zhang et al. 2023, arXiv 2307.09781, Eq. 3 and 4), each with its source.

Pictures are (N, C, H, W) in [0, 1] (a prediction may leave the range), logits are whatever a discriminator gives. Every
loss is computed in float32, also from bf16 input and under autocast, or in float64 from float64. It is a scalar: a
mean, where the papers write sums, so that a weight means the same at every picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import Layers
from ..model.autoencoder import Decoded, Posterior
from ..model.precision import at_least_float32

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]  # prediction, target (N, 3, H, W) in [0, 1] -> distances (N,)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weight of every term of the autoencoder's loss; 0 leaves the term out. The defaults are the paper's."""

    foreground: float = 1.0  # L_img on F, B and I: all three equal in the paper
    background: float = 1.0
    composed: float = 1.0  # L_img on the auxiliary prediction of I
    lpips: float = 1.0  # inside L_img, beside an L1 of weight 1 (ldm's L1 is on [-1, 1]: 0.5 is its balance)
    adversarial: float = 0.5  # times adaptive_weight; added by the training loop
    adversarial_start: int = 50_000  # steps before the discriminator counts
    mask_l1: float = 1.0
    composition: float = 2.0
    composition_inputs: Literal["true", "predicted"] = "true"  # the F and B that the predicted mask joins
    laplacian: float = 3.0
    laplacian_reduction: Literal["mean", "sum"] = "mean"  # "sum", the paper's: levels 2 and 3 weigh 1/4 and 1/16 of it
    kl: float = 1e-6  # ldm's
    kl_reduction: Literal["ldm", "mean"] = "ldm"  # "mean" is per latent value; "ldm" is 1/48 of it at 4 channels, f8
    # Ours, labelled deviations; the defaults switch them off.
    reference_kl: float = 0.0  # towards SD's latents of the composite, reduced as kl (AlphaVAE, 2507.09308)
    gradient: float = 0.0  # inside L_img: sharpness without LPIPS
    colour: float = 0.0  # inside L_img: the mean colours of 8 x 8 cells, which detail crowds out of the latents
    foreground_outside: float = 1.0  # weight of F's colour where the mask is 0: it takes room from B, unseen
    hidden_background: float = 1.0  # weight of B where the foreground hides it
    recompose: float = 0.0  # L1 between the recomposed prediction and I

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if wrong := [f"{name} {v}" for name, v in values.items() if not isinstance(v, str) and v < 0]:
            raise ValueError(f"LossWeights must not be negative, got {', '.join(wrong)}")


def autoencoder_loss(
    decoded: Decoded,
    posterior: Posterior,
    target: Layers,
    weights: LossWeights,
    perceptual: PerceptualDistance | None = None,
    reference: Posterior | None = None,
    encoded: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Everything but the adversarial term: L = L_img(F, B, I) + L_mask + KL (paper, Eq. 3); I = target.composite().

    decoded: from `decode(..., clamp=False)`; without an auxiliary prediction (no-sup) L_img on I is left out.
    reference: the latents that reference_kl draws to. encoded: values, 3HW, of a picture that was encoded, where
    `decoded` is of another size. Returns the weighted total and the unweighted parts, detached: `foreground_l1`,
    `background_lpips`, `mask_l1`, ... Raises ValueError when LPIPS has a weight and no network came.
    """
    if weights.lpips and perceptual is None:
        raise ValueError(f"LossWeights.lpips is {weights.lpips}, but no perceptual network came: load one or set 0")
    values = encoded or target.foreground[0].numel()
    terms = _image_terms(decoded, target, weights, perceptual) | _mask_terms(decoded.layers, target, weights)
    terms["kl"] = (weights.kl, lambda: _kl(partial(kl_loss, posterior.mean, posterior.logvar), values, weights))
    if reference is not None:
        towards = (posterior.mean, posterior.logvar, reference.mean, reference.logvar)
        terms["reference_kl"] = (
            weights.reference_kl,
            lambda: _kl(partial(reference_kl_loss, *towards), values, weights),
        )
    parts = {name: term() for name, (weight, term) in terms.items() if weight}
    total = sum((terms[name][0] * part for name, part in parts.items()), torch.zeros((), device=target.mask.device))
    return total, {name: part.detach() for name, part in parts.items()}


def l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """mean |p - t|, the pixel part of ldm's L_img. weight (N, 1, H, W): mean of weight |p - t|, unnormalised."""
    difference = _difference(prediction, target).abs()
    return (difference if weight is None else weight * difference).mean()


def gradient_l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 between horizontal and between vertical neighbour differences, summed. Ours: sharpness without LPIPS.

    weight (N, 1, H, W): a difference counts with the mean weight of its two pixels.
    """
    difference = _difference(prediction, target)  # the differences of a difference: both are linear
    total = difference.new_zeros(())
    for dim in (-1, -2):
        if difference.shape[dim] < 2:
            continue
        steps = difference.diff(dim=dim).abs()
        if weight is not None:
            count = weight.shape[dim] - 1
            weight = at_least_float32(weight)
            steps = steps * (weight.narrow(dim, 0, count) + weight.narrow(dim, 1, count)) / 2
        total = total + steps.mean()
    return total


def colour_l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None, cell: int = 8) -> Tensor:
    """L1 between the mean colours of cells of 8 x 8 pixels, a latent's size. Ours: the colour before the detail.

    Taken on (R + G + B) / 3, R - B and 4 (G - (R + B) / 2): pictures vary least from green to magenta, so that this
    axis is learnt last, and meadows stay brown. weight (N, 1, H, W): the differences are weighted before they are
    averaged. Cells at the border may be smaller.
    """
    difference = _difference(prediction, target)
    difference = difference if weight is None else weight * difference
    red, green, blue = difference.unbind(dim=1)
    difference = torch.stack([(red + green + blue) / 3, red - blue, 4 * (green - (red + blue) / 2)], dim=1)
    return F.avg_pool2d(difference, min(cell, *difference.shape[-2:]), ceil_mode=True).abs().mean()


def composition_loss(composite_prediction: Tensor, composite: Tensor) -> Tensor:
    """mean sqrt((C - C^)^2 + 1e-6^2) (Xu et al. 2017, Deep Image Matting, section 4; a sum there)."""
    return torch.sqrt(_difference(composite_prediction, composite) ** 2 + 1e-6**2).mean()


def laplacian_loss(
    mask_prediction: Tensor, mask: Tensor, levels: int = 3, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """sum_j 2^(j-1) |lap_j(m^) - lap_j(m)|, j = 1 .. levels (Hou & Liu 2019, Context-Aware Matting).

    "mean": each level's difference is the mean over its own pixels. "sum": the sum over them, as the papers write,
    divided by the pixels of the mask, so that it does not depend on the size. A level has a quarter of the pixels of
    the one before. The low-pass rest of the pyramid takes no part: a constant offset costs 0.
    """
    difference = _difference(mask_prediction, mask)
    pyramid = laplacian_pyramid(difference, levels)  # lap is linear: one pyramid does
    reduced = [band.abs().mean() if reduction == "mean" else band.abs().sum() / difference.numel() for band in pyramid]
    return torch.stack([2**j * value for j, value in enumerate(reduced)]).sum()


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The band-pass levels of x (N, C, H, W), full resolution first (Burt & Adelson 1983); each level halves H and W.

    Binomial 5 x 5 kernel, borders repeated, sizes rounded up: any H and W, down to 1 x 1.
    """
    bands = []
    for _ in range(levels):
        height, width = x.shape[-2:]
        lower = _halve(_halve(x).mT).mT
        bands.append(x - _double(_double(lower, width).mT, height).mT)
        x = lower
    return bands


def kl_loss(mean: Tensor, logvar: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """KL to N(0, 1) = (mean^2 + exp(logvar) - 1 - logvar) / 2 (Kingma & Welling 2014, appendix B).

    mean, logvar: (N, C, h, w). "sum" adds up C, h and w and averages over N, as ldm; "mean" is the mean of all values.
    """
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    return kl.mean() if reduction == "mean" else kl.sum(dim=(1, 2, 3)).mean()


def reference_kl_loss(
    mean: Tensor,
    logvar: Tensor,
    reference_mean: Tensor,
    reference_logvar: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """KL to another diagonal Gaussian, (log s_r - log s + (s + (mean - mean_r)^2) / s_r - 1) / 2, variances s and s_r.

    All (N, C, h, w), reduced as in `kl_loss`. AlphaVAE (arXiv 2507.09308) takes ordinary pictures' frozen encoder.
    """
    logvar, reference_logvar = at_least_float32(logvar), at_least_float32(reference_logvar)
    distance = _difference(mean, reference_mean) ** 2 + logvar.exp()
    kl = 0.5 * (reference_logvar - logvar + distance * (-reference_logvar).exp() - 1)
    return kl.mean() if reduction == "mean" else kl.sum(dim=(1, 2, 3)).mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean relu(1 - D(real)) + mean relu(1 + D(fake))) / 2 (Lim & Ye 2017, as in VQGAN and ldm)."""
    real, fake = at_least_float32(real_logits), at_least_float32(fake_logits)
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_adversarial_loss(fake_logits: Tensor) -> Tensor:
    """-mean D(fake), the generator's side of the hinge loss."""
    return -at_least_float32(fake_logits).mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer_weight: Tensor | Sequence[Tensor],
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Tensor:
    """|grad L_rec| / (|grad L_adv| + 1e-4), clamped to 1e4 and detached (Esser et al. 2021, VQGAN, Eq. 7).

    The gradients are those at the last layer's weight, or at several taken as one vector; 0 where a loss does not reach
    it. mean: makes a gradient the mean over all processes. scaled: what fp16 multiplies a loss by before its backward
    pass; the norms are without it. Keeps both graphs for that pass. ldm's factor 0.5 is LossWeights.adversarial.
    """
    at = [last_layer_weight] if isinstance(last_layer_weight, Tensor) else list(last_layer_weight)
    pair = (reconstruction_loss, adversarial_loss)
    reconstruction, adversarial = (_gradient_norm(loss, at, mean, scaled) for loss in pair)
    ratio = (reconstruction / (adversarial + 1e-4)).nan_to_num(nan=0.0)  # fp16: both overflowed, the step is skipped
    return ratio.clamp(0, 1e4).detach()


_Terms = dict[str, tuple[float, Callable[[], Tensor]]]  # name -> weight and how to compute it


def _image_terms(
    decoded: Decoded, target: Layers, weights: LossWeights, perceptual: PerceptualDistance | None
) -> _Terms:
    """L_img of F, B and I: L1 + lpips LPIPS + gradient + colour, each with a map of how much it counts where."""
    outside, hidden = weights.foreground_outside, weights.hidden_background
    foreground_map = None if outside == 1 else outside + (1 - outside) * at_least_float32(target.mask)
    background_map = None if hidden == 1 else 1 + (hidden - 1) * at_least_float32(target.mask)
    layers = decoded.layers
    pictures = [
        ("foreground", weights.foreground, layers.foreground, target.foreground, foreground_map),
        ("background", weights.background, layers.background, target.background, background_map),
    ]
    if decoded.auxiliary is not None:
        pictures.append(("composed", weights.composed, decoded.auxiliary, target.composite(), None))
    terms: _Terms = {}
    for name, weight, prediction, true, where in pictures:
        terms[f"{name}_l1"] = (weight, partial(l1, prediction, true, where))
        terms[f"{name}_lpips"] = (weight * weights.lpips, partial(_lpips, perceptual, prediction, true, where))
        terms[f"{name}_gradient"] = (weight * weights.gradient, partial(gradient_l1, prediction, true, where))
        terms[f"{name}_colour"] = (weight * weights.colour, partial(colour_l1, prediction, true, where))
    return terms


def _mask_terms(layers: Layers, target: Layers, weights: LossWeights) -> _Terms:
    """The terms of L_mask, and the recomposition."""
    layers, target = (Layers.from_stacked(at_least_float32(x.stacked)) for x in (layers, target))
    colours = target if weights.composition_inputs == "true" else layers
    return {
        "mask_l1": (weights.mask_l1, lambda: l1(layers.mask, target.mask)),
        "composition": (
            weights.composition,
            lambda: composition_loss(
                torch.lerp(colours.background, colours.foreground, layers.mask), target.composite()
            ),
        ),
        "laplacian": (
            weights.laplacian,
            lambda: laplacian_loss(layers.mask, target.mask, 3, weights.laplacian_reduction),
        ),
        "recompose": (weights.recompose, lambda: l1(layers.composite(), target.composite())),
    }


def _lpips(perceptual: PerceptualDistance | None, prediction: Tensor, target: Tensor, where: Tensor | None) -> Tensor:
    """Mean LPIPS. Where a pixel counts less than 1, the prediction is moved towards the target by what is missing."""
    assert perceptual is not None, "autoencoder_loss checks that a perceptual network came"
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    if where is not None:
        prediction = torch.lerp(target, prediction, where.clamp(max=1))
    return at_least_float32(perceptual(prediction, target)).mean()


def _kl(reduced: Callable[..., Tensor], values: int, weights: LossWeights) -> Tensor:
    """ldm sums the KL over latents and the L1 over pixels: beside a mean over pixels its KL is divided by 3HW."""
    if weights.kl_reduction == "mean":
        return reduced(reduction="mean")
    return reduced(reduction="sum") / values


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    return at_least_float32(prediction) - at_least_float32(target)


def _halve(x: Tensor) -> Tensor:
    """Blur the last axis with (1, 4, 6, 4, 1) / 16 and keep every second value, the first included."""
    width = x.shape[-1]
    x = F.pad(x, (2, 2, 0, 0), mode="replicate")
    a, b, c, d, e = (x[..., i : width + i : 2] for i in range(5))  # sums, not a convolution: autocast leaves them alone
    return (a + e + 4 * (b + d) + 6 * c) / 16


def _double(x: Tensor, size: int) -> Tensor:
    """Zeros between the values of the last axis, the same blur times 2, cropped to `size`: undoes _halve's size."""
    x = F.pad(x, (1, 1, 0, 0), mode="replicate")
    even = (x[..., :-2] + 6 * x[..., 1:-1] + x[..., 2:]) / 8
    odd = (x[..., 1:-1] + x[..., 2:]) / 2
    return torch.stack([even, odd], dim=-1).flatten(-2)[..., :size]


def _gradient_norm(
    loss: Tensor, at: list[Tensor], mean: Callable[[Tensor], Tensor], scaled: Callable[[Tensor], Tensor]
) -> Tensor:
    gradients = torch.autograd.grad(scaled(loss), at, retain_graph=True, allow_unused=True, materialize_grads=True)
    norm = mean(torch.cat([at_least_float32(gradient).flatten() for gradient in gradients])).norm()
    return norm / scaled(torch.ones_like(norm))
