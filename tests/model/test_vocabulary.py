"""Which words a text encoder knows, and what it knows near those that it does not."""

import pytest

from t2l.model.near_words import thesaurus
from t2l.model.tokenizer import Tokenizer
from t2l.model.vocabulary import LONGEST, MOST_NAMED, Vocabulary

CAPTIONS = ["a cat, in the snow", "a lion above the sea", "a laptop computer among dandelions", "a wooden castle"]


@pytest.fixture(scope="module")
def known():
    return Vocabulary(Tokenizer().ids_in(CAPTIONS))


def test_words_of_the_captions_are_seen_and_others_are_not(known):
    assert known.unseen(" ".join(CAPTIONS).upper()) == []
    assert known.unseen("A basilica, a cat; an aurora. The basilica!") == ["basilica", "an", "aurora"]


def test_a_word_of_several_tokens_is_seen_when_all_of_them_are(known):
    assert known.unseen("computer dandelions") == []
    assert known.unseen("computers dandelion") == ["computers", "dandelion"]


def test_without_a_list_every_word_is_known():
    assert Vocabulary(None).unseen("aurora borealis 北極光") == []


def test_what_captions_need_is_their_tokens_and_words_each_once_in_order(known):
    captions = ["A quokka's hat, in the snow", "a cat", "two QUOKKA 🐶 in the sea"]
    ids, words = known.missing(iter(captions))
    assert words == ["quokka", "'s", "hat", "two", "🐶"]
    assert set(ids) == set(Tokenizer().ids_in(captions)) - set(Tokenizer().ids_in(CAPTIONS)) and list(ids) == sorted(
        ids
    )
    assert Vocabulary({*Tokenizer().ids_in(CAPTIONS), *ids}).missing(captions) == ((), [])
    assert Vocabulary(None).missing(captions) == ((), [])


def test_what_lies_beyond_the_77_tokens_of_a_text_encoder_is_not_missed(known):
    assert known.missing(["a cat " * 60 + "quokka"]) == ((), [])


@pytest.mark.parametrize("text", ["", " \n", "!?,;", "..."])
def test_what_holds_no_word_holds_no_unseen_word(known, text):
    assert known.unseen(text) == []


@pytest.mark.parametrize(
    ("word", "near"),
    [("lions", "lion"), ("wodden", "wooden"), ("ocean", "above the sea"), ("kitty", "cat"), ("basilica", "castle")],
)
def test_the_nearest_is_alike_in_spelling_or_meaning(known, word, near):
    assert known.nearest(word)[0] == near


def test_only_known_words_are_offered(known):
    assert all(not known.unseen(near) for word in thesaurus().names["things"] for near in known.nearest(word))
    assert known.nearest("masterpiece") == []


def test_a_sentence_names_some_and_counts_the_rest(known):
    words = [f"x{i}" for i in range(MOST_NAMED + 3)]
    assert known.named(["ocean", "zzz"]) == "'ocean' (near: above the sea), 'zzz'"
    assert known.named(words).endswith("and 3 more")
    assert len(known.named(["q" * 10_000])) <= LONGEST + 2
