"""The order in which layered pictures are kept."""

import math

import pytest
import torch

from t2l.evaluation.ranking import best_first, edge_contrast


def square(offset=0):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8 + offset : 24 + offset, 8:24] = 1
    return mask


def test_a_mask_on_the_edge_of_the_picture_has_more_contrast_than_one_beside_it():
    picture = square().expand(-1, 3, -1, -1) * 0.8 + 0.1
    on, beside = edge_contrast(torch.cat([square(), square(4)]), picture.expand(2, -1, -1, -1)).tolist()
    assert on > 0.4 and beside < on


def test_on_a_flat_picture_there_is_no_contrast_and_without_an_edge_no_figure():
    flat = torch.full((1, 3, 32, 32), 0.3)
    assert edge_contrast(square(), flat).item() == 0
    assert math.isnan(edge_contrast(torch.ones(1, 1, 32, 32), flat).item())


@pytest.mark.parametrize(
    ("costs", "order"),
    [
        ([[3.0, 1.0, 2.0]], [1, 2, 0]),
        ([[1.0, 1.0, 1.0]], [0, 1, 2]),
        ([[1.0, 2.0, 3.0], [30.0, 10.0, 20.0]], [1, 0, 2]),
        ([[math.nan, 5.0]], [1, 0]),
    ],
)
def test_the_sum_of_the_ranks_decides_and_equal_ones_keep_their_order(costs, order):
    assert best_first(*costs) == order


def test_a_unit_changes_no_order():
    first, second = [0.3, 0.1, 0.2, 0.4], [5.0, 8.0, 6.0, 7.0]
    assert best_first(first, second) == best_first([255 * x for x in first], second)
