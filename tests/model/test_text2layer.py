"""The checkpoint: what is saved comes back, and everything else is refused in one sentence."""

import json

import pytest
import torch

from t2l.diffusion import DiffusionConfig
from t2l.io.checkpoint import read_metadata, read_names, read_tensors, write_tensors
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import (
    Text2Layer,
    fit_latent_rgb,
    flat_input,
    load_autoencoder,
    read_parts,
    save_autoencoder,
)
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

UNET = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "attention_levels": (1,),
    "num_res_blocks": 1,
    "num_heads": 2,
}
TEXT = {"width": 32, "num_layers": 1, "num_heads": 2, "hidden_width": 64, "token_ids": (320, 49406, 49407)}


def autoencoder(**values):
    config = {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 8} | values
    model = LayeredAutoencoder(AutoencoderConfig(**config)).eval()
    for head in model.decoder.heads().values():
        head.bn.running_mean.normal_()
        head.bn.running_var.uniform_(0.5, 2)
    return model


def tiny(**values):
    torch.manual_seed(0)
    unet = build_unet(UNetConfig(**UNET, conditioning_width=32)).eval()
    text_encoder = TextEncoder(TextEncoderConfig(**TEXT)).eval()
    factors = {"latent_rgb_factors": [[0.5, 0.25, 0.0]] * 4, "latent_rgb_bias": [0.0, 0.5, 1.0]}
    parts = {"autoencoder": autoencoder(), "diffusion": DiffusionConfig(prediction="v"), "info": {"steps": "3"}}
    return Text2Layer(**(parts | factors | {"unet": unet, "text_encoder": text_encoder} | values))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def file(model, tmp_path):
    model.save(tmp_path / "x.safetensors", torch.float32)
    return tmp_path / "x.safetensors"


def rewritten(path, drop=(), tensors=None, **metadata):
    """The file with some of its metadata or tensors replaced."""
    found, old = read_tensors(path)
    found = {name: x for name, x in (found | (tensors or {})).items() if name not in drop}
    write_tensors(path, found, {k: v for k, v in (old | metadata).items() if v is not None})
    return path


@torch.no_grad()
def outputs(model):
    generator = torch.Generator().manual_seed(0)
    x, pixels = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(2, 7, 16, 16, generator=generator)
    conditioning = model.text_encoder(torch.tensor([[49406, 320, 999] + [49407] * 74] * 2))
    eps = model.unet(x, torch.tensor([1, 900]), encoder_hidden_states=conditioning).sample
    posterior = model.autoencoder.encode(Layers.from_stacked(pixels))
    decoded = model.autoencoder.decode(x)
    return [conditioning, eps, posterior.mean, posterior.logvar, decoded.layers.stacked, decoded.auxiliary]


def test_a_saved_model_comes_back_with_the_same_outputs(model, file):
    loaded = Text2Layer.load(file)
    for found, expected in zip(outputs(loaded), outputs(model), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded.configs() == model.configs()
    assert loaded.latent_rgb_factors == model.latent_rgb_factors and loaded.latent_rgb_bias == model.latent_rgb_bias
    assert loaded.info == {"steps": "3", "license": "Apache-2.0"}
    assert not any(n.training for n in (loaded.unet, loaded.autoencoder, loaded.text_encoder))


def test_saving_changes_nothing_in_the_model(tmp_path):
    model = tiny()
    before = [x.clone() for x in outputs(model)]
    model.save(tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
    assert "decoder.head_mask.bn.running_mean" in model.autoencoder.state_dict()


def test_a_loaded_model_can_be_saved_and_loaded_again(file, tmp_path):
    first = Text2Layer.load(file)
    first.save(tmp_path / "y.safetensors", torch.float32)
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(Text2Layer.load(tmp_path / "y.safetensors")), outputs(first), strict=True)
    )


