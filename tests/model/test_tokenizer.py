"""Our tokenizer is CLIP's."""

import inspect

import pytest
import torch

from t2l.model.tokenizer import (
    END_ID,
    MAX_TOKENS,
    START_ID,
    VOCABULARY_SIZE,
    Tokenizer,
    byte_symbols,
    read_merges,
    vocabulary,
)

TRICKY = [
    "",
    "a photo of a cat",
    "A RED Teapot  on\t a\n wooden table",
    "it's don't we'll I'VE o'clock 'S",
    "\U0001f98a a fox \U0001f600\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "x" * 10_000,
    "word " * 3000,
    "na\u00efve caf\u00e9 \u00c5\u00c4\u00d6 \u1e9e \u03a3\u03c3\u03c2 e\u0301",
    "1234567890 3.14 \u00bd \u2167",
    "<|endoftext|> hi <|startoftext|>there <|ENDOFTEXT|>",
    "\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8 a\u00a0b\u3000c\u200bd",
    "&amp; !!!???...--- \x00\x01",
    "a b " * 38,
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_known_prompts_have_their_published_ids(tokenizer):
    ids = tokenizer(["a photo of a cat", ""])
    assert ids[0, :8].tolist() == [START_ID, 320, 1125, 539, 320, 2368, END_ID, END_ID]
    assert ids[1].tolist() == [START_ID] + [END_ID] * (MAX_TOKENS - 1)


def test_every_prompt_becomes_77_ids_that_begin_with_start_and_finish_with_end(tokenizer):
    ids = tokenizer(TRICKY)
    assert ids.shape == (len(TRICKY), MAX_TOKENS) and ids.dtype == torch.long
    assert (ids[:, 0] == START_ID).all() and (ids[:, -1] == END_ID).all()
    assert ids.max() < VOCABULARY_SIZE


def test_ids_are_those_of_transformers(tokenizer):
    from transformers import CLIPTokenizer

    merges = read_merges()
    if "merges" not in inspect.signature(CLIPTokenizer).parameters:
        pytest.skip("transformers 4 takes it from files alone")
    reference = CLIPTokenizer(vocab=vocabulary(), merges=merges)
    options = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    torch.testing.assert_close(tokenizer(TRICKY), reference(TRICKY, **options)["input_ids"])


@pytest.mark.parametrize("prompt", [p for p in TRICKY if "<|" not in p and len(p) < 1000])
def test_ids_are_those_of_the_published_algorithm(tokenizer, prompt):
    """OpenAI's own loop, written anew: split into words, then join the best pair until none is left."""
    import unicodedata

    import regex

    ranks = {pair: i for i, pair in enumerate(read_merges())}
    ids = vocabulary()
    symbol = dict(zip(printable_first(), byte_symbols(), strict=True))
    expected = [START_ID]
    text = " ".join(unicodedata.normalize("NFC", prompt).split()).lower()
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", text):
        parts = [symbol[b] for b in word.encode()]
        expected += [ids[part] for part in joined([*parts[:-1], parts[-1] + "</w>"], ranks)]
    assert tokenizer([prompt])[0].tolist() == (expected[: MAX_TOKENS - 1] + [END_ID] * MAX_TOKENS)[:MAX_TOKENS]


def printable_first():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


def joined(parts, ranks):
    while len(parts) > 1:
        best = min(zip(parts, parts[1:], strict=False), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            fits = tuple(parts[i : i + 2]) == best
            merged.append("".join(best) if fits else parts[i])
            i += 2 if fits else 1
        parts = merged
    return parts


def test_the_ids_of_captions_are_listed_once_with_start_and_end(tokenizer):
    assert tokenizer.ids_in(["a cat", "a a cat"]) == (320, 2368, START_ID, END_ID)


def test_a_single_text_instead_of_a_list_is_refused(tokenizer):
    with pytest.raises(TypeError, match="takes a list of prompts, got the single text 'a cat'"):
        tokenizer("a cat")


def test_half_a_surrogate_pair_is_read_as_a_question_mark(tokenizer):
    assert torch.equal(tokenizer(["a \ud83d b"]), tokenizer(["a ? b"]))
