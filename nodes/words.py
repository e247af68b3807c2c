"""Core's tokenizer, which reads words that a checkpoint was never trained on as the nearest that it knows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from comfy import sd1_clip

from ..t2l.model.rewrite import rewrite
from ..t2l.model.vocabulary import Vocabulary
from .hints import hint

EMBEDDING = re.compile(r"(?<!\S)embedding:[^\s,]*")  # core's word for a file of its own, which knows what it means


class VocabularyTokenizer(sd1_clip.SD1Tokenizer):
    """SD1Tokenizer with the vocabulary of a checkpoint; `name` is its file's.

    A prompt of known words goes to core as it is. Of another, every weighted part keeps its weight and its embeddings.
    Nothing says which prompt is the negative one: one of signs of a bad picture alone is taken for it, and becomes
    empty.
    """

    def __init__(self, vocabulary: Vocabulary, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary, self.file_name = vocabulary, name

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        weighted = not kwargs.get("disable_weights", False)
        parts = weighted_parts(text) if weighted else [(text, 1.0)]
        rewritten = rewrite([part for part, _ in parts], self.vocabulary, keep=EMBEDDING, unwanted=True)
        if said := rewritten.sentence():
            hint(
                f"{self.file_name} was never trained on {said}. The words it knows are in the help of Load Text2Layer "
                "Checkpoint"
            )
            weights = [weight for _, weight in parts]
            text = join_parts(zip(rewritten.texts, weights, strict=True)) if weighted else rewritten.texts[0]
        return super().tokenize_with_weights(text, return_word_ids, **kwargs)


def weighted_parts(text: str) -> list[tuple[str, float]]:
    """What core reads of a prompt, with the weights: "a (red:1.2) fox" -> "a ", 1; "red", 1.2; " fox", 1."""
    parts = sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)
    return [(sd1_clip.unescape_important(part), weight) for part, weight in parts]


def join_parts(parts: Iterable[tuple[str, float]]) -> str:
    """A prompt that core reads as these parts, without the empty ones."""
    escaped = ((re.sub(r"([()])", r"\\\1", part), weight) for part, weight in parts if part.strip())
    return "".join(f"({part}:{weight!r})" for part, weight in escaped)
