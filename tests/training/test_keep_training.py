"""A UNet that learns to keep a layer: its cache, its batches, its run, and what does not fit."""

from dataclasses import replace

import pytest
import torch

from t2l.data.batches import LatentBatches
from t2l.data.buckets import center_crop
from t2l.data.latents import Latents
from t2l.data.shards import Shards
from t2l.keep import KINDS, keep_channels, keep_condition, layers_to_encode, mask_on_grid
from t2l.model.text2layer import Text2Layer, load_autoencoder
from t2l.model.tokenizer import Tokenizer
from t2l.training.latent_cache import CacheConfig, write_cache
from t2l.training.start import check_cache
from t2l.training.train_unet import train_unet

CHANNELS = 4
KEEPING = CHANNELS + keep_channels(CHANNELS)


@pytest.fixture(scope="module")
def kept(shards, latents, tmp_path_factory):
    """A cache with each layer alone."""
    folder = tmp_path_factory.mktemp("kept")
    write_cache(Latents(latents).autoencoder, shards, folder, CacheConfig(size=32, bucket_step=8, keep=True))
    return folder


def keeping(config, **changes):
    return replace(config, unet=replace(config.unet, in_channels=KEEPING), **changes)


def test_a_cache_holds_each_layer_alone_and_the_mask(shards, kept):
    cached = Latents(kept)
    autoencoder, numbers = load_autoencoder(cached.autoencoder), cached.pictures(0, torch.arange(12))
    assert cached.keeps
    for kind in KINDS:
        mean, mask = cached.read_kept(0, torch.arange(12), kind)
        for rank, number in enumerate(numbers.tolist()):
            layers = center_crop(Shards(shards)[number].layers, (32, 32))
            with torch.no_grad():
                expected = autoencoder.encode(layers_to_encode(layers, kind)).mean
            torch.testing.assert_close(mean[rank : rank + 1], expected, atol=0.03, rtol=0.03)
            torch.testing.assert_close(mask[rank : rank + 1], mask_on_grid(layers.mask, (16, 16)), atol=1e-3, rtol=0)


def test_batches_tell_one_layer_of_as_many_samples_as_the_config_says(kept, unet_config):
    config, cached = keeping(unet_config, keep_prob=0.6, batch_size=12), Latents(kept)
    batches = LatentBatches(cached, config.batches, 0.5, Tokenizer())
    counts = dict.fromkeys([*KINDS, None], 0)
    for step in range(40):
        batch, (bucket, ranks) = batches[step], batches.order[step]
        for i in range(12):
            flags = batch.kept[i, -2:, 0, 0].tolist()
            kind = KINDS[flags.index(1)] if 1 in flags else None
            counts[kind] += 1
            if kind is None:
                assert not batch.kept[i].any()
                continue
            mean, mask = cached.read_kept(bucket, ranks[i : i + 1], kind)
            assert torch.equal(batch.kept[i : i + 1], keep_condition(mean * 0.5, mask, kind))
    assert [round(count / 480, 1) for count in counts.values()] == [0.3, 0.3, 0.4]


def test_channels_for_a_kept_layer_change_no_other_draw(kept, unet_config):
    plain, told = (
        LatentBatches(Latents(kept), config.batches, 0.5, Tokenizer())[2]
        for config in (unet_config, keeping(unet_config, keep_prob=0.5))
    )
    assert plain.kept.shape == (4, 0, 16, 16) and told.kept.shape == (4, keep_channels(CHANNELS), 16, 16)
    assert all(torch.equal(x, y) for x, y in zip(plain[:-1], told[:-1], strict=True))


def test_a_plain_unet_goes_on_as_one_that_keeps_and_again_from_its_own_snapshot(kept, unet_config, tmp_path):
    first = train_unet(replace(unet_config, num_steps=2), kept, tmp_path / "plain")
    config = keeping(unet_config, num_steps=2, keep_prob=0.8)
    second = train_unet(config, kept, tmp_path / "keeping", init=first)
    third = train_unet(config, kept, tmp_path / "again", init=second)
    weights = [Text2Layer.load(path).unet.conv_in.weight for path in (second, third)]
    assert Text2Layer.load(third).keeps and weights[0].shape[1] == KEEPING
    assert weights[0][:, CHANNELS:].any() and not torch.equal(*weights)


@pytest.mark.parametrize(
    ("in_channels", "has_layers_alone", "message"),
    [
        (CHANNELS, True, "keep_prob 0.5 needs a UNet with channels .*: set unet.in_channels to 11, got 4, and make"),
        (KEEPING, False, "keep_prob 0.5 needs .* and make the latents in .* with --keep, or set keep_prob to 0"),
        (8, True, "takes 8 and gives 4; set unet.in_channels and unet.out_channels to 4 .in_channels to 11 where"),
    ],
)
def test_what_does_not_fit_is_said(in_channels, has_layers_alone, message, kept, latents, unet_config):
    cached = Latents(kept if has_layers_alone else latents)
    config = replace(unet_config, unet=replace(unet_config.unet, in_channels=in_channels), keep_prob=0.5)
    with pytest.raises(ValueError, match=message):
        check_cache(cached, config, load_autoencoder(cached.autoencoder))


def test_a_cache_without_each_layer_alone_is_not_gone_on_with(shards, latents, kept, tmp_path):
    with pytest.raises(ValueError, match="holds a cache of something else, made with .*keep.*true"):
        write_cache(Latents(latents).autoencoder, shards, kept, CacheConfig(size=32, bucket_step=8))
