"""LoRA (Hu et al. 2021, arXiv 2106.09685): attention's matrices stay, low-rank ones added to them are trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ..io.checkpoint import write_tensors
from .unet import build_unet, config_of_unet

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


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Freeze a model, in place, but for what is added to the attentions of its UNet.

    model: a UNet, or what trains with it: a text encoder is frozen too, as the file of matrices could not hold it.
    """
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith(TARGETS):
            register_parametrization(module, "weight", LowRank(module.get_parameter("weight"), rank))


def lora_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """What was added to a UNet, under the names that kohya's sd-scripts gave to LoRAs of Stable Diffusion.

    W + alpha / rank up down, with alpha = rank. ComfyUI's Load LoRA, diffusers and others read it.
    """
    state: dict[str, Tensor] = {}
    for name, module in unet.named_modules():
        if isinstance(module, LowRank):
            target = f"lora_unet_{name.partition(f'.{ADDED}.')[0].replace('.', '_')}"
            state |= {f"{target}.lora_up.weight": module.up, f"{target}.lora_down.weight": module.down}
            state[f"{target}.alpha"] = torch.tensor(float(len(module.down)))
    return state


def save_lora(path: str | Path, unet: UNet2DConditionModel, metadata: Mapping[str, str]) -> None:
    """Write a UNet's additions as a file of their own, float32. Raises OSError for a full disk or unwritable folder."""
    state = lora_state(unet)
    assert state, "nothing was added to this UNet; call add_low_rank first"
    rank = str(next(len(x) for name, x in state.items() if name.endswith("lora_down.weight")))
    theirs = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    write_tensors(path, state, {**metadata, **theirs})


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
    ordinary: Any = build_unet(config_of_unet(unet))  # a copy would share the classes that hold what was added
    ordinary.load_state_dict(state)
    return ordinary.to(next(unet.parameters()).device)
