"""Training on a latent cache: batches of one shape, the text encoder's cached output, the command that makes it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from t2l.data.batches import LatentBatches
from t2l.data.example import Example
from t2l.data.latents import Latents
from t2l.data.orders import shuffle_epochs
from t2l.data.shards import write_shard
from t2l.draws import sample_noise, step_generator
from t2l.io.checkpoint import read_metadata, read_tensors
from t2l.layers import Layers
from t2l.model.autoencoder import LayeredAutoencoder
from t2l.model.text2layer import Text2Layer, latent_preview, load_autoencoder, save_autoencoder
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from t2l.model.tokenizer import Tokenizer
from t2l.model.unet import Conditioned
from t2l.training.latent_cache import CacheConfig, write_cache
from t2l.training.start import starting_networks
from t2l.training.train_unet import train_unet
from tests.training.conftest import AUTOENCODER
from tests.training.run_training import Launched

SIZES = [(32, 32), (40, 72), (64, 36), (33, 30)]  # by turns
TEXT = TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64)
SCALE = 0.2


def example(number):
    generator = torch.Generator().manual_seed(number)
    pixels = F.interpolate(torch.rand(1, 7, 6, 6, generator=generator), size=SIZES[number % 4], mode="bilinear")
    texts = {"foreground_caption": f"a cup {number % 3}", "background_caption": "on a table"}
    return Example(f"k{number:02d}", Layers.from_stacked(pixels), caption="a cup on a table", **texts)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_shard(folder, 0, [example(number) for number in range(10)])
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("autoencoder") / "autoencoder.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_autoencoder(LayeredAutoencoder(AUTOENCODER), path)
    return path


@pytest.fixture(scope="module")
def buckets(pictures, autoencoder, tmp_path_factory):
    """A cache of three shapes, without embeddings."""
    folder = tmp_path_factory.mktemp("buckets")
    write_cache(autoencoder, pictures, folder, CacheConfig(size=32, bucket_step=8))
    return folder


@pytest.fixture(scope="module")
def embedded(pictures, autoencoder, stable_diffusion, tmp_path_factory):
    """The same with the embeddings of Stable Diffusion's text encoder, and what the check said of it."""
    folder = tmp_path_factory.mktemp("embedded")
    config = CacheConfig(size=32, bucket_step=8, text_encoder=TEXT)
    return folder, write_cache(autoencoder, pictures, folder, config, stable_diffusion.path, check=3)


@pytest.fixture
def frozen(unet_config):
    diffusion = replace(unet_config.diffusion, prediction="eps")
    return replace(
        unet_config,
        frozen=("text_encoder",),
        unknown_word=0.0,
        cond_drop_prob=0.3,
        diffusion=diffusion,
        precision="fp32",
    )


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "stats.jsonl").read_text().splitlines()]


def test_the_batches_of_square_pictures_are_written_out(unet_config, latents):
    """The first version's rule, but for the order of the pictures: what it drew for a sample is drawn still."""
    config = replace(unet_config, cond_drop_prob=0.3, unknown_word=0.2)
    cached, size = Latents(latents), config.batch_size
    tokenizer = Tokenizer()
    batches = LatentBatches(cached, config.batches, SCALE, tokenizer)
    for step in range(7):  # 12 pictures in batches of 4: more than two epochs
        positions = range(step * size, (step + 1) * size)
        index = torch.from_numpy(shuffle_epochs(np.array(positions), 12, config.seed))
        generator = step_generator(config.seed, step)
        even = (torch.rand((), generator=generator) + torch.arange(size) / size) % 1
        t = (even * 1000).long()[torch.randperm(size, generator=generator)]
        ways = torch.randint(2, (size,), generator=generator).tolist()
        text = tokenizer([said[way] for said, way in zip(cached.captions[index], ways, strict=True)])
        unknown = torch.rand(text.shape, generator=generator) < 0.2
        dropped = torch.rand(size, generator=generator) < 0.3
        text = torch.where(unknown & (text >= 256) & (text < 49406), 0, text)
        mean, std = cached.read(index)
        drawn = (mean + std * sample_noise(config.seed, positions, mean.shape[1:], "posterior")) * SCALE
        noise = sample_noise(config.seed, positions, mean.shape[1:], "noise")
        expected = drawn, noise, t, torch.where(dropped[:, None], tokenizer([""]), text), mean[:, :0]
        assert all(torch.equal(x, y) for x, y in zip(batches[step], expected, strict=True))


def test_a_bucketed_batch_has_one_shape_and_its_shares_are_the_batch(unet_config, buckets):
    cached, shapes = Latents(buckets), set()
    for step in range(8):
        whole = LatentBatches(cached, unet_config.batches, SCALE, Tokenizer())[step]
        shapes.add(whole.latents.shape)
        shares = [
            LatentBatches(cached, unet_config.batches, SCALE, Tokenizer(), part)[step]
            for part in (range(0, 2), range(2, 4))
        ]
        assert all(torch.equal(torch.cat(parts), x) for x, *parts in zip(whole, *shares, strict=True))
    assert shapes == {(4, 4, 16, 16), (4, 4, 12, 20), (4, 4, 20, 12)}


