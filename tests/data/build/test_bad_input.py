"""Whatever lies in a source: each picture that cannot be used has a reason, and the others are built."""

import csv
import os
import resource
import tarfile
import zlib
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

from t2l.data.build import BuildConfig, Models, build
from t2l.data.shards import Shards
from tests.data.build.cheap import CheapModels, add, as_file, draw, redness, said, smooth_fill, write_folder, write_tars

CONFIG = BuildConfig(size=64, smallest=32, shard_size=4, batch_size=3, deduplicate=False)


def reasons(source, tmp_path, config=CONFIG, models=CheapModels(), **options):  # noqa: B008 - frozen
    """The reason of each dropped picture by its name; what is kept is there to be read."""
    build(config, source, tmp_path / "out", models, progress=lambda line: None, **options)
    shards = Shards(tmp_path / "out" / "train")
    assert all(shards[index].layers.size for index in range(len(shards)))
    with (tmp_path / "out" / "dropped.csv").open(newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def white_png(width, height):
    """A PNG of a few kilobytes, however many pixels it claims."""
    rows = zlib.compressobj(9)
    data = b"".join([rows.compress(b"\0" * (1 + width // 8)) for _ in range(height)]) + rows.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = [
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def animated():
    frames = [draw(n).convert("P") for n in range(2)]
    return as_file(frames[0], "gif", save_all=True, append_images=frames[1:])


BROKEN = {
    "cut-off": (as_file(draw(1), "jpeg")[:900], "is cut off"),
    "empty": (b"", "is no picture"),
    "text": (b"hello", "is no picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no picture"),
    "animated": (animated(), "is animated"),
    "one-pixel": (as_file(Image.new("RGB", (1, 1))), "has 1 x 1 pixels; 32 along a side are needed"),
    "strip": (as_file(Image.new("RGB", (400, 40))), "more than 3 to 1"),
    "20000": (white_png(20000, 20000), "has 400,000,000 pixels; at most"),
    "no-subject": (as_file(Image.new("RGB", (64, 64), "blue")), "has no subject"),
    "all-subject": (as_file(Image.new("RGB", (64, 64), "red")), "is all subject"),
}


def test_every_broken_picture_is_named_with_its_reason(tmp_path):
    source = write_folder(tmp_path / "a", 2)
    for name, (data, _) in BROKEN.items():
        (source / f"{name}.png").write_bytes(data)
        (source / f"{name}.txt").write_text("a thing")
    found = reasons(source, tmp_path)
    assert found.keys() == {f"{name}.png" for name in BROKEN}
    for name, (_, reason) in BROKEN.items():
        assert reason in found[f"{name}.png"], name


def test_rare_kinds_of_pictures_are_read(tmp_path):
    source = write_folder(tmp_path / "a", 1)
    rare = {
        "cmyk.jpg": as_file(draw(1).convert("CMYK"), "jpeg"),
        "sixteen.png": as_file(Image.new("I;16", (64, 64), 65535)),
        "palette.gif": as_file(draw(2).convert("P"), "gif"),
        "wrong-ending.png": as_file(draw(3), "jpeg"),
        "with alpha.png": as_file(draw(4).convert("RGBA")),
        "名前\nand a line.png": as_file(draw(5)),
    }
    for name, data in rare.items():
        (source / name).write_bytes(data)
        (source / name).with_suffix(".caption").write_text("a thing")
    found = reasons(source, tmp_path)
    assert found == {"sixteen.png": "has no subject: its mask is 0.00 at most"}  # white is not red
    assert "名前\nand a line.png" in (tmp_path / "out" / "ledger.csv").read_text()


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({}, "has no caption"),
        ({".txt": b" \n"}, "has no caption"),
        ({".txt": b"x" * 100_000}, "has a caption of 100,000 characters; at most 10,000 are taken"),
        ({".txt": b"x" * (2 << 20)}, "at most 1,048,576 are read"),
        ({".txt": b"\xff\xfe"}, "is not UTF-8 text"),
        ({".json": b"[1]"}, "should hold an object"),
        ({".json": b"{"}, "is not JSON"),
        ({".json": b'{"caption": 7}'}, "has no caption"),
        ({".json": b"[" * 100_000}, "in more than 64 levels"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(written, reason, tmp_path):
    source = write_folder(tmp_path / "a", 1)
    (source / "b.png").write_bytes(as_file(draw(1)))
    for ending, data in written.items():
        (source / f"b{ending}").write_bytes(data)
    assert reason in reasons(source, tmp_path)["b.png"]


def test_links_out_of_the_folder_are_followed_only_when_asked(tmp_path):
    source = write_folder(tmp_path / "a", 1)
    write_folder(tmp_path / "outside", 3)
    (source / "link.png").symlink_to(tmp_path / "outside" / "001.png")
    (source / "link.json").symlink_to(tmp_path / "outside" / "001.json")
    (source / "dead.png").symlink_to("nothing.png")
    (source / "secret.png").write_bytes(as_file(draw(2)))
    (source / "secret.txt").symlink_to(tmp_path / "outside" / "002.json")
    os.mkfifo(source / "pipe.png")
    found = reasons(source, tmp_path)
    assert "leads out of the folder" in found["link.png"] and "not there" in found["dead.png"]
    assert "outside of the source's folder" in found["secret.png"] and "pipe" in found["pipe.png"]
    followed = reasons(source, tmp_path / "again", follow_links=True)
    assert followed.keys() == {"dead.png", "pipe.png"}


ROWS = {
    '{"file_name": "000.png", "text": "a disc"}': None,
    '{"file_name": "gone.png", "text": "a"}': "there is no file gone.png",
    '{"file_name": "../outside/000.png", "text": "a"}': "outside of the source's folder",
    '{"file_name": "/etc/passwd", "text": "a"}': "outside of the source's folder",
    '{"file_name": "a\\u0000.png", "text": "a"}': "is not there",
    '{"file_name": "' + "x" * 5000 + '.png", "text": "a"}': "is not there",
    '{"file_name": "sub", "text": "a"}': "is a folder",
    '{"text": "a"}': "names no picture",
    '{"file_name": "001.png"': "is not JSON",
    "[]": "is no JSON object",
    '{"file_name": "001.png", "text": "' + "x" * (1 << 20) + '"}': "is longer than 1,048,576 bytes",
}


def test_a_bad_row_of_a_table_costs_one_picture(tmp_path):
    source = write_folder(tmp_path / "a", 2)
    write_folder(tmp_path / "outside", 1)
    (source / "sub").mkdir()
    (source / "list.jsonl").write_text("\n".join([*ROWS, '{"file_name": "001.png", "text": "last"}']))
    found = list(reasons(source / "list.jsonl", tmp_path).values())
    wanted = [reason for reason in ROWS.values() if reason]
    assert len(found) == len(wanted) and all(a in b for a, b in zip(wanted, found, strict=True))
    assert len(Shards(tmp_path / "out" / "train")) == 2


def test_csv_has_quotes_other_separators_and_rows_of_another_length(tmp_path):
    source = write_folder(tmp_path / "a", 4)
    rows = ['000.png;"two\nlines; ""quoted"""', "001.png;a;b", '002.png;"open', "003.png;closed again"]
    (source / "list.csv").write_text("\n".join(["\ufefffile_name;text", *rows]), encoding="utf-8")
    found = reasons(source / "list.csv", tmp_path)
    shards = Shards(tmp_path / "out" / "train")
    assert [shards[i].caption for i in range(len(shards))] == ['two lines; "quoted"', "closed again"]
    assert sorted(found.values()) == [
        "has 3 columns, and the header 2",
        "is longer than 1,048,576 bytes, or has an open quote",
    ]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "a.csv",
            b"url,text\nhttp://a,b\n",
            "no column that names pictures.*addresses alone are fetched with img2dataset",
        ),
        ("a.csv", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", b"", "no column that names pictures"),
        ("a.parquet", b"PAR1", "is no Parquet file, or damaged"),
        ("a.zip", b"", "is no source: a folder, .csv"),
    ],
)
def test_what_is_no_source_is_refused_before_anything_is_written(name, data, sentence, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        reasons(tmp_path / name, tmp_path)
    assert not (tmp_path / "out").exists()


def test_damaged_tars_cost_what_is_damaged(tmp_path):
    source = write_tars(tmp_path / "a", 4, each=4)
    whole = (source / "00000.tar").read_bytes()
    (source / "00001.tar").write_bytes(whole[:12000])
    (source / "00002.tar").write_bytes(b"no tar")
    (source / "00003.tar").write_bytes(b"")
    with tarfile.open(source / "00004.tar", "w") as tar:
        add(tar, "../../escape.jpg", as_file(draw(5)))
        add(tar, "../../escape.txt", b"a disc")
        add(tar, "lonely.txt", b"a caption")
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = reasons(source, tmp_path, replace(CONFIG, shard_size=100))
    assert "holds no picture" in found["00004.tar/lonely"] and "holds no picture" in found["00004.tar/link"]
    assert any(name.startswith("00001.tar, byte") for name in found)
    assert {"00002.tar, byte 0", "00003.tar, byte 0"} <= found.keys()
    assert (
        "../../escape" in (tmp_path / "out" / "ledger.csv").read_text()
        and not (tmp_path.parent / "escape.jpg").exists()
    )


@dataclass(frozen=True)
class Limited(CheapModels):
    """A saliency network that takes `most` pictures at once, and none that is very bright."""

    most: int = 2
    kind: str = "memory"

    def __call__(self):
        return Models(self.saliency, smooth_fill)

    def saliency(self, pictures):
        if len(pictures) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if self.kind == "memory" and pictures.shape[-1] == 64 and float(pictures[:, 1].mean()) > 0.6:
            raise MemoryError
        return redness(pictures) if self.kind != "nan" or pictures.std() < 0.01 else redness(pictures) * float("nan")


def test_a_batch_that_does_not_fit_is_halved_and_one_picture_that_never_does_is_recorded(tmp_path):
    source = write_folder(tmp_path / "a", 3)
    (source / "001.png").write_bytes(as_file(Image.new("RGB", (64, 64), "white")))
    assert reasons(source, tmp_path, models=Limited()) == {"001.png": "needs more memory than there is, also alone"}
    assert len(Shards(tmp_path / "out" / "train")) == 2


def test_a_model_that_fails_on_everything_ends_the_run_and_no_shard_is_written(tmp_path):
    source = write_folder(tmp_path / "a", 34)
    with pytest.raises(RuntimeError, match="32 pictures in a row failed.*must give finite values"):
        reasons(source, tmp_path, replace(CONFIG, shard_size=100), Limited(kind="nan", most=100))
    assert not list((tmp_path / "out" / "train").iterdir())


def test_a_full_disk_is_a_sentence_and_leaves_no_half_shard(tmp_path):
    source = write_folder(tmp_path / "a", 6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match=r"train/000000.tar cannot be written \(File too large\); make room and run"):
            reasons(source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out" / "train").iterdir())
    assert not reasons(source, tmp_path) and len(Shards(tmp_path / "out" / "train")) == 6


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "a", 1)
    (source / "b.png").write_bytes(as_file(draw(1)) + bytes(100_000))
    (source / "b.txt").write_text(said(1)["caption"])
    monkeypatch.setenv("T2L_MAX_FILE_BYTES", "90000")
    assert "bytes; at most 90,000 are read" in reasons(source, tmp_path)["b.png"]