def test_half_precision_is_the_default_and_float32_comes_back(model, tmp_path):
    model.save(tmp_path / "x.safetensors")
    assert {x.dtype for x in read_tensors(tmp_path / "x.safetensors")[0].values()} == {torch.float16}
    assert {p.dtype for p in Text2Layer.load(tmp_path / "x.safetensors").unet.parameters()} == {torch.float32}


def test_the_file_has_the_names_and_the_metadata_that_others_look_for(file):
    names, metadata = read_names(file), read_metadata(file)
    assert "model.diffusion_model.input_blocks.1.0.in_layers.0.weight" in names
    assert "first_stage_model.encoder.conv_in_layers.weight" in names
    assert "first_stage_model.encoder.conv_in.weight" in names
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in names
    assert not any(".bn." in name for name in names)
    assert {k: metadata[k] for k in ("format", "version", "kind")} == {
        "format": "text2layer",
        "version": "1",
        "kind": "text2layer",
    }
    assert json.loads(metadata["config"])["diffusion"]["prediction"] == "v"


@torch.no_grad()
def test_the_flat_input_is_the_layered_one_for_a_flat_picture():
    encoder = autoencoder().double()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    conv = flat_input(encoder)
    flat = torch.nn.functional.conv2d(
        2 * image - 1, conv["encoder.conv_in.weight"], conv["encoder.conv_in.bias"], padding=1
    )
    torch.testing.assert_close(flat, encoder.encoder.conv_in_layers(2 * Layers.flat(image).stacked - 1))


@pytest.mark.parametrize("values", [{"norm": "none"}, {"patch": 2}])
def test_outside_the_geometry_of_sd_there_is_no_flat_input(values):
    assert flat_input(autoencoder(**values)) == {}


@pytest.mark.parametrize("values", [{}, {"norm": "none", "patch": 2}, {"auxiliary": False}, {"mask_block": True}])
@pytest.mark.parametrize("fold", [True, False])
@torch.no_grad()
def test_an_autoencoder_alone_comes_back(values, fold, tmp_path):
    saved = autoencoder(**values)
    save_autoencoder(saved, tmp_path / "x.safetensors", {"steps": "5"}, fold=fold)
    loaded = load_autoencoder(tmp_path / "x.safetensors")
    latents = torch.randn(1, 4, 4, 4)
    found, expected = (a.decode(latents).layers.stacked for a in (loaded, saved))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded.config == saved.config and read_metadata(tmp_path / "x.safetensors")["steps"] == "5"
    assert isinstance(loaded.decoder.head_mask.bn, torch.nn.Identity) == fold


@torch.no_grad()
def test_the_autoencoder_of_a_whole_checkpoint_can_be_loaded_alone(model, file):
    latents = torch.randn(1, 4, 4, 4)
    found, expected = (a.decode(latents).layers.stacked for a in (load_autoencoder(file), model.autoencoder))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_autoencoder_is_no_whole_checkpoint(tmp_path):
    save_autoencoder(autoencoder(), tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match="holds only this part of a model: autoencoder; needed: UNet, text encoder and"
    ):
        Text2Layer.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "an ordinary Stable Diffusion checkpoint"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("encoder.conv_in.weight", "an ordinary autoencoder"),
        ("x", "a safetensors file of something else"),
    ],
)
@pytest.mark.parametrize("load", [Text2Layer.load, load_autoencoder])
def test_a_file_of_others_is_told_apart(load, name, found, tmp_path):
    write_tensors(tmp_path / "x.safetensors", {name: torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"x.safetensors is {found}; a Text2Layer checkpoint, with our metadata"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "of version 2, this program reads version 1"),
        ({"version": None}, "of version None, this program reads version 1"),
        ({"kind": "upscaler"}, "holds only this part of a model: upscaler"),
        ({"config": "{"}, "has a broken config in its metadata: "),
        ({"config": None}, "has a broken config in its metadata: "),
        ({"config": "[]"}, "has a broken config in its metadata: it has no config for the autoencoder"),
        ({"config": '{"autoencoder": {"chanels": 4}}'}, "AutoencoderConfig has no chanels; it has "),
        ({"config": '{"autoencoder": {"patch": 3}}'}, "AutoencoderConfig.patch must be 1 or 2, got 3"),
        ({"latent_rgb_factors": "[[1, 2, 3]]"}, "has broken latent_rgb_factors .* 4 x 3 and 3 numbers are needed"),
        ({"latent_rgb_bias": None}, "has broken latent_rgb_factors"),
    ],
)
def test_metadata_that_cannot_be_used_are_told(file, metadata, message):
    with pytest.raises(ValueError, match=message) as caught:
        Text2Layer.load(rewritten(file, **metadata))
    assert str(file) in str(caught.value)


