"""Files from strangers: no other program is started, sizes are measured before memory is taken, one sentence names the
file.
"""

import io
import os
import zipfile
import zlib

import pytest
import torch
from PIL import Image

from t2l import budget
from t2l.budget import LAYER_PIXELS, PIXELS, Limit, check_regular, parse_json, read_object, shown, shown_path
from t2l.data.example import decode_example
from t2l.io.image import read_image
from t2l.io.layer_file import open_layer_file
from t2l.io.layer_nodes import Account
from t2l.io.picture_file import read_colours

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


def png(mode="RGBA", size=(8, 8), **options):
    data = io.BytesIO()
    Image.new(mode, size, "red" if mode != "L" else 0).save(data, "png", **options)
    return data.getvalue()


def ora(path, entries, layers, size=8):
    stack = "".join(f'<layer name="a" src="{source}"/>' for source in layers)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo("mimetype"), "image/openraster")
        file.writestr("stack.xml", f'<image version="0.0.3" w="{size}" h="{size}"><stack>{stack}</stack></image>')
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def of_size(width, height):
    """A PNG whose header says this size."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A stand-in Ghostscript, first on the PATH: the file that it writes when it is started."""
    told = tmp_path / "started"
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> "{told}"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # pillow keeps what it found
    return told


def test_the_stand_in_is_started_where_no_formats_are_named(started):
    with pytest.raises((OSError, ValueError, SyntaxError)), Image.open(io.BytesIO(EPS)) as picture:
        picture.load()
    assert started.exists()


@pytest.mark.parametrize("name", ["a.ora", "a.png", "a.jpg", "a.eps", "a.psd", "a.psb"])
def test_no_file_starts_another_program(name, started, tmp_path):
    path = tmp_path / name
    if name == "a.ora":
        ora(path, {"data/a.png": EPS}, ["data/a.png"])
    else:
        path.write_bytes(EPS)
    for read in (open_layer_file, read_image, read_colours):
        with pytest.raises(ValueError, match=f"{name} ") as caught:
            read(path)
        assert "0x" not in str(caught.value)
    assert not started.exists()


def test_no_picture_in_a_shard_starts_another_program(started):
    texts = dict.fromkeys(("caption", "foreground_caption", "background_caption", "thing", "place"), "x")
    files = {"foreground.webp": EPS, "background.webp": EPS, "mask.png": EPS}
    sentence = "^its foreground.webp is unreadable: it is no picture that can be read, whatever its name says$"
    with pytest.raises(ValueError, match=sentence):
        decode_example("a", files, texts)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "ICO", "PPM"])
def test_open_raster_and_shards_hold_their_own_formats_alone(kind, tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, kind)
    with pytest.raises(ValueError, match="a.ora .*'data/a.png'.* no picture"):
        open_layer_file(ora(tmp_path / "a.ora", {"data/a.png": data.getvalue()}, ["data/a.png"]))
    texts = dict.fromkeys(("caption", "foreground_caption", "background_caption", "thing", "place"), "x")
    with pytest.raises(ValueError, match="its foreground.webp is unreadable"):
        decode_example("a", dict.fromkeys(("foreground.webp", "background.webp", "mask.png"), data.getvalue()), texts)


