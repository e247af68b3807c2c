"""InceptionV3 as FID's judge (Szegedy et al. 2015, arXiv 1512.00567; weights: Heusel et al. 2017), Clean-FID's resize.

Module names are torchvision's and pytorch-fid's, so that the file known as pt_inception-2015-12-05 loads once it is a
.safetensors. TensorFlow's graph differs from torchvision's in two ways: its average pools leave the padding out of the
mean, and the last block pools by the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 2048
INPUT_SIZE = 299
UNUSED = ("fc.", "AuxLogits.")  # classes, which features do without

Convolution = tuple[str, int, int | tuple[int, int]]  # name, output channels, kernel
Row = tuple[Convolution, ...]  # side by side on the same input, then concatenated
Branch = tuple[Row, ...]  # one after the other


class InceptionV3(nn.Module):
    """Pictures (N, 3, 299, 299) in [-1, 1] -> what the last pooling gives, (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = _ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = _ConvNorm(80, 192, 3)
        width, self.mixed = 192, [name for name, _, _ in _blocks()]
        for name, branches, pool in _blocks():
            block = _Mixed(width, branches, pool)
            self.add_module(name, block)
            width = block.out_channels
        assert width == FEATURES, f"the blocks end in {width} channels"

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in self.mixed:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3))


def clean_input(pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] as Clean-FID shows them to InceptionV3: (N, 3, 299, 299) in [-1, 1].

    Parmar et al. 2022 (arXiv 2104.11222): 8 bits as in a PNG, Pillow's antialiased bicubic kernel, no rounding after
    it, and (x - 128) / 128.
    """
    bytes_ = (pixels.float().clamp(0, 1) * 255).round()
    resized = F.interpolate(bytes_, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True, align_corners=False)
    return (resized.clamp(0, 255) - 128) / 128


def inception_weights(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of a file's tensors for InceptionV3. Raises ValueError for torchvision's own, of another training."""
    if "fc.weight" in tensors and len(tensors["fc.weight"]) == 1000:
        raise ValueError(
            f"{source} has torchvision's weights, with 1000 classes; FID is defined with TensorFlow's of 2015-12-05, "
            "which have 1008: convert pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        )
    return {name: x for name, x in tensors.items() if not (name.startswith(UNUSED) or name.endswith("_tracked"))}


class _ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(
        self, width: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches on one input, concatenated; the pool's comes last.

    With the pool "shrink" the block halves H and W: every branch's last convolution has a stride of 2 and no padding.
    """

    def __init__(self, width: int, branches: Sequence[Branch], pool: str) -> None:
        super().__init__()
        self.branches, self.pool = branches, POOLS[pool]
        self.out_channels = 0 if any(row[0][0] == "branch_pool" for row in branches[-1]) else width
        for branch in branches:
            inputs = width
            for i, row in enumerate(branch):
                shrinks = pool == "shrink" and i == len(branch) - 1
                for name, out, kernel in row:
                    options = {"stride": 2} if shrinks else {"padding": _same(kernel)}
                    self.add_module(name, _ConvNorm(inputs, out, kernel, **options))
                inputs = sum(out for _, out, _ in row)
            self.out_channels += inputs

    def forward(self, x: Tensor) -> Tensor:
        pooled, outputs = self.pool(x), []
        for branch in self.branches:
            h = pooled if branch[0][0][0] == "branch_pool" else x
            for row in branch:
                h = torch.cat([getattr(self, name)(h) for name, _, _ in row], dim=1)
            outputs.append(h)
        if self.branches[-1][0][0][0] != "branch_pool":
            outputs.append(pooled)
        return torch.cat(outputs, dim=1)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "shrink": lambda x: F.max_pool2d(x, 3, stride=2),
}


def _blocks() -> list[tuple[str, tuple[Branch, ...], str]]:
    """Name, branches and pool of every block, first to last (Szegedy et al. 2015, Table 1)."""
    return [
        ("Mixed_5b", _fives(32), "mean"),
        ("Mixed_5c", _fives(64), "mean"),
        ("Mixed_5d", _fives(64), "mean"),
        ("Mixed_6a", (_chain(("branch3x3", 384, 3)), _double_three(64, 96, 96)), "shrink"),
        ("Mixed_6b", _sevens(128), "mean"),
        ("Mixed_6c", _sevens(160), "mean"),
        ("Mixed_6d", _sevens(160), "mean"),
        ("Mixed_6e", _sevens(192), "mean"),
        ("Mixed_7a", _shrinking_sevens(), "shrink"),
        ("Mixed_7b", _wide(), "mean"),
        ("Mixed_7c", _wide(), "max"),
    ]


def _fives(pooled: int) -> tuple[Branch, ...]:
    return (
        _chain(("branch1x1", 64, 1)),
        _chain(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _double_three(64, 96, 96),
        _chain(("branch_pool", pooled, 1)),
    )


def _sevens(c: int) -> tuple[Branch, ...]:
    double: list[Convolution] = [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7))]
    double += [("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))]
    return (
        _chain(("branch1x1", 192, 1)),
        _chain(("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))),
        _chain(*double),
        _chain(("branch_pool", 192, 1)),
    )


def _shrinking_sevens() -> tuple[Branch, ...]:
    sevens: list[Convolution] = [("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    return (
        _chain(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        _chain(("branch7x7x3_1", 192, 1), *sevens, ("branch7x7x3_4", 192, 3)),
    )


def _wide() -> tuple[Branch, ...]:
    def split(name: str) -> Row:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return (
        _chain(("branch1x1", 320, 1)),
        (*_chain(("branch3x3_1", 384, 1)), split("branch3x3_2")),
        (*_chain(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)), split("branch3x3dbl_3")),
        _chain(("branch_pool", 192, 1)),
    )


def _double_three(*widths: int) -> Branch:
    return _chain(*((f"branch3x3dbl_{i}", out, 1 if i == 1 else 3) for i, out in enumerate(widths, 1)))


def _chain(*convolutions: Convolution) -> Branch:
    return tuple((convolution,) for convolution in convolutions)


def _same(kernel: int | tuple[int, int]) -> int | tuple[int, int]:
    """The padding that keeps H and W."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
