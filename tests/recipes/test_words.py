"""Common words out of WordNet's files: what they are read as, by the nearest kind above their likeliest sense."""

import pytest

from recipes.words import __main__ as words
from recipes.words.wordnet import ANIMAL, Nouns

INDEX = """\
  1 This software and database is being provided to you
dog n 2 1 @ 2 1 00000020 00000070
poodle n 1 1 @ 1 0 00000030
animal n 1 1 @ 1 0 00000010
lamb n 2 1 @ 2 1 00000050 00000060
food n 1 1 @ 1 0 00000040
paris n 1 1 @i 1 0 00000090
city n 1 1 @ 1 0 00000080
"""
DATA = """\
  1 This software and database is being provided to you
00000010 05 n 01 animal 0 000 | a living thing
00000020 05 n 01 dog 0 001 @ 00000010 n 0000 | barks
00000030 05 n 01 poodle 0 002 @ 00000020 n 0000 ~ 00000010 n 0000 | curly
00000040 13 n 01 food 0 000 | is eaten
00000050 13 n 01 lamb 0 001 @ 00000040 n 0000 | flesh
00000060 05 n 01 lamb 1 001 @ 00000010 n 0000 | a young sheep
00000070 18 n 01 dog 1 000 | a fellow
00000080 15 n 01 city 0 000 | many houses
00000090 15 n 01 paris 0 001 @i 00000080 n 0000 | a city
"""
SENSES = "dog%1:05:00:: 00000020 1 42\ndog%2:38:00:: 00000001 1 2\nlamb%1:13:00:: 00000050 1 1\nlamb%2:1:1:: 0 1 9\n"


@pytest.fixture
def nouns(tmp_path):
    for name, text in (("index.noun", INDEX), ("data.noun", DATA), ("index.sense", SENSES)):
        (tmp_path / name).write_text(text)
    return Nouns(tmp_path)


def test_the_nearest_kind_above_a_word_decides(nouns):
    kinds = {nouns.find("dog"): "dog", nouns.find("animal"): "bear", nouns.find("city.1"): "in the city"}
    read = {word: nouns.nearest_kind(nouns.usual(word), kinds) for word in ("poodle", "dog", "lamb", "paris", "food")}
    assert read == {"poodle": "dog", "dog": "dog", "lamb": "bear", "paris": "in the city", "food": None}


def test_a_beast_is_meant_before_its_flesh(nouns):
    assert nouns.file(nouns.usual("lamb")) == ANIMAL and nouns.usual("zorbl") is None


def test_words_that_are_oftener_no_nouns_are_left_out(nouns):
    assert nouns.is_noun("dog") and nouns.met("dog")
    assert not nouns.is_noun("lamb") and not nouns.met("poodle")


def test_a_kind_that_wordnet_lacks_is_named(nouns):
    with pytest.raises(ValueError, match="it holds no unicorn"):
        nouns.find("unicorn")


def test_the_file_that_is_written_is_read_again(nouns, monkeypatch, tmp_path, capsys):
    kinds = tmp_path / "kinds.txt"
    kinds.write_text("[things]\nsnail: dog\nbear: animal\n[places]\nin the city: city.1\n")
    monkeypatch.setattr(words, "KINDS", kinds)
    monkeypatch.setattr(words, "GENERATED", tmp_path / "made.txt")
    monkeypatch.setattr("sys.argv", ["words", str(tmp_path)])
    words.main()
    assert "bytes" in capsys.readouterr().out
    read = words.read_sections(tmp_path / "made.txt")
    assert [(line.names, line.words) for line in read["things"]] == [
        (("bear",), ("animal",)),
        (("snail",), ("poodle",)),
    ]
    assert read["places"] == []
