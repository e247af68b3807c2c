import numpy as np
import pytest
import torch

from recipes.filters import planted_faults
from recipes.filters.planted_faults import FILL_FAULTS, MASK_FAULTS, SMALLEST, bad_fill, bad_mask, good_fill, good_mask
from t2l.compositing.edges import square_max
from t2l.evaluation.metrics import mask_iou
from t2l.layers import Layers

SIZE = 96


def scene(seed, centre=(48, 48), radius=24):
    """A disc of one colour before stripes of others."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2).float()[None, None]
    colours = torch.rand(2, 3, 1, 1, generator=generator)
    stripes = ((x // 7 + seed) % 2).float() * 0.4
    background = (colours[1:] * 0.6 + stripes).clamp(0, 1)
    return Layers(colours[:1].expand(1, 3, SIZE, SIZE), background, mask)


TRUTH, OTHER = scene(0), scene(3, (30, 60), 16)
HOLE = square_max(TRUTH.mask, 3)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", MASK_FAULTS)
def test_every_fault_of_a_mask_is_far_from_the_truth(name, monkeypatch):
    monkeypatch.setattr(planted_faults, "MASK_FAULTS", {name: MASK_FAULTS[name]})
    for seed in range(10):
        mask, found = bad_mask(TRUTH.mask, OTHER.mask, rng(seed))
        assert found in (name, "inverted") and mask_iou(mask, TRUTH.mask) <= 0.75
        assert 0 <= mask.min() and mask.max() <= 1 and mask.shape == TRUTH.mask.shape


@pytest.mark.parametrize("name", FILL_FAULTS)
def test_every_fault_of_a_fill_is_seen_and_stays_in_the_hole(name, monkeypatch):
    monkeypatch.setattr(planted_faults, "FILL_FAULTS", {name: FILL_FAULTS[name]})
    wide = square_max(HOLE, 12)  # a soft edge reaches a little beyond
    for seed in range(10):
        fill, found = bad_fill(TRUTH, OTHER, HOLE, rng(seed))
        differs = (fill - TRUTH.background).abs()
        assert found in (name, "texture") and float((differs * HOLE).sum() / HOLE.sum()) > 0.02
        assert float((differs * (1 - wide)).max()) == 0


def test_a_good_mask_is_near_the_truth():
    assert min(float(mask_iou(good_mask(TRUTH.mask, rng(seed)), TRUTH.mask)) for seed in range(40)) > 0.85


def test_a_good_fill_is_near_the_truth():
    gaps = [(good_fill(TRUTH, HOLE, rng(seed)) - TRUTH.background).abs().mean() for seed in range(40)]
    assert max(gaps) < 0.05 and min(gaps) == 0


def test_small_is_small():
    masks = [planted_faults._small(TRUTH.mask, OTHER.mask, rng(seed)) for seed in range(20)]
    assert max(float(mask.mean()) for mask in masks) <= SMALLEST * 1.5


def test_the_same_generator_gives_the_same_faults():
    assert torch.equal(bad_mask(TRUTH.mask, OTHER.mask, rng(5))[0], bad_mask(TRUTH.mask, OTHER.mask, rng(5))[0])
    assert torch.equal(bad_fill(TRUTH, OTHER, HOLE, rng(5))[0], bad_fill(TRUTH, OTHER, HOLE, rng(5))[0])


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="a mask that shows something"):
        bad_mask(torch.zeros(1, 1, 8, 8), OTHER.mask, rng())
