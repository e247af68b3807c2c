"""CLIP's tokenizer (Radford et al. 2021): lower-cased byte-level BPE with 49,408 entries, 77 tokens a prompt.

Ids follow the published vocabulary: 256 byte symbols, the same at the end of a word, one per merge, then start and end.
Cleaning is that of transformers and ComfyUI (NFC, white space, lower case), without ftfy and HTML entities.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
START_ID, END_ID = 49406, 49407
MAX_TOKENS = 77
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """Prompts -> token ids (N, 77), int64: start, up to 75 tokens, end, padded with end. Longer prompts are cut."""

    def __init__(self) -> None:
        self._backend = _build_backend()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        if isinstance(prompts, str):
            raise TypeError(f"the tokenizer takes a list of prompts, got the single text {prompts[:40]!r}")
        texts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]  # a lone surrogate becomes "?"
        ids = [encoding.ids for encoding in self._backend.encode_batch(texts)]
        return torch.tensor(ids, dtype=torch.long).view(-1, MAX_TOKENS)

    def counts(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, start and end among them, also of those beyond the 77 that are read."""
        texts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
        return [
            2 + sum(piece.special_tokens_mask.count(0) for piece in (whole, *whole.overflowing))
            for whole in self._backend.encode_batch(texts)
        ]

    def ids_in(self, prompts: Iterable[str]) -> tuple[int, ...]:
        """Every id that occurs in the prompts, start and end included, rising: a TextEncoderConfig.token_ids."""
        ids = {START_ID, END_ID}
        for some in in_batches(prompts):
            ids.update(self(some).unique().tolist())
        return tuple(sorted(ids))


def in_batches(prompts: Iterable[str], size: int = 4096) -> Iterator[list[str]]:
    """Prompts so many at a time: a data set's captions need not be in memory, nor all their tokens."""
    source = iter(prompts)
    while some := list(islice(source, size)):
        yield some


@cache
def read_merges() -> list[tuple[str, str]]:
    """The 48,894 pairs of symbols that BPE joins, best first."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    assert len(merges) == VOCABULARY_SIZE - 514, f"{MERGES.name} must hold 48894 merges, it holds {len(merges)}"
    return merges


@cache
def vocabulary() -> dict[str, int]:
    """Every symbol and its id, in CLIP's order."""
    symbols = byte_symbols()
    words = [
        *symbols,
        *(s + "</w>" for s in symbols),
        *(left + right for left, right in read_merges()),
        START_TEXT,
        END_TEXT,
    ]
    return {word: i for i, word in enumerate(words)}


def byte_symbols() -> list[str]:
    """One printable character per byte (GPT-2's table), printable bytes first: the order of CLIP's first 256 ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]


@cache
def _build_backend() -> Any:
    """The `tokenizers` pipeline, built once; its settings are those of transformers' CLIPTokenizer."""
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    bpe = models.BPE(vocabulary(), read_merges(), end_of_word_suffix="</w>", unk_token=END_TEXT)
    backend = Backend(bpe)
    clean = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(clean)
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.post_processor = processors.RobertaProcessing((END_TEXT, END_ID), (START_TEXT, START_ID), False, False)
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (START_TEXT, END_TEXT)])
    backend.enable_truncation(MAX_TOKENS)
    backend.enable_padding(length=MAX_TOKENS, pad_id=END_ID, pad_token=END_TEXT)
    return backend
