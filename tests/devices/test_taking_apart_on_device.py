"""What takes a flat picture apart, on the second device: the results are those of the CPU."""

import pytest
import torch

from t2l.compositing.split import split
from t2l.model.salient import load_salient

from .second_device import SUPPORTED, WHY_NOT

pytestmark = pytest.mark.skipif(not SUPPORTED, reason=WHY_NOT)


def picture_and_mask():
    picture = torch.rand(1, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 96, 80)
    mask[..., 30:60, 20:50] = 1
    return picture, mask


def test_a_mask_is_found_where_the_network_lies_and_comes_back_to_the_picture(second):
    picture, _ = picture_and_mask()
    here = load_salient()(picture)
    torch.testing.assert_close(load_salient(None, second)(picture), here, atol=1e-4, rtol=0)
    there = load_salient(None, second)(picture.to(second))
    assert there.device == second
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)


def test_a_picture_is_taken_apart_where_it_lies(second):
    """With a background that is given: `fill` changes shapes in place inside of torch, which the second device cannot
    follow.
    """
    picture, mask = picture_and_mask()
    behind = picture.flip(-1)
    here, there = (split(*(x.to(device) for x in (picture, mask, behind))) for device in ("cpu", second))
    assert there.mask.device == second
    torch.testing.assert_close(there.to("cpu").stacked(), here.stacked(), atol=1e-4, rtol=0)
