"""The demo's archive: what is drawn from it is what is drawn from the packages, but for the compression."""

import csv
import zipfile
from dataclasses import replace
from functools import partial

import pytest
import torch

from recipes.demo import DemoConfig, archive, build_demo
from recipes.demo.archive import pack_archive
from recipes.demo.build import Artist, plan
from recipes.demo.pictures import ArchivePictures, PackagePictures
from recipes.demo.sources import read_source
from t2l.data.shards import Shards

TINY = DemoConfig(size=64, train=24, test=2, held_out=2, validation=0, shard_size=12, processes=1)


def quiet(line: str) -> None:
    pass


def test_pictures_from_the_archive_are_those_from_the_packages_but_for_the_compression(packed, downloads):
    artists = [
        Artist(TINY, pictures)
        for pictures in (ArchivePictures(packed), PackagePictures(partial(read_source, downloads)))
    ]
    for index, pair in enumerate(plan(TINY, "train")):
        one, other = (artist.draw("train", index, *pair) for artist in artists)
        assert (one.caption, one.labels, one.sources) == (other.caption, other.labels, other.sources)
        assert torch.equal(one.layers.mask, other.layers.mask)
        assert (one.layers.composite() - other.layers.composite()).abs().mean() < 4 / 255


def test_a_world_is_drawn_from_the_archive_alone(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm, no apt-get
    build_demo(replace(TINY, archive=str(packed)), tmp_path / "out", quiet)
    assert not (tmp_path / "out" / "downloads").exists()
    shards = Shards(tmp_path / "out" / "train")
    ledger = {row["file"]: row for row in csv.DictReader((tmp_path / "out" / "ledger.csv").open())}
    assert {source for i in range(len(shards)) for source in shards[i].sources} <= ledger.keys()
    assert all(row["licence"] and row["author"] for row in ledger.values())


def test_a_world_goes_on_with_the_same_archive_wherever_it_lies_and_with_no_other(packed, tmp_path, downloads):
    config, out = replace(TINY, archive=str(packed)), tmp_path / "out"
    build_demo(config, out, quiet)
    moved = tmp_path / "moved.zip"
    moved.write_bytes(packed.read_bytes())
    build_demo(replace(config, archive=str(moved)), out, quiet)
    assert str(tmp_path) not in (out / "dataset.json").read_text()
    for other in (TINY, replace(config, archive=str(_another(packed, tmp_path)))):
        with pytest.raises(ValueError, match=r"was begun with other .* \(archive differ\)"):
            build_demo(other, out, quiet)


def _another(packed, folder):
    path = folder / "another.zip"
    path.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more", b"")
    return path


def test_the_same_packages_are_the_same_archive(packed, downloads, tmp_path):
    pack_archive(downloads, tmp_path / "again.zip", quiet)
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_an_archive_that_is_none_or_lacks_a_picture_is_named(packed, tmp_path):
    with pytest.raises(ValueError, match=r"archive must be a file that .* packed, and nowhere.zip is none"):
        replace(TINY, archive="nowhere.zip")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"broken.zip is no archive that recipes.demo.archive packed"):
        build_demo(replace(TINY, archive=str(broken)), tmp_path / "out", quiet)
    with pytest.raises(FileNotFoundError, match=r"does not hold hdri/park.exr.js.7.webp: it was packed before"):
        ArchivePictures(packed).panorama("hdri/park.exr.js", 7)


def test_the_command_packs_and_says_what_it_could_not(downloads, tmp_path, monkeypatch, capsys):
    words = ["archive", "--downloads", str(downloads), "--out", str(tmp_path / "x.zip")]
    monkeypatch.setattr("sys.argv", words)
    assert archive.main() == 0 and (tmp_path / "x.zip").is_file()
    monkeypatch.setattr(archive, "fetch_sources", lambda *_: (_ for _ in ()).throw(RuntimeError("no npm")))
    assert archive.main() == 2 and "recipes.demo.archive: no npm" in capsys.readouterr().err
