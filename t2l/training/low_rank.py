"""LoRA (Hu et al. 2021, arXiv 2106.09685): attention's matrices stay, the sum of each with a low-rank one is trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")  # every attention's, as in LoRAs for Stable Diffusion


class LowRank(nn.Module):
    """W -> W + up down, (out, in), of the given rank; nothing is added at the start."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / rank)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_low_rank(unet: UNet2DConditionModel, rank: int) -> None:
    """Freeze the UNet, in place, but for what is added to its attentions."""
    unet.requires_grad_(False)
    for name, module in unet.named_modules():
        if name.endswith(TARGETS):
            register_parametrization(module, "weight", LowRank(module.weight, rank))


def merged(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with what was added put into the weights: an ordinary UNet."""
    unet = copy.deepcopy(unet)
    for module in list(unet.modules()):
        if is_parametrized(module):
            remove_parametrizations(module, "weight", leave_parametrized=True)
    return unet
