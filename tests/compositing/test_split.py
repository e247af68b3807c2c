import pytest
import torch

from t2l.compositing.bleed import push_pull
from t2l.compositing.fill import fill
from t2l.compositing.resample import gaussian_blur
from t2l.compositing.split import SplitConfig, find_hole, split


def composite(size: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Foreground, background and soft mask of a disc with known colours, and the picture they make."""
    generator = torch.Generator().manual_seed(0)
    foreground, background = (
        torch.nn.functional.interpolate(
            torch.rand(1, 3, 2, 2, generator=generator), (size, size), mode="bilinear"
        ).clamp(0, 1)
        for _ in range(2)
    )
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    mask = gaussian_blur(((x**2 + y**2) < 0.3).float()[None, None], 2)
    return foreground, background, mask, torch.lerp(background, foreground, mask)


def soft_error(found: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    soft = ((mask > 0.05) & (mask < 0.95)).float()
    return float(((found - truth).abs() * soft).sum() / soft.sum() / 3)


def test_the_colours_at_a_soft_edge_are_at_most_half_as_wrong_as_a_plain_copy():
    foreground, _, mask, picture = composite()
    freed, copied = (split(picture, mask, config=SplitConfig(free_colours=free)).foreground for free in (True, False))
    assert soft_error(freed, foreground, mask) <= 0.5 * soft_error(copied, foreground, mask)


def test_the_composite_is_the_picture_where_the_mask_is_1_and_outside_of_the_hole():
    _, _, mask, picture = composite()
    layers = split(picture, mask)
    exact = (mask == 1) | ((mask == 0) & (find_hole(mask) == 0))
    assert exact.float().mean() > 0.5
    assert torch.equal(layers.composite() * exact, picture * exact) and torch.equal(layers.mask, mask)


def test_with_the_true_background_the_composite_is_near_the_picture_everywhere():
    _, background, mask, picture = composite()
    layers = split(picture, mask, background)
    assert torch.equal(layers.background, background)
    assert (layers.composite() - picture).abs().max() < 0.1 and (layers.composite() - picture).abs().mean() < 0.003


def test_the_papers_plain_copy_is_the_picture_above_the_threshold_and_goes_on_beyond_it():
    _, _, mask, picture = composite()
    foreground = split(picture, mask, picture, config=SplitConfig(free_colours=False)).foreground
    shows = mask > 0.1
    assert torch.equal(foreground * shows, picture * shows)
    assert torch.equal(foreground, push_pull(picture, shows.float()))


def test_the_hole_reaches_beyond_the_mask_by_pixels_of_a_picture_of_512():
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 128, 128] = 1
    hole = find_hole(mask, SplitConfig(dilation=20))
    assert hole[0, 0, 128].sum() == 21 and hole[0, 0, 128, 118] == 1 and hole[0, 0, 118, 118] == 0


def test_the_hole_of_a_large_picture_holds_that_of_a_small_one():
    mask = torch.zeros(1, 1, 1500, 2000)
    mask[..., 700, 1000] = 1
    hole = find_hole(mask)
    assert hole[0, 0, 700, 1000] == 1 and 45 <= hole[0, 0, 700].sum() <= 55


def test_an_inpainter_gets_the_picture_and_the_hole():
    _, _, mask, picture = composite()
    background = split(picture, mask, inpaint=lambda x, hole: torch.where(hole > 0, torch.zeros_like(x), x)).background
    assert torch.equal(background, picture * (1 - find_hole(mask)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_picture_without_a_subject_or_all_subject_is_taken_apart_too(value):
    picture = composite(32)[3]
    layers = split(picture, torch.full((1, 1, 32, 32), value), inpaint=fill)
    assert torch.equal(layers.composite(), picture) and torch.equal(layers.foreground, picture)


def test_a_number_out_of_its_range_is_named():
    with pytest.raises(ValueError, match="dilation must be from 0 to 256, got -1"):
        SplitConfig(dilation=-1)
