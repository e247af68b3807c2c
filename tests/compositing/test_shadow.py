"""The contact shadow: where it falls, and what it never touches."""

import pytest
import torch

from t2l.compositing.placement import Placement, compose, move
from t2l.compositing.shadow import MOST, Shadow, cast_shadow, find_things, ground_shadow

CAST = Shadow(strength=0.8)


def ball(n=1, x=40, y=30, radius=14, size=(80, 96)):
    """The mask of a ball with a soft edge, (n, 1, height, width)."""
    rows, columns = torch.meshgrid(*(torch.arange(length) + 0.5 for length in size), indexing="ij")
    distance = ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1).expand(n, 1, -1, -1)


def ground(n=1, size=(80, 96)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


def test_without_strength_the_background_itself_comes_back():
    background = ground()
    assert cast_shadow(background, ball(), Shadow()) is background


@pytest.mark.parametrize("colour_space", ["srgb", "linear"])
def test_a_shadow_never_brightens_and_leaves_what_is_far_away(colour_space):
    background = ground()
    found = cast_shadow(background, ball(), CAST, colour_space)
    assert (found <= background).all() and (found >= 0).all()
    assert torch.equal(found[..., :8, :], background[..., :8, :]), "above the thing there is no ground"


def test_where_the_mask_is_one_the_picture_does_not_change():
    layers = ground(), ball(), ground().flip(-1)
    inside = (ball() == 1).expand(-1, 3, -1, -1)
    plain, cast = compose(*layers, Placement())[0], compose(*layers, Placement(), CAST)[0]
    assert torch.equal(cast[inside], plain[inside]) and not torch.equal(cast, plain)


def test_it_is_darkest_below_the_foot_and_fades_along_the_ground_and_towards_the_viewer():
    loss = ground_shadow(ball()[0], CAST)[0, 0]
    foot = 44
    assert loss[foot, 40] > 0.5 and loss[foot].argmax() in (39, 40)
    assert (loss[foot, 40:].diff() <= 1e-6).all() and (loss[foot:, 40].diff() <= 1e-6).all()
    assert loss[foot, 40] > 10 * loss[foot + 14, 40], "a shadow on the ground is flat"


def test_higher_above_the_ground_is_fainter():
    low = ground_shadow(ball()[0], CAST)
    table = torch.maximum(ball(y=20), (ball(y=20) * 0))
    table[..., 34:45, 39:42] = 1  # the ball on a thin leg
    assert ground_shadow(table[0], CAST)[..., 44, 48:].sum() < low[..., 44, 48:].sum()


@pytest.mark.parametrize(("x", "y"), [(7, 0), (-5, 4), (0, -9)])
def test_it_moves_with_the_thing(x, y):
    before, after = ground_shadow(ball()[0], CAST), ground_shadow(ball(x=40 + x, y=30 + y)[0], CAST)
    moved = torch.roll(before, (y, x), (-2, -1))
    torch.testing.assert_close(after[..., 20:60, 20:70], moved[..., 20:60, 20:70], rtol=0, atol=0.02)


def test_it_grows_with_the_thing():
    small, large = (
        ground_shadow(ball(x=48 * k, y=30 * k, radius=12 * k, size=(80 * k, 96 * k))[0], CAST) for k in (1, 2)
    )
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small).abs().mean() < 0.01


def test_softer_is_wider_and_harder_narrower():
    reach = [(ground_shadow(ball()[0], Shadow(softness=softness)) > 0.05).sum() for softness in (0.4, 1.0, 2.0)]
    assert reach[0] < reach[1] < reach[2]


def test_things_beside_one_another_stand_on_their_own_ground():
    both = torch.maximum(ball(x=24, y=20, radius=10), ball(x=72, y=50, radius=10))
    loss = ground_shadow(both[0], CAST)[0, 0]
    assert find_things(both[0, 0]) == [(14, 34), (62, 82)]
    assert loss[30, 24] > 0.5 and loss[60, 72] > 0.5 and loss[60, 24] < 0.05


def test_feet_that_stand_further_back_cast_their_shadow_there():
    chair = torch.zeros(1, 80, 96)
    chair[:, 20:40, 20:70] = 1
    chair[:, 40:56, 20:24] = chair[:, 40:62, 66:70] = 1
    loss = ground_shadow(chair, CAST)[0, 0]
    assert loss[56, 22] > 0.4 and loss[62, 68] > 0.4 and loss[62, 22] < loss[56, 22] / 2


def test_a_thing_cut_off_below_and_an_empty_mask_cast_none():
    assert not ground_shadow(ball(y=75)[0], CAST).any()
    assert not ground_shadow(torch.zeros(1, 20, 30), CAST).any()


def test_specks_cast_none():
    mask = ball()
    mask = mask.clone()
    mask[..., 3, 90] = 1
    torch.testing.assert_close(ground_shadow(mask[0], CAST), ground_shadow(ball()[0], CAST))


@pytest.mark.parametrize(("n", "masks"), [(3, 1), (1, 3), (3, 3)])
def test_a_batch_is_its_items_one_by_one(n, masks):
    mask = torch.cat([ball(radius=8 + i) for i in range(masks)])
    found = cast_shadow(ground(n), mask, CAST)
    for i in range(3):
        one = cast_shadow(ground(n)[min(i, n - 1)][None], mask[min(i, masks - 1)][None], CAST)
        torch.testing.assert_close(found[i : i + 1], one)


def test_a_large_picture_has_the_shadow_of_a_small_one():
    large = ball(x=600, y=400, radius=300, size=(1000, 1500))
    small = torch.nn.functional.interpolate(large, size=(500, 750), mode="area")
    twice = torch.nn.functional.interpolate(ground_shadow(small[0], CAST), size=(1000, 1500), mode="bilinear")
    assert (ground_shadow(large[0], CAST) - twice).abs().max() < 0.1


@pytest.mark.parametrize("opacity", [0.1, 0.7])
def test_a_faded_thing_casts_the_same_shadow_as_faint(opacity):
    faint = move(ground(), ball(), Placement(opacity=opacity), (80, 96))[1]
    torch.testing.assert_close(ground_shadow(faint[0], CAST), opacity * ground_shadow(ball()[0], CAST))


@pytest.mark.parametrize(
    ("values", "message"), [({"strength": 2}, "from 0 to 1, got 2"), ({"softness": 0}, "from 0.1 to 10")]
)
def test_a_shadow_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Shadow(**values)


def test_a_mask_of_stripes_has_no_more_things_than_take_a_moment():
    stripes = torch.zeros(64, 1024)
    stripes[:, ::2] = 1
    assert len(find_things(stripes)) == MOST
    stripes[:, :100] = 1
    assert find_things(stripes)[0] == (0, 101)
