"""The blocks of the autoencoder, with ldm's parameter names (Rombach et al. 2022), and the heads of layers.

`operations` makes convolutions and GroupNorms: torch.nn, or what ComfyUI gives to its models.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Head(nn.Module):
    """A prediction head, conv-bn-relu-conv (paper, section 4.1). Kernel 3 and a linear output are our choice."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, operations: Any) -> None:
        super().__init__()
        self.conv1 = operations.Conv2d(in_channels, hidden, 3, padding=1)
        self.bn: nn.Module = nn.BatchNorm2d(hidden)
        self.conv2 = operations.Conv2d(hidden, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn(self.conv1(x))))

    @torch.no_grad()
    def fold_batchnorm(self) -> None:
        """conv1 takes over bn's affine map with its running statistics; bn becomes the identity."""
        bn: Any = self.bn
        if isinstance(bn, nn.Identity):
            return
        gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        self.conv1.bias.copy_((self.conv1.bias - bn.running_mean) * gain + bn.bias)
        self.conv1.weight.mul_(gain.view(-1, 1, 1, 1))
        self.bn = nn.Identity()


class BlockHead(Head):
    """A head with a last block of its own: it reads what the trunk's last block reads. Ours, a labelled deviation."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, operations: Any, norm: str) -> None:
        super().__init__(in_channels, hidden, out_channels, operations)
        self.block = ResBlock(in_channels, in_channels, norm, operations)
        self.norm_out = make_norm(in_channels, norm, operations)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(activated(self.norm_out, self.block(x)))


class ResBlock(nn.Module):
    """ldm's ResnetBlock without a time embedding: x + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, operations: Any) -> None:
        super().__init__()
        self.checkpointing = False
        self.norm1 = make_norm(in_channels, norm, operations)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(out_channels, norm, operations)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = operations.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        h = self.conv1(activated(self.norm1, x))
        h = self.conv2(activated(self.norm2, h))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """ldm's single-head self-attention over all positions. Keeps its GroupNorm also where the trunk has none."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.norm = make_norm(channels, "group", operations)
        self.q = operations.Conv2d(channels, channels, 1)
        self.k = operations.Conv2d(channels, channels, 1)
        self.v = operations.Conv2d(channels, channels, 1)
        self.proj_out = operations.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))  # (N, 1, HW, C)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """The lowest resolution: a block, attention over the whole picture, a block."""

    def __init__(self, channels: int, norm: str, operations: Any) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, norm, operations)
        self.attn_1 = AttnBlock(channels, operations)
        self.block_2 = ResBlock(channels, channels, norm, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Half of H and W by a strided convolution, padded on the right and below as in ldm."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice H and W: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """silu(norm(x)); in place where nobody else holds what the norm gave, which saves a twentieth of an encode."""
    normed = norm(x)
    return F.silu(normed, inplace=normed is not x and not normed.requires_grad)


def make_norm(channels: int, norm: str, operations: Any) -> nn.Module:
    """GroupNorm of 32 groups for "group", nothing for "none" (`AutoencoderConfig.norm`)."""
    return operations.GroupNorm(32, channels, eps=1e-6) if norm == "group" else nn.Identity()


def add_identity(conv: nn.Conv2d, window: slice | None = None) -> None:
    """Add to a convolution the map that passes channel i on to channel i, averaged over a window of the kernel."""
    center = conv.weight.shape[-1] // 2
    window = window or slice(center, center + 1)
    count = (window.stop - window.start) ** 2
    for i in range(min(conv.weight.shape[:2])):
        conv.weight[i, i, window, window] += 1 / count
