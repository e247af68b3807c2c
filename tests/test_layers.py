import pickle
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from t2l.layers import Layers


def layers(n=2, size=(5, 7), mask=None):
    made = Layers.from_stacked(torch.rand(n, 7, *size, generator=torch.Generator().manual_seed(0)))
    return made if mask is None else Layers(made.foreground, made.background, torch.full_like(made.mask, mask))


def test_a_full_mask_shows_the_foreground_exactly():
    image = layers(mask=1.0)
    assert torch.equal(image.composite(), image.foreground)


def test_an_empty_mask_shows_the_background_exactly():
    image = layers(mask=0.0)
    assert torch.equal(image.composite(), image.background)


def test_the_composite_is_the_papers_formula():
    image = layers()
    expected = image.mask * image.foreground + (1 - image.mask) * image.background
    torch.testing.assert_close(image.composite(), expected)


def test_stacking_is_undone_by_from_stacked_and_keeps_the_papers_order():
    image = layers()
    stacked = image.stacked
    back = Layers.from_stacked(stacked)
    for name in ("foreground", "background", "mask"):
        assert torch.equal(getattr(back, name), getattr(image, name))
    assert torch.equal(stacked[:, :3], image.foreground) and torch.equal(stacked[:, 6:], image.mask)


def test_layers_are_one_tensor_that_is_never_copied_on_the_way():
    stacked = torch.rand(2, 7, 5, 7)
    image = Layers.from_stacked(stacked)
    assert image.stacked is stacked and image[1:].stacked.data_ptr() == stacked[1:].data_ptr()
    for part in (image, replace(image, mask=1 - image.mask), pickle.loads(pickle.dumps(image))):
        views = (part.foreground, part.background, part.mask)
        assert all(x._base is part.stacked for x in views) and torch.equal(torch.cat(views, dim=1), part.stacked)


class Mixing(nn.Module):
    """Layers in, layers out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(7, 7, 3, padding=1)

    def forward(self, layers):
        made = Layers.from_stacked(self.conv(layers.stacked))
        return Layers(made.foreground, layers.background, made.mask)


def test_a_compiler_takes_and_returns_layers_in_one_graph():
    torch.manual_seed(0)
    network = Mixing()
    found = torch.compile(network, backend="eager", fullgraph=True)(layers())
    assert isinstance(found, Layers) and torch.equal(found.stacked, network(layers()).stacked)
    found.composite().sum().backward()
    assert network.conv.weight.grad.any()


@pytest.mark.parametrize("static_graph", [False, True])
def test_several_processes_return_layers_with_their_gradients(tmp_path, static_graph):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        alone, network = Mixing(), Mixing()
        network.load_state_dict(alone.state_dict())
        wrapped = DistributedDataParallel(network, static_graph=static_graph)
        for step in (wrapped, alone):
            found = step(layers())
            assert isinstance(found, Layers)
            found.composite().sum().backward()
        assert torch.equal(network.conv.weight.grad, alone.conv.weight.grad) and alone.conv.weight.grad.any()
    finally:
        distributed.destroy_process_group()


def test_a_flat_picture_composes_to_itself_with_the_mask_in_the_middle():
    picture = layers().foreground
    flat = Layers.flat(picture)
    assert torch.equal(flat.composite(), picture)
    assert torch.equal(2 * flat.mask - 1, torch.zeros_like(flat.mask))  # 0 in network units


def test_parts_of_a_batch_put_together_are_the_batch():
    image = layers(n=3)
    assert torch.equal(Layers.cat([image[:1], image[1:]]).stacked, image.stacked)
    assert len(image) == 3 and len(image[1:]) == 2


def test_size_and_dtype_follow_the_tensors():
    image = layers().to(torch.bfloat16)
    assert image.size == (5, 7)
    assert {image.foreground.dtype, image.background.dtype, image.mask.dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("foreground", "background", "mask"),
    [
        ((2, 3, 5, 7), (2, 3, 5, 7), (2, 3, 5, 7)),
        ((2, 3, 5, 7), (2, 3, 7, 5), (2, 1, 5, 7)),
        ((2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7)),
        ((2, 4, 5, 7), (2, 4, 5, 7), (2, 1, 5, 7)),
        ((3, 5, 7), (3, 5, 7), (1, 5, 7)),
    ],
)
def test_layers_that_do_not_fit_together_are_refused_with_their_shapes(foreground, background, mask):
    with pytest.raises(ValueError, match="needs foreground .* of one size, got ") as error:
        Layers(torch.zeros(foreground), torch.zeros(background), torch.zeros(mask))
    assert str(mask) in str(error.value)
