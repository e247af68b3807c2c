"""With how many bits training computes, and what stays in float32 whatever is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.amp import autocast

Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (CUDA: Ampere and later; CPU: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def precision_context(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast to bf16 or fp16 when asked for, or by "auto" to bf16 where the device is fast at it."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return autocast(device.type, half, enabled=precision == "fp16" or computes_in_bf16(device, precision))


def computes_in_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether training computes in bf16 there."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


@contextmanager
def fast_kernels(device: torch.device, precision: Precision) -> Iterator[None]:
    """cuDNN looks for the fastest convolutions; float32 may be multiplied as TF32 unless "fp32" or "fp64" is asked for.

    The settings that were there come back afterwards. Does nothing on other devices than CUDA.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.benchmark, cudnn.allow_tf32
    exact = precision in ("fp32", "fp64")
    cudnn.benchmark, cudnn.allow_tf32 = True, not exact
    torch.set_float32_matmul_precision("highest" if exact else "high")
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision(matmul)


def weight_dtype(precision: Precision) -> torch.dtype:
    """What weights, pictures and latents are kept in: float32, autocast included, but for "fp64"."""
    return torch.float64 if precision == "fp64" else torch.float32


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, everything smaller as float32: for sums and differences that half precision would spoil."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
