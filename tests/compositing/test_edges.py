"""Colours without the old background, colours beyond the edge, and masks that move."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from t2l.compositing.edges import (
    EdgeConfig,
    box_mean,
    clean_edges,
    clean_layer,
    free_colours,
    refine_mask,
    shrink_mask,
)
from t2l.compositing.resample import gaussian_blur
from t2l.compositing.stack import Layer, Stack
from t2l.layers import Layers

NINE_BACKGROUNDS = {
    "black": (0, 0, 0),
    "grey": (0.5, 0.5, 0.5),
    "white": (1, 1, 1),
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}


def solid(colour, size=(96, 96)):
    return torch.tensor([float(c) for c in colour]).view(1, 3, 1, 1).expand(1, 3, *size)


def disc(size=(96, 96), radius=28.0, soft=3.0):
    """The mask of a disc with strands around it and a soft edge."""
    y, x = (torch.arange(n) + 0.5 - n / 2 for n in size)
    angle, distance = torch.atan2(y[:, None], x[None]), torch.hypot(y[:, None], x[None])
    return gaussian_blur((distance < radius * (1 + 0.2 * (12 * angle).sin())).float()[None, None], soft)


def smooth_colours(size=(96, 96)):
    """Vivid colours that change every twenty pixels."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate((coarse * 1.6 - 0.3).clamp(0, 1), size=size, mode="bicubic").clamp(0, 1)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def soft_band_error(found, true, mask):
    band = ((mask > 0.05) & (mask < 0.95)).float()
    return ((found - true).abs().mean(dim=1, keepdim=True) * band).sum() / band.sum()


# --- Colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", NINE_BACKGROUNDS)
@pytest.mark.parametrize("soft", [0.7, 2.0])
def test_the_colours_of_a_soft_edge_are_at_least_twice_as_true_as_a_plain_copy(background, soft):
    true, mask = smooth_colours(), disc(soft=soft)
    copy = Layers(true, solid(NINE_BACKGROUNDS[background]), mask).composite()
    cleaned, _ = clean_edges(copy, mask)
    assert soft_band_error(cleaned, true, mask) <= 0.5 * soft_band_error(copy, true, mask)


def test_one_colour_comes_back_whatever_the_mask():
    colours = solid((0.8, 0.3, 0.1))
    torch.testing.assert_close(clean_edges(colours, random(1, 1, 96, 96))[0], colours, atol=1e-6, rtol=0)


def test_where_the_mask_is_one_nothing_changes_in_any_bit():
    picture, mask = random(1, 3, 40, 30), disc((40, 30), radius=10, soft=1.0)
    cleaned, same = clean_edges(picture, mask)
    inside = (mask == 1).expand_as(picture)
    assert inside.any() and torch.equal(cleaned[inside], picture[inside]) and torch.equal(same, mask)
    assert torch.equal(clean_edges(picture, torch.ones_like(mask))[0], picture)


def test_a_mask_that_shows_nothing_keeps_its_colours():
    picture = random(2, 3, 20, 20)
    mask = torch.cat([torch.zeros(1, 1, 20, 20), torch.ones(1, 1, 20, 20)])
    assert torch.equal(clean_edges(picture, mask)[0], picture)


def test_beyond_the_edge_the_colours_of_the_thing_go_on():
    red_on_blue = Layers(solid((1, 0, 0)), solid((0, 0, 1)), disc(soft=1.0))
    cleaned, _ = clean_edges(red_on_blue.composite(), red_on_blue.mask)
    torch.testing.assert_close(cleaned, red_on_blue.foreground, atol=0.03, rtol=0)


def test_a_picture_of_its_own_gives_the_colours():
    """With a composite connected, the foreground that came along is only a guess."""
    layers = Layers(smooth_colours(), solid((0, 1, 0)), disc())
    by_picture, _ = clean_edges(torch.zeros_like(layers.foreground), layers.mask, picture=layers.composite())
    assert torch.equal(by_picture, clean_edges(layers.composite(), layers.mask)[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (64, 91)])
def test_any_size_and_every_picture_of_a_batch_on_its_own(size):
    config = EdgeConfig(refine=2, shrink=1.5, feather=1)
    pictures, masks = random(3, 3, *size), random(3, 1, *size, seed=1)
    together = clean_edges(pictures, masks, config)
    alone = [clean_edges(pictures[i : i + 1], masks[i : i + 1], config) for i in range(3)]
    for i, part in enumerate(together):
        torch.testing.assert_close(part, torch.cat([one[i] for one in alone]))
        assert part.isfinite().all() and part.min() >= 0 and part.max() <= 1


def cut_out(hidden, size=(64, 64)):
    """A soft yellow disc over hidden colours."""
    mask = disc(size, radius=18, soft=2)
    return torch.where(mask > 0, solid((1, 0.9, 0.2), size), hidden), mask


@pytest.mark.parametrize("settings", [{"feather": 1}, {"feather": 6}, {"shrink": -3.5}, {"shrink": -8, "feather": 3}])
@pytest.mark.parametrize("hidden", ["black", "blue", "noise"])
def test_a_mask_that_grows_shows_nothing_that_was_hidden(settings, hidden):
    """Black came with a cut-out's transparent pixels; softened or grown, the edge was dark."""
    under = random(1, 3, 64, 64) * 0.5 if hidden == "noise" else solid(NINE_BACKGROUNDS[hidden], (64, 64))
    colours, mask = clean_edges(*cut_out(under), EdgeConfig(decontaminate=False, **settings))
    red = Layers(colours, torch.ones_like(colours), mask).composite()[:, 0]
    assert (red.min() * 255).round() == 255


