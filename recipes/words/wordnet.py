"""WordNet's nouns (Princeton, 3.1): their senses and the kinds above them, from data.noun, index.noun, index.sense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ANIMAL, ARTIFACT, FOOD, OBJECT, PERSON, PLANT = 5, 6, 13, 17, 18, 20  # numbers of WordNet's lexicographer files
SEEN = {ANIMAL, ARTIFACT, FOOD, OBJECT, PLANT}
OVERHEARD = {10, 14, 15, 23, 27} | SEEN | {PERSON}  # a first sense that a beast, food or object may come after
NOUN, ADJECTIVES = "1", "35"  # in the keys of index.sense
MOST_SENSES = 4  # of a word that are looked at


class Sense(NamedTuple):
    """One meaning: the number of its lexicographer file, and the offsets of the kinds above it."""

    file: int
    above: tuple[int, ...]
    instance: bool  # a name, like Paris


class Nouns:
    """The nouns under a folder, as `senses`: word with _ for a space -> offsets, the usual sense first."""

    def __init__(self, folder: Path) -> None:
        self.senses = dict(_read_index(folder / "index.noun"))
        self._counts = _read_counts(folder / "index.sense")
        self._data = dict(_read_data(folder / "data.noun"))

    def find(self, kind: str) -> int:
        """The offset of `word` or `word.number`; without a number the first sense of something seen."""
        word, _, number = kind.partition(".")
        offsets = self.senses.get(word, [])
        if number:
            return offsets[int(number) - 1]
        seen = [offset for offset in offsets if self._data[offset].file in SEEN]
        if not seen:
            raise ValueError(f"WordNet must hold each kind as something seen; it holds no {kind}")
        return seen[0]

    def usual(self, word: str) -> int | None:
        """The sense that a word of a prompt most likely has; None where that is nothing seen."""
        offsets = self.senses.get(word, [])[:MOST_SENSES]
        if not offsets or self._data[offsets[0]].file not in OVERHEARD:
            return None
        files = [self._data[offset].file for offset in offsets]
        for wanted in ({ANIMAL}, {FOOD} if PLANT in files else set(), SEEN - {ANIMAL}, {PERSON}, {15}):
            for offset, file in zip(offsets, files, strict=True):
                if file in wanted and not (file == PERSON and self._data[offset].instance):
                    return offset
        return None

    def met(self, word: str) -> bool:
        """Whether a word was met as a noun in the texts that WordNet's makers read."""
        return self._counts[word, True] > 0

    def is_noun(self, word: str) -> bool:
        """Whether a word is at least as often a noun as anything else."""
        return self._counts[word, True] >= self._counts[word, False]

    def file(self, offset: int) -> int:
        """The lexicographer file of a sense."""
        return self._data[offset].file

    def nearest_kind(self, offset: int, kinds: Mapping[int, str]) -> str | None:
        """What the nearest kind at or above a sense leads to."""
        level, met = [offset], {offset}
        while level:
            for one in level:
                if one in kinds:
                    return kinds[one]
            level = [up for one in level for up in self._data[one].above if up not in met]
            met.update(level)
        return None


def _read_index(path: Path) -> Iterator[tuple[str, list[int]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # the licence
            fields = line.split()
            yield fields[0], [int(offset) for offset in fields[6 + int(fields[3]) :]]


def _read_counts(path: Path) -> Counter[tuple[str, bool]]:
    """How often a word was met in the texts that WordNet's makers read, (as a noun, as anything else)."""
    counts: Counter[tuple[str, bool]] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, _, count = line.split()
        word, _, rest = key.partition("%")
        counts[word, rest[0] == NOUN] += int(count) + (rest[0] in ADJECTIVES)
    return counts


def _read_data(path: Path) -> Iterator[tuple[int, Sense]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(" "):
            fields = line.partition(" | ")[0].split()
            at = 4 + 2 * int(fields[3], 16)
            pointers = [fields[at + 1 + 4 * i : at + 3 + 4 * i] for i in range(int(fields[at]))]
            above = tuple(int(offset) for symbol, offset in pointers if symbol in ("@", "@i"))
            yield int(fields[0]), Sense(int(fields[1]), above, any(symbol == "@i" for symbol, _ in pointers))
