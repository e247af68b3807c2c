import time
from dataclasses import replace

import pytest
import torch

from t2l.budget import PIXELS
from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_nodes import Account, Clipped, Group, Mask, Special
from t2l.io.layer_tree import plain_layers
from tests.io.conftest import noise


def layer(seed: int, **other) -> Layer:
    return Layer(image=noise(3, 6, 8, seed=seed), mask=noise(1, 6, 8, seed=seed + 9), name=f"layer {seed}", **other)


def composite(*nodes) -> torch.Tensor:
    return Stack(6, 8, tuple(plain_layers(nodes, 6, 8, Account("a.psd")))).composite()


def test_taking_layers_out_of_a_plain_group_changes_nothing_but_a_faded_one_stays_together():
    low, a, b = layer(0), layer(1), layer(2, x=3)
    plain, faded = (Group(children=(a, b), opacity=opacity) for opacity in (1.0, 0.5))
    assert len(plain_layers([low, plain], 6, 8, Account("a.psd"))) == 3
    assert torch.equal(composite(low, plain), composite(low, a, b))
    torch.testing.assert_close(composite(low, faded), torch.lerp(composite(low), composite(low, a, b), 0.5))


def test_a_group_s_mask_covers_all_of_it():
    """The upper half shows; the group that is masked holds a group that is faded."""
    low, inner = layer(0), Group(children=(layer(1),), opacity=0.4)
    masked = Group(children=(inner,), mask=Mask(torch.ones(3, 8), 0, 0, outside=0.0))
    found, expected = composite(low, masked), composite(low)
    expected[:, :3] = torch.lerp(expected, composite(low, layer(1)), 0.4)[:, :3]
    torch.testing.assert_close(found, expected)


def test_a_group_with_a_blend_mode_is_isolated_and_passing_through_is_not():
    low, shade = layer(0), layer(1, blend_mode="multiply")
    assert torch.equal(composite(low, Group(children=(shade,), pass_through=True)), composite(low, shade))
    isolated = Layer(image=shade.image, mask=shade.mask)
    torch.testing.assert_close(composite(low, Group(children=(shade,))), composite(low, isolated))


def through(*children, **options) -> Group:
    return Group(children=children, pass_through=True, **options)


def test_a_faded_group_with_one_layer_that_lets_modes_through_is_that_layer_fainter():
    """Also nested, and under a mask, exactly."""
    low, shade = layer(0), layer(1, blend_mode="multiply", opacity=0.5)
    mask = Mask(noise(6, 8, seed=5), 0, 0, outside=0.0)
    inner = through(shade, opacity=0.5, mask=mask)
    account = Account("a.psd")
    found = plain_layers([low, through(inner, opacity=0.25)], 6, 8, account)[1]
    assert (found.name, found.blend_mode, found.opacity) == ("layer 1", "multiply", 0.5 * 0.5 * 0.25)
    assert torch.equal(found.mask, shade.mask * mask.values) and not account.notes


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_a_faded_group_that_lets_modes_through_lies_between_the_backdrop_and_what_it_makes_of_it(alpha):
    """Over an opaque backdrop and a transparent one; nested; the colours below are named as merged."""
    low = Layer(image=noise(3, 6, 8), mask=torch.full((1, 6, 8), alpha))
    shades = layer(1, blend_mode="multiply"), layer(2, blend_mode="difference", x=2)
    account, faded = Account("a.psd"), through(*shades, name="glow", opacity=0.5, mask=Mask(noise(6, 8), 0, 0, 0.0))
    found = premultiplied(plain_layers([low, through(faded, opacity=0.5)], 6, 8, account))
    between = torch.lerp(premultiplied([low]), premultiplied([low, *shades]), 0.25 * faded.mask.values)
    torch.testing.assert_close(found, between)
    assert account.notes == [
        "the group 'glow' lets blend modes through while it is faded, masked or clipped to: its layers are merged with "
        "the colours that lie below them"
    ]


def premultiplied(layers) -> torch.Tensor:
    """Colour times alpha, and alpha, (4, 6, 8)."""
    colour, alpha = Stack(6, 8, tuple(layers)).flattened()
    return torch.cat([colour * alpha, alpha])


def special(node, **options) -> Special:
    return Special(node=node, **options)


