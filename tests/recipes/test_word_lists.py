"""The words that a recipe teaches, as the model card lists them."""

from pathlib import Path

from recipes.demo.captions import load_things
from recipes.demo.word_lists import word_lists

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def heads(recipe):
    return [line.partition(":")[0] for line in word_lists(RECIPES / recipe).splitlines() if line.startswith("- ")]


def test_a_recipe_of_all_words_lists_all_that_are_not_held_out():
    count = sum(not thing.held_out for thing in load_things())
    assert heads("demo.toml") == [f"- {count} things", "- 29 places", "- Light", "- Sizes", "- Colours"]


def test_a_recipe_of_some_things_of_one_size_lists_those_and_none_that_is_held_out():
    assert heads("demo-further.toml") == ["- 126 things", "- 29 places", "- Light", "- Colours"]
    lists = " ".join(word_lists(RECIPES / "demo-further.toml").split())
    assert "dog / puppy / hound / doggy / pooch, cat" in lists and "in fog / in the mist" in lists
    assert "koala" not in lists and "hippo" not in lists


def test_lines_are_as_long_as_in_documents():
    assert max(map(len, word_lists(RECIPES / "demo.toml").splitlines())) <= 120