def test_a_run_on_buckets_validates_previews_and_gives_a_snapshot(unet_config, buckets, tmp_path):
    config = replace(unet_config, num_steps=4, gradient_accumulation_steps=2)
    snapshot = train_unet(config, buckets, tmp_path, validation=buckets)
    assert read_metadata(snapshot)["size"] == "32" and '"validation_loss"' in (tmp_path / "stats.jsonl").read_text()
    cached = Latents(buckets)
    factors, bias = latent_preview(load_autoencoder(cached.autoencoder), cached.sample_means(64))
    assert torch.tensor(factors).shape == (4, 3) and torch.tensor(bias).isfinite().all()


def test_cached_embeddings_are_what_the_encoder_says_of_the_same_steps_tokens(
    frozen, buckets, embedded, stable_diffusion
):
    tokens, cached = (
        LatentBatches(Latents(folder), frozen.batches, SCALE, Tokenizer()) for folder in (buckets, embedded[0])
    )
    for step in range(3):
        with torch.no_grad():
            direct = stable_diffusion.text_encoder(tokens[step].text)
        torch.testing.assert_close(cached[step].text, direct, rtol=2**-10, atol=2**-14)
        assert torch.equal(cached[step].latents, tokens[step].latents)


def test_training_on_embeddings_never_runs_the_text_encoder_and_is_training_on_tokens_but_for_rounding(
    frozen, buckets, embedded, stable_diffusion, tmp_path, monkeypatch
):
    train_unet(frozen, buckets, tmp_path / "tokens", stable_diffusion.path)
    monkeypatch.setattr(TextEncoder, "forward", lambda self, ids: pytest.fail("the text encoder ran"))
    found = Text2Layer.load(train_unet(frozen, embedded[0], tmp_path / "cached", stable_diffusion.path))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "tokens"), rel=1e-3)
    assert fingerprint(found.text_encoder) == fingerprint(stable_diffusion.text_encoder)


def test_the_check_of_the_command_says_what_it_found(embedded):
    pictures, captions = embedded[1]
    assert pictures.startswith("the latents of 3 pictures, computed again") and "of 3 captions" in captions


def test_embeddings_that_would_not_be_the_encoders_are_refused(
    unet_config, frozen, embedded, stable_diffusion, buckets, tmp_path
):
    start = stable_diffusion.path
    with pytest.raises(ValueError, match='stand for a frozen text encoder: put "text_encoder" into frozen, or make'):
        train_unet(replace(frozen, frozen=()), embedded[0], tmp_path / "1", start)
    with pytest.raises(ValueError, match="cannot be replaced in text embeddings: set unknown_word to 0, got 0.01"):
        train_unet(replace(frozen, unknown_word=0.01), embedded[0], tmp_path / "2", start)
    other = train_unet(replace(frozen, frozen=(), num_steps=1), buckets, tmp_path / "other", start)
    with pytest.raises(ValueError, match="of another text encoder than that of --init: start from the checkpoint they"):
        train_unet(frozen, embedded[0], tmp_path / "3", other)
    with pytest.raises(ValueError, match="must have text embeddings of the same encoder as those trained on, or none"):
        train_unet(frozen, embedded[0], tmp_path / "4", start, validation=buckets)


def test_a_checkpoint_of_ours_has_the_fingerprint_of_the_float32_file_it_came_from(stable_diffusion):
    halved = TextEncoder(TEXT)
    halved.load_state_dict({name: x.half() for name, x in stable_diffusion.text_encoder.state_dict().items()})
    assert fingerprint(halved) == fingerprint(stable_diffusion.text_encoder)
    halved.text_model.final_layer_norm.bias.data[0] += 1e-3
    assert fingerprint(halved) != fingerprint(stable_diffusion.text_encoder)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_train_what_one_trains_on_buckets_and_embeddings(
    sharding, frozen, embedded, stable_diffusion, tmp_path
):
    config = replace(frozen, num_steps=3, adam_eps=1e-4)
    for count in (1, 2):
        spread = replace(config, sharding=sharding if count > 1 else "none")
        Launched(count, train_unet, spread, embedded[0], tmp_path / str(count), stable_diffusion.path).wait()
    one, two = (read_tensors(tmp_path / name / "snapshot.safetensors")[0] for name in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-3)  # fp16
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-5)


def test_a_compiled_network_is_traced_twice_however_many_shapes_there_are(unet_config):
    """Once for the first shape, once for all others. The kernels are left out: making them is not what is tested."""
    networks, traced = starting_networks(unet_config, None), []
    network = Conditioned(*networks).eval()
    compiled = torch.compile(network, backend=lambda graph, inputs: traced.append(graph) or graph.forward)
    generator = torch.Generator().manual_seed(0)
    for shape in [(16, 16), (12, 20), (20, 12), (24, 8)]:
        x, text = torch.randn(2, 4, *shape, generator=generator), torch.randn(2, 77, 32, generator=generator)
        t = torch.tensor([3, 900])
        torch.testing.assert_close(compiled(x, t, text), network(x, t, text))
    assert len(traced) == 2


@pytest.mark.parametrize(("name", "config"), [("size", {"size": 33}), ("the buckets' step", {"bucket_step": 9})])
def test_sizes_off_the_autoencoders_grid_are_refused(name, config, pictures, autoencoder, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be a multiple of 2, the autoencoder's pixels per latent, got"):
        write_cache(autoencoder, pictures, tmp_path, CacheConfig(**config))
