"""What a run begins with, and parts that are not trained."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from t2l.io.checkpoint import read_metadata, read_tensors
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.from_sd import autoencoder_from_sd
from t2l.model.grow import grown_config
from t2l.model.low_rank import LowRank, add_low_rank, lora_state, merged, save_lora
from t2l.model.systems import build_autoencoder
from t2l.model.text2layer import Text2Layer, load_autoencoder, save_autoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import Conditioned, build_unet, config_of_unet
from t2l.training.losses import LossWeights
from t2l.training.start import freeze, starting_autoencoder, starting_networks
from t2l.training.train_autoencoder import train_autoencoder
from t2l.training.train_unet import train_unet

STILL = {"num_steps": 1, "lr": 1e-12, "lr_warmup_steps": 0, "weight_decay": 0.0}  # a run that changes nothing


def inputs(channels=4):
    generator = torch.Generator().manual_seed(0)
    x, conditioning = torch.randn(2, channels, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    return x, torch.tensor([3, 900]), conditioning


@torch.no_grad()
def output(unet, x, t, conditioning):
    return unet(x, t, encoder_hidden_states=conditioning).sample


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_autoencoder_run_starts_from_stable_diffusion(autoencoder_config, stable_diffusion, shards, tmp_path):
    config = replace(autoencoder_config, **STILL, scale_equivariance=0.0, freeze_encoder=True)
    found = load_autoencoder(train_autoencoder(config, shards, tmp_path, stable_diffusion.path)).state_dict()
    expected = autoencoder_from_sd(stable_diffusion.path, config.model).state_dict()
    for name in ("encoder.conv_in_layers.weight", "decoder.conv_out.weight", "decoder.head_mask.conv2.bias"):
        close(found[name], expected[name])


def test_a_unet_run_starts_from_stable_diffusion_and_leaves_what_is_frozen(
    unet_config, stable_diffusion, latents, tmp_path
):
    config = replace(
        unet_config,
        diffusion=replace(unet_config.diffusion, prediction="eps"),
        frozen=("text_encoder",),
        num_steps=2,
        lr=1e-3,
    )
    snapshot = train_unet(config, latents, tmp_path, stable_diffusion.path)
    model = Text2Layer.load(snapshot)
    theirs = stable_diffusion.text_encoder.state_dict()
    assert all(torch.equal(x.half(), theirs[name].half()) for name, x in model.text_encoder.state_dict().items())
    assert not torch.equal(model.unet.conv_in.weight.half(), stable_diffusion.unet.conv_in.weight.half())
    assert (model.unet.conv_in.weight - stable_diffusion.unet.conv_in.weight).abs().max() < 0.01
    about = read_metadata(snapshot)
    assert about["system"] == "CaT2I-AE-SD" and about["license"] == "creativeml-openrail-m"


def test_a_unet_from_scratch_takes_only_the_text_encoder(unet_config, stable_diffusion):
    unet, text_encoder = starting_networks(replace(unet_config, unet_from_scratch=True), stable_diffusion.path)
    assert not torch.equal(unet.conv_in.weight, stable_diffusion.unet.conv_in.weight)
    assert torch.equal(
        text_encoder.text_model.final_layer_norm.weight,
        stable_diffusion.text_encoder.text_model.final_layer_norm.weight,
    )


def whole(unet_config, tmp_path, channels=4):
    """A checkpoint of ours, of the config's geometry."""
    layout = "separate" if channels == 12 else "joint"
    config = AutoencoderConfig(
        layout=layout, latent_channels=channels, base_channels=32, channel_multipliers=(1,), num_res_blocks=1
    )
    unet = build_unet(replace(unet_config.unet, in_channels=channels, out_channels=channels)).eval()
    text = TextEncoder(replace(unet_config.text_encoder, token_ids=(1,)))
    model = Text2Layer(build_autoencoder(config), unet, text, unet_config.diffusion)
    model.save(tmp_path / "ours.safetensors", torch.float32)
    return model, tmp_path / "ours.safetensors"


