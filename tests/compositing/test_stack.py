import math
from dataclasses import replace

import pytest
import torch

from t2l.compositing.blend import BlendMode, blend
from t2l.compositing.stack import Layer, Stack, pieces
from t2l.layers import Layers


def random_layers(n: int = 1, height: int = 6, width: int = 8) -> Layers:
    generator = torch.Generator().manual_seed(0)
    return Layers.from_stacked(torch.rand(n, 7, height, width, generator=generator))


def layer(colour: float = 0.5, mask: float = 1.0, size: tuple[int, int] = (6, 8), **other) -> Layer:
    return Layer(image=torch.full((3, *size), colour), mask=torch.full((1, *size), mask), **other)


def test_layers_become_a_stack_that_composes_to_the_same_picture_bit_for_bit():
    assert torch.equal(Stack.from_layers(random_layers()).composite(), random_layers().composite()[0])


@pytest.mark.parametrize("rule", ["top", "foreground"])
def test_layers_come_back_from_a_stack_bit_for_bit(rule):
    assert torch.equal(Stack.from_layers(random_layers()).to_layers(rule).stacked, random_layers().stacked)


@pytest.mark.parametrize("blend_mode", ["normal", "multiply", "luminosity"])
def test_the_top_layer_against_the_rest_composes_to_the_picture_of_the_stack(blend_mode):
    """Also where the rest is transparent."""
    parts = random_layers(3)
    layers = [
        Layer(image=parts.foreground[i], mask=parts.mask[i], x=2 * i - 1, y=-i, opacity=0.7, blend_mode=blend_mode)
        for i in range(3)
    ]
    stack = Stack(7, 9, (*layers, layer(0, visible=False)))
    torch.testing.assert_close(stack.to_layers().composite()[0], stack.composite())


def test_a_layer_is_found_by_its_name_also_when_it_is_hidden():
    stack = Stack(6, 8, (layer(0.1, name="sky"), layer(0.5, name="tree", visible=False), layer(0.9, 0.5, name="sun")))
    split = stack.to_layers("tree")
    assert (split.foreground == 0.5).all() and (split.mask == 1).all()
    torch.testing.assert_close(split.background, torch.full_like(split.background, 0.5))  # sun over sky


def test_a_name_that_no_layer_bears_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="no layer is called 'tre'; there are 'background', 'foreground', or 'top'"):
        Stack.from_layers(random_layers()).to_layers("tre")


def test_hidden_layers_are_not_seen():
    stack = Stack.from_layers(random_layers())
    hidden = replace(stack, layers=(*stack.layers, layer(0, visible=False)))
    assert torch.equal(hidden.composite(), stack.composite())


def test_a_layer_lies_where_its_position_says_and_is_cut_at_the_canvas():
    stack = Stack(3, 4, (layer(0.0, size=(2, 2), x=-1, y=2), layer(0.25, size=(1, 1), x=3, y=0), layer(0.5, x=9)))
    expected = torch.ones(3, 4)
    expected[2, 0], expected[0, 3] = 0.0, 0.25
    assert torch.equal(stack.composite(), expected.expand(3, 3, 4))


