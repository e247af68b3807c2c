"""Words that a start does not know: rows of their own, or a sentence."""

from dataclasses import replace

import pytest
import torch

from t2l.data.latents import Latents
from t2l.generate import GenerateConfig, generate
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import Text2Layer, load_autoencoder, read_vocabulary
from t2l.model.text_encoder import TABLE, TextEncoder
from t2l.model.tokenizer import Tokenizer
from t2l.model.unet import build_unet
from t2l.training.start import add_vocabulary, check_cache, starting_networks
from t2l.training.train_unet import train_unet

KNOWN = ["a cup on a table"]
NEW = [*KNOWN, "a quokka on a table", "a wombat and a quokka"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint of ours that knows the words of KNOWN, in the geometry of unet_config."""
    from t2l.diffusion import DiffusionConfig
    from t2l.model.text_encoder import TextEncoderConfig
    from t2l.model.unet import UNetConfig

    torch.manual_seed(1)
    text = TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64, token_ids=Tokenizer().ids_in(KNOWN))
    widths = {"base_channels": 32, "channel_multipliers": (1, 2), "attention_levels": (1,)}
    unet = UNetConfig(**widths, num_res_blocks=1, num_heads=2, conditioning_width=32)
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1))
    model = Text2Layer(
        autoencoder.eval(), build_unet(unet).eval(), TextEncoder(text).eval(), DiffusionConfig(prediction="v")
    )
    path = tmp_path_factory.mktemp("start") / "ours.safetensors"
    model.save(path, torch.float32)
    return path


def test_new_words_get_rows_are_named_and_change_no_picture_before_training(unet_config, start):
    config, said = add_vocabulary(unet_config, iter(NEW), start)
    assert said == f"3 words of the captions are new to {start} and will be learnt: quokka, wombat, and"
    before, after = Text2Layer.load(start), Text2Layer.load(start)
    after.unet, after.text_encoder = starting_networks(config, start)
    known = read_vocabulary(start)
    assert after.text_encoder.config.token_ids[: len(known)] == known
    assert set(after.text_encoder.config.token_ids) == set(Tokenizer().ids_in(NEW))
    draw = GenerateConfig(height=64, width=64, num_steps=2)
    ours, theirs = (generate(model, [*NEW, "something else"], draw).layers for model in (before, after))
    assert torch.equal(ours.stacked, theirs.stacked)


def test_a_list_of_new_words_is_cut_and_counted(unet_config, start):
    captions = [f"{word} on a table" for word in "abcdefghijklmnopqrstuvwxyz"[1:24]]
    said = add_vocabulary(unet_config, captions, start)[1]
    assert said.startswith("23 words of the captions are new to") and said.endswith("s, t, u and 3 more")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [({"frozen": ("text_encoder",)}, "take text_encoder out of frozen"), ({"lora_rank": 2}, "leave lora_rank out")],
)
def test_a_frozen_text_encoder_learns_no_word_and_says_which(change, remedy, unet_config, start):
    config = replace(unet_config, **change)
    found, said = add_vocabulary(config, NEW, start)
    assert found == config and "cannot be learnt, because the text encoder is frozen" in said
    assert "quokka, wombat, and; say them in known words" in said and said.endswith(remedy)


def test_nothing_is_said_where_no_word_is_new(unet_config, start, stable_diffusion):
    assert add_vocabulary(unet_config, KNOWN, start) == (unet_config, "")
    assert add_vocabulary(unet_config, NEW, stable_diffusion.path) == (unet_config, "")
    config, said = add_vocabulary(unet_config, NEW, None)
    assert said == "" and config.text_encoder.token_ids == Tokenizer().ids_in(NEW)


def test_a_run_that_goes_on_keeps_its_vocabulary(unet_config, start, tmp_path):
    """One that was begun before words were learnt has no rows for them in its state."""
    assert read_vocabulary(start) == add_vocabulary(unet_config, NEW, start, before=start)[0].text_encoder.token_ids
    model = Text2Layer.load(start)
    config, _ = add_vocabulary(unet_config, NEW, start)
    model.unet, model.text_encoder = starting_networks(config, start)
    model.save(tmp_path / "snapshot.safetensors")
    assert add_vocabulary(unet_config, [], start, before=tmp_path / "snapshot.safetensors") == (config, "")


def test_training_moves_the_rows_of_new_words_and_the_snapshot_knows_them(unet_config, start, latents, tmp_path):
    known = read_vocabulary(start)
    learnt = set(Tokenizer().ids_in(["a cup on a table", *(f"a cup {i}" for i in range(4))])) - set(known)
    config = replace(
        unet_config, num_steps=3, batch_size=8, lr=1e-2, lr_warmup_steps=0, ema_decay=0.0, weight_decay=0.0
    )
    model = Text2Layer.load(train_unet(config, latents, tmp_path, start))
    ids = model.text_encoder.config.token_ids
    assert ids[: len(known)] == known and set(ids[len(known) :]) == learnt
    before, after = Text2Layer.load(start).text_encoder.state_dict()[TABLE], model.text_encoder.state_dict()[TABLE]
    assert all((row - before[0]).abs().max() > 1e-3 for row in after[1 + len(known) :])


def test_a_start_that_knows_other_latents_is_named(unet_config, start, latents):
    cached = Latents(latents)
    said = check_cache(cached, unet_config, load_autoencoder(cached.autoencoder), start)
    assert said.startswith(f"the UNet of {start} knows latents of another autoencoder than that of {latents}")
    assert check_cache(cached, unet_config, load_autoencoder(start), start) == ""
