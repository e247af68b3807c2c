import pytest
import torch

from t2l.compositing.bleed import push_pull
from t2l.compositing.fill import fill


def stripes(height: int, width: int) -> torch.Tensor:
    """Vertical stripes, twelve pixels from one to the next."""
    row = (torch.arange(width) % 12 < 6).float() * 0.8 + 0.1
    return row.expand(1, 3, height, width).clone()


def square_hole(height: int, width: int) -> torch.Tensor:
    hole = torch.zeros(1, 1, height, width)
    hole[..., height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 1
    return hole


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 13), (40, 64), (70, 600)])
def test_pixels_outside_the_hole_come_back_exactly_at_any_size(size):
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    hole = torch.cat([square_hole(*size), torch.ones(1, 1, *size)])
    filled = fill(picture, hole)
    assert filled.shape == picture.shape and filled.min() >= 0 and filled.max() <= 1
    assert torch.equal(filled * (1 - hole), picture * (1 - hole))


def test_what_was_in_the_hole_changes_nothing():
    picture, hole = stripes(64, 64), square_hole(64, 64)
    other = torch.where(hole > 0, 1 - picture, picture)
    assert torch.equal(fill(picture, hole), fill(other, hole))


@pytest.mark.parametrize("size", [(96, 96), (300, 400)])
def test_stripes_go_on_behind_the_hole_where_the_pyramid_paints_a_blob(size):
    truth, hole = stripes(*size), square_hole(*size)
    picture = torch.where(hole > 0, torch.full_like(truth, 0.5), truth)
    errors = [
        float(((x - truth).abs() * hole).sum() / hole.sum() / 3)
        for x in (fill(picture, hole), push_pull(picture, 1 - hole))
    ]
    assert errors[0] < 0.3 * errors[1], errors


def test_a_batch_is_filled_as_its_pictures_are_alone_and_twice_the_same():
    picture = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    hole = square_hole(40, 50).repeat(2, 1, 1, 1)
    filled = fill(picture, hole)
    assert torch.equal(filled, torch.cat([fill(p, h) for p, h in zip(picture.split(1), hole.split(1), strict=True)]))


def test_a_soft_hole_mixes_and_none_leaves_the_picture():
    picture, hole = stripes(64, 64), square_hole(64, 64)
    half = fill(picture, hole / 2)
    torch.testing.assert_close(half, torch.lerp(picture, fill(picture, hole), hole / 2))
    assert torch.equal(fill(picture, torch.zeros_like(hole)), picture)


def test_a_picture_that_is_all_hole_is_its_mean_colour():
    picture = stripes(24, 24)
    torch.testing.assert_close(fill(picture, torch.ones(1, 1, 24, 24)), torch.full_like(picture, 0.5))
