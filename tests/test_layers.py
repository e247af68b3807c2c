import pytest
import torch

from t2l.layers import Layers


def layers(n=2, size=(5, 7), mask=None):
    made = Layers.from_stacked(torch.rand(n, 7, *size, generator=torch.Generator().manual_seed(0)))
    return made if mask is None else Layers(made.foreground, made.background, torch.full_like(made.mask, mask))


def test_a_full_mask_shows_the_foreground_exactly():
    image = layers(mask=1.0)
    assert torch.equal(image.composite(), image.foreground)


def test_an_empty_mask_shows_the_background_exactly():
    image = layers(mask=0.0)
    assert torch.equal(image.composite(), image.background)


def test_the_composite_is_the_papers_formula():
    image = layers()
    expected = image.mask * image.foreground + (1 - image.mask) * image.background
    torch.testing.assert_close(image.composite(), expected)


def test_stacking_is_undone_by_from_stacked_and_keeps_the_papers_order():
    image = layers()
    stacked = image.stacked()
    back = Layers.from_stacked(stacked)
    for name in ("foreground", "background", "mask"):
        assert torch.equal(getattr(back, name), getattr(image, name))
    assert torch.equal(stacked[:, :3], image.foreground) and torch.equal(stacked[:, 6:], image.mask)


def test_a_flat_picture_composes_to_itself_with_the_mask_in_the_middle():
    picture = layers().foreground
    flat = Layers.flat(picture)
    assert torch.equal(flat.composite(), picture)
    assert torch.equal(2 * flat.mask - 1, torch.zeros_like(flat.mask))  # 0 in network units


def test_parts_of_a_batch_put_together_are_the_batch():
    image = layers(n=3)
    assert torch.equal(Layers.cat([image[:1], image[1:]]).stacked(), image.stacked())
    assert len(image) == 3 and len(image[1:]) == 2


def test_size_and_dtype_follow_the_tensors():
    image = layers().to(torch.bfloat16)
    assert image.size == (5, 7)
    assert {image.foreground.dtype, image.background.dtype, image.mask.dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("foreground", "background", "mask"),
    [
        ((2, 3, 5, 7), (2, 3, 5, 7), (2, 3, 5, 7)),
        ((2, 3, 5, 7), (2, 3, 7, 5), (2, 1, 5, 7)),
        ((2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7)),
        ((2, 4, 5, 7), (2, 4, 5, 7), (2, 1, 5, 7)),
        ((3, 5, 7), (3, 5, 7), (1, 5, 7)),
    ],
)
def test_layers_that_do_not_fit_together_are_refused_with_their_shapes(foreground, background, mask):
    with pytest.raises(ValueError, match="needs foreground .* of one size, got ") as error:
        Layers(torch.zeros(foreground), torch.zeros(background), torch.zeros(mask))
    assert str(mask) in str(error.value)