def test_a_checkpoint_of_ours_goes_on_as_it_is_or_with_three_times_the_channels(unet_config, tmp_path):
    model, path = whole(unet_config, tmp_path)
    x, t, conditioning = inputs(12)
    expected = output(model.unet, x[:, 4:8], t, conditioning)
    close(output(starting_networks(unet_config, path)[0].eval(), x[:, 4:8], t, conditioning), expected)
    wide = replace(unet_config, unet=replace(unet_config.unet, in_channels=12, out_channels=12))
    found = output(starting_networks(wide, path)[0].eval(), x, t, conditioning)
    close(found[:, 4:8], expected)
    assert found[:, :4].abs().max() == 0


def test_a_frozen_text_encoder_has_to_come_from_somewhere(unet_config):
    with pytest.raises(
        ValueError, match="freezes the text encoder, so a trained one has to come from somewhere: give --init"
    ):
        starting_networks(replace(unet_config, frozen=("text_encoder",)), None)


def test_networks_that_do_not_fit_together_are_refused_before_the_first_step(unet_config):
    config = replace(unet_config, text_encoder=TextEncoderConfig(width=64, num_layers=1, num_heads=2))
    with pytest.raises(
        ValueError, match="the text encoder is 64 wide, the UNet takes 32; make them equal in the config"
    ):
        starting_networks(config, None)


def test_an_autoencoder_of_another_config_is_refused(autoencoder_config, tmp_path):
    save_autoencoder(build_autoencoder(autoencoder_config.model), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors holds .* the config asks for .*; make them equal"):
        starting_autoencoder(replace(autoencoder_config.model, head_channels=16), tmp_path / "x.safetensors")


def test_a_part_that_is_not_there_is_answered_with_those_that_are(unet_config):
    model = Conditioned(*starting_networks(unet_config, None))
    freeze(model, ("unet.down_blocks", "text_encoder"))
    assert not any(p.requires_grad for p in model.unet.down_blocks.parameters())
    assert all(p.requires_grad for p in model.unet.up_blocks.parameters())
    with pytest.raises(
        ValueError, match="frozen names a part that is not there, encoder; there are unet, text_encoder"
    ):
        freeze(model, ("encoder",))


def test_low_rank_matrices_begin_as_nothing_train_alone_and_merge_into_an_ordinary_unet(unet_config):
    plain = build_unet(unet_config.unet).eval()
    adapted = copy.deepcopy(plain)
    add_low_rank(adapted, rank=2)
    close(output(adapted, *inputs()), output(plain, *inputs()))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".parametrizations.weight.0." in name for name in trained)
    for module in adapted.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, generator=torch.Generator().manual_seed(0))
    ordinary = merged(adapted)
    close(output(ordinary, *inputs()), output(adapted, *inputs()))
    assert ordinary.state_dict().keys() == plain.state_dict().keys()
    assert (output(ordinary, *inputs()) - output(plain, *inputs())).abs().max() > 1e-3


def test_low_rank_matrices_freeze_the_text_encoder_too(unet_config):
    """It once was trained with them unless it was named in frozen, and no file of matrices could bring what it
    learnt.
    """
    model = Conditioned(*starting_networks(unet_config, None))
    add_low_rank(model, rank=2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("unet.") and ".parametrizations.weight.0." in name for name in trained)


