import numpy as np
import pytest
import torch

from t2l.draws import sample_generator, seeded_generator, step_generator


def first(generator):
    return torch.randint(2**31, (4,), generator=generator).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_a_seed_of_32_bits_draws_what_torch_draws(seed):
    assert first(seeded_generator(seed)) == first(torch.Generator().manual_seed(seed))
    assert first(step_generator(seed, 9)) == first(torch.Generator().manual_seed(seed * 1_000_003 + 9))


@pytest.mark.parametrize("draw", [seeded_generator, lambda seed: step_generator(seed, 3)])
def test_seeds_of_more_bits_are_not_those_of_fewer(draw):
    assert len({tuple(first(draw(seed))) for seed in (0, 1, 2**32, 2**32 + 1, 2**63 - 1)}) == 5


def test_a_sample_has_its_own_stream():
    expected = np.random.SeedSequence([5, 11, 1]).generate_state(1)[0]
    assert first(sample_generator(5, 11, "posterior")) == first(torch.Generator().manual_seed(int(expected)))
    assert first(sample_generator(5, 11, "noise")) != first(sample_generator(5, 11, "posterior"))