@pytest.mark.parametrize("size", [(7000, 6000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_is_measured_before_it_is_decoded(size, tmp_path):
    (tmp_path / "a.png").write_bytes(of_size(*size))
    sentence = (
        rf"a.png has {size[0] * size[1]:,} pixels; at most {PIXELS.default:,} pixels .*T2L_MAX_PIXELS allows more"
    )
    for read in (read_image, open_layer_file):
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / "a.png")


def test_the_environment_allows_more_or_less(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(size=(30, 20)))
    monkeypatch.setenv(PIXELS.variable, "599")
    with pytest.raises(ValueError, match="a.png has 600 pixels; at most 599 pixels are taken"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS.variable, "600")
    assert read_image(tmp_path / "a.png").shape == (1, 3, 20, 30)


LIMITS = [limit for limit in vars(budget).values() if isinstance(limit, Limit)]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.variable)
def test_every_limit_has_a_variable_and_a_sentence(limit, monkeypatch):
    assert limit.variable.startswith("T2L_MAX_") and limit.most == limit.default > 0
    monkeypatch.setenv(limit.variable, "7")
    limit.check(7, "x has")
    with pytest.raises(
        ValueError, match=f"^x has 8 {limit.unit}; at most 7 {limit.unit} are taken, .*{limit.variable}"
    ):
        limit.check(8, "x has")
    monkeypatch.setenv(limit.variable, "many")
    with pytest.raises(ValueError, match=f"{limit.variable} must be a whole number, got 'many'"):
        limit.check(8, "x has")


def test_an_entry_is_read_once_and_not_beyond_its_picture(tmp_path):
    path = ora(tmp_path / "a.ora", {"data/a.png": png() + b"\0" * (600 << 20)}, ["data/a.png"] * 20)
    assert len(open_layer_file(path).stack.layers) == 20


def test_what_a_file_unpacks_to_is_bounded_for_all_entries_together(tmp_path, monkeypatch):
    pictures = {f"data/{i}.png": png(size=(64, 64), compress_level=0) for i in range(9)}  # 16 kB each
    path = ora(tmp_path / "a.ora", pictures, list(pictures), size=64)
    assert len(open_layer_file(path).stack.layers) == 9
    monkeypatch.setenv("T2L_MAX_INFLATED_BYTES", "100000")
    with pytest.raises(
        ValueError, match="a.ora holds .*data/.*makes the file unpack to more than 100,000 bytes; at most"
    ):
        open_layer_file(path)


def test_a_canvas_is_measured_before_it_is_made(tmp_path):
    with pytest.raises(ValueError, match="a.ora is too large: .*16,000 x 16,000"):
        open_layer_file(ora(tmp_path / "a.ora", {"data/a.png": png()}, ["data/a.png"], size=16_000))


def test_a_name_without_end_is_told(tmp_path):
    path = ora(tmp_path / "a.ora", {"data/a.png": png()}, ['data/a.png" name2="' + "x" * 10])
    assert open_layer_file(path)
    stack = f'<image w="8" h="8"><stack><layer name="{"x" * 500_000}" src="data/a.png"/></stack></image>'
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("stack.xml", stack)
    with pytest.raises(
        ValueError, match="^a.ora: the name 'x.*' or its blend mode has 500,000 characters; at most 4,096"
    ):
        open_layer_file(path)


DAMAGED = {
    "cut off": (png("RGB", (64, 64))[:80], "cannot be read: it is cut off"),
    "empty": (b"", "is no picture that can be read, whatever its name says"),
    "text": (b"hello", "is no picture that can be read"),
    "no data": (png().replace(b"IDAT", b"IDAX"), "is no picture|cannot be read: "),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_a_decoder_says_becomes_a_sentence_of_ours(case, tmp_path):
    data, message = DAMAGED[case]
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.png {message}") as caught:
        read_image(tmp_path / "a.png")
    assert not any(raw in str(caught.value) for raw in ("tile", "0x", "chunk", "BytesIO", "buffer"))


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_only_ordinary_files_are_opened(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (read_image, open_layer_file):
        with pytest.raises((ValueError, FileNotFoundError), match="a.png"):
            read(path)


def test_a_path_of_half_a_megabyte_is_a_short_sentence():
    for path in ("a/" * 250_000 + "x.png", "x" * 500_000, "a\0b"):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_image(path)
        assert len(str(caught.value)) < 400


def test_json_is_bounded_in_values_and_levels(monkeypatch):
    assert parse_json("[" * 64 + "]" * 64, "x") and parse_json('{"a": [1, "b"]}', "x") == {"a": [1, "b"]}
    for deep in ("[" * 65 + "]" * 65, "[" * 10**6, '{"a":' * 10**5):
        with pytest.raises(ValueError, match="^x has "):
            parse_json(deep, "x")
    monkeypatch.setenv("T2L_MAX_JSON_VALUES", "10")
    with pytest.raises(ValueError, match="^x has up to 11 values; at most 10 values are taken"):
        parse_json("[1" + ",1" * 10 + "]", "x")


def test_values_and_paths_in_sentences_are_short_and_harmless():
    assert shown("abc") == "'abc'" and len(shown("x" * 10**6)) < 120 and len(shown([["x" * 10**6]] * 10**5)) < 800
    assert shown_path("a/b.psd") == "a/b.psd" and shown_path("a\x1b[2J\nb") == "a?[2J?b"
    assert len(shown_path("x" * 10**6)) < 220


def test_a_device_is_no_file():
    from pathlib import Path

    with pytest.raises(ValueError, match="/dev/zero is a pipe or a device; the picture must be an ordinary file"):
        check_regular(Path("/dev/zero"), "the picture")


def test_ordinary_pictures_are_read_as_before(tmp_path):
    for kind in ("PNG", "WEBP", "JPEG", "TIFF", "BMP", "GIF"):
        Image.new("RGB", (9, 7), (200, 80, 40)).save(tmp_path / "a", kind)
        found = read_image(tmp_path / "a")
        assert found.shape == (1, 3, 7, 9)
        assert (found[0, :, 3, 4] * 255 - torch.tensor([200, 80, 40])).abs().max() <= 12


@pytest.mark.parametrize(("text", "kind"), [("null", "null"), ("[1]", "a list"), ("3", "a number"), ('"a"', "a text")])
def test_a_json_file_that_holds_something_else_says_what_in_plain_words(tmp_path, text, kind):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json must hold one JSON object, got {kind}$"):
        read_object(tmp_path / "a.json", "the file")


def test_two_layers_of_24_megapixels_are_taken_and_a_canvas_of_100_is_not():
    account = Account("a.psd")
    for _ in range(5):
        account.claim(4000, 6000)
    account.release(4000, 6000)
    assert account.pixels == 4 * 24e6 and account.held == 5 * 24e6
    with pytest.raises(ValueError, match="a.psd is too large: 10,000 x 10,000 are more than .* set T2L_MAX_PIXELS"):
        account.claim(10_000, 10_000)
    with pytest.raises(ValueError, match=f"more than {LAYER_PIXELS.default:,} pixels together .*T2L_MAX_LAYER_PIXELS"):
        for _ in range(2):
            account.claim(5000, 6000)


def test_who_allowed_larger_pictures_is_allowed_as_many_in_all_layers(monkeypatch):
    monkeypatch.setenv(PIXELS.variable, "400_000_000")
    Account("a.psd").claim(20_000, 15_000)
