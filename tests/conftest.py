"""What was left out, told at the end. And a small Stable Diffusion: random networks, and a file of ldm's names with
them.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import CompositeAutoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet, unet_to_ldm
from tests.tools import WANTED

AUTOENCODER = {"base_channels": 32, "channel_multipliers": (1, 1), "num_res_blocks": 1, "head_channels": 8}
UNET = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "attention_levels": (1,),
    "num_res_blocks": 1,
    "num_heads": 2,
}
TEXT = {"width": 32, "num_layers": 1, "num_heads": 2, "hidden_width": 64}


@dataclass
class StableDiffusion:
    """The networks, their configs and their file, which also holds what training leaves behind."""

    path: Path
    autoencoder: CompositeAutoencoder
    unet: torch.nn.Module
    text_encoder: TextEncoder
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory) -> StableDiffusion:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        autoencoder = CompositeAutoencoder(AutoencoderConfig(layout="composite", **AUTOENCODER)).eval()
        unet = build_unet(UNetConfig(conditioning_width=32, **UNET)).eval()
        text_encoder = TextEncoder(TextEncoderConfig(**TEXT)).eval()
    config = UNetConfig(conditioning_width=32, **UNET)
    tensors = {f"model.diffusion_model.{k}": x for k, x in unet_to_ldm(unet.state_dict(), config).items()}
    tensors |= {f"first_stage_model.{k}": x for k, x in autoencoder.state_dict().items()}
    tensors |= {f"cond_stage_model.transformer.{k}": x for k, x in text_encoder.state_dict().items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.9),
        "first_stage_model.loss.logvar": torch.zeros(1),
    }
    path = tmp_path_factory.mktemp("sd") / "sd-v1.safetensors"
    save_file(tensors, path)
    return StableDiffusion(path, autoencoder, unet, text_encoder, tensors)


def pytest_terminal_summary(terminalreporter, config):
    """Which parts were left out, and how to have them."""
    reasons = [report.longrepr[2] for report in terminalreporter.getreports("skipped")]
    wanted = Counter(reason.split(WANTED)[1] for reason in reasons if WANTED in reason)
    lines = [f"{count} for want of {what}" for what, count in sorted(wanted.items())]
    if config.getoption("markexpr") == "not slow":
        lines.append("what takes long; `make test SLOW=1` takes it as well")
    if lines:
        terminalreporter.section("left out")
        terminalreporter.write("".join(f"  {line}\n" for line in lines))
