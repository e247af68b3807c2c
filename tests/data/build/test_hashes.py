"""Pictures that look alike: which they are does not depend on who looks first."""

import io

import numpy as np
import pytest
from PIL import Image

from t2l.data.build import hashes
from t2l.data.build.hashes import find_duplicates, perceptual_hash
from tests.data.build.cheap import draw


def bits_between(one, other):
    return ((one ^ other) & (2**64 - 1)).bit_count()


def by_hand(hash, distance):
    """The rule as it reads, every pair compared."""
    found = []
    for late in range(len(hash)):
        alike = [early for early in range(late) if bits_between(int(hash[early]), int(hash[late])) <= distance]
        found += [(late, alike[0])] if alike else []
    return found


def some_looks(count=300):
    """Random hashes, half of them a few bits from another one."""
    rng = np.random.default_rng(0)
    hash = rng.integers(-(2**63), 2**63 - 1, count, dtype=np.int64)
    for row in range(count // 2, count):
        flips = rng.choice(63, rng.integers(0, 5), replace=False)
        hash[row] = hash[rng.integers(row)] ^ np.int64(sum(1 << int(bit) for bit in flips))
    return hash


@pytest.mark.parametrize("distance", [0, 1, 2, 4])
@pytest.mark.parametrize("part", [hashes.PART, 70])
def test_duplicates_are_those_that_the_rule_names(distance, part, monkeypatch):
    monkeypatch.setattr(hashes, "PART", part)
    hash = some_looks()
    found = find_duplicates(np.arange(len(hash)) * 10, hash, distance)
    assert [(late // 10, early // 10) for late, early in found.tolist()] == by_hand(hash, distance)


def test_no_pictures_have_no_duplicates():
    assert find_duplicates(np.zeros(0, np.int64), np.zeros(0, np.int64), 2).shape == (0, 2)


@pytest.mark.parametrize("change", ["smaller", "jpeg", "brighter"])
def test_a_picture_looks_like_its_copies_and_not_like_others(change):
    pictures = [draw(number, size=(256, 256), radius=50) for number in range(12)]
    copies = []
    for picture in pictures:
        if change == "smaller":
            picture = picture.resize((180, 180), Image.Resampling.LANCZOS)
        if change == "brighter":
            picture = picture.point(lambda value: min(255, value + 10))
        data = io.BytesIO()
        picture.save(data, "jpeg", quality=60 if change == "jpeg" else 95)
        copies.append(Image.open(data))
    ours, theirs = [perceptual_hash(x) for x in pictures], [perceptual_hash(x.convert("RGB")) for x in copies]
    between = np.array([[bits_between(one, other) for other in theirs] for one in ours])
    assert np.diag(between).max() <= 4 and between[~np.eye(12, dtype=bool)].min() > 4
