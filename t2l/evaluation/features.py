"""Linear probes on frozen features of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on standardised features."""

    classes: tuple[str, ...]
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def predict(self, features: Tensor) -> list[str]:
        """The most likely class of each row of (N, D)."""
        logits = F.linear((features - self.mean) / self.std, self.weight, self.bias)
        return [self.classes[i] for i in logits.argmax(dim=1).tolist()]

    def top1(self, features: Tensor, labels: Sequence[str]) -> float:
        """The fraction of rows whose most likely class is their label; a label the probe never saw counts as wrong."""
        if len(labels) != len(features) or not labels:
            raise ValueError(f"one label per row of features is needed, got {len(labels)} for {len(features)} rows")
        return sum(a == b for a, b in zip(self.predict(features), labels, strict=True)) / len(labels)


def train_probe(features: Tensor, labels: Sequence[str], l2: float = 0.01, steps: int = 100) -> Probe:
    """L2-regularised logistic regression from zero by L-BFGS on the whole set: no randomness, so equal every time.

    features: (N, D), one label per row. The loss is mean cross-entropy + l2 / 2 |weight|^2.
    """
    classes = tuple(sorted(set(labels)))
    if len(labels) != len(features) or len(classes) < 2:
        raise ValueError(
            f"a probe needs one label per row and two classes or more, got {len(labels)} labels of {len(classes)} "
            f"classes for {len(features)} rows"
        )
    index = {name: i for i, name in enumerate(classes)}
    target = torch.tensor([index[label] for label in labels])
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    x = (features - mean) / std
    weight = torch.zeros(len(classes), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), target) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Probe(classes, mean, std, weight.detach(), bias.detach())
