"""A thesaurus of what can be drawn: for a word that a checkpoint may not know, others of about its meaning.

Two tables of one form: similar_words.txt is made by hand and wins, wordnet_words.txt is made by recipes/words. A line
holds names, the best first, and the words that are read as the first of these names which a checkpoint knows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

HAND_MADE = Path(__file__).with_name("similar_words.txt")
GENERATED = Path(__file__).with_name("wordnet_words.txt")
SECTIONS = ("things", "places", "lights", "words")  # of lines with names; the others are lists of words
NAMING = ("things", "places")
IRREGULAR = {"mice": "mouse", "geese": "goose", "men": "man", "women": "woman", "feet": "foot", "loaves": "loaf"}
PLURALS = (("'s", ("",)), ("ies", ("y", "ie")), ("ves", ("f", "fe")), ("es", ("e", "")), ("s", ("",)))
ENDINGS = (
    ("ied", ("y",)),
    ("ed", ("", "e")),
    ("ing", ("", "e")),
    ("ish", ("", "e")),
    ("er", ("", "e")),
    ("est", ("", "e")),
)
SHORTEST_STEM = 3
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Line(NamedTuple):
    """Names of what is drawn, and the words that are read as one of them. All in lower case."""

    names: tuple[str, ...]
    words: tuple[str, ...]


class Thesaurus:
    """What words and phrases in lower case are read as.

    names[section][word]: names, the best first. lists[section]: those of the sections that are not of SECTIONS.
    heads[section]: last words of all that names a thing or a place. said: words of lights and qualities. qualities:
    these, and words that stand before a head alone.
    """

    def __init__(self, hand_made: dict[str, list[Line]], generated: dict[str, list[Line]]) -> None:
        self.lists = {title: [line.names for line in lines] for title, lines in hand_made.items()}
        self.names = {section: _table(hand_made[section], generated.get(section, [])) for section in SECTIONS}
        lines = {section: [(*line.names, *line.words) for line in hand_made[section]] for section in SECTIONS}
        self.heads = {section: {text.split()[-1] for line in lines[section] for text in line} for section in NAMING}
        self.said = {
            word for section in ("lights", "words") for line in lines[section] for text in line for word in text.split()
        }
        beside = {word for section in NAMING for line in lines[section] for text in line for word in text.split()[:-1]}
        self.qualities = self.said | (beside - self.heads["things"] - self.heads["places"])

    def read(self, word: str, section: str) -> tuple[str, ...]:
        """What a word or phrase is read as, the best first; empty of what is not in the table."""
        return self.names[section].get(word, ())

    def holds(self, word: str) -> bool:
        """Whether a word or phrase is read as anything."""
        return any(word in table for table in self.names.values())


def _table(hand_made: list[Line], generated: list[Line]) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for line in hand_made:
        for word in (*line.words, line.names[0]):
            table[word] = tuple(dict.fromkeys((*table.get(word, ()), *(name for name in line.names if name != word))))
    by_hand, names = set(table), {line.names[0]: line.names for line in hand_made}
    for line in generated:
        table.update((word, names.get(line.names[0], line.names)) for word in line.words if word not in by_hand)
    return table


def read_sections(path: Path) -> dict[str, list[Line]]:
    r"""The lines of a table under their [section]s; a line without names has none. A \ joins a line and the next."""
    sections: dict[str, list[Line]] = {}
    title = ""
    for text in path.read_text(encoding="utf-8").replace("\\\n", "").splitlines():
        if text.startswith("["):
            title = text.strip("[]")
            sections[title] = []
        elif text and not text.startswith("#"):
            names, colon, words = text.partition(":")
            sections[title].append(Line(_split(names), _split(words)) if colon else Line(_split(names), ()))
    return sections


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def stems(word: str, endings: tuple[tuple[str, tuple[str, ...]], ...] = PLURALS) -> list[str]:
    """What a word may be an inflection of, the likeliest first."""
    found = [IRREGULAR[word]] if word in IRREGULAR else []
    for ending, others in endings:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= SHORTEST_STEM:
            found += [stem + other for other in others]
            if len(stem) > SHORTEST_STEM and stem[-1] == stem[-2]:
                found.append(stem[:-1])  # spotted: spot
    return list(dict.fromkeys(found))


def misspellings(word: str) -> set[str]:
    """Every word that is one letter away: one left out, put in, changed, or two exchanged."""
    parts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return {
        *(left + right[1:] for left, right in parts if right),
        *(left + right[1] + right[0] + right[2:] for left, right in parts if len(right) > 1),
        *(left + letter + right[1:] for left, right in parts if right for letter in LETTERS),
        *(left + letter + right for left, right in parts for letter in LETTERS),
    }


@cache
def thesaurus() -> Thesaurus:
    """The table that ships, read once."""
    generated = read_sections(GENERATED) if GENERATED.exists() else {}
    return Thesaurus(read_sections(HAND_MADE), generated)
