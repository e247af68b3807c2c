"""Prompts in the words that a checkpoint knows: what is known stays, the rest becomes known, and no prompt is empty."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recipes.demo import captions
from recipes.demo.captions import LIGHTS, SIZES, load_things
from recipes.demo.cutouts import COLOURS
from t2l.model.near_words import GENERATED, HAND_MADE, NAMING, read_sections, thesaurus
from t2l.model.rewrite import rewrite
from t2l.model.tokenizer import Tokenizer
from t2l.model.vocabulary import MOST_NAMED, Vocabulary

EMBEDDING = re.compile(r"(?<!\S)embedding:[^\s,]*")
UNWANTED = "blurry, ugly, (low quality:1.3), watermark, bad anatomy, extra fingers, text, jpeg artifacts"


def shipped_vocabulary():
    from t2l.cli.options import default_checkpoint
    from t2l.model.text2layer import read_parts

    return Vocabulary(read_parts(default_checkpoint()).text_encoder_config.token_ids)


def demo_captions():
    """The words of recipes/demo, one after another: what the next checkpoint learns from them."""
    yield "a photo of an x, a picture of"
    yield from (f"a {name}" for thing in load_things() if not thing.held_out for name in thing.names)
    yield from (
        phrase
        for row in json.loads((Path(captions.__file__).parent / "places.json").read_text())["places"]
        for phrase in row["phrases"]
    )
    yield from (word for table in (SIZES, LIGHTS) for words in table.values() for word in words)
    yield from COLOURS


SMALL = Vocabulary(Tokenizer().ids_in(["a cat, in the snow", "a lion above the sea", "a red car on a wooden table"]))
SHIPPED = shipped_vocabulary()
DEMO = Vocabulary(Tokenizer().ids_in(demo_captions()))
VOCABULARIES = {"small": SMALL, "shipped": SHIPPED, "demo": DEMO}


def said(prompt, vocabulary=SHIPPED, **how):
    return rewrite([prompt], vocabulary, **how).texts[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red car, in the SNOW ",
        "  a cat,  above the sea\n",
        "",
        " ",
        ",",
        "a lion in a snow  table!",
        "A Cat (on) [a] CAR?",
    ],
)
def test_known_words_stay_byte_for_byte(prompt):
    assert rewrite([prompt], SMALL) == ([prompt], {}, [], [])


def test_a_checkpoint_with_all_of_clips_words_is_never_rewritten():
    prompt = "zorbl, blurry 红色的茶壶 !!!  poodle"
    assert rewrite([prompt], Vocabulary(None), unwanted=True) == ([prompt], {}, [], [])


@pytest.mark.parametrize(
    ("prompt", "shipped", "demo"),
    [
        ("a poodle in a cathedral", "a dog in a town square", "a dog in a town square"),
        ("a crimson automobile", "a red automobile", "a red automobile"),
        ("a limousine at midnight", "a car at midnight", "a car at midnight"),
        ("a gigantic teapot on a desk", "a teapot on a desk", "a large teapot on a desk"),
        ("dogs on the beach", "a dog on the beach", "a dog on the beach"),
        ("two grey mice in the woods", "a gray mouse in the woods", "a gray mouse in the woods"),
        ("peaches", "an apple", "an apple"),
        ("an eagle", "an owl", "an eagle"),
        ("a golden retriever in Paris", "a dog in a city street", "a dog in a city street"),
        ("a herd of elephants", "an elephant", "an elephant"),
        ("a cup of tea", "a cup of tea", "a cup of tea"),
        ("a wodden castle", "a wooden castle", "a wooden castle"),
        ("a portrait of a fox", "a picture of a fox", "a picture of a fox"),
        ("a poodle and a sparrow near the mountains", "a dog by the mountains", "a dog by the mountains"),
        ("under the ocean, a squid", "under the ocean, a squid", "under the ocean, a squid"),
        ("a fox in a forest in the style of monet, 4k", "a fox in a forest", "a fox in a forest"),
        ("a vehicle", "a car", "a car"),
        ("fruit", "an apple", "an apple"),
        ("a flower", "a rose", "a rose"),
        ("a bird in the rain", "a parrot in fog", "a parrot in fog"),
        ("a spacecraft near a nebula", "a spacecraft in space", "a spacecraft in space"),
        ("a hen in a barnyard", "a hen in a meadow", "a hen in a meadow"),
        ("a fort at the seashore", "a castle on a beach", "a castle on a beach"),
        ("an emerald in a waiting room", "a crown in a lobby", "a diamond in a lobby"),
    ],
)
def test_words_are_read_as_the_nearest(prompt, shipped, demo):
    assert said(prompt, SHIPPED) == shipped
    assert said(prompt, DEMO) == demo


NONSENSE = [
    "zorbl",
    "!!!",
    "🐶🐶",
    "红色的茶壶",
    "the meaning of democracy",
    "asdf on the qwer",
    "42",
    "beautiful",
    UNWANTED,
]


@pytest.mark.parametrize("vocabulary", ["shipped", "demo"])
@pytest.mark.parametrize("prompt", NONSENSE)
def test_what_means_nothing_becomes_a_thing_and_a_place_always_the_same(prompt, vocabulary):
    known = VOCABULARIES[vocabulary]
    once, again = (rewrite([prompt], known) for _ in range(2))
    things, places = thesaurus().lists["drawn"]
    thing, place = once.instead
    assert once == again and once.texts == [f"{thing} {place}"]
    assert thing.split(" ", 1)[1] in things and place in places


def test_only_what_is_missing_is_named():
    assert re.fullmatch(r"an? \w+ on a beach", said("zorbl on a beach"))
    assert re.fullmatch(r"a red \w+ on a beach", said("a crimson zorbl on a beach"))
    assert re.fullmatch(r"a dog (in|on|at|against) .+", said("a dog in a zorbl"))
    assert said("a dog with a zorbl") == "a dog"


def test_a_checkpoint_of_ones_own_words_draws_one_of_them():
    own = Vocabulary(Tokenizer().ids_in(["a quokka"]))
    assert said("a fluffy quokka", own) == "a quokka"
    assert said("zorbl", Vocabulary(Tokenizer().ids_in(["a dragon"]))) == "a dragon"


def test_signs_of_a_bad_picture_become_nothing_where_a_prompt_may_be_of_what_is_not_wanted():
    for prompt in (UNWANTED, "blurry", "(worst quality), nsfw", "blurry, zorbl, ugly, deformed"):
        assert said(prompt, unwanted=True) == ""
    assert said("blurry, ugly, red", unwanted=True) == "red"
    assert said("a blurry, ugly dog", unwanted=True) == "dog"
    assert said("an ugly poodle, low quality", unwanted=True) == "a dog"
    assert said("an ugly zorbl", unwanted=True).startswith(("a ", "an "))


def test_the_parts_of_a_prompt_are_read_together():
    assert rewrite(["a photo of a ", "crimson", " poodle in a ", "cathedral"], SHIPPED).texts == [
        "a photo of a ",
        "red",
        "dog",
        "in a town square",
    ]


def test_what_is_kept_stays_and_may_name_something():
    assert said("a poodle embedding:ab-c.pt, zorbl", keep=EMBEDDING) == "a dog embedding:ab-c.pt"
    assert said("embedding:mine\nzorbl", keep=EMBEDDING) == "embedding:mine\n"
    assert said("embedding:mine", keep=EMBEDDING) == "embedding:mine"


def test_line_breaks_stay():
    assert said("a poodle\nin a cathedral\n\nzorbl") == "a dog\nin a town square\n\n"


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            "a an the red crimson poodle dog dogs zorbl in on of with at near cathedral night blurry ugly . , ! (x) \n "
            "' - embedding:x Table BREAK beach gigantic two 's über 🐶 é".split(" ")
        ),
        max_size=12,
    ).map(" ".join),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(sorted(VOCABULARIES)), st.booleans())
@example(["a a of of a"], "small", False)
@example(["e\u0301 zorbl e\u0301"], "shipped", False)
@example(["İSTANBUL zorbl"], "shipped", False)
@example(["<|endoftext|> zorbl"], "shipped", False)
@example(["0", "\x1f"], "demo", False)
@example(["a dog\x1czorbl\x1d"], "shipped", True)
def test_what_was_rewritten_holds_no_unknown_word_and_stays_so(texts, name, unwanted):
    known = VOCABULARIES[name]
    once = rewrite(texts, known, EMBEDDING, unwanted)
    assert len(once.texts) == len(texts)
    assert known.unseen(" \n".join(EMBEDDING.sub(" ", text) for text in once.texts)) == []
    if once.texts != texts:
        assert known.missing(EMBEDDING.sub(" ", text) for text in once.texts) == ((), [])
    again = rewrite(once.texts, known, EMBEDDING, unwanted)
    assert again == (once.texts, {}, [], [])
    if any(text.strip() for text in texts) and not unwanted and not EMBEDDING.search(" ".join(texts)):
        assert any(text.strip() for text in once.texts)


def test_a_sentence_says_what_became_of_each_word_and_counts_the_rest():
    sentence = rewrite(["a fluffy poodle"], SHIPPED).sentence()
    assert sentence == "'poodle' (read as 'dog'), 'fluffy' (left out)"
    assert re.fullmatch(
        r"'zorbl' \(left out\); drawn instead: an? \w+", rewrite(["zorbl on a beach"], SHIPPED).sentence()
    )
    many = " ".join(f"zorbl{letter}" for letter in "abcdefghijkl") + " dog"
    assert rewrite([many], SHIPPED).sentence().endswith(f"and {12 - MOST_NAMED} more")
    assert len(rewrite(["q" * 10_000 + " dog"], SHIPPED).sentence()) < 100
    assert rewrite(["a dog"], SHIPPED).sentence() == ""


def test_a_prompt_takes_less_than_20_ms_after_the_first():
    said("a zorbl")
    prompt = (
        "masterpiece, best quality, a fluffy poodel with crimson ribbons sitting in a cathedrall, highly detaild, 8k"
    )
    start = time.process_time()
    for number in range(10):
        said(f"{prompt} xyzzyq{number}")
    assert (time.process_time() - start) / 10 < 0.02


def test_every_name_of_the_tables_is_known_to_a_checkpoint_of_recipes_demo_or_has_one_after_it_that_is():
    for section in NAMING:
        for line in read_sections(HAND_MADE)[section]:
            for known in (SHIPPED, DEMO):
                assert any(map(known.knows, line.names)) or line.names[0] in ("shield", "anchor"), line.names


def test_the_generated_table_is_small_and_its_licence_lies_beside_it():
    assert GENERATED.stat().st_size + HAND_MADE.stat().st_size < 64_000
    assert GENERATED.with_suffix(".LICENSE.txt").is_file()
    assert all(line.words for lines in read_sections(GENERATED).values() for line in lines)
