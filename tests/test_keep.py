"""One layer is kept: what is said of it, how it comes back, and what a UNet with channels for it learns."""

from dataclasses import replace

import pytest
import torch

from t2l.diffusion import add_noise, clean_estimate, prediction_of, scaled_linear_schedule, training_target
from t2l.generate import GenerateConfig, KeptLayer, generate
from t2l.keep import KINDS, keep_channels, keep_condition, layers_to_encode, mask_on_grid, put_back
from t2l.layers import Layers
from t2l.model.grow import grow_to
from t2l.model.text2layer import Text2Layer
from t2l.model.unet import config_of_unet
from tests.model.test_text2layer import tiny

SIZE = {"height": 64, "width": 64, "num_steps": 3}


def some_layers(count=1, size=64, seed=0):
    return Layers.from_stacked(torch.rand(count, 7, size, size, generator=torch.Generator().manual_seed(seed)))


def keeping(model):
    """The same model with channels for a kept layer, which say something."""
    config = config_of_unet(model.unet)
    channels = model.autoencoder.config.latent_channels
    wanted = replace(config, in_channels=channels + keep_channels(channels))
    unet = grow_to(wanted, model.unet, scaled_linear_schedule(model.diffusion), "it")
    return Text2Layer(model.autoencoder, unet, model.text_encoder, model.diffusion, info=model.info)


@pytest.mark.parametrize("kept", KINDS)
def test_what_is_kept_comes_back_as_it_is_and_the_rest_is_painted(kept):
    painted, own = some_layers(3), some_layers(1, seed=1)
    result = put_back(painted, own, kept)
    parts = {"foreground": ("foreground", "mask"), "background": ("background",)}[kept]
    for part in ("foreground", "background", "mask"):
        source = own if part in parts else painted
        assert torch.equal(getattr(result, part), getattr(source, part).expand_as(getattr(painted, part)))


@pytest.mark.parametrize("kept", KINDS)
def test_the_other_layer_plays_no_part_in_what_is_encoded(kept):
    one, other = some_layers(), some_layers(seed=1)
    mixed = put_back(other, one, kept)
    assert torch.equal(layers_to_encode(mixed, kept).stacked, layers_to_encode(one, kept).stacked)


def test_what_the_unet_sees_says_which_layer_is_kept_and_where():
    latents, mask = torch.randn(2, 4, 8, 8), torch.rand(2, 1, 8, 8)
    told = {kind: keep_condition(latents, mask, kind) for kind in KINDS}
    for number, kind in enumerate(KINDS):
        assert told[kind].shape == (2, keep_channels(4), 8, 8) and torch.equal(told[kind][:, :4], latents)
        flags = told[kind][:, 5:].amax((0, 2, 3))
        assert flags.tolist() == [float(number == 0), float(number == 1)]
    assert torch.equal(told["foreground"][:, 4:5], mask) and not told["background"][:, 4].any()
    assert torch.equal(mask_on_grid(torch.ones(1, 1, 70, 66), (9, 9)), torch.ones(1, 1, 9, 9))


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_a_clean_estimate_and_its_prediction_are_inverses(kind):
    schedule, t = scaled_linear_schedule(), torch.tensor([3, 400, 990])
    clean, noise = torch.randn(3, 4, 8, 8).double(), torch.randn(3, 4, 8, 8).double()
    x = add_noise(clean, noise, t, schedule.double())
    target = training_target(clean, noise, t, schedule.double(), kind)
    torch.testing.assert_close(clean_estimate(target, x, t, schedule.double(), kind), clean)
    torch.testing.assert_close(prediction_of(clean, x, t, schedule.double(), kind), target)


def test_new_channels_change_nothing_before_they_are_trained(tmp_path):
    model = tiny()
    wider = keeping(model)
    assert wider.keeps and not model.keeps
    config = GenerateConfig(**SIZE)
    drawn = [generate(one, ["a cat"], config).layers.stacked for one in (model, wider)]
    assert torch.equal(*drawn)
    wider.save(tmp_path / "a.safetensors", torch.float32)
    again = Text2Layer.load(tmp_path / "a.safetensors")
    assert again.keeps
    torch.testing.assert_close(generate(again, ["a cat"], config).layers.stacked, drawn[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("has_channels", [True, False])
@pytest.mark.parametrize("kept", KINDS)
def test_a_kept_layer_comes_out_bit_for_bit_and_has_a_say_in_the_other(kept, has_channels):
    model = keeping(tiny()) if has_channels else tiny()
    if has_channels:
        torch.nn.init.normal_(model.unet.conv_in.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for seed in (1, 2):
        keep = KeptLayer(some_layers(seed=seed), kept)
        drawn[seed] = generate(model, ["a cat", "a dog"], GenerateConfig(**SIZE), keep=keep).layers
        assert torch.equal(put_back(drawn[seed], keep.layers, kept).stacked, drawn[seed].stacked)
    other = "background" if kept == "foreground" else "foreground"
    assert not torch.equal(getattr(drawn[1], other), getattr(drawn[2], other))


def test_a_kept_layer_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the kept layer must be one picture of 64 x 64 pixels, got 1 of 32 x 32"):
        generate(tiny(), ["a cat"], GenerateConfig(**SIZE), keep=KeptLayer(some_layers(size=32), "foreground"))
