"""What takes a flat picture apart, on the second device: the results are those of the CPU."""

import pytest
import torch

from t2l.compositing.fill import fill
from t2l.compositing.split import split
from t2l.data.shards import Shards
from t2l.labelling.train_filter import sample_features
from t2l.model.filters import VIEWS, Filter, FilterConfig, load_filter
from t2l.model.salient import load_salient
from tests.training.conftest import shards  # noqa: F401

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


@pytest.mark.parametrize("size", [(96, 80), (400, 300), (7, 9)])
def test_a_hole_is_painted_where_the_picture_lies(second, size):
    """Also of a picture larger than the working size, and of one too small for a patch."""
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(2, 1, *size)
    hole[..., size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 1
    there = fill(picture.to(second), hole.to(second))
    assert there.device == second
    torch.testing.assert_close(there.cpu(), fill(picture, hole), atol=1e-4, rtol=0)


@pytest.mark.parametrize("given", [True, False])
def test_a_picture_is_taken_apart_where_it_lies(second, given):
    picture, mask = picture_and_mask()
    parts = (picture, mask, picture.flip(-1)) if given else (picture, mask)
    here, there = (split(*(x.to(device) for x in parts)) for device in ("cpu", second))
    assert there.mask.device == second
    torch.testing.assert_close(there.to("cpu").stacked(), here.stacked(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_a_filter_judges_where_its_network_lies(second, kind):
    """Pictures may lie on either device; scores come back to the CPU."""
    picture, mask = picture_and_mask()
    here = load_filter(kind)(picture, mask)
    for device in ("cpu", second):
        scores = load_filter(kind, second)(picture.to(device), mask.to(device))
        torch.testing.assert_close(scores, here, atol=1e-4, rtol=0)


def test_train_filter_sees_every_view_where_the_network_lies(second, shards, tmp_path):  # noqa: F811
    config = FilterConfig(views=tuple(VIEWS))
    networks = {device: load_filter("mask", device).network for device in (torch.device("cpu"), second)}
    here, there = (
        sample_features(
            Filter(config, torch.empty(0), torch.empty(0), network),
            Shards(shards),
            range(3),
            tmp_path / f"{device.type}.safetensors",
            print,
        )
        for device, network in networks.items()
    )
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)
