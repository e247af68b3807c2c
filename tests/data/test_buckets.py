"""Aspect buckets: their sizes, how pictures come to them, and batches of one shape that leave nothing out."""

from collections import Counter

import pytest
import torch

from t2l.data.buckets import BucketOrder, aspect_buckets, cover, nearest_bucket
from t2l.layers import Layers


def permutation(pictures):
    return lambda epoch: torch.randperm(pictures, generator=torch.Generator().manual_seed(epoch))


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
    assert cover(picture, (40, 60)) is picture
    assert torch.equal(cover(picture, (40, 40)).stacked(), picture.stacked()[..., 10:50])
    assert torch.equal(cover(picture, (20, 60)).stacked(), picture.stacked()[..., 10:30, :])


def test_nothing_is_squeezed():
    """Slopes along both sides stay equal where a picture of another shape is made smaller."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(200.0), indexing="ij")
    found = cover(Layers.from_stacked(((x + y) / 300).expand(1, 7, 90, 200)), (30, 30)).stacked()
    inner = found[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner.diff(dim=-1), torch.full_like(inner.diff(dim=-1), 3 / 300), atol=1e-5, rtol=0)
    torch.testing.assert_close(inner.diff(dim=-2), torch.full_like(inner.diff(dim=-2), 3 / 300), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_pictures_of_a_pixel_and_strips_are_filled(size):
    found = cover(layers(*size), (16, 24)).stacked()
    assert found.shape == (1, 7, 16, 24) and found.isfinite().all()


def test_with_one_bucket_the_batches_are_the_epochs_orders_end_to_end():
    order = BucketOrder(torch.zeros(10, dtype=torch.long), 4, permutation(10))
    ends = torch.cat([permutation(10)(epoch) for epoch in range(4)])
    assert all(torch.equal(order[step], ends[4 * step : 4 * step + 4]) for step in range(10))


@pytest.mark.parametrize(("counts", "batch_size"), [((7, 9, 1), 4), ((2, 1), 5), ((12, 4), 4)])
def test_every_batch_has_one_shape_and_every_picture_comes_equally_often(counts, batch_size):
    buckets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    buckets = buckets[torch.randperm(len(buckets), generator=torch.Generator().manual_seed(5))]
    order = BucketOrder(buckets, batch_size, permutation(len(buckets)))
    batches = [order[step] for step in range(len(buckets))]  # batch_size epochs leave nothing in a bucket
    assert all(len(buckets[batch].unique()) == 1 for batch in batches)
    seen = Counter(torch.cat(batches).tolist())
    assert seen == Counter(dict.fromkeys(range(len(buckets)), batch_size))


def test_after_any_step_two_pictures_of_a_bucket_differ_by_one_showing_at_most():
    buckets = torch.tensor([0, 1, 0, 0, 1, 2, 0])
    order, seen = BucketOrder(buckets, 3, permutation(7)), torch.zeros(7, dtype=torch.long)
    for step in range(40):
        seen += torch.bincount(order[step], minlength=7)
        assert all(seen[buckets == bucket].max() - seen[buckets == bucket].min() <= 1 for bucket in range(3))


def test_a_batch_is_the_next_one_that_is_full_when_pictures_are_dealt_one_by_one():
    buckets = torch.tensor([0, 1, 0, 0, 1, 2, 0, 1])
    waiting, full = {}, []
    for epoch in range(12):
        for picture in permutation(8)(epoch).tolist():
            dealt = waiting.setdefault(int(buckets[picture]), [])
            dealt.append(picture)
            if len(dealt) == 3:
                full.append(waiting.pop(int(buckets[picture])))
    order = BucketOrder(buckets, 3, permutation(8))
    steps = torch.randperm(len(full), generator=torch.Generator().manual_seed(1)).tolist()  # in any order of asking
    assert all(order[step].tolist() == full[step] for step in steps)


@pytest.mark.parametrize("first", range(10, 16))
def test_an_epochs_order_is_drawn_once_wherever_training_begins(first):
    buckets, drawn = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1]), Counter()
    order = BucketOrder(buckets, 3, lambda epoch: drawn.update([epoch]) or permutation(8)(epoch))
    for step in range(first, 60):
        order[step]
    assert set(drawn.values()) == {1}
