"""The demo data set as a whole: splits, restarts, equal bytes, what goes wrong with the sources."""

import json
import shutil
from dataclasses import replace

import pytest

from recipes.demo import DemoConfig, build_demo, sources
from recipes.demo.__main__ import main
from recipes.demo.build import SPLITS, hidden_pairs, plan
from recipes.demo.sources import Package, fetch_sources, read_source
from t2l.data.shards import Shards

TINY = DemoConfig(size=32, train=5, test=2, held_out=2, validation=0, shard_size=3, processes=1)


def files(out) -> dict[str, bytes]:
    """What was built, without the sources."""
    return {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and "downloads" not in p.parts
    }


@pytest.fixture
def out(tmp_path, downloads):
    """A folder to build in, with the stand-ins as its downloads."""
    (tmp_path / "out").mkdir()
    shutil.copytree(downloads, tmp_path / "out" / "downloads")
    return tmp_path / "out"


@pytest.fixture
def built(out):
    build_demo(TINY, out, progress=lambda line: None)
    return out


def test_a_check_says_whether_the_values_are_right_and_does_nothing(tmp_path, monkeypatch, capsys):
    for words, code in (["train=3"], 0), (["trian=3"], 2), (["size=3"], 2):
        monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path / "out"), "--check", *words])
        assert main() == code
    said = capsys.readouterr()
    assert "DemoConfig has no trian; it has " in said.err and "did you mean train?" in said.err and not said.out
    assert "size must be 8 or more, got 3" in said.err and not (tmp_path / "out").exists()


def test_pairs_of_test_and_validation_occur_nowhere_else_and_their_things_and_places_do():
    config = DemoConfig()
    planned = {split: plan(config, split) for split in SPLITS}
    names = {split: {(thing.name, place.name) for thing, place in pairs} for split, pairs in planned.items()}
    things, places = ({split: {pair[i] for pair in pairs} for split, pairs in names.items()} for i in (0, 1))
    assert [len(planned[split]) for split in SPLITS] == [24000, 512, 128, 512, 0]
    for split in ("test", "validation"):
        assert all(not names[split] & names[other] for other in {*SPLITS} - {split})
        assert things[split] == things["train"] and places[split] <= places["train"]
    assert not things["held_out"] & things["train"]
    assert ("teapot", "wooden table") in names["train"]


def test_what_test_shows_does_not_depend_on_whether_there_is_a_validation_split():
    assert plan(DemoConfig(validation=0), "test") == plan(DemoConfig(), "test")


def test_a_small_world_shows_the_things_and_places_that_were_named_and_no_others():
    config = DemoConfig(things=("tiger", "teapot", "koala"), places=("snow", "beach", "forest"), validation=0)
    train, test, held_out = (plan(config, split) for split in ("train", "test", "held_out"))
    assert {place.name for _, place in train + test + held_out} == {"snow", "beach", "forest"}
    assert {thing.name for thing, _ in train} == {thing.name for thing, _ in test} == {"tiger", "teapot"}
    assert {thing.name for thing, _ in held_out} == {"koala"}
    assert not {(t.name, p.name) for t, p in train} & {(t.name, p.name) for t, p in test}


def test_a_small_world_goes_on_and_its_ledger_names_only_its_pictures(out):
    world = replace(TINY, things=("tiger", "koala"), places=("snow", "beach", "forest"))
    for _ in range(2):
        build_demo(world, out, progress=lambda line: None)
    assert list(json.loads((out / "dataset.json").read_text())["things"]) == ["tiger"]
    assert (
        len((out / "ledger.csv").read_text().splitlines()) == 1 + 3 + 1 + 1
    )  # the header, three tigers, a koala, a forest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"things": ("tiger", "hydra")}, "things must be among dog, .*; got hydra"),
        ({"places": ("moon",)}, "places must be among forest, .*; got moon"),
        (
            {"places": ("snow", "beach")},
            "places must be more than the 4 of each thing that only test and validation show, got 2",
        ),
        ({"things": ("tiger",)}, "held_out must be 0: none of the things is drawn there, got 128"),
        ({"things": ("koala",)}, "train must be 0: none of the things is drawn there, got 24000"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**values)


def test_every_thing_is_shown_about_equally_often():
    train = plan(DemoConfig(), "train")
    counts = [[thing.name for thing, _ in train].count(name) for name in hidden_pairs(DemoConfig(), "test")]
    assert max(counts) - min(counts) <= 1


