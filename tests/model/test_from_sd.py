"""Starts from Stable Diffusion 1.x: what the first output is, and one sentence for every other file."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from t2l.generate import GenerateConfig, generate
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.convert import stable_diffusion as stable_diffusion_as_it_is
from t2l.model.from_sd import autoencoder_from_sd, is_foreign, license_of, text_encoder_from_sd, unet_from_sd
from t2l.model.text2layer import save_autoencoder
from t2l.model.text_encoder import TextEncoderConfig
from t2l.model.unet import UNetConfig

GEOMETRY = {"base_channels": 32, "channel_multipliers": (1, 2), "attention_levels": (1,), "num_res_blocks": 1}
UNET = {**GEOMETRY, "num_heads": 2, "conditioning_width": 32}
TEXT = TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64)


def joint(**values):
    return AutoencoderConfig(
        **({"base_channels": 32, "channel_multipliers": (1, 1), "num_res_blocks": 1, "head_channels": 8} | values)
    )


def layers(size=(16, 24)):
    return Layers.from_stacked(torch.rand(2, 7, *size, generator=torch.Generator().manual_seed(0)))


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_flat_picture_goes_through_as_in_stable_diffusion(stable_diffusion):
    ours, theirs, flat = (
        autoencoder_from_sd(stable_diffusion.path, joint()),
        stable_diffusion.autoencoder,
        Layers.flat(layers().foreground),
    )
    found, expected = ours.encode(flat), theirs.encode(flat)
    close(found.mean, expected.mean)
    close(found.logvar, expected.logvar)
    close(ours.decode(found.mean).auxiliary, theirs.decode(found.mean).auxiliary)


@torch.no_grad()
@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("mask_block", [True, False])
@pytest.mark.parametrize("fold", [True, False])
def test_the_first_output_is_the_background_with_nothing_in_front(stable_diffusion, auxiliary, mask_block, fold):
    ours, theirs, target = (
        autoencoder_from_sd(stable_diffusion.path, joint(auxiliary=auxiliary, mask_block=mask_block)),
        stable_diffusion.autoencoder,
        layers(),
    )
    ours = ours.fold_batchnorm() if fold else ours
    decoded = ours.decode(ours.encode(target).mean, clamp=False)
    expected = theirs.decode(theirs.encode(Layers.flat(target.background)).mean, clamp=False).auxiliary
    for picture in (decoded.layers.foreground, decoded.layers.background, decoded.layers.composite()):
        close(picture, expected)
    assert decoded.layers.mask.abs().max() == 0 and (decoded.auxiliary is not None) == auxiliary


def test_what_starts_at_zero_can_be_learnt(stable_diffusion):
    ours, target = autoencoder_from_sd(stable_diffusion.path, joint()).train(), layers()
    decoded = ours.decode(ours.encode(target).mean, clamp=False)
    (decoded.layers.stacked - target.stacked).abs().mean().backward()
    assert (ours.encoder.first.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert all((head.conv2.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all() for head in ours.decoder.heads().values())


@torch.no_grad()
def test_an_ordinary_autoencoder_is_taken_as_it_is(stable_diffusion):
    separate = autoencoder_from_sd(stable_diffusion.path, joint(layout="separate", latent_channels=12))
    composite = autoencoder_from_sd(stable_diffusion.path, joint(layout="composite"))
    for model in (separate, composite):
        own = model.state_dict()
        assert all(torch.equal(x, own[name]) for name, x in stable_diffusion.autoencoder.state_dict().items())


@torch.no_grad()
def test_an_autoencoder_alone_is_enough_for_an_autoencoder(stable_diffusion, tmp_path):
    save_file(stable_diffusion.autoencoder.state_dict(), tmp_path / "vae.safetensors")
    ours = [
        autoencoder_from_sd(path, joint(layout="composite"))
        for path in (stable_diffusion.path, tmp_path / "vae.safetensors")
    ]
    close(*(model.encode(layers()).mean for model in ours))
    with pytest.raises(
        ValueError, match="vae.safetensors is an ordinary autoencoder; a Stable Diffusion 1.x checkpoint in one"
    ):
        unet_from_sd(tmp_path / "vae.safetensors", UNetConfig(**UNET))


@torch.no_grad()
def test_a_unet_of_four_channels_is_stable_diffusions_and_one_of_twelve_knows_the_background(stable_diffusion):
    four, twelve = (
        unet_from_sd(stable_diffusion.path, UNetConfig(**UNET, in_channels=c, out_channels=c)) for c in (4, 12)
    )
    generator = torch.Generator().manual_seed(0)
    x, conditioning = torch.randn(2, 12, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    t = torch.tensor([3, 900])
    expected = stable_diffusion.unet(x[:, 4:8], t, encoder_hidden_states=conditioning).sample
    close(four(x[:, 4:8], t, encoder_hidden_states=conditioning).sample, expected)
    found = twelve(x, t, encoder_hidden_states=conditioning).sample
    close(found[:, 4:8], expected)
    assert found[:, :4].abs().max() == 0 == found[:, 8:].abs().max()


@torch.no_grad()
def test_the_text_encoder_is_stable_diffusions(stable_diffusion):
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    assert torch.equal(text_encoder_from_sd(stable_diffusion.path, TEXT)(ids), stable_diffusion.text_encoder(ids))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("conditioner.embedders.0.transformer.text_model.x", "a Stable Diffusion XL checkpoint"),
        ("cond_stage_model.model.positional_embedding", "a Stable Diffusion 2 checkpoint"),
        ("model.diffusion_model.joint_blocks.0.x", "a Stable Diffusion 3 checkpoint"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "one part of a diffusers folder"),
        ("x", "a safetensors file of something else"),
    ],
)
def test_a_file_of_something_else_is_named(name, found, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(
        {name: torch.zeros(1), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}
        if "." in name and "down" not in name
        else {name: torch.zeros(1)},
        path,
    )
    for load, config in (
        (autoencoder_from_sd, joint()),
        (unet_from_sd, UNetConfig(**UNET)),
        (text_encoder_from_sd, TEXT),
    ):
        with pytest.raises(
            ValueError, match=f"x.safetensors is {found}; a Stable Diffusion 1.x checkpoint in one .safetensors file"
        ):
            load(path, config)


def test_files_that_cannot_be_read_are_refused_in_one_sentence(stable_diffusion, tmp_path):
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    (tmp_path / "cut.safetensors").write_bytes(stable_diffusion.path.read_bytes()[:-100])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    sentences = {
        "pickle.ckpt": "is a pickle",
        "cut.safetensors": "is truncated: it has",
        "folder": "is a diffusers folder, one .safetensors file is needed; make one with `t2l export",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            is_foreign(tmp_path / name)


@torch.no_grad()
def test_stable_diffusion_as_it_is_paints_pictures_under_its_own_licence(stable_diffusion, tmp_path):
    model = stable_diffusion_as_it_is(stable_diffusion.path, joint(layout="composite"), UNetConfig(**UNET), TEXT)
    model.save(tmp_path / "x.safetensors")
    assert license_of(tmp_path / "x.safetensors") == "creativeml-openrail-m" and model.trained_size == 512
    drawn = generate(model, ["a cat"], GenerateConfig(height=64, width=64, num_steps=1))
    torch.testing.assert_close(drawn.layers.composite(), drawn.auxiliary)


def test_our_own_file_is_told_from_stable_diffusions(stable_diffusion, tmp_path):
    save_autoencoder(stable_diffusion.autoencoder, tmp_path / "x.safetensors")
    assert is_foreign(stable_diffusion.path) and not is_foreign(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors is a Text2Layer checkpoint; a Stable Diffusion 1.x"):
        autoencoder_from_sd(tmp_path / "x.safetensors", joint(layout="composite"))


def test_an_inpainting_checkpoint_and_another_width_do_not_fit(stable_diffusion, tmp_path):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(stable_diffusion.tensors | {name: torch.zeros(32, 9, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError,
        match=r"the UNet of .*x.safetensors does not fit .* misshapen input_blocks.0.0.weight \(32, 9, 3, 3\)",
    ):
        unet_from_sd(tmp_path / "x.safetensors", UNetConfig(**UNET))
    with pytest.raises(
        ValueError, match="the autoencoder of .* does not fit its config: it lacks encoder.down.0.block.1"
    ):
        autoencoder_from_sd(stable_diffusion.path, joint(num_res_blocks=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"norm": "none"},
            "needs its kind of autoencoder, norm 'group' and patch 1; the config has norm 'none' and patch 1",
        ),
        ({"head_channels": 4}, "head_channels must be at least 6 .* got 4"),
        ({"latent_channels": 8}, r"misshapen .*\(8, 8, 1, 1\) instead of \(16, 16, 1, 1\)"),
    ],
)
def test_a_config_that_cannot_start_from_stable_diffusion_says_why(stable_diffusion, values, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_from_sd(stable_diffusion.path, joint(**values))


def test_channels_that_are_neither_four_nor_twelve_and_a_small_vocabulary_are_refused(stable_diffusion):
    with pytest.raises(
        ValueError, match="a UNet of 4 channels, which can go on with 4 or 12; the config asks for 8 in and 8 out"
    ):
        unet_from_sd(stable_diffusion.path, UNetConfig(**UNET, in_channels=8, out_channels=8))
    with pytest.raises(ValueError, match="brings CLIP's whole vocabulary; leave text_encoder.token_ids out"):
        text_encoder_from_sd(stable_diffusion.path, TextEncoderConfig(token_ids=(1, 2)))
