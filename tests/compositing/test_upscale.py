"""Layers at another size: places, masks and colours, and no fringe."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from t2l.compositing.resample import Method, resize
from t2l.compositing.stack import Layer, Stack
from t2l.compositing.upscale import upscale
from t2l.layers import Layers

METHODS = get_args(Method)


def random_stack(height=14, width=11):
    """A background, and a smaller layer that reaches over the canvas."""
    generator = torch.Generator().manual_seed(0)
    back = Layer(image=torch.rand(3, height, width, generator=generator), mask=torch.ones(1, height, width))
    front_mask = torch.rand(1, 6, 5, generator=generator)
    front = Layer(image=torch.rand(3, 6, 5, generator=generator), mask=front_mask, name="front", x=8, y=-2, opacity=0.5)
    return Stack(height, width, (back, front))


def red_disc_on_black(size=32):
    """As a cut-out is drawn: what lies under mask 0 is black."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5 - size / 2, torch.arange(size) + 0.5 - size / 2, indexing="ij")
    mask = (size / 3 - torch.hypot(y, x) + 0.5).clamp(0, 1)[None]
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1) * (mask > 0)
    white = Layer(image=torch.ones(3, size, size), mask=torch.ones(1, size, size))
    return Stack(size, size, (white, Layer(image=red, mask=mask)))


def double(pixels):
    """What an upscale model of factor 2 is to `upscaled`, with its habit of missing black and white by a little."""
    return F.interpolate(pixels, scale_factor=2, mode="bicubic") * 0.99 + 0.004


@pytest.mark.parametrize("method", METHODS)
def test_the_same_size_is_the_same_picture(method):
    stack = random_stack()
    same = upscale(stack, 14, 11, method)
    for before, after in zip(stack.layers, same.layers, strict=True):
        assert torch.equal(after.image, before.image) and torch.equal(after.mask, before.mask)
        assert (after.x, after.y, after.opacity) == (before.x, before.y, before.opacity)


@pytest.mark.parametrize("method", METHODS)
def test_an_upscaled_red_disc_drawn_on_black_has_no_dark_rim(method):
    seen = upscale(red_disc_on_black(), 80, 80, method).composite()
    assert seen[0].min() > 0.999
    torch.testing.assert_close(seen[1], seen[2])


def test_a_model_sees_no_rim_either_and_leaves_no_veil():
    large = upscale(red_disc_on_black(), 64, 64, enlarge=double)
    assert large.composite()[0].min() > 0.98
    mask = large.layers[1].mask
    assert torch.equal(mask[:, 30:34, 30:34], torch.ones(1, 4, 4)) and mask[:, :4].max() == 0
    assert torch.equal(large.layers[0].mask, torch.ones(1, 64, 64))


def test_a_model_of_any_factor_is_brought_to_the_size_asked_for():
    stack = upscale(random_stack(), 21, 22, enlarge=lambda x: F.interpolate(x, scale_factor=4))
    assert (stack.height, stack.width) == (21, 22) and stack.layers[0].size == (21, 22)


def test_places_scale_with_the_canvas_and_neighbours_stay_neighbours():
    left = Layer(image=torch.zeros(3, 7, 5), mask=torch.ones(1, 7, 5))
    right = Layer(image=torch.ones(3, 7, 6), mask=torch.ones(1, 7, 6), x=5)
    for width in range(1, 40):
        first, second = upscale(Stack(7, 11, (left, right)), 7, width).layers
        assert first.x == 0 and second.x == max(first.size[1], 0) or width < 3
        assert second.x + second.size[1] == width or width < 3
    front = upscale(random_stack(), 28, 22).layers[1]
    assert (front.x, front.y, front.size) == (16, -4, (12, 10))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_one_colour_stays_one_colour(method, value):
    picture = torch.full((1, 3, 9, 7), value)
    for size in ((20, 31), (4, 3), (1, 1)):
        torch.testing.assert_close(resize(picture, size, method), torch.full((1, 3, *size), value))


@pytest.mark.parametrize("size", [(72, 90), (8, 10), (24, 7)])
def test_lanczos_is_what_pillow_computes(size):
    import numpy as np
    from PIL import Image

    x = torch.rand(24, 30, generator=torch.Generator().manual_seed(0))
    reference = np.array(Image.fromarray(x.numpy(), "F").resize(size[::-1], Image.Resampling.LANCZOS))
    found = resize(x[None, None], size, "lanczos")[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(reference).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(72, 90), (8, 10), (24, 7)])
def test_the_other_kernels_are_what_torch_computes(method, size):
    x = torch.rand(2, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=size, mode=method, antialias=True).clamp(0, 1)
    torch.testing.assert_close(resize(x, size, method), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_white_stays_white_to_the_last_bit(method):
    """ComfyUI cuts the rest off when it saves: 0.9999999 becomes 254."""
    for size in ((61, 47), (5, 6)):
        assert torch.equal(resize(torch.ones(1, 1, 23, 19), size, method), torch.ones(1, 1, *size))


def test_a_ramp_stays_a_ramp():
    ramp = ((torch.arange(24) + 0.5) / 24).expand(1, 3, 6, 24)
    wide = resize(ramp, (6, 72), "lanczos")[..., 12:-12]
    expected = ((torch.arange(72) + 0.5) / 72)[12:-12].expand_as(wide)
    torch.testing.assert_close(wide, expected, atol=2e-3, rtol=0)


def test_two_layers_upscaled_compose_to_nearly_the_upscaled_composite():
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 7, 4, 4, generator=generator), size=(32, 32), mode="bilinear")
    layers = Layers.from_stacked(smooth)
    seen = upscale(Stack.from_layers(layers), 64, 64, "bicubic").composite()
    assert (seen - resize(layers.composite(), (64, 64), "bicubic")[0]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("height", "width", "method", "sentence"),
    [
        (0, 5, "lanczos", "a canvas needs at least one pixel, got 5 x 0"),
        (5, 5, "cubic", "one of lanczos, .*got 'cubic'"),
    ],
)
def test_what_cannot_be_made_is_answered(height, width, method, sentence):
    with pytest.raises(ValueError, match=sentence):
        upscale(random_stack(), height, width, method)


# ---- layers that are shown otherwise than their pixels lie


def shown(height, width, **other):
    """Noise of 16 x 12 pixels that is shown at another size."""
    image = torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(1))
    front = Layer(image=image, mask=torch.ones(1, 16, 12), x=2, shown_height=height, shown_width=width, **other)
    return Stack(20, 18, (front,))


def test_a_layer_shown_at_a_quarter_comes_back_whole_when_it_is_enlarged_four_times():
    stack = shown(4, 3)
    (large,) = upscale(stack, 80, 72).layers
    assert large.image is stack.layers[0].image and large.is_drawn and (large.x, large.y) == (8, 0)


def test_a_layer_keeps_pixels_that_it_does_not_show_yet():
    stack = shown(4, 3)
    (large,) = upscale(stack, 40, 36).layers
    assert large.image is stack.layers[0].image and large.shown_size == (8, 6)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_shown_larger_is_resampled_from_its_own_pixels(method):
    stack = shown(24, 18, flip_horizontal=True, rotation=0.3)
    (large,) = upscale(stack, 40, 36, method).layers
    assert large.size == (48, 36) and (large.flip_horizontal, large.rotation) == (True, 0.3)
    assert torch.equal(large.image, resize(stack.layers[0].image[None], (48, 36), method)[0])


def test_a_turned_layer_is_drawn_before_its_canvas_is_stretched():
    (stretched,) = upscale(shown(None, None, rotation=0.3), 40, 18).layers
    assert stretched.is_drawn
