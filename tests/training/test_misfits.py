"""A cache or a start that does not fit the config: a sentence that names both sides, before torch meets them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from t2l.data.latents import Latents
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import build_autoencoder
from t2l.model.text2layer import Text2Layer, load_autoencoder, save_autoencoder
from t2l.model.text_encoder import TextEncoder
from t2l.model.unet import build_unet
from t2l.training.start import check_cache, starting_autoencoder, starting_networks


class Embedded:
    """Text embeddings of 77 tokens, of a width that no cache of the tests has."""

    def __getitem__(self, rows):
        return torch.zeros(len(rows), 77, 48)


def changed(config, **unet):
    return replace(config, unet=replace(config.unet, **unet))


def test_a_cache_that_fits_is_taken(unet_config, latents):
    cached = Latents(latents)
    assert check_cache(cached, unet_config, load_autoencoder(cached.autoencoder)) == ""


@pytest.mark.parametrize(
    ("unet", "sentence"),
    [
        (
            {"in_channels": 8, "out_channels": 8},
            "have 4 channels, the config's UNet takes 8 and gives 8; set unet.in_channels and unet.out_channels to 4",
        ),
        (
            {"out_channels": 8},
            "have 4 channels, the config's UNet takes 4 and gives 8; set",
        ),
        (
            {"channel_multipliers": (1, 1, 1, 1, 1, 1)},
            "are 16 high or wide, and the config's UNet of 6 levels needs at least 32: make them of pictures of at "
            "least 64",
        ),
    ],
)
def test_latents_that_the_unet_cannot_take(unet, sentence, unet_config, latents):
    cached = Latents(latents)
    with pytest.raises(ValueError, match=sentence):
        check_cache(cached, changed(unet_config, **unet), load_autoencoder(cached.autoencoder))


def test_latents_of_another_autoencoder_than_the_one_beside_them(unet_config, latents):
    other = build_autoencoder(
        AutoencoderConfig(latent_channels=8, base_channels=32, channel_multipliers=(1,), num_res_blocks=1)
    )
    with pytest.raises(ValueError, match="have 4 channels, and the autoencoder beside them makes 8; make the cache"):
        check_cache(Latents(latents), unet_config, other)


def test_text_embeddings_of_another_width(unet_config, latents):
    cached = Latents(latents)
    cached.embeddings = Embedded()
    with pytest.raises(ValueError, match="are 77 tokens x 48, the config's UNet takes 77 x 32: set unet.conditioning"):
        check_cache(cached, unet_config, load_autoencoder(cached.autoencoder))


def small(layout, channels):
    config = {"base_channels": 32, "channel_multipliers": (1,), "num_res_blocks": 1, "head_channels": 8}
    return AutoencoderConfig(layout=layout, latent_channels=channels, **config)


def checkpoint(kind, config, folder):
    """A file that a run of the config's UNet cannot start from."""
    path = folder / "base.safetensors"
    if kind == "an autoencoder alone":
        save_autoencoder(build_autoencoder(small("joint", 4)), path)
    elif kind == "an ordinary autoencoder":
        save_file({"encoder.conv_in.weight": torch.zeros(1)}, path)
    elif kind == "no UNet":
        encoder = TextEncoder(config.text_encoder).state_dict()
        tensors = {f"cond_stage_model.transformer.{name}": x for name, x in encoder.items()}
        save_file(tensors | {"model.diffusion_model.x": torch.zeros(1)}, path)
    elif kind == "no text encoder":
        save_file({"model.diffusion_model.x": torch.zeros(1)}, path)
    else:
        channels = 8 if kind == "other channels" else 4
        diffusion = replace(config.diffusion, prediction="eps") if kind == "eps" else config.diffusion
        width = 64 if kind == "another width" else 32
        unet = replace(config.unet, in_channels=channels, out_channels=channels, conditioning_width=width)
        text = TextEncoder(replace(config.text_encoder, token_ids=(1,), width=width))
        Text2Layer(build_autoencoder(small("joint", channels)), build_unet(unet), text, diffusion).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "an autoencoder alone",
            "holds only this part of a model: autoencoder; needed: UNet, text encoder and autoencoder",
        ),
        ("an ordinary autoencoder", "is an ordinary autoencoder; a Stable Diffusion 1.x checkpoint .* is needed"),
        ("no UNet", "the UNet of .*base.safetensors does not fit its config: it lacks .*"),
        ("no text encoder", "holds no tensor under cond_stage_model.transformer.; a whole Stable Diffusion 1.x"),
        (
            "other channels",
            "has a UNet of 8 channels, which can go on with 8 or 24; the config asks for 4 in and 4 out",
        ),
        ("eps", "was trained with prediction 'eps', the config asks for prediction 'v'; make them equal in diffusion"),
        ("another width", "holds a UNet with conditioning_width 64, the config asks for conditioning_width 32"),
    ],
)
def test_a_start_that_is_something_else(kind, sentence, unet_config, tmp_path):
    path = checkpoint(kind, unet_config, tmp_path)
    with pytest.raises(ValueError, match=sentence) as raised:
        starting_networks(unet_config, path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_an_autoencoder_of_another_layout_names_what_differs(tmp_path):
    save_autoencoder(build_autoencoder(small("separate", 12)), tmp_path / "x.safetensors")
    sentence = (
        "holds an autoencoder with layout 'separate', latent_channels 12, the config asks for layout 'joint', "
        "latent_channels 4; make them equal"
    )
    with pytest.raises(ValueError, match=sentence):
        starting_autoencoder(small("joint", 4), tmp_path / "x.safetensors")


def test_low_rank_matrices_need_a_trained_unet_beside_them(unet_config):
    with pytest.raises(ValueError, match="lora_rank trains matrices beside a trained UNet.*give --init"):
        starting_networks(replace(unet_config, lora_rank=2), None)
