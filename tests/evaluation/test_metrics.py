import math

import pytest
import torch

from t2l.evaluation.metrics import (
    MAX_PSNR,
    frechet_distance,
    layer_metrics,
    mask_iou,
    mask_l1,
    mean_metric,
    psnr,
    reconstruct,
    share_error,
    standard_error,
)
from t2l.layers import Layers


def random_layers(count=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Layers.from_stacked(torch.rand(count, 7, size, size, generator=generator))


def square_mask(size=8, side=4, left=0):
    mask = torch.zeros(1, 1, size, size)
    mask[..., :side, left : left + side] = 1
    return mask


class Damaging:
    """Stands in for an autoencoder: keeps the layers, and adds a known error to the background."""

    def __init__(self, error):
        self.error = error

    def parameters(self):
        return iter([torch.zeros(1)])

    def encode(self, layers):
        return type("Posterior", (), {"mean": layers.stacked})

    def decode(self, latents, size):
        layers = Layers.from_stacked(latents)
        damaged = Layers(layers.foreground, layers.background + self.error, layers.mask)
        return type("Decoded", (), {"layers": damaged, "auxiliary": None})


def test_a_constant_error_of_a_tenth_is_20_db():
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(psnr(image + 0.1, image), torch.full((3,), 20.0), atol=1e-3, rtol=0)


def test_equal_pictures_have_the_greatest_psnr():
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == pytest.approx(MAX_PSNR)


def test_weighted_psnr_ignores_what_is_outside():
    image, mask = torch.full((1, 3, 8, 8), 0.5), square_mask()
    damaged = image + 0.1 * mask + 0.4 * (1 - mask)
    assert psnr(damaged, image, mask).item() == pytest.approx(20, abs=1e-4)


def test_a_half_weight_counts_half():
    image = torch.zeros(1, 3, 1, 2)
    error, weight = torch.tensor([0.1, 0.2]).expand(1, 3, 1, 2), torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    expected = -10 * math.log10((0.01 + 0.5 * 0.04) / 1.5)
    assert psnr(error, image, weight).item() == pytest.approx(expected, abs=1e-4)


def test_an_empty_weight_has_no_psnr_and_is_left_out_of_the_mean():
    image = torch.zeros(2, 3, 8, 8)
    weight = torch.cat([square_mask(), torch.zeros(1, 1, 8, 8)])
    values = psnr(image + 0.1, image, weight)
    assert values[1].isnan() and mean_metric(values) == pytest.approx(20, abs=1e-4)
    assert mean_metric(values[1:]) is None


def test_iou_of_squares_that_overlap_by_half_is_a_third():
    assert mask_iou(square_mask(left=0), square_mask(left=2)).item() == pytest.approx(1 / 3)


def test_iou_cuts_soft_masks_at_a_half():
    assert mask_iou(0.6 * square_mask(), square_mask()).item() == 1
    assert mask_iou(0.4 * square_mask(), square_mask()).item() == 0


def test_two_empty_masks_agree():
    assert mask_iou(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item() == 1


def test_mask_l1_of_a_quarter_of_the_pixels_is_a_quarter():
    assert mask_l1(square_mask(), torch.zeros(1, 1, 8, 8)).item() == 0.25


def test_recomposing_is_compared_with_the_auxiliary_picture():
    layers = random_layers()
    picture = layers.composite()
    exact = layer_metrics(layers, layers, picture)
    torch.testing.assert_close(exact["recompose_l1"], torch.zeros(2))
    picture[1, 2, 3, 4] += 0.25
    off = layer_metrics(layers, layers, picture)
    torch.testing.assert_close(off["recompose_max"], torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(off["recompose_l1"], torch.tensor([0.0, 0.25 / (3 * 16 * 16)]))


def test_a_damaged_hidden_background_shows_in_its_own_figure_only():
    image = torch.full((1, 3, 8, 8), 0.5)
    target = Layers(image, image, square_mask())
    metrics = layer_metrics(Layers(image, image + 0.1 * target.mask, target.mask), target, image)
    assert metrics.pop("hidden_background_psnr").item() == pytest.approx(20, abs=1e-4)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "mask_iou": 1,
            "mask_l1": 0,
            "composite_psnr": MAX_PSNR,
            "foreground_psnr": MAX_PSNR,
            "visible_background_psnr": MAX_PSNR,
            "recompose_l1": 0,
            "recompose_max": 0,
        }
    )


def test_what_an_autoencoder_damages_is_measured():
    metrics, layers = reconstruct(Damaging(0.1), random_layers())
    assert metrics["visible_background_psnr"].mean() == pytest.approx(20, abs=1e-3)
    assert not metrics["mask_l1"].any() and metrics["recompose_l1"].isnan().all()
    assert layers.background.amax() > 1


def test_the_standard_error_of_a_mean_is_s_over_the_root_of_n():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan])
    assert standard_error(values) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error(values[:1]) is None and standard_error(values[4:]) is None


def test_the_standard_error_of_a_share_is_that_of_drawing_zeros_and_ones():
    ones = torch.tensor([1.0] * 30 + [0.0] * 70)
    assert share_error(0.3, 100) == pytest.approx(ones.std(correction=0).item() / 10, abs=1e-7)


def test_equal_feature_sets_have_frechet_distance_zero():
    features = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_has_its_squared_length_as_frechet_distance():
    features = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(features, features + 0.5) == pytest.approx(64 * 0.25)


def test_frechet_distance_of_scaled_gaussians_is_the_known_one():
    """For covariances S and k^2 S it is (k - 1)^2 tr(S)."""
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = features - features.mean(dim=0)
    expected = 4 * centred.square().sum().item() / 199
    assert frechet_distance(centred, 3 * centred) == pytest.approx(expected)


def test_frechet_distance_agrees_with_the_square_root_of_the_covariances():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    b = torch.randn(200, 6, generator=generator, dtype=torch.float64) + 1
    trace = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp_min(0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    assert frechet_distance(a, b) == pytest.approx((means + a.T.cov().trace() + b.T.cov().trace() - 2 * trace).item())


def test_feature_sets_of_two_widths_are_refused():
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(4, 2\)"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))


@pytest.mark.parametrize("counts", [(200, 300), (200, 12), (12, 300)])
def test_more_pictures_than_features_give_the_distance_of_the_whole_sets(counts):
    """The D x D factors of the covariances against the n x m product that fewer pictures take."""
    a, b = (
        torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64).cumsum(dim=1)
        for n in counts
    )
    x, y = ((f - f.mean(dim=0)) / math.sqrt(len(f) - 1) for f in (a, b))
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)