def test_half_of_half_over_nothing_keeps_its_colour_and_a_quarter_of_alpha():
    colour, alpha = Stack(6, 8, (layer(0.3, 0.5, opacity=0.5, blend_mode="multiply"),)).flattened()
    assert torch.equal(colour, torch.full_like(colour, 0.3)) and torch.equal(alpha, torch.full_like(alpha, 0.25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask": torch.zeros(1, 5, 8)},
            r"layer 'sky' needs image \(3, H, W\) and mask \(1, H, W\), got .*\(1, 5, 8\)",
        ),
        ({"opacity": 1.5}, "opacity of layer 'sky' must be from 0 to 1, got 1.5"),
        ({"x": 0.5}, "layer 'sky' must lie on whole pixels, got x 0.5"),
        ({"blend_mode": "dissolve"}, "blend mode of layer 'sky' must be one of normal, .*, got 'dissolve'"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        replace(layer(name="sky"), **change)


def test_a_stack_needs_a_layer_and_a_canvas():
    with pytest.raises(ValueError, match="at least one layer, got none"):
        Stack(6, 8, ())
    with pytest.raises(ValueError, match="at least one pixel, got 8 x 0"):
        Stack(0, 8, (layer(),))


@pytest.mark.parametrize(
    ("mode", "backdrop", "source", "expected"),
    [
        ("hard light", (0.2, 0.2, 0.5), (0.6, 0.3, 0.5), (0.36, 0.12, 0.5)),
        ("color dodge", (0.2, 0.0, 0.5), (0.5, 1.0, 1.0), (0.4, 0.0, 1.0)),
        ("color burn", (0.8, 1.0, 0.5), (0.5, 0.0, 0.0), (0.6, 1.0, 0.0)),
        ("linear burn", (0.8, 0.3, 1.0), (0.5, 0.3, 0.4), (0.3, 0.0, 0.4)),
        ("vivid light", (0.8, 0.2, 0.0), (0.25, 0.75, 1.0), (0.6, 0.4, 1.0)),
        ("linear light", (0.5, 0.5, 0.9), (0.3, 0.6, 0.9), (0.1, 0.7, 1.0)),
        ("pin light", (0.9, 0.5, 0.5), (0.3, 0.9, 0.6), (0.6, 0.8, 0.5)),
        ("hard mix", (0.75, 0.25, 0.9), (0.25, 0.75, 0.0), (1.0, 0.0, 0.0)),
        ("difference", (0.2, 0.9, 0.5), (0.6, 0.1, 0.5), (0.4, 0.8, 0.0)),
        ("exclusion", (0.2, 1.0, 0.5), (0.6, 1.0, 0.5), (0.56, 0.0, 0.5)),
        ("subtract", (0.2, 0.9, 0.5), (0.6, 0.1, 0.5), (0.0, 0.8, 0.0)),
        ("divide", (0.2, 0.9, 0.0), (0.4, 0.3, 0.0), (0.5, 1.0, 0.0)),
        ("darker color", (0.9, 0.0, 0.0), (0.0, 0.5, 0.0), (0.9, 0.0, 0.0)),  # 0.27 against 0.295
        ("lighter color", (0.9, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.5, 0.0)),
        ("hue", (0.6, 0.4, 0.4), (0.0, 0.0, 1.0), (0.438, 0.438, 0.638)),  # luminosity 0.46, saturation 0.2
        ("saturation", (0.6, 0.4, 0.4), (0.5, 0.5, 0.5), (0.46, 0.46, 0.46)),
        ("color", (0.6, 0.4, 0.4), (0.5, 0.5, 0.5), (0.46, 0.46, 0.46)),
        ("luminosity", (0.5, 0.5, 0.5), (0.6, 0.4, 0.4), (0.46, 0.46, 0.46)),
    ],
)
def test_blend_modes_of_editors_give_the_colours_computed_by_hand(mode, backdrop, source, expected):
    b, s, e = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (backdrop, source, expected))
    torch.testing.assert_close(blend(b, s, mode), e, rtol=0, atol=1e-6)


def test_every_blend_mode_stays_within_the_range_also_at_its_ends():
    ends = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    backdrop, source = (x.expand(3, 5, 5) for x in (ends[:, None], ends[None]))
    for mode in BlendMode.__args__:
        found = blend(backdrop, source, mode)
        assert found.isfinite().all() and (found >= 0).all() and (found <= 1).all(), mode


@pytest.mark.parametrize("size", [(5, 5), (23, 23)])
def test_a_white_cut_out_that_is_scaled_has_no_fringe_of_what_it_hides(size):
    mask = torch.zeros(1, 12, 12)
    mask[:, 3:9, 3:9] = 1
    layer = Layer(image=mask.expand(3, -1, -1), mask=mask, shown_height=size[0], shown_width=size[1]).drawn
    assert layer.size == size and layer.image[:, layer.mask[0] > 0.01].min() > 0.9999


# ---- layers that are shown otherwise than their pixels lie


def test_a_layer_that_is_shown_as_it_is_is_drawn_as_itself():
    plain = layer(size=(4, 5))
    assert plain.drawn is plain and plain.shown_size == (4, 5)


def test_flips_and_quarter_turns_copy_every_pixel():
    image = random_layers(height=4, width=6).foreground[0]
    base = Layer(image=image, mask=torch.ones(1, 4, 6), x=3, y=5)
    assert torch.equal(replace(base, flip_horizontal=True).drawn.image, image.flip(-1))
    turned = replace(base, rotation=math.pi / 2).drawn
    assert torch.equal(turned.image, torch.rot90(image, -1, (-2, -1)))
    assert (turned.x, turned.y) == (4, 4)  # about the middle, (6, 7)


def test_a_layer_shown_at_another_size_composites_as_the_drawn_one():
    base = layer(0.3, 0.7, x=1, y=2, shown_height=9, shown_width=4, rotation=0.4, opacity=0.6, blend_mode="multiply")
    stack = Stack(14, 13, (layer(0.8, size=(14, 13)), base))
    assert torch.equal(stack.composite(), stack.drawn.composite())
    assert torch.equal(stack.to_layers().stacked, stack.drawn.to_layers().stacked)
    assert all(x.is_drawn for x in stack.drawn.layers)


@pytest.mark.parametrize("wrong", [{"shown_height": -1}, {"rotation": float("nan")}])
def test_a_layer_that_cannot_be_shown_is_refused(wrong):
    with pytest.raises(ValueError, match="needs a shown size of at least one pixel and a finite rotation, got"):
        layer(**wrong)


@pytest.mark.parametrize("piece", [1, 5, 13])
@pytest.mark.parametrize("blend_mode", ["normal", "multiply", "luminosity"])
def test_a_picture_stacked_in_pieces_is_the_same(monkeypatch, piece, blend_mode):
    parts = random_layers(3)
    layers = [
        Layer(image=parts.foreground[i], mask=parts.mask[i], x=2 * i - 1, y=-i, opacity=0.7, blend_mode=blend_mode)
        for i in range(3)
    ]
    stack = Stack(7, 9, tuple(layers))
    whole = stack.composite(), stack.to_layers().stacked
    monkeypatch.setattr("t2l.compositing.stack.PIECE", piece)
    torch.testing.assert_close((stack.composite(), stack.to_layers().stacked), whole)


def test_pieces_cover_every_pixel_once(monkeypatch):
    monkeypatch.setattr("t2l.compositing.stack.PIECE", 6)
    for size in ((1, 1), (4, 5), (2, 20), (20, 2)):
        seen = torch.zeros(1, *size)
        for piece in pieces(*size):
            assert 0 < seen[piece].numel() <= 6
            seen[piece] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize(
    "make", [Stack.composite, Stack.flattened, lambda stack, callback: stack.to_layers("top", callback)]
)
def test_what_the_callback_raises_ends_the_stacking(make):
    class Cancelled(Exception):
        pass

    calls = []

    def callback():
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        make(Stack(6, 8, tuple(layer(name=str(i)) for i in range(9))), callback)
    assert len(calls) == 2


def test_stacking_leaves_the_layers_as_they_were():
    stack = Stack.from_layers(random_layers())
    before = [(x.image.clone(), x.mask.clone()) for x in stack.layers]
    stack.composite(), stack.to_layers(), stack.flattened()
    assert all(
        torch.equal(x.image, a) and torch.equal(x.mask, b) for x, (a, b) in zip(stack.layers, before, strict=True)
    )
