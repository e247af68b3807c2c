import re

import pytest
import torch

from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder, Posterior, latent_size, pad_to_multiple

OURS = ("encoder.conv_in_layers.", "decoder.head_")  # what Stable Diffusion's autoencoder does not have


def small(**values):
    config = {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 8} | values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LayeredAutoencoder(AutoencoderConfig(**config)).eval()
        for p in model.parameters():  # zeros and ones at the start would hide faults
            p.data.add_(0.02 * torch.randn(p.shape))
        for head in model.decoder.heads().values():
            head.bn.running_mean.normal_()
            head.bn.running_var.uniform_(0.5, 2)
    return model


def layers(n=2, size=(16, 24), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return Layers.from_stacked(torch.rand(n, 7, *size, generator=generator, dtype=dtype))


def diffusers_autoencoder(widths, blocks):
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    return AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=widths, layers_per_block=blocks)


def ldm_names(state, levels):
    """diffusers' names of an AutoencoderKL turned into ldm's; attention's linear layers into 1x1 convolutions."""
    rules = [
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]
    result = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = value[..., None, None] if ".attn_1." in name and value.ndim == 2 else value
    return result


def test_the_default_has_stable_diffusions_names_and_shapes():
    with torch.device("meta"):
        ours = LayeredAutoencoder(AutoencoderConfig()).state_dict()
        theirs = ldm_names(diffusers_autoencoder((128, 256, 512, 512), 2).state_dict(), levels=4)
    trunk = {name: tuple(x.shape) for name, x in ours.items() if not name.startswith(OURS)}
    expected = {name: tuple(x.shape) for name, x in theirs.items() if not name.startswith("encoder.conv_in.")}
    assert trunk == expected
    assert len(theirs) == 248  # tensors under first_stage_model in every SD 1.x checkpoint
    assert trunk["decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert trunk["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert tuple(ours["encoder.conv_in_layers.weight"].shape) == (128, 7, 3, 3)


def test_a_flat_picture_goes_through_as_in_stable_diffusions_autoencoder():
    """With the 3-channel kernel shared out among F and B, and the mask at 0 in network units, border included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = diffusers_autoencoder((32, 64), 1).eval()
    ours, state = small(), ldm_names(theirs.state_dict(), levels=2)
    conv_in = state.pop("encoder.conv_in.weight")
    share = torch.rand(conv_in.shape, generator=torch.Generator().manual_seed(0))
    to_mask = torch.ones(32, 1, 3, 3)
    state["encoder.conv_in_layers.weight"] = torch.cat([share * conv_in, (1 - share) * conv_in, to_mask], dim=1)
    state["encoder.conv_in_layers.bias"] = state.pop("encoder.conv_in.bias")
    loaded = ours.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys and all(name.startswith(OURS) for name in loaded.missing_keys)
    image = layers().foreground
    with torch.no_grad():
        posterior, reference = ours.encode(Layers.flat(image)), theirs.encode(2 * image - 1).latent_dist
        torch.testing.assert_close(posterior.mean, reference.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(posterior.logvar, reference.logvar, atol=1e-5, rtol=1e-5)
        composed = 2 * ours.decode(posterior.mean, clamp=False).auxiliary - 1
        torch.testing.assert_close(composed, theirs.decode(posterior.mean).sample, atol=1e-5, rtol=1e-5)


def test_folding_batchnorm_keeps_the_pictures():
    model = small()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.decode(latents, clamp=False).layers.stacked
        after = model.fold_batchnorm().decode(latents, clamp=False).layers.stacked
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert not any("bn" in name for name in model.state_dict())
    model.fold_batchnorm()  # folding twice is folding once


def test_standardized_latents_have_zero_mean_and_unit_variance_and_give_the_same_pictures():
    model, target = small().double(), layers(dtype=torch.float64)

    def drawn(posterior):
        return model.decode(posterior.sample(torch.Generator().manual_seed(0)), clamp=False).layers.stacked

    with torch.no_grad():
        before = model.encode(target)
        pictures = drawn(before)
        mean, std = before.mean.mean(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3))
        after = model.standardize_latents(mean, std).encode(target)
        torch.testing.assert_close(drawn(after), pictures)  # also where they are sampled: the deviation follows
    scaled = after.mean * model.config.latent_scale
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (72, 200), (257, 513), (9, 1)])
def test_any_size_comes_back(patch, size):
    model = small(
        channel_multipliers=(1,) * (4 if patch == 1 else 3), norm="none" if patch == 2 else "group", patch=patch
    )
    with torch.no_grad():
        mean = model.encode(layers(1, size)).mean
        decoded = model.decode(mean, size)
    assert model.config.downscale == 8
    assert mean.shape == (1, 4, *latent_size(*size, 8))
    assert decoded.layers.size == size and decoded.auxiliary.shape == (1, 3, *size)


def test_padding_repeats_the_border_and_leaves_multiples_alone():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(pad_to_multiple(x[..., :2], 2), x[..., :2])


def test_sampling_is_decided_by_the_generator():
    posterior = Posterior(torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), 2 * torch.log(torch.tensor(0.5))))
    a, b, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert a.mean().item() == pytest.approx(3, abs=0.02) and a.std().item() == pytest.approx(0.5, abs=0.02)


def test_without_the_auxiliary_head_there_is_no_last_layer_and_the_layers_stay():
    with_it, without = small(), small(auxiliary=False)
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if not k.startswith("decoder.conv_out.")})
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = without.decode(latents)
        torch.testing.assert_close(decoded.layers.stacked, with_it.decode(latents).layers.stacked)
    assert decoded.auxiliary is None


def reached(model, part):
    """The parts of the decoder that a gradient of "mask", "layers" or "auxiliary" reaches."""
    model.zero_grad()
    decoded = model.decode(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), clamp=False)
    outputs = {
        "mask": decoded.layers.mask,
        "colours": torch.cat([decoded.layers.foreground, decoded.layers.background]),
        "auxiliary": decoded.auxiliary,
    }
    outputs[part].square().sum().backward()
    trained = [name for name, x in model.decoder.named_parameters() if x.grad is not None and x.grad.abs().max() > 0]
    last = f"up.0.block.{model.config.num_res_blocks}."
    parts = {"trunk": ("conv_in.", "mid.", "up.1."), "last block": (last,), "mask's block": ("head_mask.block.",)}
    return {name for name, starts in parts.items() if any(one.startswith(starts) for one in trained)}


def test_how_far_the_gradients_of_mask_and_pictures_reach():
    for part in ("mask", "colours", "auxiliary"):
        assert reached(small(), part) == {"trunk", "last block"}
    assert reached(small(auxiliary_reach="block"), "auxiliary") == {"last block"}
    own = small(mask_block=True)
    assert reached(own, "mask") == {"trunk", "mask's block"}
    assert reached(own, "colours") == reached(own, "auxiliary") == {"trunk", "last block"}


def test_where_the_gradient_ends_changes_no_picture():
    whole, ended = small(), small(auxiliary_reach="block")
    ended.load_state_dict(whole.state_dict())
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = whole.decode(latents), ended.decode(latents)
    assert torch.equal(ours.layers.stacked, theirs.layers.stacked) and torch.equal(ours.auxiliary, theirs.auxiliary)


@torch.no_grad()
def test_a_block_of_the_masks_own_that_is_the_trunks_gives_the_same_mask():
    shared, own = small(), small(mask_block=True)
    weights, last = shared.state_dict(), f"decoder.up.0.block.{shared.config.num_res_blocks}."
    names = {last: "decoder.head_mask.block.", "decoder.norm_out.": "decoder.head_mask.norm_out."}
    copies = {name.replace(a, b): x for a, b in names.items() for name, x in weights.items() if name.startswith(a)}
    own.load_state_dict(weights | copies)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.decode(latents).layers.stacked, shared.decode(latents).layers.stacked)


def test_pictures_are_clamped_unless_training_asks_for_the_gradient():
    model, latents = small(), torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for head in model.decoder.heads().values():
        head.conv2.weight.data.mul_(10)
    with torch.no_grad():
        free, clamped = (model.decode(latents, clamp=clamp).layers.stacked for clamp in (False, True))
    assert free.min() < 0 and free.max() > 1
    torch.testing.assert_close(clamped, free.clamp(0, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch": 3}, "patch must be 1 or 2, got 3"),
        ({"base_channels": 20}, r"multiple of 32 .* got \[20, 40, 80, 80\]"),
        ({"channel_multipliers": ()}, "must have 1 to 8 levels, got 0"),
        ({"base_channels": 0}, r"multiple of 32 .* got \[0, 0, 0, 0\]"),
        ({"latent_channels": 0}, "latent_channels must lie from 1 to 1024, got 0"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(values, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**values)
