import dataclasses

import pytest
import torch

from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, Decoded, LayeredAutoencoder, Posterior
from t2l.model.precision import precision_context
from t2l.training.losses import (
    LossWeights,
    adaptive_weight,
    autoencoder_loss,
    colour_l1,
    composition_loss,
    generator_adversarial_loss,
    gradient_l1,
    hinge_discriminator_loss,
    kl_loss,
    l1,
    laplacian_loss,
    laplacian_pyramid,
    reference_kl_loss,
)

ONLY_L1 = LossWeights(lpips=0, adversarial=0, mask_l1=0, composition=0, laplacian=0, kl=0)


def row(*values):
    """A picture of one row, (1, 1, 1, W)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def layers(seed=0, size=(16, 16)):
    return Layers.from_stacked(rand(2, 7, *size, seed=seed))


def posterior(mean=0.0, logvar=0.0, shape=(2, 4, 2, 2)):
    return Posterior(torch.full(shape, mean), torch.full(shape, logvar))


def loss_of(predicted, target, weights, auxiliary=None, perceptual=None):
    return autoencoder_loss(Decoded(predicted, auxiliary), posterior(), target, weights, perceptual)


def close(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype))


def test_l1_is_the_mean_of_weighted_differences():
    close(l1(row(0.0, 1.0), row(1.0, 1.0)), 0.5)
    close(l1(row(0.0, 1.0), row(1.0, 1.0), weight=row(3.0, 1.0)), 1.5)
    close(l1(row(0.0, 0.5), row(1.0, 1.0)), 0.75)


def test_gradient_l1_sees_steps_and_no_offset():
    step = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    close(gradient_l1(step, torch.zeros_like(step)), 1.0)  # 1 along the rows, 0 along the columns
    close(gradient_l1(step + 0.3, step), 0.0)
    close(gradient_l1(row(0.0, 1.0, 2.0), row(0.0, 0.0, 0.0), weight=row(1.0, 0.0, 0.0)), 0.25)  # (0.5 + 0) / 2
    close(gradient_l1(row(0.7), row(0.0)), 0.0)


def test_composition_loss_is_the_difference_rounded_off_at_zero():
    close(composition_loss(row(0.2, 0.5), row(0.5, 0.5)), (0.3 + 1e-6) / 2)


def test_laplacian_of_an_impulse_by_hand():
    # (1 4 6 4 1)/16 at every second place gives (1 6 1)/16, widened again (13/8 3.5 4.75 3.5 13/8)/16, off by 1.34375
    # in sum; one level down (1 6 1)/16 becomes flat 2.25/16, off by 6.25/16; below that everything is flat.
    impulse = row(0.0, 0.0, 1.0, 0.0, 0.0)
    zero = torch.zeros_like(impulse)
    close(laplacian_loss(impulse, zero, levels=1), 1.34375 / 5)
    close(laplacian_loss(impulse, zero, levels=2), 1.34375 / 5 + 2 * 6.25 / 16 / 3)
    close(laplacian_loss(impulse, zero), 1.34375 / 5 + 2 * 6.25 / 16 / 3)


def disc_beside_its_blur(size, radius=0.3, sigma=2.0):
    """A sharp disc and the same one blurred by a Gaussian; radius of the side, sigma in pixels."""
    places = torch.arange(size) - (size - 1) / 2
    sharp = (torch.hypot(*torch.meshgrid(places, places, indexing="ij")) < radius * size).float()[None, None]
    reach = torch.arange(-3 * round(sigma), 3 * round(sigma) + 1)
    kernel = torch.exp(-(reach**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    half = kernel.shape[-1] // 2
    return torch.conv2d(torch.conv2d(sharp, kernel, padding=(0, half)), kernel.mT, padding=(half, 0)), sharp


def level_shares(prediction, mask, reduction):
    """What each level adds to the loss."""
    upto = [laplacian_loss(prediction, mask, levels, reduction) for levels in (1, 2, 3)]
    return torch.stack([upto[0], upto[1] - upto[0], upto[2] - upto[1]]) / upto[2]


def test_sums_weigh_the_second_and_third_level_a_quarter_and_a_sixteenth():
    blurred, sharp = disc_beside_its_blur(256)
    for reduction, shares in (("mean", (0.21, 0.34, 0.45)), ("sum", (0.65, 0.26, 0.09))):
        found = level_shares(blurred, sharp, reduction)
        torch.testing.assert_close(found, torch.tensor(shares), atol=0.01, rtol=0)
    impulse, zero = row(0.0, 0.0, 1.0, 0.0, 0.0), row(0.0, 0.0, 0.0, 0.0, 0.0)
    close(laplacian_loss(impulse, zero, reduction="sum"), (1.34375 + 2 * 6.25 / 16) / 5)


def test_a_sum_of_levels_means_the_same_at_every_size():
    found = [
        laplacian_loss(*(x.tile(1, 1, *tiles) for x in disc_beside_its_blur(64, radius=0.15)), reduction="sum")
        for tiles in ((1, 1), (2, 3))
    ]
    close(found[0], found[1])


def test_the_config_says_how_the_levels_of_a_mask_are_added_up():
    only = dataclasses.replace(ONLY_L1, foreground=0, background=0, composed=0, laplacian=3)
    target, predicted = layers(0), layers(1)
    for reduction in ("mean", "sum"):
        total, _ = loss_of(predicted, target, dataclasses.replace(only, laplacian_reduction=reduction))
        close(total, 3 * laplacian_loss(predicted.mask, target.mask, reduction=reduction))


def test_laplacian_of_a_constant_difference_is_zero():
    mask = rand(1, 1, 13, 10)
    torch.testing.assert_close(laplacian_loss(mask + 0.25, mask), torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (33, 64)])
def test_the_pyramid_takes_any_size_and_halves_it_rounding_up(size):
    bands = laplacian_pyramid(rand(2, 1, *size), levels=3)
    expected = [tuple(-(-n // 2**level) for n in size) for level in range(3)]
    assert [tuple(band.shape[-2:]) for band in bands] == expected


def test_the_pyramid_treats_height_and_width_alike():
    x = rand(1, 1, 9, 14)
    for band, turned in zip(laplacian_pyramid(x, 3), laplacian_pyramid(x.mT, 3), strict=True):
        torch.testing.assert_close(band, turned.mT)


def test_kl_by_hand_and_its_two_reductions():
    p = posterior(mean=1.0, logvar=0.0)
    close(kl_loss(p.mean, p.logvar), 0.5)
    close(kl_loss(p.mean, p.logvar, "sum"), 0.5 * 16)
    wide = posterior(logvar=1.0)
    close(kl_loss(wide.mean, wide.logvar), (torch.e - 2) / 2)


def test_reference_kl_by_hand_and_towards_the_standard_gaussian_it_is_kl():
    p, zero = posterior(mean=1.0, logvar=0.0), torch.zeros(2, 4, 2, 2)
    close(reference_kl_loss(p.mean, p.logvar, p.mean, p.logvar), 0.0)
    close(reference_kl_loss(p.mean, p.logvar, p.mean - 3, p.logvar + 1), 0.5 * (1 + 10 / torch.e - 1))
    for reduction in ("mean", "sum"):
        close(reference_kl_loss(p.mean, p.logvar, zero, zero, reduction), kl_loss(p.mean, p.logvar, reduction))


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    close(hinge_discriminator_loss(real, fake), 0.5 * (0.5 + 0.75))
    close(generator_adversarial_loss(fake), 0.75)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), 2 * last[1]
    weight = adaptive_weight(reconstruction, adversarial, last)
    close(weight, 5 / (2 + 1e-4))
    assert not weight.requires_grad
    (reconstruction + adversarial).backward()  # the graphs are still there


def test_adaptive_weight_is_clamped_and_takes_several_layers_as_one():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    close(adaptive_weight((3 * a + 4 * b).sum(), (0 * a).sum(), [a, b]), 1e4)
    close(adaptive_weight((3 * a + 4 * b).sum(), (2 * a).sum(), [a, b]), 5 / (2 + 1e-4))


@pytest.mark.parametrize("inputs", ["true", "predicted"])
def test_a_perfect_prediction_costs_nothing(inputs):
    target = layers()
    weights = LossWeights(lpips=0, gradient=1, recompose=1, composition_inputs=inputs)
    total, parts = loss_of(target, target, weights, auxiliary=target.composite())
    assert all(part < 2e-6 for part in parts.values())  # the composition loss bottoms out at 1e-6
    assert total < 4e-6


def test_the_total_is_the_weighted_sum_of_the_parts():
    target, predicted = layers(0), layers(1)
    weights = LossWeights(lpips=0.5, foreground=2, background=3, gradient=0.25, kl=7, kl_reduction="mean", recompose=5)
    decoded, p = Decoded(predicted, predicted.composite()), posterior(mean=1.0)
    total, parts = autoencoder_loss(decoded, p, target, weights, lambda a, b: (a - b).square().mean(dim=(1, 2, 3)))
    expected = 7 * parts["kl"] + 5 * parts["recompose"]
    expected += parts["mask_l1"] + 2 * parts["composition"] + 3 * parts["laplacian"]
    for name, weight in (("foreground", 2), ("background", 3), ("composed", 1)):
        image = parts[f"{name}_l1"] + 0.5 * parts[f"{name}_lpips"] + 0.25 * parts[f"{name}_gradient"]
        expected += weight * image
    torch.testing.assert_close(total, expected)
    close(parts["kl"], 0.5)


def test_the_mask_terms_are_the_papers_mask_loss_with_the_true_colours():
    target, predicted = layers(0), layers(1)
    weights = LossWeights(foreground=0, background=0, composed=0, lpips=0, kl=0)
    total, parts = loss_of(predicted, target, weights)
    composed = Layers(target.foreground, target.background, predicted.mask).composite()
    masks = predicted.mask, target.mask
    expected = l1(*masks) + 2 * composition_loss(composed, target.composite()) + 3 * laplacian_loss(*masks)  # Eq. 4
    torch.testing.assert_close(total, expected)
    assert set(parts) == {"mask_l1", "composition", "laplacian"}


def test_the_composition_sees_wrong_colours_only_when_they_are_its_inputs():
    target = layers()
    predicted = Layers(1 - target.foreground, target.background, target.mask)
    true, other = (dataclasses.replace(ONLY_L1, composition=1, composition_inputs=x) for x in ("true", "predicted"))
    assert loss_of(predicted, target, true)[1]["composition"] < 2e-6
    assert loss_of(predicted, target, other)[1]["composition"] > 0.1


def test_a_weight_of_zero_leaves_the_term_out_and_computes_nothing():
    def fail(prediction, target):
        raise AssertionError("LPIPS has weight 0")

    total, parts = loss_of(layers(1), layers(0), dataclasses.replace(ONLY_L1, background=0), perceptual=fail)
    assert set(parts) == {"foreground_l1"}
    nothing = dataclasses.replace(ONLY_L1, foreground=0, background=0, composed=0)
    assert loss_of(layers(1), layers(0), nothing)[0] == 0


def test_without_an_auxiliary_prediction_only_its_terms_are_missing():
    target, predicted = layers(0), layers(1)
    weights = LossWeights(lpips=0, gradient=1)
    with_it = loss_of(predicted, target, weights, auxiliary=predicted.composite())[1]
    without = loss_of(predicted, target, weights)[1]
    assert with_it.keys() - without.keys() == {"composed_l1", "composed_gradient"}
    assert all(torch.equal(without[name], with_it[name]) for name in without)


def test_the_foregrounds_colour_outside_its_mask_counts_as_much_as_the_weight_says():
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    target = Layers(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), mask)
    predicted = Layers((1 - mask).expand(2, 3, 16, 16), target.background, mask)  # wrong where nobody sees it
    weights = dataclasses.replace(ONLY_L1, lpips=1, gradient=1)

    def distance(a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))

    for outside, l1_part in ((1.0, 0.5), (0.2, 0.1), (0.0, 0.0)):
        weights = dataclasses.replace(weights, foreground_outside=outside)
        parts = loss_of(predicted, target, weights, perceptual=distance)[1]
        close(parts["foreground_l1"], l1_part)
        close(parts["foreground_lpips"], l1_part)
        close(parts["foreground_gradient"], (1 + outside) / 2 / 15)  # one step of 15, between weights 1 and outside


def test_the_hidden_background_can_count_more():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :1] = 1
    target = Layers(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), mask)
    predicted = Layers(target.foreground, torch.ones(1, 3, 4, 4), mask)
    parts = loss_of(predicted, target, dataclasses.replace(ONLY_L1, hidden_background=5))[1]
    close(parts["background_l1"], 0.75 + 5 * 0.25)


def test_ldms_kl_is_a_48th_of_the_mean_at_4_channels_and_factor_8():
    target = Layers.from_stacked(torch.zeros(1, 7, 16, 16))
    weights = LossWeights(lpips=0, kl=1)
    decoded, p = Decoded(target, None), posterior(mean=1.0, shape=(1, 4, 2, 2))
    close(autoencoder_loss(decoded, p, target, weights)[1]["kl"], 0.5 / 48)
    weights = dataclasses.replace(weights, kl_reduction="mean")
    close(autoencoder_loss(decoded, p, target, weights)[1]["kl"], 0.5)


def test_bf16_predictions_are_compared_in_float32_also_under_autocast():
    target, predicted = layers(0), layers(1).to(torch.bfloat16)
    weights = LossWeights(lpips=0, gradient=1, recompose=1, composition_inputs="predicted")
    expected = loss_of(predicted.to(torch.float32), target, weights)[1]
    with precision_context(torch.device("cpu"), "bf16"):
        parts = loss_of(predicted, target, weights)[1]
    assert all(part.dtype == torch.float32 for part in parts.values())
    torch.testing.assert_close(parts, expected)


def test_the_loss_falls_on_one_batch():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1, head_channels=8)
        model, target = LayeredAutoencoder(config), layers()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(15):
        p = model.encode(target)
        total, _parts = autoencoder_loss(model.decode(p.mean, clamp=False), p, target, LossWeights(lpips=0))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def test_lpips_without_a_network_and_negative_weights_are_refused():
    with pytest.raises(ValueError, match="LossWeights.lpips is 1.0, but no perceptual network came"):
        loss_of(layers(1), layers(0), LossWeights())
    with pytest.raises(ValueError, match="must not be negative, got kl -1"):
        LossWeights(kl=-1)


def test_colour_l1_sees_the_mean_of_a_cell_and_not_its_detail():
    checkers = (torch.arange(16).view(1, -1) + torch.arange(16).view(-1, 1)) % 2
    checkers = checkers.float().expand(2, 3, 16, 16)
    assert colour_l1(checkers, torch.full_like(checkers, 0.5)) == pytest.approx(0, abs=1e-6)
    assert colour_l1(checkers + 0.3, checkers) == pytest.approx(0.1, abs=1e-6)  # grey: a third of it, one axis of three
    half = torch.zeros(2, 1, 16, 16)
    half[..., :8] = 1
    assert colour_l1(checkers + 0.3, checkers, half) == pytest.approx(0.05, abs=1e-6)


def test_colour_l1_counts_green_against_magenta_most():
    grey = torch.full((1, 3, 8, 8), 0.5)
    errors = [grey + torch.tensor(c).view(1, 3, 1, 1) for c in ([0.1, 0.1, 0.1], [0.1, 0.0, -0.1], [-0.1, 0.1, -0.1])]
    luminance, orange, green = (float(colour_l1(error, grey)) for error in errors)
    assert luminance < orange < green
