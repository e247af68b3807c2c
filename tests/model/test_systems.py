"""The autoencoders of the systems the paper compares with: one that takes the layers apart, one that sees only the
composite.
"""

import pytest
import torch

from t2l.diffusion import DiffusionConfig
from t2l.generate import GenerateConfig, generate
from t2l.io.checkpoint import read_metadata, read_names
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.systems import build_autoencoder
from t2l.model.text2layer import Text2Layer, load_autoencoder, save_autoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

CHANNELS = {"separate": 12, "composite": 4}


def small(layout, **values):
    config = {
        "base_channels": 32,
        "channel_multipliers": (1, 1),
        "num_res_blocks": 1,
        "latent_channels": CHANNELS[layout],
    } | values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_autoencoder(AutoencoderConfig(layout=layout, **config)).eval()


def layers(size=(16, 24), seed=0, dtype=torch.float32):
    return Layers.from_stacked(torch.rand(2, 7, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def on_composite(separate):
    """The same weights on composites."""
    composite = small("composite")
    composite.load_state_dict(separate.state_dict())
    return composite


@torch.no_grad()
def test_separate_latents_are_those_of_foreground_background_and_grey_mask_side_by_side():
    separate, target = small("separate"), layers()
    pictures = (target.foreground, target.background, target.mask.expand(-1, 3, -1, -1))
    expected = torch.cat([on_composite(separate).encode(Layers.flat(picture)).mean for picture in pictures], dim=1)
    torch.testing.assert_close(separate.encode(target).mean, expected)
    decoded = separate.decode(expected, clamp=False)
    alone = [on_composite(separate).decode(part, clamp=False).auxiliary for part in expected.chunk(3, dim=1)]
    torch.testing.assert_close(decoded.layers.stacked, torch.cat([*alone[:2], alone[2].mean(1, keepdim=True)], dim=1))
    assert decoded.auxiliary is None


@torch.no_grad()
def test_only_the_composite_is_seen_and_a_flat_picture_comes_back():
    model, target = small("composite"), layers()
    flat = Layers.flat(target.composite())
    torch.testing.assert_close(model.encode(target).mean, model.encode(flat).mean)
    decoded = model.decode(model.encode(target).mean)
    torch.testing.assert_close(decoded.layers.composite(), decoded.auxiliary)
    assert not model.config.has_layers and (decoded.layers.mask == 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize("layout", CHANNELS)
@pytest.mark.parametrize("size", [(64, 64), (9, 1), (33, 57)])
def test_any_size_comes_back(layout, size):
    model = small(layout)
    latents = model.encode(layers(size)).mean
    assert latents.shape == (2, CHANNELS[layout], -(-size[0] // 2), -(-size[1] // 2))
    assert model.decode(latents, size).layers.size == size


@torch.no_grad()
@pytest.mark.parametrize("layout", CHANNELS)
def test_standardized_latents_have_unit_variance_over_all_layers_and_give_the_same_pictures(layout):
    model, target = small(layout).double(), layers(dtype=torch.float64)
    before = model.encode(target).mean
    pictures = model.decode(before, clamp=False).layers.stacked
    after = (
        model.standardize_latents(before.mean(dim=(0, 2, 3)), before.std(dim=(0, 2, 3), correction=0))
        .encode(target)
        .mean
    )
    torch.testing.assert_close(model.decode(after, clamp=False).layers.stacked, pictures)
    scaled = torch.cat((after * model.config.latent_scale).split(4, dim=1))
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("layout", CHANNELS)
def test_a_file_says_its_layout_and_holds_an_ordinary_autoencoder(layout, tmp_path):
    model, path = small(layout), tmp_path / "x.safetensors"
    save_autoencoder(model, path)
    loaded = load_autoencoder(path)
    assert type(loaded) is type(model) and loaded.config == model.config
    assert torch.equal(loaded.encode(layers()).mean, model.encode(layers()).mean)
    assert f'"layout": "{layout}"' in read_metadata(path)["config"]
    assert "encoder.conv_in.weight" in read_names(path) and not [
        n for n in read_names(path) if "head" in n or "layers" in n
    ]


@pytest.mark.parametrize("layout", CHANNELS)
def test_a_whole_model_of_every_layout_is_saved_loaded_and_draws(layout, tmp_path):
    torch.manual_seed(0)
    c = CHANNELS[layout]
    geometry = {
        "base_channels": 32,
        "channel_multipliers": (1,),
        "attention_levels": (0,),
        "num_res_blocks": 1,
        "num_heads": 2,
    }
    unet = build_unet(UNetConfig(**geometry, in_channels=c, out_channels=c, conditioning_width=32)).eval()
    text = TextEncoder(TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64, token_ids=(1,))).eval()
    model = Text2Layer(small(layout), unet, text, DiffusionConfig(), info={"system": "SD-AE-UNet"})
    model.save(tmp_path / "x.safetensors", torch.float32)
    loaded = Text2Layer.load(tmp_path / "x.safetensors")
    config = GenerateConfig(height=64, width=72, num_steps=1)
    drawn = [generate(m, ["a cat"], config).layers for m in (model, loaded)]
    torch.testing.assert_close(drawn[0].stacked, drawn[1].stacked)
    assert drawn[0].size == (64, 72) and loaded.info["system"] == "SD-AE-UNet"


def test_latents_that_three_pictures_cannot_share_are_refused():
    with pytest.raises(ValueError, match="of the layout 'separate' must be a multiple of 3 .* got 4"):
        AutoencoderConfig(layout="separate", latent_channels=4)
