import time

import pytest
import torch

from t2l.io.layer_tree import MAX_PIXELS, Account, Clipped, Group, Mask, plain_layers
from t2l.stack import Layer, Stack
from tests.io.conftest import noise


def layer(seed: int, **other) -> Layer:
    return Layer(image=noise(3, 6, 8, seed=seed), mask=noise(1, 6, 8, seed=seed + 9), name=f"layer {seed}", **other)


def composite(*nodes) -> torch.Tensor:
    return Stack(6, 8, tuple(plain_layers(nodes, 6, 8, Account("a.psd")))).composite()


def test_taking_layers_out_of_a_plain_group_changes_nothing_but_a_faded_one_stays_together():
    low, a, b = layer(0), layer(1), layer(2, x=3)
    plain, faded = (Group(children=(a, b), opacity=opacity) for opacity in (1.0, 0.5))
    assert len(plain_layers([low, plain], 6, 8, Account("a.psd"))) == 3
    assert torch.equal(composite(low, plain), composite(low, a, b))
    torch.testing.assert_close(composite(low, faded), torch.lerp(composite(low), composite(low, a, b), 0.5))


def test_a_group_s_mask_covers_all_of_it():
    """The upper half shows; the group that is masked holds a group that is faded."""
    low, inner = layer(0), Group(children=(layer(1),), opacity=0.4)
    masked = Group(children=(inner,), mask=Mask(torch.ones(3, 8), 0, 0, outside=0.0))
    found, expected = composite(low, masked), composite(low)
    expected[:, :3] = torch.lerp(expected, composite(low, layer(1)), 0.4)[:, :3]
    torch.testing.assert_close(found, expected)


def test_a_group_with_a_blend_mode_is_isolated_and_passing_through_is_not():
    low, shade = layer(0), layer(1, blend_mode="multiply")
    assert torch.equal(composite(low, Group(children=(shade,), pass_through=True)), composite(low, shade))
    isolated = Layer(image=shade.image, mask=shade.mask)
    torch.testing.assert_close(composite(low, Group(children=(shade,))), composite(low, isolated))


def test_a_faded_group_that_lets_blend_modes_through_is_named():
    account = Account("a.psd")
    group = Group(children=(layer(1, blend_mode="multiply"),), name="glow", pass_through=True, opacity=0.5)
    plain_layers([layer(0), group], 6, 8, account)
    assert account.notes == [
        "the group 'glow' lets blend modes through while it is faded or masked; it is merged without that"
    ]


def test_a_clipped_layer_keeps_to_the_mask_of_its_base_and_mixes_with_its_colours():
    base, upper = layer(0, x=2), layer(1, opacity=0.5, blend_mode="screen")
    (found,) = plain_layers([Clipped(base=base, above=(upper,))], 6, 8, Account("a.psd"))
    assert torch.equal(found.mask, base.mask) and found.x == 2
    assert torch.equal(found.image[:, :, 6:], base.image[:, :, 6:])  # where the upper layer does not reach
    inner, painted = base.image[:, :, :6], upper.image[:, :, 2:]
    expected = torch.lerp(inner, inner + painted - inner * painted, upper.mask[:, :, 2:] * 0.5)
    torch.testing.assert_close(found.image[:, :, :6], expected)


def test_many_faded_groups_on_a_large_canvas_take_no_time():
    groups = [Group(children=(layer(i, x=i, y=i),), opacity=0.5) for i in range(500)]
    start = time.process_time()
    assert len(plain_layers(groups, 5000, 5000, Account("a.psd"))) == 500
    assert time.process_time() - start < 5


def test_a_group_whose_layers_lie_far_apart_counts_with_all_that_is_between():
    side = 7000
    far = Group(children=(layer(0), layer(1, x=side, y=side)), opacity=0.5)
    with pytest.raises(ValueError, match=f"a.psd is too large: .*more than {MAX_PIXELS:,} pixels together"):
        plain_layers([far], 2 * side, 2 * side, Account("a.psd"))
