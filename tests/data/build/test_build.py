"""Flat pictures become layered shards: the same from every source, by any number of workers, after any kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from t2l.data.build import BuildConfig, build
from t2l.data.shards import Shards
from tests.data.build import cheap
from tests.data.build.cheap import CheapModels, draw, shards_of, write_folder

CONFIG = BuildConfig(size=64, smallest=32, shard_size=2, batch_size=3)
SOURCES = (
    cheap.write_folder,
    cheap.write_jsonl,
    cheap.write_csv,
    cheap.write_parquet,
    cheap.write_held,
    cheap.write_tars,
)


def built(source, out, config=CONFIG, models=CheapModels(), **options):  # noqa: B008 - frozen
    return build(config, source, out, models, progress=lambda line: None, **options)


def samples(out, split="train"):
    shards = Shards(out / split)
    return [shards[index] for index in range(len(shards))]


@pytest.mark.parametrize("write", SOURCES, ids=lambda write: write.__name__)
def test_every_kind_of_source_gives_the_same_samples(write, tmp_path):
    if write in (cheap.write_parquet, cheap.write_held):
        pytest.importorskip("pyarrow")
    built(write(tmp_path / "a"), tmp_path / "out")
    built(write_folder(tmp_path / "b"), tmp_path / "folder")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "folder")
    assert len(samples(tmp_path / "out")) == 6


def test_folders_named_as_kohya_names_them_are_read_and_their_repeats_are_not(tmp_path):
    """10_dogs is ten times each dog for kohya; here --data A:10 of training says so."""
    for folder, ending, numbers in (("10_dogs", ".txt", (0, 1)), ("5_my cats", ".caption", (2, 3))):
        (tmp_path / "a" / folder).mkdir(parents=True)
        for n in numbers:
            draw(n).save(tmp_path / "a" / folder / f"img{n}.png")
            (tmp_path / "a" / folder / f"img{n}{ending}").write_text(f"{folder}, {n}")
    built(tmp_path / "a", tmp_path / "out")
    captions = sorted(sample.caption for sample in samples(tmp_path / "out"))
    assert captions == ["10_dogs, 0", "10_dogs, 1", "5_my cats, 2", "5_my cats, 3"]


def test_a_sample_is_the_picture_its_mask_and_what_the_inpainter_painted(tmp_path):
    built(write_folder(tmp_path / "a"), tmp_path / "out")
    sample = samples(tmp_path / "out")[1]
    picture = torch.from_numpy(np.array(draw(1).crop((8, 0, 88, 80)).resize((64, 64)))).movedim(-1, 0)[None] / 255
    mask = sample.layers.mask
    shows = (mask == 1).expand_as(picture)
    assert 0.05 < mask.mean() < 0.5 and (sample.layers.foreground - picture)[shows].abs().mean() < 0.03
    assert cheap.redness(sample.layers.background).max() < 0.2  # no disc is left
    assert (sample.caption, sample.sources) == ("disc number 1", ("https://example.org/1",))
    assert sample.licences == ("CC-BY-4.0",) and set(sample.scores) == {"mask", "inpainting"}


def test_two_workers_write_what_one_does(tmp_path):
    source = write_folder(tmp_path / "a", 8)
    built(source, tmp_path / "one", workers=1)
    built(source, tmp_path / "two", workers=2)
    assert shards_of(tmp_path / "one") == shards_of(tmp_path / "two")


@pytest.mark.slow
def test_ray_writes_what_local_processes_do(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'text2layer[scale]'")
    source = write_folder(tmp_path / "a", 8)
    built(source, tmp_path / "local")
    built(source, tmp_path / "ray", workers=2, engine="ray")
    assert shards_of(tmp_path / "local") == shards_of(tmp_path / "ray")


def test_pictures_kept_back_are_in_no_training_shard(tmp_path):
    made = built(write_folder(tmp_path / "a", 7), tmp_path / "out", replace(CONFIG, validation=3))
    train, kept_back = samples(tmp_path / "out"), samples(tmp_path / "out", "validation")
    assert (made.train, made.validation) == (4, 3)
    assert {int(x.key) for x in [*train, *kept_back]} == set(range(7))


def test_a_shard_that_is_missing_is_built_again_and_nothing_else(tmp_path):
    source = write_folder(tmp_path / "a")
    built(source, tmp_path / "out")
    before = shards_of(tmp_path / "out")
    kept = (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns
    (tmp_path / "out" / "train" / "000001.report.json").unlink()
    (tmp_path / "out" / "train" / "000001.jsonl").unlink()
    built(source, tmp_path / "out")
    assert shards_of(tmp_path / "out") == before
    assert (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns == kept


def test_a_folder_may_hold_what_is_built_of_it(tmp_path):
    source = write_folder(tmp_path / "a", 3)
    assert built(source, source / "out") == built(source, source / "out")
    assert len(samples(source / "out")) == 3


def test_a_picture_repainted_at_the_same_size_is_refused(tmp_path):
    """Once a pack of the same kind kept the old pixels silently."""
    source = write_folder(tmp_path / "a")
    draw(0).save(source / "000.bmp")
    built(source, tmp_path / "out")
    draw(9).save(source / "000.bmp")
    with pytest.raises(ValueError, match="begun with other pictures.*digest differ"):
        built(source, tmp_path / "out")


@pytest.mark.parametrize(
    "change", [{"config": replace(CONFIG, size=72)}, {"models": CheapModels("others")}, {"more": 1}], ids=str
)
def test_a_folder_of_another_build_is_refused(change, tmp_path):
    built(write_folder(tmp_path / "a"), tmp_path / "out")
    write_folder(tmp_path / "a", 6 + change.pop("more", 0))
    with pytest.raises(ValueError, match="was begun with other pictures, captions or options"):
        built(tmp_path / "a", tmp_path / "out", **change)


def test_only_allowed_licences_are_kept_and_the_ledger_lists_them(tmp_path):
    source = write_folder(tmp_path / "a")
    (source / "005.json").write_text(json.dumps({"caption": "a disc"}))
    made = built(source, tmp_path / "out", replace(CONFIG, licences=("cc0*",)))
    ledger = (tmp_path / "out" / "ledger.csv").read_text().splitlines()
    assert made.train == 3 and made.dropped == {"licence": 3}
    assert all(",CC0-1.0," in line and "https://example.org/" in line for line in ledger[1:]) and len(ledger) == 4
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["licences"] == {"CC0-1.0": 3}
    assert "has no licence" in (tmp_path / "out" / "dropped.csv").read_text()


def test_what_the_filters_drop_has_its_score_and_unfiltered_keeps_it(tmp_path):
    source = write_folder(tmp_path / "a", 3)
    (source / "001.png").write_bytes(cheap.as_file(draw(1, radius=3)))
    made = built(source, tmp_path / "out")
    assert made.dropped == {"mask filter": 1}
    assert "scores 0.0" in (tmp_path / "out" / "dropped.csv").read_text()
    built(source, tmp_path / "all", replace(CONFIG, unfiltered=True))
    assert [sample.scores["mask"] < 0.5 for sample in samples(tmp_path / "all")] == [False, True, False]


def test_what_was_dropped_can_be_looked_at(tmp_path):
    source = write_folder(tmp_path / "a", 3)
    (source / "001.png").write_bytes(cheap.as_file(draw(1, radius=3)))
    built(source, tmp_path / "out")
    (sample,) = samples(tmp_path / "out" / "dropped")
    assert sample.key == "00000001" and sample.scores["mask"] < 0.5


def test_models_see_pictures_of_one_shape_when_shapes_are_kept(tmp_path):
    source = write_folder(tmp_path / "a", 3)
    (source / "001.png").write_bytes(cheap.as_file(draw(1, size=(80, 120))))
    built(source, tmp_path / "out", replace(CONFIG, crop=False))
    assert [sample.layers.size for sample in samples(tmp_path / "out")] == [(64, 77), (96, 64), (64, 77)]


def test_a_build_without_a_picture_that_can_be_used_says_where_the_reasons_are(tmp_path):
    write_folder(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="can be trained on.*dropped.csv says why"):
        built(tmp_path / "a", tmp_path / "out", replace(CONFIG, smallest=1000))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        built(tmp_path / "empty", tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()
