"""Colours that go on beyond the edge of a cut-out."""

import torch

from t2l.compositing.bleed import extend_colours, push_pull
from t2l.compositing.resample import gaussian_blur


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def soft_square(size=(33, 47)):
    mask = torch.zeros(1, 1, *size)
    mask[..., 8:24, 12:34] = 1
    return gaussian_blur(mask, 3.0)


def test_bleeding_keeps_what_is_seen_and_stays_between_the_colours_there_are():
    picture, mask = random(1, 3, 33, 47) * 0.5 + 0.25, soft_square()
    extended = extend_colours(picture, mask)
    seen = (mask >= 0.1).expand_as(picture)
    assert torch.equal(extended[seen], picture[seen])
    assert extended.min() >= 0.25 - 1e-5 and extended.max() <= 0.75 + 1e-5


def test_push_pull_fills_from_the_only_colour_there_is():
    trust = torch.zeros(1, 1, 19, 5)
    trust[..., 3, 2] = 1
    colour = torch.tensor([0.2, 0.9, 0.4]).view(1, 3, 1, 1).expand(1, 3, 19, 5)
    torch.testing.assert_close(push_pull(colour * trust, trust), colour)
