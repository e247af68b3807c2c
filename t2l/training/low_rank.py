"""LoRA (Hu et al. 2021, arXiv 2106.09685): attention's matrices stay, the sum of each with a low-rank one is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ..model.unet import build_unet, config_of_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")  # every attention's, as in LoRAs for Stable Diffusion
ADDED = "parametrizations.weight"  # where torch keeps it


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
    for name, module in list(unet.named_modules()):
        if name.endswith(TARGETS):
            register_parametrization(module, "weight", LowRank(module.get_parameter("weight"), rank))


@torch.no_grad()
def merged(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """An ordinary UNet of the same outputs, beside it: what was added is put into the weights."""
    state: dict[str, Tensor] = {}
    for name, tensor in unet.state_dict().items():
        module, added, part = name.partition(f".{ADDED}.")
        if not added:
            state[name] = tensor
        elif part == "original":
            whole: Any = unet.get_submodule(module)
            state[f"{module}.weight"] = whole.weight
    ordinary = build_unet(config_of_unet(unet))  # a copy would share the classes that hold what was added
    ordinary.load_state_dict(state)
    return ordinary.to(next(unet.parameters()).device)
