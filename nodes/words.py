"""Core's tokenizer, which also says which words of a prompt a checkpoint was never trained on."""

from __future__ import annotations

import re
from typing import Any

from comfy import sd1_clip

from ..t2l.model.vocabulary import Vocabulary
from .hints import hint

EMBEDDING = re.compile(r"embedding:\S*")  # core's word for a file of its own, which knows what it means


class VocabularyTokenizer(sd1_clip.SD1Tokenizer):
    """SD1Tokenizer with the vocabulary of a checkpoint; `name` is its file's."""

    def __init__(self, vocabulary: Vocabulary, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary, self.file_name = vocabulary, name

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        weighted = not kwargs.get("disable_weights", False)
        if unseen := self.vocabulary.unseen(strip_weights(text) if weighted else text):
            hint(
                f"{self.file_name} was never trained on {self.vocabulary.named(unseen)}: it paints anything there. The "
                "words it knows are in the help of Load Text2Layer Checkpoint"
            )
        return super().tokenize_with_weights(text, return_word_ids, **kwargs)


def strip_weights(text: str) -> str:
    """The words of a prompt, without weights, brackets and embeddings: "a (red:1.2) fox embedding:x" -> "a red fox"."""
    segments = sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)
    words = "\n".join(sd1_clip.unescape_important(segment) for segment, _ in segments)
    return EMBEDDING.sub(" ", words)
