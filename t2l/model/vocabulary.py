"""The words a text encoder was trained on: which of a prompt it never saw, and which it knows are near them.

A word counts as seen when all of its tokens were. Words of like meaning come from a small table made by hand (`LIKE`): no
model decides, and only words that the checkpoint itself knows are offered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache, cached_property
from typing import NamedTuple

import torch

from .tokenizer import END_ID, START_ID, VOCABULARY_SIZE, Tokenizer, in_batches, read_merges, vocabulary

END_OF_WORD = "</w>"
ALIKE = 0.75  # of spelling, 0 to 1: below it "aunt" would be near "anna"
SHORTEST, LONGEST = 3, 40  # letters of a word that is offered; of one that is looked up
MOST_WORDS = 1000  # different words of one text that are looked at
MOST_NAMED = 8  # in one sentence
PIECES = r"'(?:s|t|re|ve|m|ll|d)|\w+|[^\w\s]+"  # words, signs and English endings, about as CLIP cuts a text

LIKE = {  # a word that may be known: words that mean about as much
    "airplane": "aeroplane aircraft jet airliner glider drone helicopter",
    "alarm clock": "watch timer stopwatch",
    "apple": "peach plum apricot mango",
    "armchair": "recliner throne seat",
    "backpack": "rucksack satchel schoolbag",
    "balloon": "zeppelin blimp airship",
    "ballroom": "hall palace theatre theater opera stage museum",
    "basket": "hamper",
    "beach": "shore coast coastline seaside sand island bay",
    "bear": "koala grizzly beaver",
    "bed": "bunk crib cradle mattress",
    "bee": "wasp hornet insect fly mosquito beetle",
    "bicycle": "cycle tricycle unicycle",
    "book": "magazine newspaper notebook novel diary",
    "boot": "boots wellington",
    "bread": "toast baguette bun roll sandwich",
    "brick wall": "bricks stones rocks ruin ruins",
    "bucket": "pail barrel pot",
    "bus": "coach minibus van tram",
    "butterfly": "moth dragonfly",
    "cactus": "succulent aloe",
    "cake": "pie tart dessert pudding pastry muffin",
    "camera": "camcorder webcam binoculars telescope",
    "cap": "helmet beanie beret",
    "car": "automobile sedan limousine vehicle jeep suv convertible",
    "castle": "fortress tower palace citadel cathedral basilica church temple",
    "cat": "kitty tomcat lynx cats",
    "chair": "stool bench seat",
    "chick": "chicken hen sparrow robin pigeon bird",
    "city street": "road avenue alley downtown urban pavement sidewalk village",
    "cow": "bull calf ox buffalo bison cattle yak",
    "crab": "lobster shrimp prawn scorpion spider",
    "crown": "tiara diadem king queen prince princess",
    "cup": "mug glass goblet chalice tea",
    "desert": "dune dunes sahara canyon wasteland",
    "dinosaur": "dragon tyrannosaurus monster lizard crocodile alligator",
    "dog": "wolf hound terrier poodle labrador bulldog dogs husky corgi coyote",
    "dolphin": "porpoise seal orca",
    "duck": "goose swan mallard gull seagull",
    "elephant": "mammoth rhino rhinoceros hippo hippopotamus",
    "empty room": "bedroom kitchen studio office attic interior apartment",
    "factory": "workshop mill plant garage",
    "fish": "goldfish salmon trout tuna carp eel",
    "forest": "jungle woodland grove rainforest park trees",
    "fox": "jackal raccoon badger",
    "frog": "toad newt",
    "gift": "parcel box package",
    "gray": "grey silver metallic",
    "green": "emerald lime olive turquoise teal",
    "guitar": "violin cello ukulele banjo bass lute harp",
    "handbag": "purse bag wallet",
    "harbor": "harbour port dock pier marina boat ship yacht",
    "hat": "bonnet fedora sombrero",
    "horse": "donkey mule stallion mare foal unicorn deer moose",
    "house": "home cottage cabin hut building barn villa mansion",
    "lamp": "torch candle chandelier",
    "laptop": "notebook pc macbook keyboard",
    "lion": "lioness leopard jaguar panther puma cheetah",
    "lobby": "reception foyer hallway corridor entrance",
    "meadow": "grass lawn pasture prairie garden",
    "monkey": "ape gorilla chimpanzee orangutan baboon lemur",
    "motorcycle": "moped vespa",
    "mountains": "alps hills cliff peak summit volcano glacier",
    "mouse": "rat hamster squirrel hedgehog gerbil",
    "mushroom": "toadstool fungus",
    "octopus": "squid jellyfish kraken",
    "orange": "tangerine mandarin clementine grapefruit",
    "owl": "eagle hawk falcon raven crow",
    "panda": "sloth",
    "parrot": "macaw cockatoo budgie toucan peacock",
    "pear": "avocado fig",
    "piano": "keyboard organ",
    "pig": "boar hog piglet swine",
    "pine": "spruce conifer",
    "pink": "magenta rose",
    "purple": "violet lilac lavender indigo",
    "rabbit": "hare bunnies",
    "red": "crimson scarlet maroon ruby",
    "robot": "android cyborg droid",
    "rocket": "spaceship spacecraft missile shuttle",
    "rooster": "cockerel turkey hen",
    "rose": "flower lily peony orchid daisy poppy",
    "savanna": "savannah steppe plain",
    "sea": "ocean waves lake pond bay",
    "shark": "orca",
    "sheep": "goat ram ewe alpaca llama",
    "shopping mall": "shop store supermarket market",
    "snail": "slug worm",
    "snake": "cobra python viper serpent",
    "sneaker": "shoes trainers sandal slipper",
    "snow": "ice winter frost blizzard",
    "snowman": "snowmen",
    "sofa": "settee divan",
    "space": "galaxy stars universe nebula cosmos aurora moon night sky",
    "stream": "river creek brook waterfall",
    "strawberry": "raspberry blueberry blackberry berry",
    "suitcase": "luggage briefcase trunk",
    "sunset": "dusk evening sunrise twilight dawn aurora sky clouds",
    "table": "desk counter",
    "teapot": "kettle jug pitcher vase",
    "telephone": "smartphone mobile cellphone",
    "television": "monitor screen display",
    "tent": "camp teepee yurt",
    "tiger": "leopard jaguar panther",
    "town square": "plaza piazza courtyard village church basilica cathedral",
    "train": "locomotive tram subway railway",
    "tree": "oak birch maple willow bush",
    "trophy": "medal prize award",
    "truck": "van pickup trailer",
    "turtle": "terrapin lizard",
    "ufo": "alien spaceship",
    "umbrella": "parasol",
    "under water": "underwater reef aquarium seabed",
    "warehouse": "storehouse hangar depot barn",
    "whale": "orca",
    "yellow": "gold golden",
    "zebra": "okapi donkey",
}


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

    def unseen(self, text: str) -> list[str]:
        """The words of a text, lower case, each once and in its order, that hold a token which training never showed."""
        if self._token_ids is None:
            return []
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))[:MOST_WORDS]
        ids = _tokenizer()(words).tolist() if words else []
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
            tokens = _tokenizer()(some)
            new = ~known[tokens]
            ids.update(tokens[new].unique().tolist())
            for number in new.any(dim=1).nonzero().flatten().tolist():
                found.update(dict.fromkeys(re.findall(PIECES, some[number].lower())))
        learnt = self._token_ids | ids
        words = [word for some in in_batches(found) for word in self._now_known(some, learnt)]
        return Missing(tuple(sorted(ids)), words)

    def _now_known(self, words: list[str], learnt: frozenset[int]) -> list[str]:
        """Those of the words that are not known and are read as tokens of `learnt` alone."""
        ids = [set(tokens) for tokens in _tokenizer()(words).tolist()]
        known = self._token_ids or frozenset()
        return [word for word, tokens in zip(words, ids, strict=True) if tokens <= learnt and not tokens <= known]

    def nearest(self, word: str, count: int = 3) -> list[str]:
        """Known words of like meaning, then known words of like spelling; empty where nothing is near."""
        meaning = [known for known, others in LIKE.items() if word in others.split() and not self.unseen(known)]
        spelling = [known for known in self.words if _likeness(word, known) >= ALIKE]
        spelling.sort(key=lambda known: _likeness(word, known), reverse=True)
        return list(dict.fromkeys([*meaning, *spelling]))[:count]

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
        wholes = (
            symbol.removesuffix(END_OF_WORD) for i, symbol in _symbols().items() if i in ids and _is_whole(symbol)
        )
        return tuple(sorted(word for word in wholes if len(word) >= SHORTEST))


def _is_whole(symbol: str) -> bool:
    return symbol.endswith(END_OF_WORD) and symbol.removesuffix(END_OF_WORD).isalpha()


def _likeness(word: str, known: str) -> float:
    """Of spelling, 0 to 1; words that begin otherwise are not alike, so that "lions" is near "lion" and not "elions"."""
    return SequenceMatcher(None, word[:LONGEST], known).ratio() if word[0] == known[0] else 0.0


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


@cache
def _symbols() -> dict[int, str]:
    return {i: symbol for symbol, i in vocabulary(read_merges()).items()}
