"""Layers at the size a model was trained on, and back: place, aspect, and what is cut."""

import pytest
import torch

from t2l.compositing.fit import fit_stack, near_size, paints_well
from t2l.compositing.stack import Layer, Stack
from t2l.compositing.upscale import upscale
from t2l.evaluation.metrics import mask_iou

SIZES = [(576, 768), (768, 576), (100, 80), (1080, 1920), (256, 256), (257, 513)]


def disc_on_noise(height, width):
    """An opaque layer of noise under a disc that does not reach the canvas' edges, and a third layer partly outside."""
    generator = torch.Generator().manual_seed(height + width)
    side = min(height, width) // 2
    axis = torch.linspace(-1, 1, side)
    disc = ((axis[:, None] ** 2 + axis**2) < 1).float()[None]
    below = Layer(image=torch.rand(3, height, width, generator=generator), mask=torch.ones(1, height, width))
    above = Layer(image=torch.rand(3, side, side, generator=generator), mask=disc, name="disc", x=width // 4, y=5)
    return Stack(height, width, (below, above, Layer(image=disc.expand(3, -1, -1), mask=disc, x=-side // 2, y=-3)))


@pytest.mark.parametrize("size", SIZES)
def test_a_document_keeps_its_aspect_and_has_as_many_pixels_as_in_training(size):
    height, width = near_size(size, 256, 8)
    assert height % 8 == width % 8 == 0 and paints_well((height, width), 256)
    assert height * width == pytest.approx(256**2, rel=0.04)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.04)


@pytest.mark.parametrize("fit", ["keep aspect", "crop", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_what_was_fitted_comes_back_at_its_size_and_place(size, fit):
    stack = disc_on_noise(*size)
    small, before = fit_stack(stack, 256, 8, fit)
    back = upscale(small, before.height, before.width)
    assert paints_well((small.height, small.width), 256)
    assert mask_iou(before.to_layers("disc").mask, back.to_layers("disc").mask).item() > 0.98
    assert fit == "crop" or before is stack


def test_crop_keeps_the_middle():
    _, square = fit_stack(disc_on_noise(60, 100), 64, 8, "crop")
    assert (square.height, square.width) == (60, 60)
    assert [layer.x for layer in square.layers] == [-20, 5, -35]


def test_every_layer_keeps_its_name_opacity_and_blend_mode():
    layer = Layer(image=torch.rand(3, 9, 9), mask=torch.ones(1, 9, 9), name="x", opacity=0.5, blend_mode="screen")
    (small,) = fit_stack(Stack(900, 700, (layer,)), 256, 8, "keep aspect")[0].layers
    assert (small.name, small.opacity, small.blend_mode) == ("x", 0.5, "screen")


def test_a_banner_is_at_least_half_as_high_as_in_training():
    assert near_size((100, 3000), 256, 8) == (128, 3840)
    assert not paints_well((128, 3840), 256)


@pytest.mark.parametrize("size", [(192, 192), (224, 224), (256, 256), (288, 288), (224, 296), (360, 184)])
def test_sizes_at_which_things_are_whole(size):
    assert paints_well(size, 256)


@pytest.mark.parametrize("size", [(128, 128), (320, 320), (512, 512), (576, 768), (144, 440)])
def test_sizes_at_which_things_are_torn_or_repeated(size):
    assert not paints_well(size, 256)


def test_another_fit_is_refused():
    with pytest.raises(ValueError, match="fit must be one of keep aspect, crop, stretch, got 'cover'"):
        fit_stack(disc_on_noise(64, 64), 64, 8, "cover")
