"""The text encoder is CLIP's, also with a small vocabulary."""

import copy
from dataclasses import replace

import pytest
import torch

from t2l.config import config_from_dict, config_to_dict
from t2l.model.text_encoder import TABLE, TextEncoder, TextEncoderConfig, add_tokens, full_vocabulary
from t2l.model.tokenizer import END_ID, START_ID, VOCABULARY_SIZE

IDS = (START_ID, 320, 1125, END_ID, 2368)
SIZE = {"width": 32, "num_layers": 2, "num_heads": 2, "hidden_width": 64}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder(TextEncoderConfig(**SIZE, token_ids=IDS)).eval()


def prompts():
    ids = torch.full((2, 77), END_ID)
    ids[:, :5] = torch.tensor([[START_ID, 320, 999, 2368, 1125], [START_ID, 1125, 320, 7, 48000]])
    return ids


@torch.no_grad()
def test_the_compact_table_gives_what_transformers_gives_with_the_full_one(encoder):
    from transformers import CLIPTextConfig, CLIPTextModel

    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    reference = CLIPTextModel(CLIPTextConfig(vocab_size=VOCABULARY_SIZE, **names, eos_token_id=END_ID)).eval()
    full = full_vocabulary(encoder.state_dict(), encoder.config)
    has_prefix = next(iter(reference.state_dict())).startswith("text_model.")
    reference.load_state_dict({k if has_prefix else k.removeprefix("text_model."): x for k, x in full.items()})
    assert torch.equal(encoder(prompts()), reference(prompts()).last_hidden_state)


def test_the_full_table_has_every_listed_row_in_its_place_and_the_unknown_row_elsewhere(encoder):
    compact = encoder.state_dict()[TABLE]
    full = full_vocabulary(encoder.state_dict(), encoder.config)[TABLE]
    assert compact.shape == (1 + len(IDS), 32) and full.shape == (VOCABULARY_SIZE, 32)
    assert torch.equal(full[torch.tensor(IDS)], compact[1:])
    assert torch.equal(full[[0, 1000, 49405]], compact[:1].expand(3, -1))


def test_tokens_without_a_row_all_mean_unknown(encoder):
    one, other = prompts(), prompts()
    other[other == 999], other[other == 48000] = 5, 1001
    assert torch.equal(encoder(one), encoder(other))


def test_new_tokens_get_rows_and_change_nothing_until_they_are_trained(encoder):
    grown = copy.deepcopy(encoder)
    new = (30_000, 7, *encoder.config.token_ids[:1], 7)
    add_tokens(grown, new)
    assert grown.config.token_ids == (*encoder.config.token_ids, 30_000, 7)
    known = torch.tensor([encoder.config.token_ids[0], 30_000, 7, 40_000])
    ids = known[torch.randint(4, (3, 77), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        assert torch.equal(grown(ids), encoder(ids))
        grown.text_model.embeddings.token_embedding.weight[-2] += 1  # the row of 30,000 alone
        assert not torch.equal(grown(torch.full((1, 77), 30_000)), encoder(torch.full((1, 77), 30_000)))
        for other in (7, 40_000, encoder.config.token_ids[0]):
            assert torch.equal(grown(torch.full((1, 77), other)), encoder(torch.full((1, 77), other)))
    again = TextEncoder(grown.config)
    again.load_state_dict(grown.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids), grown(ids))


def test_an_encoder_with_the_whole_vocabulary_has_nothing_to_add(encoder):
    whole = TextEncoder(replace(encoder.config, token_ids=None))
    add_tokens(whole, (1, 2))
    assert whole.config.token_ids is None and whole.config.num_rows == 49408


def test_a_token_changes_only_what_comes_after_it(encoder):
    changed = prompts()
    changed[:, 3] = 320
    before, after = encoder(prompts()), encoder(changed)
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])


def test_the_defaults_are_the_text_encoder_of_sd():
    with torch.device("meta"):
        sd = TextEncoder(TextEncoderConfig())
    assert sum(p.numel() for p in sd.parameters()) == 123_060_480
    assert all(name.startswith("text_model.") for name in sd.state_dict())


def test_a_config_survives_json(encoder):
    assert config_from_dict(TextEncoderConfig, config_to_dict(encoder.config)) == encoder.config


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width must be a multiple of num_heads, got 30 and 4"):
        TextEncoderConfig(width=30, num_heads=4)


@pytest.mark.parametrize("ids", [(1, 1), (VOCABULARY_SIZE,), (-1,)])
def test_ids_that_cannot_be_are_refused(ids):
    with pytest.raises(ValueError, match="token_ids must be different ids from 0 to 49407"):
        TextEncoderConfig(token_ids=ids)
