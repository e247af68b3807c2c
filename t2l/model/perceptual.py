"""LPIPS: how different two pictures look, as a network judges it (Zhang et al. 2018), in its shift-tolerant form.

The network is the anti-aliased AlexNet of Ghildyal & Liu 2022 (Shift-tolerant Perceptual Similarity, ECCV), written
here anew with the parameter names of its weights. These come from the package stlpips_pytorch (BSD-2-Clause), which the
extra `train` installs; only its file of weights is read: nothing of it is imported, nothing is downloaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import at_least_float32

PACKAGE = "stlpips_pytorch"
WIDTHS = (64, 192, 384, 256, 256)


class Perceptual(nn.Module):
    """prediction, target (N, 3, H, W) in [0, 1], H and W at least 24 -> distances (N,), 0 for equal pictures.

    Frozen: gradients reach the pictures alone. Under autocast the convolutions take its precision, the comparison is
    float32, or float64 of float64. Raises ImportError without the weights' package (`pretrained=False`: random).
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = AlexNet()
        for i, width in enumerate(WIDTHS):
            self.add_module(f"lin{i}", Linear1x1(width))
        if pretrained:
            self.load_state_dict(torch.load(weights_path(), map_location="cpu", weights_only=True), strict=True)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Zhang et al. 2018, Eq. 1: unit-length features, squared difference, weighted channels, mean over places."""
        pairs = zip(*(self.net(self.scaling_layer(2 * x - 1)) for x in (prediction, target)), strict=True)
        total = torch.zeros((), device=prediction.device)
        for i, (a, b) in enumerate(pairs):
            total = total + getattr(self, f"lin{i}")((_unit_length(a) - _unit_length(b)) ** 2).mean(dim=(1, 2))
        return total


class Scaling(nn.Module):
    """Pixels in [-1, 1] -> AlexNet's range: ImageNet's mean and deviation. The buffers are in the weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class AlexNet(nn.Module):
    """AlexNet's five feature maps, with stride 1 in the first convolution and a blur before every subsampling.

    (N, 3, H, W) -> (N, 64, H/2, W/2), (N, 192, H/4, W/4) and three of (N, 384 or 256, H/8, W/8), all after ReLU.
    """

    def __init__(self) -> None:
        super().__init__()

        def pool(channels: int) -> list[nn.Module]:
            return [nn.MaxPool2d(3, stride=1), BlurDown(channels)]

        def convolution(i: int, in_channels: int, kernel: int) -> nn.Module:
            return nn.Conv2d(in_channels, WIDTHS[i], kernel, padding=min(kernel // 2, 2))

        relu = nn.ReLU()
        slices: list[list[nn.Module]] = [
            [convolution(0, 3, 11), BlurDown(64), relu],
            [*pool(64), convolution(1, 64, 5), relu],
            [*pool(192), convolution(2, 192, 3), relu],
            [convolution(3, 384, 3), relu],
            [convolution(4, 256, 3), relu],
        ]
        number = 0  # the weights count the modules through all slices
        for i, modules in enumerate(slices, 1):
            group = nn.Sequential()
            for module in modules:
                group.add_module(str(number), module)
                number += 1
            self.add_module(f"slice{i}", group)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for group in self.children():
            x = group(x)
            features.append(x)
        return features


class BlurDown(nn.Module):
    """Blur each channel with (1, 2, 1) x (1, 2, 1) / 16, keep every second pixel; borders reflected by two pixels."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Linear1x1(nn.Module):
    """How much each channel's difference counts (not negative); an inactive dropout gives the weights their names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, difference: Tensor) -> Tensor:
        return (difference * self.model[1].get_parameter("weight")).sum(dim=1)  # not a convolution: float32 in autocast


def weights_path() -> Path:
    """Where the installed package keeps the weights. Raises ImportError, with what to install."""
    spec = find_spec(PACKAGE)  # finds it without running it
    if spec is None or spec.origin is None:
        raise ImportError(
            f'LPIPS needs the package {PACKAGE} for its weights: pip install "text2layer[train]" (or '
            f"pip install --no-deps {PACKAGE}==0.0.2), or train with loss.lpips=0"
        )
    return Path(spec.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"


def _unit_length(x: Tensor) -> Tensor:
    x = at_least_float32(x)
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)  # its gradient at 0 is 0; sqrt's would be NaN