def test_a_build_is_complete_and_says_what_it_holds(built):
    summary = json.loads((built / "dataset.json").read_text())
    assert summary["counts"] == {"train": 5, "test": 2, "held_out": 2}
    assert summary["config"]["size"] == 32
    shards = Shards(built / "train")
    words = {word for i in range(5) for word in shards[i].caption.replace(",", "").split()}
    assert words <= set(summary["words"])
    assert shards[0].layers.size == (32, 32)
    ledger = (built / "ledger.csv").read_text().splitlines()
    assert ledger[0] == "file,package,version,licence,author,sha256"
    assert all(source in "".join(ledger) for i in range(5) for source in shards[i].sources)


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(built):
    before = files(built)
    for name in ("train/000001.jsonl", "test/000000.tar", "dataset.json"):
        (built / name).unlink()
    (built / "train" / ".000001.tar.x.partial").write_bytes(b"half a shard")
    build_demo(TINY, built, progress=lambda line: None)
    assert files(built) == before


def test_unfiltered_pictures_are_the_same_ones_with_a_fault_each(built, downloads, tmp_path):
    out = tmp_path / "both"
    shutil.copytree(downloads, out / "downloads")
    build_demo(replace(TINY, unfiltered=TINY.train, faulty=1.0), out, progress=lambda line: None)
    filtered, unfiltered = Shards(built / "train"), Shards(out / "unfiltered")
    faults = []
    for one, other in ((filtered[i], unfiltered[i]) for i in range(len(filtered))):
        assert other.caption == one.caption
        lost = 1 - float(other.layers.mask.sum() / one.layers.mask.sum())
        left = (other.layers.background - one.layers.composite()).abs().mean() < 0.02
        assert left if lost == 0 else 0.1 < lost < 0.9
        faults.append(lost == 0)
    assert set(faults) == {True, False}
    assert files(out)["train/000000.tar"] == files(built)["train/000000.tar"]


def test_a_build_begun_before_an_option_was_there_goes_on_with_its_default(built):
    path = built / "config.json"
    older = json.loads(path.read_text())
    del older["faulty"]
    path.write_text(json.dumps(older))
    build_demo(TINY, built, progress=lambda line: None)
    with pytest.raises(ValueError, match=r"was begun with other .*\(faulty differ\)"):
        build_demo(replace(TINY, faulty=0.5), built, progress=lambda line: None)


def test_finished_shards_are_not_drawn_again(built):
    times = [path.stat().st_mtime_ns for path in sorted(built.glob("*/*.tar"))]
    build_demo(TINY, built, progress=lambda line: None)
    assert [path.stat().st_mtime_ns for path in sorted(built.glob("*/*.tar"))] == times


def test_another_config_in_the_same_folder_is_refused(built):
    with pytest.raises(ValueError, match=r"begun with other .* \(seed, size differ\); choose another folder"):
        build_demo(replace(TINY, seed=1, size=64), built)


def test_another_seed_gives_other_pictures(built, tmp_path, downloads):
    other = tmp_path / "other"
    shutil.copytree(downloads, other / "downloads")
    build_demo(replace(TINY, seed=1), other, progress=lambda line: None)
    assert (other / "train" / "000000.tar").read_bytes() != (built / "train" / "000000.tar").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(built, tmp_path, downloads):
    other = tmp_path / "other"
    shutil.copytree(downloads, other / "downloads")
    build_demo(replace(TINY, processes=2), other, progress=lambda line: None)
    assert files(other) == files(built)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("npm", "apt-get", "dpkg-deb"))), reason="needs npm, apt-get and dpkg-deb"
)
def test_the_real_packages_are_fetched_and_drawn(tmp_path):
    """Downloads about 300 MB."""
    build_demo(replace(TINY, size=64), tmp_path)
    assert len(Shards(tmp_path / "train")) == 5


@pytest.mark.parametrize(
    ("name", "value"), [("size", 0), ("shard_size", 0), ("processes", 0), ("train", -1), ("fluent", 2)]
)
def test_a_config_that_cannot_be_built_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        DemoConfig(**{name: value})


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="is fetched with npm, which is not on this machine"):
        fetch_sources(tmp_path / "downloads", progress=lambda line: None)


def test_a_failing_client_is_quoted(tmp_path, monkeypatch):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match="npm pack .* did not bring .*tgz .*no network.*; .*put the file into"):
        fetch_sources(tmp_path / "downloads", progress=lambda line: None)


def test_an_archive_that_is_not_the_pinned_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "packages", lambda: [Package("thing", "1", "npm", "thing-1.tgz", "0" * 64)])
    (tmp_path / "thing-1.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="thing-1.tgz should have sha256 0{64} and has [0-9a-f]{64}; delete it"):
        fetch_sources(tmp_path, progress=lambda line: None)


def test_a_missing_picture_is_named(downloads):
    for source in ("fluent/none.webp", "furniture/Scopia/none.png", "furniture/None/none.png"):
        with pytest.raises(FileNotFoundError, match=f"the picture {source} is not in"):
            read_source(downloads, source)
