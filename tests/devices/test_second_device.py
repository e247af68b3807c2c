"""The second device itself: it computes what the CPU computes, and a planted mistake of each kind is found."""

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .second_device import SUPPORTED, WHY_NOT, second_device

pytestmark = pytest.mark.skipif(not SUPPORTED, reason=WHY_NOT)
MIXED = "Expected all tensors to be on the same device"


@pytest.fixture(autouse=True)
def second():
    with second_device() as device:
        yield device


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


def picture(seed=0):
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_network_and_its_gradients_are_those_of_the_cpu(second):
    here, there = network(), network().to(second, memory_format=torch.channels_last)
    losses = [here(picture()).square().mean(), there(picture().to(second)).square().mean()]
    for loss in losses:
        loss.backward()
    assert losses[1].device == second
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert isinstance(b, nn.Parameter) and b.grad.device == second
        torch.testing.assert_close(a.grad, b.grad.cpu())


def test_to_keeps_the_parameters_an_optimiser_holds(second):
    moved = network()
    before = list(moved.parameters())
    assert all(a is b for a, b in zip(before, moved.to(second).parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimiser_steps_as_on_the_cpu(second, fused):
    results = []
    for device in (torch.device("cpu"), second):
        model = network().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        for _ in range(2):
            optimizer.zero_grad()
            model(picture().to(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        results.append([p.detach().cpu() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_factories_views_and_writing_through_views(second):
    assert torch.equal(torch.arange(2, 11, 3, device=second).cpu(), torch.tensor([2, 5, 8]))
    x = torch.zeros(2, 3, device=second)
    x[0, 1:] = 5
    assert x.tolist() == [[0, 5, 5], [0, 0, 0]] and f"{x.sum():.1f}" == "10.0"
    assert torch.linspace(0, 1, 3, device=second).tolist() == [0, 0.5, 1]
    assert torch.tensor([1, 2], device=second).device == torch.full((2,), 1.0, device=second).device == second


SHAPES_CHANGED = {
    "squeeze_": lambda x: x.squeeze_(1),
    "unsqueeze_": lambda x: x.unsqueeze_(0).add_(1),
    "transpose_": lambda x: x.transpose_(0, 2),
    "quantile": lambda x: x.quantile(0.75, dim=-1),
    "several quantiles": lambda x: x.flatten().quantile(x.new_tensor([0.1, 0.9])),
}


@pytest.mark.parametrize("change", SHAPES_CHANGED)
def test_a_shape_that_changes_in_place_is_followed(second, change):
    """And the gradient after it is the CPU's."""
    here = torch.rand(2, 1, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    there = here.detach().to(second).requires_grad_()
    results = [SHAPES_CHANGED[change](x * 2) for x in (here, there)]
    assert results[0].shape == results[1].shape and results[0].stride() == results[1].stride()
    assert results[1].device == second and torch.equal(results[0], results[1].cpu())
    for result in results:
        result.square().sum().backward()
    assert torch.equal(here.grad, there.grad.cpu())


def test_saved_tensors_come_back_where_they_are_mapped_to(second):
    file = io.BytesIO()
    torch.save({"weights": network().to(second).state_dict(), "step": 3}, file)
    for where in (second, torch.device("cpu")):
        file.seek(0)
        state = torch.load(file, map_location=where, weights_only=True)
        assert state["step"] == 3 and {x.device for x in state["weights"].values()} == {where}
        assert torch.equal(state["weights"]["0.weight"].cpu(), network()[0].weight)


def test_copies_checkpoints_attention_and_scalers_work(second):
    model = network().to(second)
    twin = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        twin[0].weight.zero_()
        torch._foreach_lerp_(list(twin.parameters()), list(model.parameters()), 0.5)
    torch.testing.assert_close(twin[0].weight.cpu(), model[0].weight.detach().cpu() / 2)
    scaler = torch.amp.GradScaler("second")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    loss = checkpoint(model, picture().to(second), use_reentrant=False).sum()
    query = torch.randn(1, 2, 5, 8, device=second, requires_grad=True)
    scaler.scale(loss + F.scaled_dot_product_attention(query, query, query).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert query.grad.device == second


def test_a_copy_an_index_on_the_cpu_and_a_number_on_the_cpu_are_allowed(second):
    x = torch.arange(6.0, device=second)
    assert x[torch.tensor([1, 2])].tolist() == [1, 2] and x[torch.tensor([True] + [False] * 5)].tolist() == [0]
    assert (x * torch.tensor(2.0)).device == (x + 1).device == second
    assert torch.zeros(6).copy_(x).tolist() == x.cpu().tolist()
    x[torch.tensor([0])] = torch.tensor(7.0)
    assert float(x[0]) == 7


MISTAKES = {
    "the input on the CPU": lambda d: network().to(d)(picture()),
    "a weight on the CPU": lambda d: network()(picture().to(d)),
    "a mask made on the CPU": lambda d: picture().to(d).masked_fill(torch.ones(2, 3, 8, 8, dtype=torch.bool), 0),
    "a constant made on the CPU": lambda d: picture().to(d) * torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1),
    "indices on the CPU": lambda d: nn.Embedding(4, 2).to(d)(torch.tensor([1])),
    "a table on the CPU": lambda d: torch.arange(9)[torch.tensor([1], device=d)],
    "a mean weight per sample on the CPU": lambda d: (picture().to(d).mean(dim=(1, 2, 3)) * torch.ones(2)).mean(),
    "a target on the CPU": lambda d: F.mse_loss(picture().to(d), picture()),
    "a sum kept on the CPU": lambda d: torch.zeros(()).add_(picture().to(d).sum()),
    "pictures of two devices in one batch": lambda d: torch.cat([picture(), picture().to(d)]),
    "numbers of two devices in one tensor": lambda d: torch.stack([torch.zeros(()), torch.zeros((), device=d)]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_tensor_on_the_wrong_device_is_found(second, mistake):
    with pytest.raises(RuntimeError, match=MIXED):
        MISTAKES[mistake](second)


def test_an_average_of_weights_on_another_device_is_found(second):
    model = network().to(second)
    ema = copy.deepcopy(model).cpu()
    with torch.no_grad(), pytest.raises(RuntimeError, match=MIXED):
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 0.5)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimisers_state_on_another_device_is_found(second, fused):
    model = network().to(second)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    for _ in range(2):
        model(picture().to(second)).sum().backward()
        if optimizer.state:
            moments = optimizer.state[model[0].weight]
            moments["exp_avg"] = moments["exp_avg"].cpu()
            with pytest.raises(RuntimeError, match=MIXED):
                optimizer.step()
            return
        optimizer.step()


DRAWS = {
    "randn": lambda d, source: torch.randn(3, device=d, generator=source),
    "normal_": lambda d, source: torch.zeros(3, device=d).normal_(generator=source),
    "randperm": lambda d, source: torch.randperm(3, device=d, generator=source),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_generator_of_the_cpu_is_found(second, draw):
    with pytest.raises(RuntimeError, match="device type for generator but found 'cpu'"):
        DRAWS[draw](second, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), np.asarray])
def test_numpy_of_it_is_refused(second, convert):
    with pytest.raises(TypeError, match="can't convert second:0 device type tensor to numpy"):
        convert(torch.ones(2, device=second))


def test_nobody_sees_the_device_afterwards():
    """In a process of its own: other tests of this one go on under the device of this file's fixture."""
    code = (
        "import torch, second_device\n"
        "with second_device.second_device() as device: torch.ones(1, device=device)\n"
        "assert not torch.accelerator.is_available() and not torch.__future__.get_swap_module_params_on_conversion()\n"
        "x = torch.ones(3, requires_grad=True); x.sum().backward()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
