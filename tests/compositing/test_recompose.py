"""How far layers are from the picture they should make, and the nearest layers that make it."""

import re

import pytest
import torch

from t2l import cli
from t2l.compositing.recompose import agreement, correct_layers, difference_picture
from t2l.compositing.stack import Stack
from t2l.io.image import save_png, to_image
from t2l.io.layer_file import save_layer_file
from t2l.layers import Layers


def random_layers(n=2, size=(24, 17), seed=0):
    return Layers.from_stacked(torch.rand(n, 7, *size, generator=torch.Generator().manual_seed(seed)))


def random_picture(like):
    return torch.rand(like.foreground.shape, generator=torch.Generator().manual_seed(9))


def test_corrected_layers_make_the_picture():
    layers = random_layers()
    corrected = correct_layers(layers, random_picture(layers))
    assert agreement(corrected.composite(), random_picture(layers)).max < 0.01
    assert corrected.stacked.min() >= 0 and corrected.stacked.max() <= 1
    assert torch.equal(corrected.mask, layers.mask)


@pytest.mark.parametrize("mask", [0.0, 1e-7, 0.5, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_any_picture_can_be_made_whatever_the_mask(mask, colour):
    layers = random_layers()
    layers = Layers(layers.foreground, layers.background, torch.full_like(layers.mask, mask))
    picture = torch.full_like(layers.foreground, colour)
    assert agreement(correct_layers(layers, picture).composite(), picture).max < 0.01


def test_layers_that_agree_already_do_not_change():
    layers = random_layers()
    same = correct_layers(layers, layers.composite())
    torch.testing.assert_close(same.stacked, layers.stacked, atol=1e-6, rtol=0)


def test_what_is_not_seen_does_not_change():
    layers = random_layers()
    front = Layers(layers.foreground, layers.background, torch.ones_like(layers.mask))
    corrected = correct_layers(front, random_picture(layers))
    assert torch.equal(corrected.background, layers.background)
    torch.testing.assert_close(corrected.foreground, random_picture(layers))


def test_no_nearer_layers_make_the_picture():
    """Every other point of the line m F + (1 - m) B = C inside [0, 1] is farther from where the layers were."""
    layers = random_layers(size=(30, 30))
    nearest = correct_layers(layers, random_picture(layers))

    def distance(x):
        return (x.foreground - layers.foreground).square() + (x.background - layers.background).square()

    for step in (-0.3, -0.02, 0.02, 0.3):
        other = Layers(
            nearest.foreground + step * (1 - nearest.mask), nearest.background - step * nearest.mask, layers.mask
        )
        inside = ((other.stacked >= 0) & (other.stacked <= 1))[:, :6]
        inside = inside[:, :3] & inside[:, 3:]
        assert inside.any() and (distance(other)[inside] >= distance(nearest)[inside] - 1e-5).all()


def test_agreement_counts_in_steps_of_an_eight_bit_file():
    seen = torch.zeros(3, 4, 5)
    picture = seen.clone()
    picture[0, 0, 0] = 51 / 255
    assert agreement(seen, picture).max == pytest.approx(51) and agreement(seen, picture).mean == pytest.approx(51 / 60)
    assert str(agreement(seen, picture)) == "mean 0.85, max 51.00 of 255"


def test_layers_written_with_eight_bits_agree_to_one_step():
    """Rounding F, B and m moves the composite by at most half a step each, and the mask's by |F - B| of one."""
    layers = random_layers(size=(64, 64))
    file = Layers.from_stacked((layers.stacked * 255).round() / 255)
    assert agreement(file.composite(), layers.composite()).max <= 1


def test_the_command_says_how_far_a_file_is_from_its_picture(tmp_path, capsys):
    layers = random_layers(n=1)
    save_layer_file(Stack.from_layers(layers), tmp_path / "layers.ora")
    save_png(to_image(layers.composite()[0]), tmp_path / "picture.png")
    assert cli.main(["recompose", str(tmp_path / "layers.ora"), str(tmp_path / "picture.png")]) == 0
    mean, largest = re.fullmatch(r"mean (.*), max (.*) of 255\n", capsys.readouterr().out).groups()
    assert float(mean) < 0.5 and float(largest) <= 1.5  # both files are rounded to whole steps


def test_the_difference_picture_is_black_where_both_agree_and_never_brighter_than_white():
    layers = random_layers()
    assert difference_picture(layers.composite(), layers.composite()).max() == 0
    assert difference_picture(layers.foreground, layers.background, gain=100).max() == 1


def test_pictures_of_two_sizes_are_answered():
    with pytest.raises(ValueError, match="as large as the layers, 5 x 4 pixels, got 6 x 4; scale one"):
        agreement(torch.zeros(3, 4, 5), torch.zeros(3, 4, 6))
