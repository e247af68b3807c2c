"""A prompt in the words that a checkpoint knows: each other word is read as the nearest, or left out.

A prompt is taken apart at signs and before prepositions and conjunctions: "a fluffy poodle | in a cathedral". The last
word of such a chunk that is a thing or a place is its head, and the other words say what it is like.

- A word is known when the checkpoint knows all of its tokens; what is known stays as it is.
- A head is looked up in the thesaurus: "a poodle" becomes "a dog", "in a cathedral" as a whole "in a town square".
  Plurals are looked up as what they are plurals of, and words that nobody writes as what is spelt about like them. One
  thing and one place are read: two were never drawn. Other words are looked up among colours, sizes and the like.
- What is not found is left out. Where no word names a thing, or a chunk with a preposition no place, one that the
  checkpoint knows is named, by a hash of the prompt: no prompt is without a meaning to it.
- `unwanted`: a prompt may be of what is not wanted, and nobody says whether. If it names nothing and most of its
  unknown words are signs of a bad picture ("blurry, ugly, watermark"), nothing is named: what is not known is left out,
  and where nothing else remains the text is empty. Two such words are not read as things either.
- A text without an unknown word stays as it is. So what was rewritten stays so.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .near_words import ENDINGS, NAMING, PLURALS, SECTIONS, misspellings, stems, thesaurus
from .tokenizer import vocabulary as clip_vocabulary
from .vocabulary import LONGEST, MOST_NAMED, SHORTEST, Vocabulary

SEPARATORS = re.compile(r"[\x1c-\x1f]")  # space to Python, tokens to CLIP
PIECES = re.compile(r"\w+(?:['’-]\w+)*|\s+|[^\w\s]+")  # words, space, signs
PLACING = frozenset(
    "in on at under above over by near among against behind inside outside beside beneath below within through across "
    "between amid atop upon into onto before along around alongside underneath toward towards past aboard".split()
)
JOINING = frozenset("and or with without wearing holding while for from to next like as break".split())
ARTICLES = frozenset("a an the".split())
BESIDES = frozenset(  # words of a sentence that say nothing of what is seen
    "of is are was be being has have its it his her their my your our this that these those some very so not no one "
    "front top photo picture there which who what how why when where about up down off out".split()
)
BESIDES |= PLACING | JOINING | ARTICLES
MOST_JOINED = 3  # words of one phrase
SHORTEST_MISSPELT = 6  # letters


class Rewritten(NamedTuple):
    """A prompt in known words, and what became of the others."""

    texts: list[str]
    read: dict[str, str]  # a word or phrase, and what it is read as
    left_out: list[str]
    instead: list[str]  # the thing and the place that are named where none was known

    def sentence(self) -> str:
        """A part of one: 'poodle' (read as 'dog'), 'zorbl' (left out); drawn instead: a car. Empty: all was known."""
        said = [f"{word[:LONGEST]!r} (read as {known!r})" for word, known in self.read.items()]
        said += [f"{word[:LONGEST]!r} (left out)" for word in self.left_out]
        more = len(said) - MOST_NAMED
        words = ", ".join(said[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{words}; drawn instead: {' '.join(self.instead)}" if self.instead else words


@dataclass(eq=False)
class Piece:
    """A word, a space or a sign of a prompt, as it stands or as it will."""

    text: str
    part: int  # of the prompt, that it is of
    kept: bool = False  # no word of the prompt
    known: bool = True
    changed: bool = False

    def __post_init__(self) -> None:
        spoken = not self.kept and re.match(r"\w", self.text)
        self.word = self.text.lower().replace("’", "'") if spoken else ""

    def become(self, text: str) -> None:
        """Stand as another text; empty: be left out."""
        self.changed |= text != self.text
        self.text = text


@dataclass(eq=False)
class Unit:
    """A word, or several that mean one thing together, and what it is read as in each section of the thesaurus."""

    pieces: list[Piece]
    reads: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.word = " ".join(piece.word for piece in self.pieces)
        self.known = all(piece.known for piece in self.pieces)

    def become(self, text: str) -> None:
        """Stand as another text, where its last word stood."""
        for piece in self.pieces[:-1]:
            piece.become("")
        self.pieces[-1].become(text)

    @property
    def stands(self) -> bool:
        """Whether anything of it is left."""
        return any(piece.text for piece in self.pieces)


@dataclass(eq=False)
class Chunk:
    """A part between two signs or prepositions."""

    units: list[Unit] = field(default_factory=list)
    head: Unit | None = None  # what names a thing or a place

    @property
    def placing(self) -> bool:
        """Whether it begins with a preposition of place."""
        return self.units[0].word.split()[0] in PLACING

    def become(self, text: str, head: Unit | None = None) -> None:
        """Stand as another text, where its head stood."""
        head = head or self.units[-1]
        for unit in self.units:
            unit.become(text if unit is head else "")


def rewrite(
    texts: Sequence[str], vocabulary: Vocabulary, keep: re.Pattern[str] | None = None, unwanted: bool = False
) -> Rewritten:
    """The parts of one prompt, which follow one another, in words of the vocabulary; see the top of this file.

    keep: what is no word of the prompt and stays. unwanted: whether the prompt may say what is not wanted.
    """
    return Rewriter(vocabulary, take_apart(texts, vocabulary, keep), len(texts)).rewritten(texts, unwanted)


def take_apart(texts: Sequence[str], vocabulary: Vocabulary, keep: re.Pattern[str] | None) -> list[Piece]:
    """Words, spaces and signs; joined, they are the texts, with a space for a separator."""
    pieces = []
    for part, text in enumerate(SEPARATORS.sub(" ", text) for text in texts):
        at = 0
        for kept in keep.finditer(text) if keep else ():
            pieces += [Piece(found, part) for found in PIECES.findall(text[at : kept.start()])]
            pieces.append(Piece(kept.group(), part, kept=True))
            at = kept.end()
        pieces += [Piece(found, part) for found in PIECES.findall(text[at:])]
    for piece in pieces:
        piece.known = piece.kept or piece.text.isspace() or vocabulary.knows(piece.text)
    return pieces


class Rewriter:
    """What becomes of one prompt's pieces."""

    def __init__(self, vocabulary: Vocabulary, pieces: list[Piece], parts: int) -> None:
        self.vocabulary, self.pieces, self.parts = vocabulary, pieces, parts
        self.read: dict[str, str] = {}
        self.left_out: dict[str, None] = {}
        self.named = {"things": False, "places": False}
        self.lost: dict[bool, list[Chunk]] = {False: [], True: []}  # chunks that name nothing, by their preposition

    def rewritten(self, texts: Sequence[str], unwanted: bool) -> Rewritten:
        """All of it, once."""
        words = [piece for piece in self.pieces if piece.word or piece.kept]
        unread = [] if words else [piece.text for piece in self.pieces if not piece.known]
        if all(piece.known for piece in words) and not unread:
            return Rewritten(list(texts), {}, [], [])
        units = list(self.units())
        signs = self.signs(units) if unwanted else []
        for unit in signs if len(signs) > 1 else []:
            unit.reads = {}
        self.settle(self.chunks(units))
        unknown = [unit for unit in units if not unit.known and unit.word and unit.word not in BESIDES]
        if not any(self.named.values()) and 2 * len(signs) > len(unknown):
            instead = self.name_nothing()
        else:
            instead = self.name_instead(words)
        for piece in self.pieces:
            if not piece.known and not piece.changed:
                piece.become("" if piece.word else "\n" * piece.text.count("\n") or " ")
        self.mend_articles()
        read = {unit.word: self.read[unit.word] for unit in units if unit.word in self.read}
        left_out = [unit.word for unit in units if unit.word in self.left_out] or unread
        return Rewritten(self.rendered(), read, list(dict.fromkeys(left_out)), instead)

    def chunks(self, units: list[Unit]) -> list[Chunk]:
        """The parts between signs, line breaks, prepositions and conjunctions, with their heads."""
        chunks, apart, placed = [Chunk()], False, False
        for unit in units:
            placing = unit.word.split(" ")[0] in PLACING
            if not unit.word or apart or (placing and not placed) or unit.word in JOINING:
                chunks.append(Chunk())
            apart, placed = not unit.word, placing
            if unit.word:
                chunks[-1].units.append(unit)
        return [one for chunk in chunks if chunk.units for one in self.with_heads(chunk)]

    def with_heads(self, chunk: Chunk) -> list[Chunk]:
        """A chunk and its head; two chunks where it names a thing and then a place, as "a tram downtown" does."""
        naming = [(at, unit, self.sections(unit)) for at, unit in enumerate(chunk.units) if self.sections(unit)]
        if not naming:
            return [chunk]
        chunk.head = naming[-1][1]
        things = [(at, unit) for at, unit, sections in naming if "things" in sections]
        if chunk.placing or not things or things[-1][1] is chunk.head:
            return [chunk]
        at, thing = things[-1]
        return [Chunk(chunk.units[: at + 1], thing), Chunk(chunk.units[at + 1 :], chunk.head)]

    def units(self) -> Iterator[Unit]:
        """Words, and phrases of the thesaurus that hold an unknown word; "" stands for a sign or a line break."""
        marks = [piece for piece in self.pieces if piece.word or "\n" in piece.text or not piece.text.isspace()]
        at = 0
        while at < len(marks):
            for count in range(MOST_JOINED if marks[at].word else 1, 0, -1):
                unit = Unit(marks[at : at + count])
                phrase = all(piece.word for piece in unit.pieces) and not unit.known and thesaurus().holds(unit.word)
                if count == 1 or phrase:
                    break
            unit.reads = {} if unit.known else self.readings(unit.word)
            yield unit
            at += len(unit.pieces)

    def readings(self, word: str) -> dict[str, list[str]]:
        """Known names for an unknown word, by section; sections without any are left out."""
        if word in BESIDES:
            return {"words": names} if (names := self.forms(word, "words")) else {}
        forms = {section: self.forms(word, section) for section in SECTIONS}
        if not any(forms.values()) and (meant := self.spelt_right(word)):
            forms = {section: self.forms(meant, section) for section in SECTIONS}
        return {section: names for section, names in forms.items() if names}

    def forms(self, word: str, section: str) -> list[str]:
        """Known names for a word as a thing, a place, a light or a quality, also without its endings."""
        names: list[str] = []
        for form in (word, word.replace("-", " "), *stems(word, PLURALS if section != "words" else PLURALS + ENDINGS)):
            said = section == self.role(form) and (section != "words" or form in thesaurus().said)
            if said and len(form) >= SHORTEST and self.vocabulary.knows(form):
                names.append(form)
            names += filter(self.vocabulary.knows, thesaurus().read(form, section))
        return list(dict.fromkeys(names))

    def spelt_right(self, word: str) -> str | None:
        """A known word or one of the thesaurus that is spelt about like a word which nobody writes."""
        if not SHORTEST_MISSPELT <= len(word) <= LONGEST or word + "</w>" in clip_vocabulary():
            return None
        common = [meant for meant in sorted(misspellings(word)) if meant + "</w>" in clip_vocabulary()]
        near = [meant for meant in common if thesaurus().holds(meant)]
        return next(iter([*self.vocabulary.alike(word), *near]), None)

    def role(self, word: str) -> str:
        """What a known word says: "things", "places", "words" or nothing, ""; what the thesaurus lacks is a thing."""
        if word in BESIDES or not word:
            return ""
        heads = thesaurus().heads
        found = next((section for section in NAMING if word in heads[section]), None)
        return found or ("words" if word in thesaurus().qualities else "things")

    def sections(self, unit: Unit) -> set[str]:
        """What a word or phrase may name: things, places, lights."""
        return ({self.role(unit.word)} if unit.known else unit.reads.keys()) & {*NAMING, "lights"}

    def signs(self, units: list[Unit]) -> list[Unit]:
        """Unknown words that say what a bad picture is like."""
        said = {word for line in thesaurus().lists["signs"] for word in line}
        return [unit for unit in units if not unit.known and unit.word in said]

    def settle(self, chunks: list[Chunk]) -> None:
        """Name what each chunk names: known places first, for one is enough, and lights last, which may be places."""
        heads = [(chunk.head, chunk.placing) for chunk in chunks if chunk.head and chunk.head.known]
        self.named["places"] = any(self.role(head.word) == "places" for head, _ in heads)
        for chunk in sorted(chunks, key=lambda chunk: chunk.head is not None and "lights" in chunk.head.reads):
            if all(unit.known for unit in chunk.units):
                self.named["things"] |= chunk.head is not None and self.role(chunk.head.word) == "things"
            elif self.name_head(chunk):
                self.mend(chunk)
                self.add_article(chunk)
            else:
                self.lose(chunk)

    def name_head(self, chunk: Chunk) -> bool:
        """Read a chunk's head as something known; False where it has none, or what it says was named before."""
        head = chunk.head
        if head is None:
            return False
        if head.known:
            self.named["things"] |= self.role(head.word) == "things"
            return True
        order = ("places", "lights", "things") if chunk.placing else ("things", "lights", "places")
        for section in order:
            names = head.reads.get(section, [])
            if section == "lights" and self.named["places"]:
                names = [name for name in names if self.role(name.split()[-1]) != "places"]
            if names and not self.named.get(section, False):
                self.take(chunk, head, section, names[0])
                return True
        return False

    def take(self, chunk: Chunk, head: Unit, section: str, name: str) -> None:
        """Stand as a name: a thing in place of its word, a place or a light in place of the chunk."""
        self.read[head.word] = name
        if section == "things":
            head.become(name)
            before = chunk.units[: chunk.units.index(head)]
            while before and before[-1].word in name.split():  # a cup of tea: a cup of coffee
                before.pop().become("")
        else:
            self.leave_out(unit for unit in chunk.units if unit is not head)
            chunk.become(name, head)
        if section in self.named:
            self.named[section] = True
        elif section == "lights" and self.role(name.split()[-1]) == "places":
            self.named["places"] = True

    def lose(self, chunk: Chunk) -> None:
        """A chunk that names nothing: what could be said of it stays until it is known what is named instead."""
        manners = {word for line in thesaurus().lists["manners"] for word in line}
        if chunk.head is None and not any(unit.word in manners for unit in chunk.units):
            self.lost[chunk.placing].append(chunk)
            self.mend(chunk)
        else:
            self.leave_out(chunk.units)
            chunk.become("")

    def mend(self, chunk: Chunk) -> None:
        """Read the words beside a head as qualities, or leave them out, and an `of` that joins nothing any more."""
        for unit in chunk.units:
            if unit.known or unit is chunk.head or not unit.stands:
                continue
            names = unit.reads.get("words", [])
            if names and unit.word not in BESIDES:
                self.read[unit.word] = names[0]
            elif not names:
                self.leave_out([unit])
            unit.become(names[0] if names else "")
        for at, unit in enumerate(chunk.units):
            left, right = chunk.units[:at], chunk.units[at + 1 :]
            if unit.word == "of" and not (says_something(left) and says_something(right)):
                for other in (unit, *(other for other in right if other.word in ARTICLES)):
                    other.become("")

    def add_article(self, chunk: Chunk) -> None:
        """What is read as a thing gets an article, as in the captions: red tulips, a red tulip."""
        head, shown = chunk.head, [unit for unit in chunk.units if unit.stands]
        if head is None or head.known or chunk.placing or not shown or shown[0].word in PLACING | JOINING | ARTICLES:
            return
        name = self.read.get(head.word, "")
        if name in thesaurus().names["things"] and not re.search(r"(?<!u)s$", name):
            first = shown[0].pieces[-1].text
            shown[0].pieces[-1].become(self.with_article(first))

    def leave_out(self, units: Sequence[Unit] | Iterator[Unit]) -> None:
        for unit in units:
            if not unit.known and unit.word not in BESIDES and unit.word not in self.read:
                self.left_out[unit.word] = None

    def name_nothing(self) -> list[str]:
        """Leave out also what stood beside unknown words and says nothing alone."""
        for chunk in (*self.lost[False], *self.lost[True]):
            if not any(unit.stands and unit.word not in BESIDES for unit in chunk.units):
                chunk.become("")
        return []

    def name_instead(self, words: list[Piece]) -> list[str]:
        """Name a thing and a place where the prompt named none, in place of what named nothing."""
        key = zlib.crc32(
            " ".join(piece.word or piece.text for piece in words or self.pieces).encode("utf-8", "replace")
        )
        kept = any(piece.kept for piece in self.pieces)  # it may name something
        needed = {"things": bool(self.lost[False]), "places": bool(self.lost[True])}
        if not any(self.named.values()):
            needed = dict.fromkeys(needed, True)
        drawn = zip(needed, (key, key >> 16), thesaurus().lists["drawn"], strict=True)
        thing, place = (
            self.choose(number, names) if needed[section] and not (self.named[section] or kept) else ""
            for section, number, names in drawn
        )
        self.put(thing, place)
        return [text for text in (thing and self.with_article(thing), place) if text]

    def choose(self, key: int, names: Sequence[str]) -> str:
        """One of the names that is known, always the same for a key; without one a word of the checkpoint's own."""
        known = [name for name in names if self.vocabulary.knows(name)]
        if not known and names[0].split()[0] not in PLACING:
            known = [word for word in self.vocabulary.words if self.role(word) == "things"]
        return known[key % len(known)] if known else ""

    def put(self, thing: str, place: str) -> None:
        """Write a thing and a place where a chunk named neither; without such a chunk, at the beginning."""
        where, places = self.lost[False][:1] if thing else [], self.lost[True][:1]
        for chunk in (*self.lost[False][len(where) :], *self.lost[True]):
            chunk.become("")
        if where:
            self.describe(where[0], thing)
            thing = ""
        if places:
            places[0].become(" ".join(filter(None, (thing and self.with_article(thing), place))))
        elif thing or place:
            last = where[0].units[-1].pieces[-1] if where else next(p for p in self.pieces if not p.text.isspace())
            before = last.text if where else ""
            last.become(" ".join(filter(None, (before, thing and self.with_article(thing), place))))

    def describe(self, chunk: Chunk, thing: str) -> None:
        """Write a thing where a chunk names none, after the chunk's qualities."""
        like = [unit for unit in chunk.units if unit.stands and self.is_quality(unit)]
        for unit in chunk.units:
            unit.become(unit.pieces[-1].text if like and (unit in like or unit.word in ARTICLES) else "")
        last = chunk.units[-1].pieces[-1]
        last.become(f"{last.text} {thing}" if last.text else thing if like else self.with_article(thing))

    def is_quality(self, unit: Unit) -> bool:
        """A colour, size or the like, or what was read as one."""
        return unit.word in self.read or (unit.word not in BESIDES and unit.word in thesaurus().said)

    def article(self, name: str) -> str:
        """a or an."""
        return "an" if name[0] in "aeiou" and self.vocabulary.knows("an") else "a"

    def with_article(self, thing: str) -> str:
        """A thing that is spoken of for the first time."""
        return f"{self.article(thing)} {thing}"

    def mend_articles(self) -> None:
        """a or an before words that have changed; none where no noun follows any more."""
        shown = [piece for piece in self.pieces if piece.text.strip() or piece.changed]
        for at, piece in enumerate(shown):
            following = next((other for other in shown[at + 1 :] if other.text.strip()), None)
            if piece.word not in ("a", "an") or piece.changed or at + 1 == len(shown) or not shown[at + 1].changed:
                continue
            first = following.text.lower().split()[0] if following else ""
            is_noun = re.match(r"\w", first) and first not in PLACING | JOINING | ARTICLES | {"of"}
            piece.become(self.article(first) if is_noun else "")

    def rendered(self) -> list[str]:
        """The parts as they stand; of what has changed, without spaces and commas that part nothing any more."""
        texts = []
        for part in range(self.parts):
            pieces = [piece for piece in self.pieces if piece.part == part]
            text = "".join(piece.text for piece in pieces)
            texts.append(tidy(text) if any(piece.changed for piece in pieces) else text)
        return texts


def says_something(units: Sequence[Unit]) -> bool:
    """Whether more than articles is left."""
    return any(unit.stands and unit.word not in ARTICLES for unit in units)


def tidy(text: str) -> str:
    """Single spaces and commas, none at the ends of a line; empty where no word is left."""
    text = re.sub(r"[^\S\n]+", " ", re.sub(r",(?:[^\S\n]*,)+", ",", text))
    lines = [re.sub(r"(?<=\w) ,", ",", line).strip(" ,") for line in text.split("\n")]
    return "\n".join(lines) if re.search(r"\w", text) else ""
