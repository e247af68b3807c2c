"""Stacks that the tests of layer files write and read."""

import pytest
import torch

from t2l.compositing.stack import Layer, Stack


def noise(*shape: int, levels: int = 255, seed: int = 0) -> torch.Tensor:
    """Random values that a file of so many levels holds exactly."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * levels).round() / levels


def varied_stack(levels: int = 255) -> Stack:
    """A stack with everything a file can hold: position, opacity, blend mode, hidden layers, names, parts off the
    canvas.
    """
    layers = [
        Layer(image=noise(3, 40, 60, levels=levels), mask=torch.ones(1, 40, 60), name="background"),
        Layer(
            image=noise(3, 20, 30, levels=levels, seed=1),
            mask=noise(1, 20, 30, levels=levels, seed=2),
            name="Stra\u00dfe \u732b \U0001f600",
            x=-5,
            y=30,
            opacity=128 / 255,
            blend_mode="soft light",
        ),
        Layer(
            image=noise(3, 9, 7, levels=levels, seed=3),
            mask=noise(1, 9, 7, levels=levels, seed=4),
            name="off the canvas",
            x=70,
            visible=False,
        ),
        Layer(image=noise(3, 9, 7, levels=levels, seed=5), mask=noise(1, 9, 7, levels=levels), name="top", x=50, y=2),
    ]
    return Stack(40, 60, tuple(layers))


def assert_same(found: Stack, expected: Stack) -> None:
    """Every value of every layer, bit for bit."""
    assert (found.height, found.width) == (expected.height, expected.width)
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert (a.name, a.x, a.y, a.blend_mode, a.visible) == (b.name, b.x, b.y, b.blend_mode, b.visible)
        assert abs(a.opacity - b.opacity) < 1e-6
        assert torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)


@pytest.fixture
def stack() -> Stack:
    return varied_stack()