@pytest.mark.parametrize("settings", [{}, {"shrink": 2.5}, {"refine": 3}])
def test_without_decontaminate_a_mask_that_does_not_grow_keeps_every_colour(settings):
    colours, mask = cut_out(random(1, 3, 64, 64))
    assert torch.equal(clean_edges(colours, mask, EdgeConfig(decontaminate=False, **settings))[0], colours)


def test_two_runs_are_equal():
    first, second = (free_colours(smooth_colours(), disc()) for _ in range(2))
    assert torch.equal(first, second)


# --- The mask --------------------------------------------------------------------------------------------------------


def test_shrinking_and_growing_move_a_straight_edge_by_so_many_pixels():
    half = (torch.arange(40) < 20).float().expand(1, 1, 10, 40)
    for pixels in (3.0, 0.5, 0.0, -2.0, -2.25):
        assert shrink_mask(half, pixels).sum(dim=-1).flatten().tolist() == pytest.approx([20 - pixels] * 10)


def test_growing_a_point_gives_a_disc():
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    y, x = torch.meshgrid(torch.arange(21) - 10, torch.arange(21) - 10, indexing="ij")
    assert torch.equal(shrink_mask(point, -7)[0, 0], (x**2 + y**2 <= 49).float())


def test_growing_by_more_than_the_picture_fills_it():
    point = torch.zeros(1, 1, 5, 9)
    point[..., 0, 0] = 0.7
    assert torch.equal(shrink_mask(point, -200), torch.full_like(point, 0.7))


def test_shrinking_is_growing_of_what_is_around():
    mask = random(1, 1, 30, 20)
    torch.testing.assert_close(shrink_mask(mask, 2.5), 1 - shrink_mask(1 - mask, -2.5))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_one_value_stay_as_they_are(value):
    mask = torch.full((1, 1, 24, 24), value)
    changed = clean_edges(random(1, 3, 24, 24), mask, EdgeConfig(refine=4, shrink=2, feather=2))[1]
    assert torch.equal(changed, mask)


def test_a_refined_mask_follows_the_picture():
    """What is missing at the edge is spread over the window: the sum stays, its squares fall."""
    true = disc(radius=25, soft=0)
    picture = Layers(solid((0.9, 0.5, 0.2)), solid((0.1, 0.3, 0.6)), true).composite()
    rough = gaussian_blur(true, 2.0)
    refined = refine_mask(rough, picture, radius=6)
    assert (refined - true).square().mean() < 0.6 * (rough - true).square().mean()


def test_a_mask_that_follows_the_picture_already_is_kept():
    """Where m = a I + b holds, the guided filter's fit is m itself, but for eps."""
    picture = smooth_colours()
    mask = picture[:, :1] * 0.4 + picture[:, 1:2] * 0.5 + 0.05
    torch.testing.assert_close(refine_mask(mask, picture, 5, eps=1e-8), mask, atol=5e-3, rtol=0)


def test_a_box_mean_leaves_out_what_lies_outside():
    x = random(1, 1, 6, 9)
    assert torch.allclose(box_mean(x, 1)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    assert torch.allclose(box_mean(x, 20), x.mean().expand_as(x))


# --- Stacks and messages ---------------------------------------------------------------------------------------------


def test_only_the_chosen_layer_of_a_stack_is_cleaned_and_it_sees_the_picture_at_its_place():
    layers = Layers(smooth_colours(), solid((0, 1, 0)), disc())
    stack = Stack.from_layers(layers)
    part = replace(stack.layers[1], image=torch.zeros(3, 60, 50), mask=layers.mask[0, :, 20:80, 30:80], x=30, y=20)
    cleaned = clean_layer(Stack(96, 96, (stack.layers[0], part)), EdgeConfig(), layers.composite()[0])
    expected, _ = clean_edges(layers.composite()[..., 20:80, 30:80], part.mask[None])
    assert torch.equal(cleaned.layers[1].image, expected[0]) and cleaned.layers[0] is stack.layers[0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"refine": -1}, "refine must be from 0 to 64 pixels, got -1; 0 leaves"),
        ({"shrink": 300.0}, "shrink must be from -256 to 256 pixels, got 300.0"),
        ({"feather": float("nan")}, "feather must be from 0 to 256 pixels, got nan"),
    ],
)
def test_a_number_out_of_its_range_is_answered(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        EdgeConfig(**values)


def test_a_layer_that_is_shown_smaller_keeps_its_pixels_and_shrinks_by_those_of_the_canvas():
    """Shown at half its size, a pixel of the canvas is two of its own."""
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    under = Layer(image=torch.ones(3, 16, 16), mask=torch.ones(1, 16, 16))
    stack = Stack(16, 16, (under, Layer(image=image, mask=mask, shown_height=16, shown_width=16)))
    cleaned = clean_layer(stack, EdgeConfig(decontaminate=False, shrink=1))
    expected = torch.zeros(1, 32, 32)
    expected[:, 10:22, 10:22] = 1
    assert torch.equal(cleaned.layers[1].mask, expected) and cleaned.layers[0] is under