def test_a_lora_file_holds_what_was_added_and_says_its_rank(unet_config, tmp_path):
    plain = build_unet(unet_config.unet)
    adapted = copy.deepcopy(plain)
    add_low_rank(adapted, rank=2)
    for module in adapted.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, generator=torch.Generator().manual_seed(0))
    save_lora(tmp_path / "lora.safetensors", adapted, {"license": "x"})
    state, about = read_tensors(tmp_path / "lora.safetensors")
    assert about["ss_network_dim"] == about["ss_network_alpha"] == "2" and about["license"] == "x"
    assert all(torch.equal(x, state[name]) for name, x in lora_state(adapted).items())
    before, after = plain.state_dict(), merged(adapted).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name for name in changed}
    assert {name.partition(".")[0] for name in state} == targets.keys()
    for target, name in targets.items():
        up, down, alpha = (state[f"{target}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
        close(after[name], before[name] + alpha / len(down) * up @ down)


def test_a_low_rank_run_changes_attention_alone_and_resumes(unet_config, stable_diffusion, latents, tmp_path):
    diffusion = replace(unet_config.diffusion, prediction="eps")
    config = replace(
        unet_config, diffusion=diffusion, lora_rank=2, frozen=("text_encoder",), num_steps=3, save_every=1, lr=0.1
    )
    snapshot = train_unet(config, latents, tmp_path, stable_diffusion.path)
    ours, theirs = Text2Layer.load(snapshot).unet.state_dict(), stable_diffusion.unet.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name].half(), theirs[name].half())}
    assert changed and all(".to_" in name and name.endswith(".weight") for name in changed)
    before = snapshot.read_bytes()
    train_unet(config, latents, tmp_path, stable_diffusion.path)  # nothing is left to do
    assert snapshot.read_bytes() == before


def test_reference_kl_needs_stable_diffusion_and_is_nothing_for_what_it_knows(
    autoencoder_config, stable_diffusion, shards, tmp_path
):
    loss = LossWeights(lpips=0, adversarial=0, reference_kl=1.0)
    config = replace(
        autoencoder_config, **STILL, loss=loss, data=replace(autoencoder_config.data, flat=1.0), scale_equivariance=0.0
    )
    with pytest.raises(
        ValueError, match="reference_kl keeps the latents near those of Stable Diffusion's .*: give --init"
    ):
        train_autoencoder(config, shards, tmp_path / "without")
    train_autoencoder(config, shards, tmp_path / "with", stable_diffusion.path)
    assert abs(json.loads((tmp_path / "with" / "stats.jsonl").read_text())["reference_kl"]) < 1e-3


@pytest.mark.parametrize(
    ("layout", "channels", "picture"), [("separate", 12, "background"), ("composite", 4, "composed")]
)
def test_an_ordinary_autoencoder_learns_by_the_same_command(
    layout, channels, picture, autoencoder_config, shards, tmp_path
):
    only = (
        {"foreground": 0, "background": 0, "mask_l1": 0, "composition": 0, "laplacian": 0}
        if layout == "composite"
        else {}
    )
    loss = LossWeights(lpips=0, adversarial=0.5, adversarial_start=29, **only)
    model = replace(autoencoder_config.model, layout=layout, latent_channels=channels)
    config = replace(
        autoencoder_config, model=model, loss=loss, num_steps=30, lr=3e-3, save_every=30, scale_equivariance=0.0
    )
    train_autoencoder(config, shards, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1][f"{picture}_l1"] < 0.8 * rows[0][f"{picture}_l1"]
    assert rows[-1]["discriminator"] > 0 and ("mask_l1" in rows[0]) == (layout == "separate")


def test_training_goes_on_with_one_level_more_and_refuses_any_other_shape(unet_config, latents, tmp_path):
    first = train_unet(unet_config, latents, tmp_path / "first")
    larger = replace(unet_config, unet=grown_config(unet_config.unet), num_steps=2)
    second = train_unet(larger, latents, tmp_path / "second", init=first)
    assert config_of_unet(Text2Layer.load(second).unet) == larger.unet
    other = replace(unet_config, unet=replace(unet_config.unet, base_channels=64))
    with pytest.raises(ValueError, match="base_channels 32.*the config asks for base_channels 64.*one level more"):
        train_unet(other, latents, tmp_path / "other", init=first)