def test_missing_and_unexpected_weights_of_every_part_are_named_together(file):
    names = ["model.diffusion_model.out.2.weight", "cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    rewritten(file, drop=names, tensors={"first_stage_model.extra": torch.zeros(1), "quant_conv.bias": torch.zeros(8)})
    message = rf"it lacks {names[0]}, {names[1]}; it has, unexpectedly, .*(first_stage_model.extra|quant_conv.bias)"
    with pytest.raises(ValueError, match=message):
        Text2Layer.load(file)


def test_another_width_than_the_config_says_is_named(file):
    rewritten(file, tensors={"first_stage_model.quant_conv.bias": torch.zeros(9)})
    with pytest.raises(ValueError, match=r"misshapen first_stage_model.quant_conv.bias \(9,\) instead of \(8,\)"):
        load_autoencoder(file)


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    model = tiny()
    model.unet.conv_out.bias.data[0] = 1e6
    with pytest.raises(ValueError, match="1 weights are not finite as torch.float16, model.diffusion_model.out.2.bias"):
        model.save(tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_networks_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="the autoencoder has 8 latent channels, the UNet takes 4 and gives 4"):
        tiny(autoencoder=autoencoder(latent_channels=8))
    with pytest.raises(ValueError, match="the text encoder is 64 wide, the UNet takes 32"):
        tiny(text_encoder=TextEncoder(TextEncoderConfig(**(TEXT | {"width": 64}))))


def test_info_cannot_replace_what_the_file_says_about_itself(tmp_path):
    with pytest.raises(ValueError, match="info must not hold format, version"):
        tiny(info={"version": "9", "format": "x"}).save(tmp_path / "x.safetensors")


def test_preview_factors_find_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    factors, bias = torch.randn(4, 3, generator=generator) / 10, torch.tensor([0.1, -0.2, 0.0])
    small = torch.einsum("nchw,cr->nrhw", latents, factors) + bias.view(1, 3, 1, 1)
    images = torch.nn.functional.interpolate((small + 1) / 2, scale_factor=4)
    found = fit_latent_rgb(latents, images)
    torch.testing.assert_close(torch.tensor(found[0]), factors)
    torch.testing.assert_close(torch.tensor(found[1]), bias)


HOSTILE = {
    "autoencoder": [
        ({"head_channels": 1_000_000}, "AutoencoderConfig.head_channels must lie from 1 to 4096, got 1000000"),
        ({"num_res_blocks": 40_000}, "AutoencoderConfig.num_res_blocks must lie from 1 to 16, got 40000"),
        ({"base_channels": 32 * 10**9}, "AutoencoderConfig.base_channels must lie"),
        (
            {"channel_multipliers": [1] * 1000},
            "AutoencoderConfig.channel_multipliers must have 1 to 8 levels, got 1000",
        ),
        ({"latent_channels": 10**6}, "AutoencoderConfig.latent_channels must lie"),
        ({"latent_scale": float("nan")}, "AutoencoderConfig.latent_scale must lie from 0.0001 to 10000, got nan"),
        ({"latent_scale": 0}, "AutoencoderConfig.latent_scale must lie"),
        ({"latent_scale": 10**400}, "AutoencoderConfig.latent_scale must lie .*got inf"),
        ({"head_channels": 4096}, r"misshapen first_stage_model.decoder.head_.* instead of \(4096,"),
        ({"base_channels": 4096, "channel_multipliers": [64] * 8}, "does not fit its config: it lacks"),
    ],
    "unet": [
        ({"num_res_blocks": 40_000}, "UNetConfig.num_res_blocks must lie"),
        ({"num_heads": 0}, "UNetConfig.num_heads must lie from 1 to 256, got 0"),
        ({"attention_levels": [0] * 9}, "UNetConfig has at most 8 levels"),
        ({"channel_multipliers": [1] * 9}, "UNetConfig has at most 8 levels, got 9"),
        ({"base_channels": 4096}, "misshapen model.diffusion_model"),
    ],
    "text_encoder": [
        ({"num_layers": 10**9}, "TextEncoderConfig.num_layers must lie"),
        ({"hidden_width": 0}, "TextEncoderConfig.hidden_width must lie"),
        ({"num_heads": 0}, "TextEncoderConfig.num_heads must lie"),
        ({"activation": "__import__"}, "TextEncoderConfig.activation must be one of quick_gelu, .*got '__import__'"),
        ({"token_ids": list(range(49_408))}, "TextEncoderConfig.token_ids lists every token"),
        ({"token_ids": [1] * 5000}, "token_ids must be different ids"),
    ],
    "diffusion": [
        ({"beta_start": float("inf")}, "DiffusionConfig.beta_start must lie from 1e-08 to 0.9, got inf"),
        ({"beta_end": -1}, "DiffusionConfig.beta_end must lie"),
        ({"num_train_steps": 10**12}, "DiffusionConfig.num_train_steps must lie"),
        ({"x" * 100_000: 1}, "DiffusionConfig has no x"),
    ],
}


@pytest.mark.parametrize("load", [Text2Layer.load, read_parts])
@pytest.mark.parametrize(
    ("part", "values", "message"), [(part, *case) for part, cases in HOSTILE.items() for case in cases]
)
def test_a_config_out_of_its_range_or_of_other_tensors_is_refused_before_anything_is_built(
    load, part, values, message, file
):
    if load is read_parts and part == "autoencoder" and "must" not in message and "levels" not in message:
        load = load_autoencoder  # the others do not look at its tensors
    config = json.loads(read_metadata(file)["config"])
    config[part] |= values
    with pytest.raises(ValueError, match=message) as caught:
        load(rewritten(file, config=json.dumps(config)))
    assert str(file) in str(caught.value) and len(str(caught.value)) < 2500


def test_a_config_that_is_nested_without_end_is_told(file):
    with pytest.raises(
        ValueError, match="has a broken config in its metadata: it has lists or objects in more than 64"
    ):
        Text2Layer.load(rewritten(file, config="[" * 200_000 + "]" * 200_000))


@pytest.mark.parametrize("load", [Text2Layer.load, read_parts, load_autoencoder])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(load, value, file):
    name = "first_stage_model.quant_conv.bias" if load is load_autoencoder else "model.diffusion_model.out.2.bias"
    broken = read_tensors(file)[0][name].clone()
    broken[1] = value
    with pytest.raises(ValueError, match=rf"x.safetensors has weights that are not finite: {name}; it is damaged"):
        load(rewritten(file, tensors={name: broken}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_weights_of_another_kind_of_number_are_named(dtype, file):
    name = "model.diffusion_model.out.2.bias"
    with pytest.raises(ValueError, match=f"does not fit its config: it has in another kind of number {name}"):
        Text2Layer.load(rewritten(file, tensors={name: torch.zeros(4, dtype=dtype)}))


def test_weights_of_eight_bits_are_weights(file, model):
    name = "model.diffusion_model.out.2.bias"
    loaded = Text2Layer.load(rewritten(file, tensors={name: torch.full((4,), 0.5).to(torch.float8_e4m3fn)}))
    assert (loaded.unet.conv_out.bias == 0.5).all()
