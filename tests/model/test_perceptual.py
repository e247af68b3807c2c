import sys
import types
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from t2l.model import perceptual
from t2l.model.perceptual import Perceptual

needs_weights = pytest.mark.skipif(
    find_spec(perceptual.PACKAGE) is None, reason=f"{perceptual.PACKAGE}, which has the weights, is not installed"
)


@pytest.fixture(scope="module")
def lpips():
    return Perceptual()


def picture(seed, size=(48, 40)):
    coarse = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="bilinear")


@needs_weights
def test_equal_pictures_have_distance_zero_and_order_does_not_matter(lpips):
    a, b = picture(0), picture(1)
    assert torch.equal(lpips(a, a), torch.zeros(2))
    torch.testing.assert_close(lpips(a, b), lpips(b, a))


@needs_weights
def test_a_shift_is_nearer_than_another_picture(lpips):
    a = picture(0)
    assert (lpips(a.roll(1, dims=-1), a) < 0.5 * lpips(picture(1), a)).all()


@needs_weights
@pytest.mark.parametrize("size", [(24, 24), (48, 40), (33, 57)])
def test_it_agrees_with_the_package_the_weights_come_from(lpips, size, monkeypatch):
    for name in (
        "torchvision",
        "torchvision.models",
        "IPython",
        "torchsummary",
    ):  # imported there and not used for this
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    sys.modules["IPython"].embed = sys.modules["torchsummary"].summary = None
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    theirs = stlpips.LPIPS(pretrained=False, variant="shift_tolerant", verbose=False)
    loaded = theirs.load_state_dict(torch.load(perceptual.weights_path(), map_location="cpu", weights_only=True), False)
    assert all(name.startswith("lins.") for name in loaded.missing_keys)  # other names of lin0 .. lin4
    a, b = picture(0, size), picture(1, size)
    with torch.no_grad():
        torch.testing.assert_close(lpips(a, b), theirs(a, b, normalize=True).flatten(), atol=1e-6, rtol=1e-5)


@needs_weights
def test_gradients_reach_the_picture_only_and_are_finite_where_features_vanish(lpips):
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    lpips(black, torch.ones(1, 3, 32, 32)).sum().backward()
    assert black.grad.isfinite().all() and black.grad.abs().max() > 0
    assert all(p.grad is None for p in lpips.parameters())


def test_a_missing_package_is_answered_with_what_to_install(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install .*stlpips_pytorch==0.0.2.*loss.lpips=0"):
        Perceptual()
