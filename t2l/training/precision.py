"""With how many bits training computes, and what stays in float32 whatever is asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from torch.amp import autocast

Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (CPU: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def precision_context(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast to bf16 or fp16 when asked for, or by "auto" to bf16 where the device is fast at it."""
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and bf16_is_fast(device))
    return autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=enabled)


def weight_dtype(precision: Precision) -> torch.dtype:
    """What weights, pictures and latents are kept in: float32, autocast included, but for "fp64"."""
    return torch.float64 if precision == "fp64" else torch.float32


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, everything smaller as float32: for sums and differences that half precision would spoil."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
