"""The UNet is SD's, and its parameters have ldm's names on disk."""

import hashlib

import pytest
import torch

from t2l.model.unet import UNetConfig, build_unet, config_of_unet, module_names, unet_from_ldm, unet_to_ldm

TINY = UNetConfig(
    base_channels=32,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    num_res_blocks=1,
    num_heads=2,
    conditioning_width=32,
)
GEOMETRIES = [
    UNetConfig(),
    TINY,
    UNetConfig(base_channels=32, channel_multipliers=(3, 6, 9), attention_levels=(1, 2), num_heads=4),
    UNetConfig(base_channels=32, channel_multipliers=(1, 2, 2), attention_levels=(0, 2), num_res_blocks=3, num_heads=4),
    UNetConfig(base_channels=64, channel_multipliers=(1,), attention_levels=(), in_channels=8, out_channels=8),
]

# SD 1.x's geometry in ldm: which input and output blocks have attention, and where the sizes change
SD_SAMPLES = {
    "time_embedding.linear_1.weight": "time_embed.0.weight",
    "conv_in.bias": "input_blocks.0.0.bias",
    "down_blocks.0.resnets.0.norm1.weight": "input_blocks.1.0.in_layers.0.weight",
    "down_blocks.0.attentions.1.proj_in.weight": "input_blocks.2.1.proj_in.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
        "input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "down_blocks.3.resnets.1.time_emb_proj.bias": "input_blocks.11.0.emb_layers.1.bias",
    "mid_block.resnets.1.conv2.weight": "middle_block.2.out_layers.3.weight",
    "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
    "up_blocks.0.resnets.2.conv1.weight": "output_blocks.2.0.in_layers.2.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
    "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight": (
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "conv_norm_out.weight": "out.0.weight",
    "conv_out.weight": "out.2.weight",
}


def on_meta(config):
    with torch.device("meta"):
        return build_unet(config)


def test_the_defaults_are_the_unet_of_sd():
    unet = on_meta(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    state = unet.state_dict()
    assert {name: list(unet_to_ldm({name: state[name]}, UNetConfig()))[0] for name in SD_SAMPLES} == SD_SAMPLES


def test_all_names_are_those_that_comfyui_gives():
    """The hash is of the 686 pairs that ComfyUI 0.3.75's unet_to_diffusers makes for SD 1.5, sorted."""
    names = {name: name for name in on_meta(UNetConfig()).state_dict()}
    ldm = {diffusers: name for name, diffusers in unet_to_ldm(names, UNetConfig()).items()}
    lines = "\n".join(f"{diffusers} {ldm[diffusers]}" for diffusers in sorted(ldm))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "21c10c171ca3141695e08ea82871176830a4468dec9ac9a7440994076e8dbe32"


@pytest.mark.parametrize("config", GEOMETRIES, ids=lambda c: "-".join(map(str, c.widths)))
def test_names_there_and_back_are_the_same(config):
    unet = on_meta(config)
    ldm = unet_to_ldm(unet.state_dict(), config)
    assert len(ldm) == len(unet.state_dict())
    assert list(unet_from_ldm(ldm, config)) == list(unet.state_dict())
    assert len(set(module_names(config).values())) == len(module_names(config))


@pytest.mark.parametrize("config", GEOMETRIES, ids=lambda c: "-".join(map(str, c.widths)))
def test_a_unet_tells_the_config_it_was_built_from(config):
    found = config_of_unet(on_meta(config))
    assert found.widths == config.widths
    assert {f: getattr(found, f) for f in ("attention_levels", "num_res_blocks", "num_heads", "in_channels")} == {
        f: getattr(config, f) for f in ("attention_levels", "num_res_blocks", "num_heads", "in_channels")
    }


def test_num_heads_is_the_number_of_heads():
    unet = on_meta(UNetConfig())
    assert {unet.get_submodule(f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1").heads for i in range(3)} == {
        8
    }


def test_any_latent_size_goes_through():
    x = build_unet(TINY)(torch.randn(2, 4, 9, 13), torch.tensor([3, 999]), encoder_hidden_states=torch.randn(2, 77, 32))
    assert x.sample.shape == (2, 4, 9, 13)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_channels": 48}, "must be a multiple of 32 .* got .48, 96, 192, 192"),
        ({"base_channels": 32, "channel_multipliers": (3, 5, 8)}, "whole multiple of the first.*got .96, 160, 256"),
        ({"attention_levels": (0, 4)}, r"attention_levels must lie from 0 to 3, got \[4\]"),
        ({"num_heads": 7}, r"multiples of num_heads \(7\), got \[320"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**values)


def test_a_foreign_name_is_told():
    with pytest.raises(ValueError, match="label_emb.0.0.weight is no ldm name of a network with this config"):
        unet_from_ldm({"label_emb.0.0.weight": torch.zeros(1)}, TINY)