def test_a_layer_without_some_channels_leaves_those_below_as_they_are():
    low, upper = Layer(image=noise(3, 6, 8), mask=torch.ones(1, 6, 8)), layer(1, blend_mode="screen", x=1)
    found, plain = composite(low, special(upper, channels=(False, True, False))), composite(low, upper)
    torch.testing.assert_close(found[[0, 2]], low.image[[0, 2]])
    torch.testing.assert_close(found[1], plain[1])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("fill", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_a_hole_goes_down_to_the_group_or_to_the_background_and_shows_the_fill_on_it(depth, fill, soft):
    """R = lerp(B, lerp(K, blend(K, s), fill), mask * opacity), the mask's edge soft or not; B all that is below, K the
    bottom.
    """
    background, below = Layer(image=noise(3, 6, 8), mask=torch.ones(1, 6, 8)), layer(3, blend_mode="overlay")
    others = layer(1, blend_mode="multiply"), layer(2, x=2)
    upper = replace(layer(4, blend_mode="screen"), mask=noise(1, 6, 8, levels=255 if soft else 1))
    group = through(*others, special(upper, knockout=depth, fill=fill))
    layers = plain_layers([background, below, group], 6, 8, Account("a.psd"), has_background=True)
    floor = [background, below] if depth == "shallow" else [background]
    filled = [*floor, replace(upper, mask=torch.full((1, 6, 8), fill))]
    expected = torch.lerp(premultiplied([background, below, *others]), premultiplied(filled), upper.mask)
    torch.testing.assert_close(premultiplied(layers), expected)


def test_a_hole_without_a_background_is_transparent_and_ends_with_its_isolated_group():
    low, hole = Layer(image=noise(3, 6, 8), mask=torch.ones(1, 6, 8)), special(layer(1), knockout="deep", fill=0.0)
    alpha = premultiplied(plain_layers([low, hole], 6, 8, Account("a.psd")))[3:]
    torch.testing.assert_close(alpha, 1 - layer(1).mask)
    inside = Group(children=(layer(2), layer(3), hole), opacity=0.9)
    cut = composite(low, replace(inside, children=(layer(2), layer(3))))
    torch.testing.assert_close(composite(low, inside), torch.lerp(cut, low.image, layer(1).mask))


def test_what_a_hole_cannot_show_is_named():
    """A deep one in a faded group; one down to the bottom of a group that another one went through."""
    deep, shallow = (special(layer(i), knockout=x, fill=0.5) for i, x in enumerate(("deep", "shallow")))
    notes = []
    for group in (through(layer(3), deep, opacity=0.5), through(layer(3), deep, shallow)):
        account = Account("a.psd", notes)
        plain_layers([layer(4), layer(5), group], 6, 8, account)
    assert "'layer 0' knocks out down to the bottom of its group, and not deeper" in notes
    assert "'layer 1' knocks out where a deeper hole is, and shows that; the editor may differ" in notes


def test_layers_stay_layers_where_a_hole_has_hard_edges():
    hole = special(replace(layer(3), mask=noise(1, 6, 8, levels=1)), knockout="deep", fill=0.0)
    found = plain_layers([layer(0), layer(1, blend_mode="screen"), hole], 6, 8, Account("a.psd"))
    assert [x.name for x in found] == ["layer 0", "layer 1", "layer 3"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("levels", [1, 255])
@pytest.mark.parametrize("operator", ["src-atop", "dst-in", "dst-out", "dst-atop"])
def test_porter_and_duff_s_operators(operator, levels, count):
    """co = as Fa cs + ab Fb cb and ao = as Fa + ab Fb, with their fractions; over one layer and two, with hard edges
    and soft.
    """
    below = [replace(layer(i), mask=noise(1, 6, 8, levels=levels, seed=i)) for i in range(count)]
    upper = replace(layer(5, x=1, y=-1), mask=noise(1, 6, 8, levels=levels, seed=7))
    s, b = premultiplied([upper]), premultiplied(below)
    fa = {"src-atop": b[3], "dst-in": 0, "dst-out": 0, "dst-atop": 1 - b[3]}[operator]
    fb = {"src-atop": 1 - s[3], "dst-in": s[3], "dst-out": 1 - s[3], "dst-atop": s[3]}[operator]
    found = plain_layers([*below, special(upper, operator=operator)], 6, 8, Account("a.ora"))
    torch.testing.assert_close(premultiplied(found), s * fa + b * fb)


def test_hidden_nodes_change_nothing_whatever_they_are():
    low, hidden = layer(0), replace(layer(1), visible=False)
    for options in ({"operator": "dst-in"}, {"knockout": "deep", "fill": 0.0}, {"channels": (False, True, True)}):
        account = Account("a.psd")
        assert torch.equal(
            premultiplied(plain_layers([low, special(hidden, **options)], 6, 8, account)), premultiplied([low])
        )
        shut = Group(children=(special(layer(1), **options),), visible=False)
        assert torch.equal(premultiplied(plain_layers([low, shut], 6, 8, account)), premultiplied([low]))


def test_a_clipped_layer_keeps_to_the_mask_of_its_base_and_mixes_with_its_colours():
    base, upper = layer(0, x=2), layer(1, opacity=0.5, blend_mode="screen")
    (found,) = plain_layers([Clipped(base=base, above=(upper,))], 6, 8, Account("a.psd"))
    assert torch.equal(found.mask, base.mask) and found.x == 2
    assert torch.equal(found.image[:, :, 6:], base.image[:, :, 6:])  # where the upper layer does not reach
    inner, painted = base.image[:, :, :6], upper.image[:, :, 2:]
    expected = torch.lerp(inner, inner + painted - inner * painted, upper.mask[:, :, 2:] * 0.5)
    torch.testing.assert_close(found.image[:, :, :6], expected)


def test_clipped_layers_that_are_no_group_each_meet_what_lies_below():
    """The base multiplied onto the picture, the clipped layer screened onto that, within the base."""
    low, base = layer(0), replace(layer(1, blend_mode="multiply"), mask=noise(1, 6, 8, levels=1))
    upper = layer(2, blend_mode="screen")
    found = composite(low, Clipped(base=base, above=(upper,), as_group=False))
    torch.testing.assert_close(found, composite(low, base, replace(upper, mask=upper.mask * base.mask)))


def test_a_clipped_layer_that_knocks_out_shows_its_base():
    base, other, upper = layer(0), layer(1), replace(layer(2), mask=noise(1, 6, 8, levels=1))
    hole = special(upper, knockout="shallow", fill=0.0)
    (found,) = plain_layers([Clipped(base=base, above=(other, hole))], 6, 8, Account("a.psd"))
    (painted,) = plain_layers([Clipped(base=base, above=(other,))], 6, 8, Account("a.psd"))
    assert torch.equal(found.image, torch.lerp(painted.image, base.image, upper.mask))


def test_layers_clipped_to_a_group_that_lets_modes_through_are_painted_onto_what_it_makes_of_the_picture():
    low, shade, upper = layer(0), replace(layer(1, blend_mode="multiply"), mask=torch.ones(1, 6, 8)), layer(2)
    found = composite(low, Clipped(base=through(shade), above=(upper,)))
    torch.testing.assert_close(found, composite(low, shade, upper))


def test_many_groups_that_let_modes_through_and_many_holes_take_no_time():
    shades = [layer(i, x=i, y=i, blend_mode="multiply") for i in range(400)]
    faded = [through(a, b, opacity=0.5) for a, b in zip(shades[::2], shades[1::2], strict=True)]
    holes = [special(shade, knockout="deep", fill=0.5) for shade in shades[:100]]
    start = time.process_time()
    plain_layers([layer(0), *faded, *holes], 5000, 5000, Account("a.psd"))
    assert time.process_time() - start < 5


def test_many_faded_groups_on_a_large_canvas_take_no_time():
    groups = [Group(children=(layer(i, x=i, y=i),), opacity=0.5) for i in range(500)]
    start = time.process_time()
    assert len(plain_layers(groups, 5000, 5000, Account("a.psd"))) == 500
    assert time.process_time() - start < 5


def test_a_group_whose_layers_lie_far_apart_counts_with_all_that_is_between():
    side = 7000
    far = Group(children=(layer(0), layer(1, x=side, y=side)), opacity=0.5)
    with pytest.raises(ValueError, match=f"a.psd is too large: 7,008 x 7,006 are more than {PIXELS.default:,} pixels"):
        plain_layers([far], 2 * side, 2 * side, Account("a.psd"))
