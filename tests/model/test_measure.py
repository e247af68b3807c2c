"""The shapes that a config asks for are those of the networks that are built from it."""

import pytest
import torch

from t2l.model.measure import text_encoder_shapes, unet_shapes
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet, unet_to_ldm

UNETS = [
    UNetConfig(),
    UNetConfig(base_channels=32, channel_multipliers=(3, 6, 9), attention_levels=(1, 2), num_heads=4),
    UNetConfig(base_channels=32, channel_multipliers=(1, 2, 2), attention_levels=(0, 2), num_res_blocks=3, num_heads=4),
    UNetConfig(base_channels=64, channel_multipliers=(1,), attention_levels=(), in_channels=8, out_channels=8),
]


def shapes(state):
    return {name: tuple(x.shape) for name, x in state.items()}


@pytest.mark.parametrize("config", UNETS, ids=["SD 1.x", "odd", "deep", "one level"])
def test_a_unet_has_the_tensors_that_were_measured(config):
    with torch.device("meta"):
        state = unet_to_ldm(build_unet(config).state_dict(), config)
    assert shapes(unet_shapes(config)) == shapes(state)


@pytest.mark.parametrize("config", [TextEncoderConfig(), TextEncoderConfig(width=32, num_heads=2, token_ids=(3, 5))])
def test_a_text_encoder_has_the_tensors_that_were_measured(config):
    with torch.device("meta"):
        state = TextEncoder(config).state_dict()
    assert shapes(text_encoder_shapes(config)) == shapes(state)
