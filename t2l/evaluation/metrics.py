"""Metrics as functions of tensors. It needs torch alone: models and data sets are passed in.

Every function of pictures gives one value per picture, (N,); `mean_metric` averages them, every picture counting the
same and pictures that have no value (NaN) left out. Pixels are floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers import Layers

MAX_PSNR = 100.0  # dB of two equal pictures, so that one exact picture does not make the mean infinite
MIN_WEIGHT = 1.0  # a weight that adds up to less than one pixel has no figure


def psnr(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(MSE) as pixels peak at 1, at most MAX_PSNR: (N,).

    predicted, target: (N, C, H, W). weight: (N, 1, H, W) in [0, 1]; the squared error is averaged with it, so that
    what lies where it is 0 does not count. NaN where the weight adds up to less than one pixel.
    """
    error = (predicted - target).square().mean(dim=1, keepdim=True)
    if weight is None:
        weight = torch.ones_like(error)
    total = weight.sum(dim=(1, 2, 3))
    mse = (error * weight).sum(dim=(1, 2, 3)) / total
    value = -10 * torch.log10(mse.clamp_min(10 ** (-MAX_PSNR / 10)))
    return torch.where(total >= MIN_WEIGHT, value, math.nan)


def mask_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of two soft masks cut at 1/2, as the paper's binary masks: (N,).

    predicted, target: (N, 1, H, W). 1 where both are empty.
    """
    a, b = predicted > 0.5, target > 0.5
    intersection = (a & b).sum(dim=(1, 2, 3))
    union = (a | b).sum(dim=(1, 2, 3))
    return torch.where(union > 0, intersection / union.clamp_min(1), 1.0)


def mask_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over all pixels, (N, C, H, W) -> (N,)."""
    return (predicted - target).abs().mean(dim=(1, 2, 3))


def layer_metrics(predicted: Layers, target: Layers, auxiliary: Tensor | None = None) -> dict[str, Tensor]:
    """How well layers were reconstructed: one (N,) tensor per figure.

    Foreground colours count where the true mask shows them, the visible background where it does not, and the hidden
    background where the foreground lies over it. The metrics of recomposing are NaN without an auxiliary picture
    (N, 3, H, W).
    """
    m = target.mask
    recomposed = m.new_full((len(m), 1), math.nan)  # |m F + (1 - m) B - auxiliary|
    if auxiliary is not None:
        recomposed = (predicted.composite() - auxiliary).abs().flatten(1)
    return {
        "mask_iou": mask_iou(predicted.mask, m),
        "mask_l1": mask_l1(predicted.mask, m),
        "composite_psnr": psnr(predicted.composite(), target.composite()),
        "foreground_psnr": psnr(predicted.foreground, target.foreground, m),
        "visible_background_psnr": psnr(predicted.background, target.background, 1 - m),
        "hidden_background_psnr": psnr(predicted.background, target.background, m),
        "recompose_l1": recomposed.mean(dim=1),
        "recompose_max": recomposed.amax(dim=1),
    }


def mean_metric(values: Tensor) -> float | None:
    """The mean over pictures, (N,) -> a number; NaNs are left out, and None is what is left of nothing."""
    values = values[~values.isnan()]
    return values.double().mean().item() if len(values) else None


def standard_error(values: Tensor) -> float | None:
    """The standard error of `mean_metric`, s / sqrt(n) with s^2 over n - 1; None for fewer than two values."""
    values = values[~values.isnan()].double()
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def share_error(share: float, count: int) -> float:
    """The binomial standard error of a share of `count` independent pictures, sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)


def check_finite(layers: Layers, source: str) -> None:
    """Raises ValueError when a layer holds NaN or infinity, which no figure could tell from a missing value."""
    if not layers.stacked.isfinite().all():
        raise ValueError(f"{source} gave pictures with values that are not finite; its weights are damaged")


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in order, `size` at a time; the last batch may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.no_grad()
def reconstruct(autoencoder: Any, target: Layers) -> tuple[dict[str, Tensor], Layers]:
    """The metrics of `layer_metrics` and the layers that the posterior's mean decodes to, float32 where the network is.

    autoencoder: an Autoencoder of any layout, in evaluation mode; it computes in its own dtype.
    """
    weight = next(autoencoder.parameters())
    target = target.to(weight.device)
    decoded = autoencoder.decode(autoencoder.encode(target.to(weight.dtype)).mean, size=target.size)
    layers = decoded.layers.to(torch.float32)
    check_finite(layers, "the autoencoder")
    auxiliary = None if decoded.auxiliary is None else decoded.auxiliary.float()
    return layer_metrics(layers, target, auxiliary), layers


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500, Eq. 6).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2), a: (n, D), b: (m, D), n and m at least 2.

    With S_a = X^T X and S_b = Y^T Y for the centred, scaled features X and Y, the last trace is the sum of the singular
    values of X Y^T. That is exact also for n, m < D, where the covariances are singular: nothing is shrunk and no eps
    is added. Beyond D pictures X gives way to a D x D factor of its covariance, so that nothing of size n x m is made.
    The distance of few samples is biased upwards; compare only metrics taken with the same n and m.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"two feature sets (n, D) and (m, D) with n, m >= 2 are needed, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    x, y = _covariance_factor(a), _covariance_factor(b)
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    distance = means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return max(distance.item(), 0.0)  # rounding leaves about -1e-13 for equal sets


def _covariance_factor(features: Tensor) -> Tensor:
    """X, at most D rows, with X^T X the covariance: centred, scaled features, or R of their QR factors, (n or D, D)."""
    x = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    return x if len(x) <= x.shape[1] else torch.linalg.qr(x, mode="r").R


def area_under_curve(scores: Tensor, good: Tensor) -> tuple[float, float]:
    """The chance that a good sample scores above a bad one (ROC AUC; ties count half), and its standard error.

    scores: (N,), good: (N,) bool, some of each. The error is that of Hanley & McNeil 1982 (Radiology 143, Eq. 1).
    """
    above, below = scores[good].double(), scores[~good].double().sort().values
    if not len(above) or not len(below):
        raise ValueError(f"a curve needs good and bad samples, got {len(above)} and {len(below)}")
    places = torch.searchsorted(below, above) + torch.searchsorted(below, above, right=True)
    area = float(places.double().mean()) / 2 / len(below)
    two_above, two_below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (len(above) - 1) * (two_above - area**2) + (len(below) - 1) * (two_below - area**2)
    return area, math.sqrt(max(variance, 0) / (len(above) * len(below)))


def kept_at(scores: Tensor, good: Tensor, threshold: float) -> dict[str, float]:
    """What a filter keeps, from `threshold` on: precision (the share of good ones in it), recall (the share it has of
    the good ones) and the share of all. scores: (N,), good: (N,) bool. Precision is NaN where nothing is kept.
    """
    kept = scores >= threshold
    right = float((kept & good).sum())
    precision = right / float(kept.sum()) if kept.any() else math.nan
    return {"precision": precision, "recall": right / max(1.0, float(good.sum())), "kept": float(kept.float().mean())}
