"""Which device networks run on, and with what precision their weights lie there."""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """auto, cpu, cuda, cuda:N or mps. "auto" is the card where there is one: CUDA, then Apple's, then the CPU.

    Raises ValueError with what there is when the device is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    cards, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cards else "mps" if mps else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        cause = f"there are {cards}, counted from 0" if cards else "torch sees no CUDA card"
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise ValueError(
            f"device {name} is not there: {cause} (this torch {build}); take --device cpu, or install a torch with CUDA"
        )
    if device.type == "mps" and not mps:
        raise ValueError("device mps is not there: torch sees no Apple GPU; take --device cpu")
    return device


def place(network: Network, device: torch.device, dtype: str = "fp32") -> Network:
    """The network on a device, its weights as fp32, fp16 or bf16. Raises ValueError for another name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return nn.Module.to(network, device, DTYPES[dtype])  # diffusers' own `to` warns of every cast


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie, and so where its inputs belong."""
    return next(network.parameters()).device


def memory_of(device: torch.device) -> int | None:
    """Bytes of a card; None for other devices, whose memory other programs share."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
