"""The words a text encoder was trained on: which of a prompt it never saw, and which it knows are near them.

A word counts as seen when all of its tokens were. Words of like meaning come from the tables of near_words.py: no model
decides, and only words that the checkpoint itself knows are offered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import NamedTuple

import torch

from .near_words import SECTIONS, thesaurus
from .tokenizer import END_ID, START_ID, VOCABULARY_SIZE, Tokenizer, in_batches, vocabulary

END_OF_WORD = "</w>"
ALIKE = 0.75  # of spelling, 0 to 1: below it "aunt" would be near "anna"
SHORTEST, LONGEST = 3, 40  # letters of a word that is offered; of one that is looked up
MOST_WORDS = 1000  # different words of one text that are looked at
MOST_REMEMBERED = 20_000  # words that were looked up
MOST_NAMED = 8  # in one sentence
PIECES = r"'(?:s|t|re|ve|m|ll|d)|\w+|[^\w\s]+"  # words, signs and English endings, about as CLIP cuts a text


class Missing(NamedTuple):
    """What a vocabulary lacks to read some captions."""

    token_ids: tuple[int, ...]  # rising
    words: list[str]  # that hold them, lower case, in the captions' order; of letters or of signs

    def counted(self) -> str:
        """The beginning of a sentence about them."""
        count = len(self.words)
        return "1 word of the captions is" if count == 1 else f"{count:,} words of the captions are"

    def listed(self, most: int = 20) -> str:
        """The first of them by name."""
        names = ", ".join(word[:LONGEST] for word in self.words[:most])
        more = len(self.words) - most
        return f"{names} and {more:,} more" if more > 0 else names


class Vocabulary:
    """The words of a text encoder's `token_ids`; None stands for all of CLIP's, and no word is unknown then."""

    def __init__(self, token_ids: Collection[int] | None) -> None:
        self._token_ids = None if token_ids is None else frozenset(token_ids) | {START_ID, END_ID}
        self._looked_up: dict[str, bool] = {}

    def knows(self, text: str) -> bool:
        """Whether every token of a word or phrase was seen in training. Answers are remembered."""
        if self._token_ids is None:
            return True
        if text not in self._looked_up:
            if len(self._looked_up) >= MOST_REMEMBERED:
                self._looked_up.clear()
            self._looked_up[text] = self._token_ids.issuperset(Tokenizer()([text])[0].tolist())
        return self._looked_up[text]

    def unseen(self, text: str) -> list[str]:
        """The words of a text, lower case, each once and in order, that hold a token which training never showed."""
        if self._token_ids is None:
            return []
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))[:MOST_WORDS]
        ids = Tokenizer()(words).tolist() if words else []
        return [word for word, tokens in zip(words, ids, strict=True) if not self._token_ids.issuperset(tokens)]

    def missing(self, captions: Iterable[str]) -> Missing:
        """What is not known of captions, which are read once; of each as much as a text encoder reads."""
        if self._token_ids is None:
            return Missing((), [])
        ids: set[int] = set()
        found: dict[str, None] = {}
        known = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool)
        known[list(self._token_ids)] = True
        for some in in_batches(captions):
            tokens = Tokenizer()(some)
            new = ~known[tokens]
            ids.update(tokens[new].unique().tolist())
            for number in new.any(dim=1).nonzero().flatten().tolist():
                found.update(dict.fromkeys(re.findall(PIECES, some[number].lower())))
        learnt = self._token_ids | ids
        words = [word for some in in_batches(found) for word in self._now_known(some, learnt)]
        return Missing(tuple(sorted(ids)), words)

    def _now_known(self, words: list[str], learnt: frozenset[int]) -> list[str]:
        """Those of the words that are not known and are read as tokens of `learnt` alone."""
        ids = [set(tokens) for tokens in Tokenizer()(words).tolist()]
        known = self._token_ids or frozenset()
        return [word for word, tokens in zip(words, ids, strict=True) if tokens <= learnt and not tokens <= known]

    def nearest(self, word: str, count: int = 3) -> list[str]:
        """Known words of like meaning, then known words of like spelling; empty where nothing is near."""
        meaning = [known for section in SECTIONS for known in thesaurus().read(word, section) if self.knows(known)]
        return list(dict.fromkeys([*meaning, *self.alike(word)]))[:count]

    def alike(self, word: str) -> list[str]:
        """Known words of like spelling, the most alike first."""
        likeness = {known: _likeness(word, known) for known in self.words}
        return sorted((known for known in likeness if likeness[known] >= ALIKE), key=likeness.__getitem__, reverse=True)

    def named(self, words: Sequence[str]) -> str:
        """Words and what is near them, as a part of a sentence: 'aurora', 'ocean' (near: sea)."""
        names = [self._named(word) for word in words[:MOST_NAMED]]
        more = len(words) - len(names)
        return f"{', '.join(names)} and {more} more" if more > 0 else ", ".join(names)

    def _named(self, word: str) -> str:
        near = self.nearest(word)
        return f"{word[:LONGEST]!r} (near: {', '.join(near)})" if near else repr(word[:LONGEST])

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The known words that are one token of at least three letters, in alphabetical order."""
        ids = self._token_ids or ()
        ends = (symbol for symbol, i in vocabulary().items() if i in ids and symbol.endswith(END_OF_WORD))
        words = (symbol.removesuffix(END_OF_WORD) for symbol in ends)
        return tuple(sorted(word for word in words if word.isalpha() and len(word) >= SHORTEST))


def _likeness(word: str, known: str) -> float:
    """Of spelling, 0 to 1; words that begin otherwise are not alike: "lions" is near "lion", not "elions"."""
    return SequenceMatcher(None, word[:LONGEST], known).ratio() if word[0] == known[0] else 0.0
