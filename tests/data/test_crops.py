"""Pieces of pictures for the autoencoder: 8 bits, exact where nothing is resized, else rounded once."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from t2l.data.crops import CropBatches, CropConfig, crop_batches, pixels_from_bytes
from t2l.data.example import Example
from t2l.data.shards import Shards, write_shard
from t2l.draws import sample_generator
from t2l.layers import Layers

PLAIN = CropConfig(batch_size=8, crop=16, rescale=0.0, flat=0.0)


def example(number, size):
    generator = torch.Generator().manual_seed(number)
    return Example(f"k{number}", Layers.from_stacked(torch.rand(1, 7, *size, generator=generator)), caption=f"{number}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder, 0, [example(number, (40, 50)) for number in range(3)])
    write_shard(folder, 1, [example(number, size) for number, size in enumerate([(30, 90), (12, 20), (16, 16)], 3)])
    return Shards(folder)


def first_version(shards, config, seed, step, order):
    """Its rule, written out on floats, for pictures in another order."""
    pieces = []
    for number in range(config.batch_size):
        stacked = shards[order[number // config.crops_per_example]].layers.stacked
        generator = sample_generator(seed, step * config.batch_size + number, "crop")
        uniform = lambda generator=generator: float(torch.rand((), generator=generator))  # noqa: E731
        size, largest = config.crop, min(stacked.shape[-2:])
        if largest < size:
            enlarged = [max(size, round(side * size / largest)) for side in stacked.shape[-2:]]
            stacked, largest = F.interpolate(stacked, size=enlarged, mode="bilinear"), size
        side = size + round((largest - size) * uniform()) if uniform() < config.rescale else size
        top = int(uniform() * (stacked.shape[-2] - side + 1))
        left = int(uniform() * (stacked.shape[-1] - side + 1))
        piece = stacked[..., top : top + side, left : left + side]
        if side != size:
            piece = F.interpolate(piece, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
        if uniform() < 0.5:
            piece = piece.flip(-1)
        if uniform() < config.flat:
            piece = Layers.flat(Layers.from_stacked(piece).composite()).stacked
        pieces.append(piece)
    return torch.cat(pieces)


def order_of(shards, config, seed, step):
    read = []

    class Seen(Shards):
        def pictures(self, index):
            read.append(index)
            return super().pictures(index)

    CropBatches(Seen(shards.directory), config, seed)[step]
    return read


@pytest.mark.parametrize(("rescale", "flat"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_a_batch_is_the_first_versions_rounded_once(rescale, flat, shards):
    config = replace(PLAIN, rescale=rescale, flat=flat)
    for step in range(4):
        found = CropBatches(shards, config, 5)[step]
        assert found.dtype == torch.uint8 and found.shape == (8, 7, 16, 16)
        expected = first_version(shards, config, 5, step, order_of(shards, config, 5, step))
        assert (found - 255 * expected).abs().max() <= 0.5001
        assert (pixels_from_bytes(found) - expected).abs().max() <= 0.5001 / 255


def test_what_is_not_resized_is_exact_on_the_device(shards):
    large = [number for number in range(6) if number != 4]  # the fifth must be enlarged
    for step in range(6):
        order = order_of(shards, PLAIN, 1, step)
        expected = first_version(shards, PLAIN, 1, step, order)
        exact = [number for number in range(8) if order[number // 2] in large]
        assert torch.equal(pixels_from_bytes(CropBatches(shards, PLAIN, 1)[step])[exact], expected[exact])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_picture_has_a_mask_of_one_half_exactly_and_no_other_is_touched(dtype):
    batch = torch.randint(0, 256, (3, 7, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch[1, 6] = 128
    batch[2, 6] = 128
    batch[2, 6, 1, 1] = 127
    pixels = pixels_from_bytes(batch, dtype)
    assert pixels.dtype == dtype and (pixels[1, 6] == 0.5).all()
    others = batch.to(dtype) / 255
    assert torch.equal(pixels[[0, 2]], others[[0, 2]]) and torch.equal(pixels[1, :6], others[1, :6])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_step_whoever_reads_them(workers, shards):
    config = CropConfig(batch_size=4, crop=16)
    batches = list(crop_batches(shards, config, 3, 5, 9, workers))
    assert all(torch.equal(batch, CropBatches(shards, config, 3)[step]) for step, batch in enumerate(batches, 5))


def test_an_epoch_shows_every_picture_once(shards):
    config = replace(PLAIN, batch_size=4, crops_per_example=2)
    read = [index for step in range(6) for index in order_of(shards, config, 0, step)]
    assert sorted(read[:6]) == sorted(read[6:]) == list(range(6)) and read[:6] != read[6:]
