"""What is read ahead: the same items in the same order, errors in their place, no thread that outlives its use."""

import gc
import itertools
import threading
import time

import pytest
import torch
from torch.utils.data import Dataset

from t2l.data.ahead import read_ahead, read_in_workers


def threads_end(before, seconds=10):
    deadline = time.monotonic() + seconds
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return threading.active_count() <= before


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_and_order_stay(depth):
    assert list(read_ahead(range(20), depth)) == list(range(20))
    assert list(read_ahead(iter([]), depth)) == []


def test_an_error_comes_in_the_place_of_its_item():
    def items():
        yield 1
        yield 2
        raise ValueError("the third is damaged")

    ahead = read_ahead(items(), 5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="the third is damaged"):
        next(ahead)
    assert list(ahead) == []


def test_no_more_is_made_than_depth_ahead():
    made = []
    ahead = read_ahead((made.append(i) or i for i in itertools.count()), 3)
    for used in range(1, 6):
        next(ahead)
        time.sleep(0.05)
        assert len(made) <= used + 3 + 1  # one more is in the hand
    assert len(made) >= 8
    ahead.close()


@pytest.mark.parametrize("end", ["closed", "forgotten", "used up", "stopped by an error of the user's"])
def test_the_thread_ends_with_its_use(end):
    before = threading.active_count()
    ahead = read_ahead(itertools.count() if end != "used up" else range(3), 2)
    assert next(ahead) == 0
    if end == "closed":
        ahead.close()
    elif end == "used up":
        list(ahead)
    elif end != "forgotten":
        with pytest.raises(KeyError):
            for _ in ahead:
                raise KeyError
    del ahead
    gc.collect()
    assert threads_end(before)


def test_the_next_items_are_made_while_one_is_used():
    def slow():
        for number in range(6):
            time.sleep(0.05)
            yield number

    ahead, waited = read_ahead(slow(), 2), 0.0
    next(ahead)
    for _ in range(5):
        time.sleep(0.08)
        start = time.perf_counter()
        next(ahead)
        waited += time.perf_counter() - start
    assert waited < 0.1  # and not 0.25


class Squares(Dataset):
    def __getitem__(self, number):
        if number == 7:
            raise ValueError("seven is damaged")
        return torch.tensor(number * number)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_what_one_process_gives_and_its_errors(workers):
    assert [int(x) for x in read_in_workers(Squares(), [3, 1, 2], workers)] == [9, 1, 4]
    read = read_in_workers(Squares(), (number for number in (1, 7, 2)), workers)
    assert int(next(read)) == 1
    with pytest.raises(ValueError, match="^seven is damaged$"):
        next(read)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_are_pinned_where_a_card_asks_for_it():
    batch = next(read_ahead([(torch.ones(3), torch.ones(2))], 1, pin=True))
    assert all(x.is_pinned() for x in batch)
    assert next(read_in_workers(Squares(), [1, 2], 1, pin=True)).is_pinned()
