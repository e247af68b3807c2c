"""Aspect buckets: their sizes, how pictures come to them, and batches of one shape that leave nothing out."""

from collections import Counter

import numpy as np
import pytest
import torch

from t2l.data.buckets import BucketOrder, aspect_buckets, center_crop, nearest_bucket
from t2l.data.orders import shuffle_epochs
from t2l.layers import Layers


def layers(height, width):
    return Layers.from_stacked(torch.rand(1, 7, height, width, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("size", "step"), [(256, 64), (512, 64), (512, 8), (768, 32)])
def test_buckets_are_on_the_grid_and_as_large_as_the_squares_area_allows(size, step):
    buckets = aspect_buckets(size, step)
    assert (size, size) in buckets and {(width, height) for height, width in buckets} == set(buckets)
    for sides in buckets:
        shorter, longer = sorted(sides)
        assert shorter % step == longer % step == 0 and longer <= 2 * shorter
        assert shorter * longer <= size * size < shorter * (longer + step)


def test_the_buckets_of_512_pixels_are_known():
    assert aspect_buckets(512, 64) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="the size must be a multiple of the buckets' step, got 300 for 64"):
        aspect_buckets(300, 64)


def test_a_picture_goes_to_the_nearest_aspect_and_its_transpose_to_the_transpose():
    buckets = aspect_buckets(512, 64)
    assert nearest_bucket((9, 9), buckets) == (512, 512)
    assert nearest_bucket((1080, 1920), buckets) == (384, 640) and nearest_bucket((1, 10_000), buckets) == (384, 640)
    for size in [(1080, 1920), (600, 500), (3, 4), (10, 11)]:
        assert nearest_bucket(size[::-1], buckets) == nearest_bucket(size, buckets)[::-1]


def test_a_picture_that_fits_is_left_alone_and_a_larger_one_loses_only_its_borders():
    picture = layers(40, 60)
    assert center_crop(picture, (40, 60)) is picture
    assert torch.equal(center_crop(picture, (40, 40)).stacked, picture.stacked[..., 10:50])
    assert torch.equal(center_crop(picture, (20, 60)).stacked, picture.stacked[..., 10:30, :])


def test_nothing_is_squeezed():
    """Slopes along both sides stay equal where a picture of another shape is made smaller."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(200.0), indexing="ij")
    found = center_crop(Layers.from_stacked(((x + y) / 300).expand(1, 7, 90, 200)), (30, 30)).stacked
    inner = found[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner.diff(dim=-1), torch.full_like(inner.diff(dim=-1), 3 / 300), atol=1e-5, rtol=0)
    torch.testing.assert_close(inner.diff(dim=-2), torch.full_like(inner.diff(dim=-2), 3 / 300), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_pictures_of_a_pixel_and_strips_are_filled(size):
    found = center_crop(layers(*size), (16, 24)).stacked
    assert found.shape == (1, 7, 16, 24) and found.isfinite().all()


def test_with_one_bucket_the_batches_are_the_epochs_orders_end_to_end():
    order, ends = BucketOrder([10], 4, seed=3), shuffle_epochs(np.arange(40), 10, seed=3)
    for step in range(10):
        bucket, ranks = order[step]
        assert bucket == 0 and ranks.tolist() == ends[4 * step : 4 * step + 4].tolist()


@pytest.mark.parametrize(("counts", "batch_size"), [((7, 9, 1), 4), ((2, 1), 5), ((12, 4), 4), ((1, 300, 40, 3), 8)])
def test_every_batch_has_one_shape_and_every_picture_comes_equally_often(counts, batch_size):
    order = BucketOrder(counts, batch_size, seed=5)
    batches = [order[step] for step in range(sum(counts))]  # batch_size epochs leave nothing in a bucket
    seen = Counter((bucket, rank) for bucket, ranks in batches for rank in ranks.tolist())
    every = [(bucket, rank) for bucket, count in enumerate(counts) for rank in range(count)]
    assert seen == Counter(dict.fromkeys(every, batch_size))


def test_after_any_step_two_pictures_of_a_bucket_differ_by_one_showing_at_most():
    counts = [4, 2, 1]
    order, seen = BucketOrder(counts, 3, seed=0), [torch.zeros(n, dtype=torch.long) for n in counts]
    for step in range(40):
        bucket, ranks = order[step]
        seen[bucket] += torch.bincount(ranks, minlength=counts[bucket])
        assert all(shown.max() - shown.min() <= 1 for shown in seen)


def test_a_bucket_never_lags_behind_its_share_by_more_than_one_batch_for_every_bucket():
    counts, batches = torch.tensor([50, 7, 1, 200]), torch.zeros(4)
    order = BucketOrder(counts.tolist(), 4, seed=2)
    for step in range(600):
        batches[order[step].bucket] += 1
        assert (batches - (step + 1) * counts / counts.sum()).abs().max() < len(counts)


def test_a_batch_is_the_same_in_any_order_of_asking_and_another_with_another_seed():
    counts = [5, 80, 13]
    order = BucketOrder(counts, 3, seed=1)
    batches = [order[step] for step in range(90)]
    for step in torch.randperm(90, generator=torch.Generator().manual_seed(1)).tolist():
        bucket, ranks = BucketOrder(counts, 3, seed=1)[step]
        assert bucket == batches[step].bucket and torch.equal(ranks, batches[step].ranks)
    other = BucketOrder(counts, 3, seed=2)
    assert [batch.bucket for batch in batches] != [other[step].bucket for step in range(90)]


def test_an_order_of_57_million_pictures_is_known_at_any_step_at_once():
    """The numbers stay what they are, so that a run that was stopped goes on with the same batches."""
    order = BucketOrder([40_000_000, 17_000_000, 20_000], 32, seed=0)
    bucket, ranks = order[123_456_789]
    assert (bucket, ranks[:3].tolist()) == (0, [27077785, 12505799, 20890681])
