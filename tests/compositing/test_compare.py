"""Before and after as one picture."""

import pytest
import torch

from t2l.compositing.compare import GAP, SIDE, before_and_after, changed_window


def cutout(size=(60, 90), seed=0):
    return torch.rand(4, *size, generator=torch.Generator().manual_seed(seed))


def panels(picture):
    """The two rows, each as before and after."""
    columns = picture[..., :SIDE], picture[..., SIDE + GAP :]
    height = picture.shape[-2] - SIDE - GAP
    return [[column[:, :height] for column in columns], [column[:, -SIDE:] for column in columns]]


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (1, 1), (5, 700), (700, 5), (1000, 1000)])
@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_of_any_shape_become_four_panels_of_known_size(size, scale):
    larger = torch.nn.functional.interpolate(cutout(size)[None], scale_factor=scale)[0]
    seen = before_and_after(cutout(size), larger)
    height = max(1, round(size[0] * SIDE / max(size)))
    assert seen.shape == (3, height + GAP + SIDE, 2 * SIDE + GAP) and 0 <= seen.min() and seen.max() <= 1


def test_what_does_not_change_looks_the_same_on_both_sides():
    for before, after in panels(before_and_after(cutout(), cutout())):
        assert torch.equal(before, after)


def test_the_place_that_changed_is_enlarged():
    before, after = torch.ones(4, 120, 120), torch.ones(4, 120, 120)
    after[:3, 80:90, 30:40] = 0
    _, (old, new) = panels(before_and_after(before, after))
    assert (old == 1).all() and (new == 0).any()
    top, left, height, width = changed_window(before[None], after[None])
    assert top * 120 <= 80 and (top + height) * 120 >= 90 and left * 120 <= 30 and (left + width) * 120 >= 40


def test_without_a_change_the_edge_is_enlarged():
    picture = torch.zeros(1, 4, 120, 120)
    picture[..., 60:] = 1
    _, left, _, width = changed_window(picture, picture)
    assert left * 120 < 60 < (left + width) * 120


def test_nothing_hidden_is_seen_and_what_is_transparent_is_grey():
    hidden, other = cutout(), cutout(seed=1)
    hidden[3], other[3] = 0, 0
    assert torch.equal(before_and_after(hidden, hidden), before_and_after(other, other))
    _, (grey, _) = panels(before_and_after(hidden, hidden))
    assert set(grey.unique().tolist()) == {torch.tensor(value).item() for value in (0.42, 0.58)}


def test_a_picture_of_nearly_the_same_proportions_is_shown_beside_the_other():
    """A canvas on a grid of latents is rounded: 768 x 576 beside 296 x 224."""
    seen = before_and_after(torch.ones(4, 56, 74), torch.ones(4, 144, 192))
    assert seen.shape[0] == 3
