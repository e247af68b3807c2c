"""ComfyUI core's compositor, to the letter. tests/comfyui_compositor.json holds core's own figures (0.31's
compositor_blend.py).

tests/comfy/test_documents.py compares with core's node itself, where the server has it.
"""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from t2l.compositing.blend import BlendMode
from t2l.compositing.comfyui_blend import NAMES, WITHOUT_NAME, to_light, to_srgb
from t2l.compositing.comfyui_compositor import composite_as_comfyui
from t2l.compositing.placement import Placement, compose
from t2l.compositing.stack import Layer, Stack

CORE = json.loads((Path(__file__).parent / "comfyui_compositor.json").read_text())
VALUES = [0, 40, 128, 200, 255]
MODES = [mode for mode in NAMES if mode not in WITHOUT_NAME]


def pairs(which: int) -> torch.Tensor:
    """Every value over every value, the three channels in three orders: (3, 5, 5)."""
    column = [(backdrop, source)[which] for backdrop in VALUES for source in VALUES]
    return torch.tensor([column, column[7:] + column[:7], column[13:] + column[:13]]).view(3, 5, 5) / 255


def layer(image: torch.Tensor, mask: float = 1.0, **other) -> Layer:
    return Layer(image=image, mask=torch.full_like(image[:1], mask), **other)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def test_core_has_26_names_and_every_mode_of_ours_one_of_them():
    assert set(NAMES) == set(get_args(BlendMode)) and set(NAMES.values()) == CORE.keys() and len(CORE) == 26


@pytest.mark.parametrize("opacity", [100, 50])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_core_s_own_figures(mode, opacity):
    stack = Stack(5, 5, (layer(pairs(0)), layer(pairs(1), blend_mode=mode, opacity=opacity / 100)))
    found = (composite_as_comfyui(stack)[0] * 255).round().int().flatten().tolist()
    assert max(abs(a - b) for a, b in zip(found, CORE[NAMES[mode]][str(opacity)], strict=True)) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_composite_layers_in_core_s_space_is_core_s_picture(mode):
    placement = Placement(blend_mode=mode, opacity=0.5, colour_space="comfyui")
    picture, _ = compose(pairs(1)[None], torch.ones(1, 1, 5, 5), pairs(0)[None], placement)
    found = (picture * 255).round().int()
    differences = [abs(a - b) for a, b in zip(found.flatten().tolist(), CORE[NAMES[mode]]["50"], strict=True)]
    assert max(differences) <= 1 or mode == "hard mix"  # core rounds a layer to 8 bits before hard mix decides


def test_opaque_layers_on_whole_pixels_are_those_of_srgb():
    stack = Stack(8, 9, (layer(noise(8, 9)), layer(noise(4, 5, 1), x=-2, y=3, flip_horizontal=True)))
    torch.testing.assert_close(composite_as_comfyui(stack)[0], stack.composite(), rtol=0, atol=1e-6)


def test_a_soft_mask_mixes_light():
    black, white = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    colour, _ = composite_as_comfyui(Stack(1, 1, (layer(black), layer(white, mask=51 / 255))))
    torch.testing.assert_close(to_light(colour), torch.full((3, 1, 1), 0.2))


def test_a_mode_shows_only_where_something_lies_below():
    stack = Stack(2, 4, (layer(noise(2, 2)), layer(noise(2, 4, 1), blend_mode="multiply")))
    assert torch.equal(composite_as_comfyui(stack)[1][0], torch.tensor([[1.0, 1, 0, 0]] * 2))


def test_an_item_shown_larger_is_its_own_pixels_resized_by_lanczos():
    from PIL import Image

    small = noise(6, 5)
    picture = Image.fromarray((small * 255).round().byte().movedim(0, -1).contiguous().numpy(), "RGB")
    expected = torch.tensor(picture.resize((10, 12), Image.Resampling.LANCZOS).getdata()).view(12, 10, 3).movedim(-1, 0)
    found = composite_as_comfyui(Stack(12, 10, (layer(small, shown_height=12, shown_width=10),)))[0]
    assert ((found * 255).round() - expected).abs().max() <= 1


def test_a_turned_layer_turns_about_its_middle():
    """By 30 degrees; core puts quarter turns one pixel off, where the corner lies at 19.99 and is cut down to 19."""
    spot = torch.zeros(3, 31, 31)
    spot[:, 14:17, 14:17] = 1
    turned = composite_as_comfyui(Stack(31, 31, (layer(spot, rotation=math.radians(30)),)))[0]
    assert turned[0, 15, 15] > 0.99 and turned[0, :10].max() == 0


def test_light_and_srgb_are_inverse_also_outside_of_0_to_1():
    values = torch.linspace(-0.5, 2.0, 101, dtype=torch.float64)
    torch.testing.assert_close(to_srgb(to_light(values)), values, rtol=0, atol=1e-4)
