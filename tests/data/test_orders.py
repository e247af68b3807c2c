"""Orders that are computed: permutations of any length, the same for ever, without a pattern."""

import tracemalloc

import numpy as np
import pytest

from t2l.data.orders import shuffle, shuffle_epochs, uniform


def chi_square(counts):
    """Of counts that should be equal, in standard deviations from its mean under chance."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("lengths", [range(1, 400), range(400, 2001, 7)])
def test_every_number_comes_once(lengths):
    for length in lengths:
        order = shuffle(np.arange(length), length, seed=length, epoch=1)
        assert np.array_equal(np.sort(order), np.arange(length))


@pytest.mark.parametrize("length", [57_020_000, 10**9 + 7, 2**40 + 1, 3 * 10**17])
def test_no_number_of_a_long_order_comes_twice(length):
    places = np.unique(np.random.default_rng(0).integers(0, length, 200_000))
    order = shuffle(places, length, seed=0, epoch=0)
    assert len(np.unique(order)) == len(places) and 0 <= order.min() and order.max() < length


def test_known_answers():
    """They stay: a run goes on with the pictures that it has not seen."""
    assert shuffle(np.arange(10), 10, seed=0, epoch=0).tolist() == [3, 1, 2, 6, 4, 9, 8, 7, 0, 5]
    assert shuffle(np.arange(3), 57_020_000, seed=7, epoch=2, group=1).tolist() == [8028612, 26884861, 12066375]
    assert uniform(5, seed=3, group=2) == pytest.approx(0.5077182960562361, abs=1e-12)


def test_seed_epoch_and_group_give_orders_of_their_own():
    keys = [(seed, epoch, group) for seed in range(4) for epoch in range(4) for group in range(4)]
    orders = {tuple(shuffle(np.arange(50), 50, *key)) for key in keys}
    assert len(orders) == 64


def test_epochs_follow_each_other_and_any_part_may_be_asked_for():
    whole = shuffle_epochs(np.arange(70), 20, seed=4)
    assert np.array_equal(whole[20:40], shuffle(np.arange(20), 20, seed=4, epoch=1))
    positions = np.array([69, 3, 41, 20])
    assert np.array_equal(shuffle_epochs(positions, 20, seed=4), whole[positions])


@pytest.mark.parametrize("length", [5, 23, 100])
def test_every_number_is_equally_likely_at_every_place_and_beside_every_other(length):
    orders = np.stack([shuffle(np.arange(length), length, seed, epoch) for seed in range(60) for epoch in range(50)])
    at_place = np.stack([np.bincount(orders[:, place], minlength=length) for place in range(length)])
    assert abs(chi_square(at_place)) < 5
    pairs = np.bincount((orders[:, :-1] * length + orders[:, 1:]).ravel(), minlength=length**2).reshape(length, length)
    assert abs(chi_square(pairs[~np.eye(length, dtype=bool)])) < 5


def test_neighbours_of_a_long_order_lie_anywhere():
    length = 57_020_000
    for order in (shuffle_epochs(np.arange(40_000), length, seed) for seed in range(3)):
        assert abs(chi_square(np.bincount(order * 100 // length, minlength=100))) < 5
        steps = np.diff(order) % length
        assert abs(chi_square(np.bincount(steps * 100 // length, minlength=100))) < 5


def test_a_fixed_point_is_as_frequent_as_chance_has_it():
    found = sum(int((shuffle(np.arange(64), 64, seed, 0) == np.arange(64)).sum()) for seed in range(2000))
    assert found == pytest.approx(2000, abs=5 * np.sqrt(2000))


def test_uniform_numbers_are_uniform():
    drawn = np.array([uniform(number, seed=1) for number in range(20_000)])
    assert abs(chi_square(np.bincount((drawn * 50).astype(int), minlength=50))) < 5


def test_a_batch_of_a_long_order_takes_no_memory_to_speak_of():
    tracemalloc.start()
    shuffle_epochs(np.arange(32), 57_020_000, seed=0)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
