"""A folder of somebody's pictures becomes shards: every kind right, everything else named with its reason."""

import io
import json
import os
import resource
import signal
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from t2l.compositing.stack import Layer, Stack
from t2l.data import pack as room
from t2l.data.folder import find_sources
from t2l.data.layer_sources import read_layers
from t2l.data.pack import PackConfig, pack
from t2l.data.shards import Shards
from t2l.io.image import save_layers
from t2l.io.layer_file import save_layer_file, save_png_set
from t2l.io.picture_file import read_colours, read_mask
from t2l.layers import Layers

ONE = PackConfig(processes=1)


def layers(number=0, size=(64, 72)):
    """Noise in steps of 1/255, with a mask that is soft and has 0 and 1 in it."""
    pixels = torch.rand(1, 7, *size, generator=torch.Generator().manual_seed(number))
    pixels[:, 6] = (2 * pixels[:, 6] - 0.5).clamp(0, 1)
    return Layers.from_stacked((pixels * 255).round() / 255)


def picture(value=(200, 80, 40), size=(72, 64), mode="RGB"):
    return Image.new(mode, size, value)


def write_set(folder, key="a", caption="a cup on a table", joint=".", size=(72, 64), **parts):
    """One layered picture; parts: pictures or bytes in place of the ordinary ones, None to leave one out."""
    mask = picture(0, size, "L")
    mask.paste(255, (20, 20, 50, 50))
    ordinary = {"foreground": picture(size=size), "background": picture((10, 90, 200), size), "mask": mask}
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in (ordinary | parts).items():
        path = folder / f"{key}{joint}{part}.png"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            content.save(path)
    if caption is not None:
        (folder / f"{key}.txt").write_text(caption)


def as_bytes(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(folder, tmp_path, config=ONE, **options):
    pack(config, folder, tmp_path / "out", progress=lambda line: None, **options)
    return Shards(tmp_path / "out" / "train")


def reason(folder, tmp_path):
    """Why the one broken picture beside a good one was left out."""
    write_set(folder, "good")
    assert packed(folder, tmp_path).metadata(0)["sources"] == ["good"]
    (line,) = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    return line


def read(folder, size=1024):
    (source,), skipped = find_sources(folder)
    assert not skipped
    return read_layers(source, size)[0]


def same(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("foreground", "background", "mask"))


# ---- what comes back


@pytest.mark.parametrize("write", [save_layers, lambda x, *where: save_png_set(Stack.from_layers(x), *where)])
def test_what_generate_and_convert_write_gives_back_the_same_layers(write, tmp_path):
    write(layers(), tmp_path, "a-cup")
    (tmp_path / "a-cup.txt").write_text("a cup")
    assert same(read(tmp_path), layers())


@pytest.mark.parametrize("ending", ["psd", "ora"])
def test_a_layer_file_gives_back_the_same_layers(ending, tmp_path):
    save_layer_file(Stack.from_layers(layers()), tmp_path / f"a.{ending}")
    (tmp_path / "a.txt").write_text("a cup")
    assert same(read(tmp_path), layers())


def test_shards_keep_masks_exactly_colours_closely_and_every_word(tmp_path):
    for number in range(3):
        save_layers(layers(number), tmp_path / "in" / "deep", f"a{number}")
        words = {"caption": f"a cup {number}", "thing": "cup", "place": None, "more": 1}
        (tmp_path / "in" / "deep" / f"a{number}.json").write_text(json.dumps(words))
    shards = packed(tmp_path / "in", tmp_path)
    for number in range(3):
        found = shards[number]
        assert (found.caption, found.labels) == (f"a cup {number}", {"thing": "cup"})
        assert found.sources == (f"deep/a{number}",) and torch.equal(found.layers.mask, layers(number).mask)
    assert not (tmp_path / "out" / "skipped.txt").exists()


def test_flat_colours_come_through_the_shards_within_three_steps(tmp_path):
    write_set(tmp_path / "in")
    found = packed(tmp_path / "in", tmp_path)[0].layers
    for part, colour in (("foreground", (200, 80, 40)), ("background", (10, 90, 200))):
        wanted = torch.tensor(colour).view(1, 3, 1, 1) / 255
        assert (getattr(found, part) - wanted).abs().max() <= 3 / 255


def test_a_foreground_with_transparency_needs_no_mask(tmp_path):
    cut_out = picture((200, 80, 40, 0), mode="RGBA")
    cut_out.paste((10, 20, 30, 255), (10, 10, 40, 40))
    write_set(tmp_path, mask=None, foreground=cut_out)
    found = read(tmp_path)
    assert found.mask.sum() == 30 * 30 and found.mask[0, 0, 10, 10] == 1
    wanted = torch.tensor([10, 20, 30]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(found.foreground, wanted.expand_as(found.foreground))  # it goes on beyond the edge


def test_a_cut_out_has_no_fringe_when_it_is_scaled_down(tmp_path):
    cut_out = picture((0, 0, 0), (640, 512))
    cut_out.paste((250, 120, 60), (101, 99, 400, 401))
    mask = picture(0, (640, 512), "L")
    mask.paste(255, (101, 99, 400, 401))
    write_set(tmp_path, foreground=cut_out, mask=mask, size=(640, 512))
    found = read(tmp_path, size=100)
    wanted = torch.tensor([250, 120, 60]).view(1, 3, 1, 1) / 255
    assert (
        found.size == (100, 125) and (found.foreground - wanted).abs().max() < 8 / 255
    )  # black under the mask would be 60


def test_pictures_are_scaled_down_and_never_up(tmp_path):
    write_set(tmp_path, size=(300, 200))
    assert read(tmp_path, size=100).size == (100, 150) and read(tmp_path, size=200).size == (200, 300)
    assert read(tmp_path, size=1024).size == (200, 300)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_grey_of_16_bits_is_rounded_and_not_cut_off(dtype, tmp_path):
    values = np.linspace(0, 65535, 72 * 64).reshape(64, 72).round()
    Image.fromarray(values.astype(dtype)).save(tmp_path / "m.tif")
    wanted = Image.fromarray((values / 257).round().astype(np.uint8))
    assert read_mask(tmp_path / "m.tif").tobytes() == wanted.tobytes()
    assert read_colours(tmp_path / "m.tif")[0].tobytes() == wanted.convert("RGB").tobytes()
    Image.fromarray(values.astype("<u2")).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (picture((255, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE), "png", {}),
        (picture((0, 255, 255, 0), mode="CMYK"), "jpeg", {"quality": 95}),
        (picture((0, 255, 255, 0), mode="CMYK"), "tiff", {}),
        (picture((255, 0, 0)).convert("YCbCr"), "jpeg", {"quality": 95}),
        (picture((255, 0, 0)), "webp", {"lossless": True}),
        (picture((255, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE), "gif", {}),
    ],
)
def test_red_is_red_in_every_mode(image, kind, options, tmp_path):
    (tmp_path / "x.png").write_bytes(as_bytes(image, kind, **options))
    colours, alpha = read_colours(tmp_path / "x.png")
    assert alpha is None and np.abs(np.asarray(colours).astype(int) - (255, 0, 0)).max() <= 2


def test_transparency_of_a_palette_and_of_one_grey_value_is_alpha(tmp_path):
    palette = picture(0, mode="P")
    palette.putpalette([0, 0, 0, 90, 80, 70])
    palette.paste(1, (0, 0, 36, 64))
    palette.save(tmp_path / "p.png", transparency=0)
    grey = picture(7, mode="L")
    grey.paste(200, (0, 0, 36, 64))
    grey.save(tmp_path / "l.png", transparency=7)
    for name in ("p.png", "l.png"):
        alpha = np.asarray(read_colours(tmp_path / name)[1])
        assert (alpha[:, :36] == 255).all() and (alpha[:, 36:] == 0).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_are_turned_upright(orientation, tmp_path):
    upright = Image.fromarray((layers().foreground[0] * 255).byte().movedim(0, -1).numpy())
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored, exif = upright.transpose(turns[orientation]), Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert read_colours(tmp_path / "x.png")[0].tobytes() == upright.tobytes()


def wide_gamut():
    """sRGB's profile with red and blue exchanged: its colours are far from sRGB's, and known."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_a_colour_profile_is_applied_to_colours_and_not_to_masks(tmp_path):
    picture((200, 80, 40)).save(tmp_path / "x.png", icc_profile=wide_gamut())
    found = np.asarray(read_colours(tmp_path / "x.png")[0])[0, 0].astype(int)
    assert np.abs(found - (40, 80, 200)).max() <= 2
    picture(100, mode="L").save(tmp_path / "m.png", icc_profile=wide_gamut())
    assert read_mask(tmp_path / "m.png").getextrema() == (100, 100)


def test_srgbs_own_profile_changes_no_bit(tmp_path):
    noise = Image.fromarray((layers().foreground[0] * 255).byte().movedim(0, -1).numpy())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise.save(tmp_path / "x.png", icc_profile=profile)
    assert read_colours(tmp_path / "x.png")[0].tobytes() == noise.tobytes()


def test_a_white_mask_with_transparency_is_its_transparency(tmp_path):
    mask = picture((255, 255, 255, 0), mode="RGBA")
    mask.paste((255, 255, 255, 128), (0, 0, 36, 64))
    mask.save(tmp_path / "m.png")
    assert np.asarray(read_mask(tmp_path / "m.png"))[0, [0, 71]].tolist() == [128, 0]


# ---- what is left out, with its reason


def animated():
    return as_bytes(picture(), "webp", save_all=True, append_images=[picture((0, 0, 0))])


def cut(image):
    data = as_bytes(image)
    return data[: len(data) // 2]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8))
BROKEN = {
    "animated": ({"foreground": animated()}, "a: a.foreground.png is animated or has several pages; save the one"),
    "truncated": ({"foreground": cut(NOISE)}, "a: a.foreground.png cannot be read: "),
    "empty": ({"background": b""}, "a: a.background.png is no picture that can be read"),
    "PostScript": (
        {"background": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
        "is no picture that can be read",
    ),
    "float": ({"mask": as_bytes(picture(0.5, mode="F"), "tiff")}, "has neither 8 nor 16 bits a channel"),
    "profile": ({"foreground": as_bytes(picture(), icc_profile=b"junk")}, "has a colour profile that cannot be used"),
    "one pixel": ({"size": (1, 1)}, "a: has 1 x 1 pixels; training takes 64 along a side, or more"),
    "sizes": ({"mask": picture(9, (64, 64), "L")}, "foreground 72 x 64, background 72 x 64, mask 64 x 64"),
    "black mask": ({"mask": picture(0, mode="L")}, "a: has a mask that is black all over; it is white where"),
    "no mask": ({"mask": None}, "a: has no mask, and no transparency in its foreground that could be one"),
    "no background": ({"background": None}, "a: has no background; a layered picture needs"),
    "holes": ({"background": picture((1, 2, 3, 9), mode="RGBA")}, "a: has holes in a.background.png; a background has"),
    "no caption": ({"caption": None}, "a: has no caption: there is no a.txt and no a.json"),
    "empty caption": ({"caption": " \n"}, "a: has an empty caption in a.txt"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_used_is_named_and_the_rest_is_packed(kind, tmp_path):
    parts, sentence = BROKEN[kind]
    write_set(tmp_path / "in", **parts)
    line = reason(tmp_path / "in", tmp_path)
    assert line.startswith("a: ") and sentence in line


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "caf\u00e9".encode("latin-1"), "a: a.txt is not UTF-8 text, from byte 3 on"),
        ("a.json", b'{"caption": ', "a: a.json is not JSON"),
        ("a.json", b'["a cup"]', "a: a.json should hold an object and holds a list"),
        ("a.json", b'{"thing": "cup"}', "a: has an empty caption in a.json"),
        ("a.json", b'{"caption": 3}', "a: has no text for caption in a.json, but 3"),
        ("a.txt", b"x" * (1 << 21), "a: has a.txt of more than 1,048,576 bytes"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_reason(name, content, sentence, tmp_path):
    write_set(tmp_path / "in", caption=None)
    (tmp_path / "in" / name).write_bytes(content)
    assert sentence in reason(tmp_path / "in", tmp_path)


def test_a_caption_with_a_byte_order_mark_and_line_breaks_is_one_line(tmp_path):
    write_set(tmp_path / "in", caption=None)
    (tmp_path / "in" / "a.txt").write_bytes(b"\xef\xbb\xbfa cup\r\non a table\r\n")
    assert packed(tmp_path / "in", tmp_path).metadata(0)["caption"] == "a cup on a table"


def test_lone_pictures_second_files_and_unread_kinds_are_named(tmp_path):
    write_set(tmp_path / "in")
    (tmp_path / "in" / "a_mask.png").write_bytes((tmp_path / "in" / "a.mask.png").read_bytes())
    picture().save(tmp_path / "in" / "contact_sheet.png")
    (tmp_path / "in" / "b.kra").write_bytes(b"PK")
    write_set(tmp_path / "in", "good", joint="_", composite=picture(), cutout=picture())
    save_layer_file(Stack.from_layers(layers()), tmp_path / "in" / "good.ora")
    (tmp_path / "in" / "._a.foreground.png").write_bytes(b"of a Mac")
    assert len(packed(tmp_path / "in", tmp_path)) == 1
    lines = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["a", "b.kra", "contact_sheet.png", "good.ora"]
    assert "has several files for its mask (a.mask.png, a_mask.png); keep one" in lines[0]
    assert "of a kind that is not read" in lines[1] and "is no layered picture" in lines[2]


@pytest.mark.parametrize(
    ("visible", "opaque", "sentence"),
    [(3, True, "a.ora: has 3 visible layers"), (2, False, "a.ora: has holes in its lower")],
)
def test_a_layer_file_needs_two_layers_and_a_whole_background(visible, opaque, sentence, tmp_path):
    image, full = layers().foreground[0], torch.ones(1, 64, 72)
    lower = full if opaque else layers().mask[0]
    stack = [Layer(image=image, mask=lower, name="below")]
    stack += [Layer(image=image, mask=layers().mask[0], name=f"l{i}") for i in range(visible - 1)]
    hidden = Layer(image=image, mask=full, name="hidden", visible=False)
    (tmp_path / "in").mkdir()
    save_layer_file(Stack(64, 72, (*stack, hidden)), tmp_path / "in" / "a.ora")
    (tmp_path / "in" / "a.txt").write_text("a cup")
    assert sentence in reason(tmp_path / "in", tmp_path)


def test_a_hundred_megapixels_are_read_without_a_warning(tmp_path):
    picture(1, (12_000, 8_400), "1").save(tmp_path / "large.png")  # pillow warns from 89 megapixels on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_mask(tmp_path / "large.png").size == (12_000, 8_400)


@pytest.mark.parametrize("side", [13_200, 20_000])
def test_more_pixels_than_the_limit_are_a_reason_before_they_are_decoded(side, tmp_path):
    """Pillow has a limit of its own, which the second size exceeds."""
    data = bytearray(as_bytes(picture()))
    data[16:24] = side.to_bytes(4, "big") * 2  # IHDR: width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    write_set(tmp_path / "in", background=bytes(data))
    sentence = f"a: a.background.png has {side**2:,} pixels; at most 170,000,000 pixels are taken"
    assert reason(tmp_path / "in", tmp_path).startswith(sentence)


def test_a_text_chunk_that_grows_in_memory_is_a_reason(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("x", "x" * (100 << 20), zip=True)
    write_set(tmp_path / "in", background=as_bytes(picture(), pnginfo=chunks))
    assert "a.background.png cannot be read: something in it unpacks to too much" in reason(tmp_path / "in", tmp_path)


def test_a_folder_without_anything_usable_is_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="in holds no layered picture with a caption, and 0 other pictures$"):
        packed(tmp_path / "in", tmp_path)
    write_set(tmp_path / "in", caption=None)
    with pytest.raises(ValueError, match="and 1 other pictures; .*skipped.txt says why of each"):
        packed(tmp_path / "in", tmp_path)
    write_set(tmp_path / "in", mask=picture(0, mode="L"))
    with pytest.raises(ValueError, match="no picture in .*/in can be trained on; .*skipped.txt says why of each"):
        packed(tmp_path / "in", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        packed(tmp_path / "nowhere", tmp_path)


# ---- captions in one file


def test_a_metadata_jsonl_gives_the_captions(tmp_path):
    write_set(tmp_path / "in" / "deep", "a", caption="another")
    write_set(tmp_path / "in", "b")
    rows = [
        {"file_name": "deep/a.foreground.png", "text": "a cup", "thing": "cup"},
        {"file_name": "deep/a.mask.png", "text": "a cup"},
    ]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = packed(tmp_path / "in", tmp_path, captions=tmp_path / "in" / "metadata.jsonl")
    assert [shards.metadata(i)["caption"] for i in range(len(shards))] == ["a cup"]
    assert shards.metadata(0)["thing"] == "cup"
    assert (tmp_path / "out" / "skipped.txt").read_text() == "b: has no line in the captions file\n"


def test_a_caption_may_hold_any_character_that_json_may_hold(tmp_path):
    write_set(tmp_path / "in", caption=None)
    row = {"file_name": "a.png", "text": "a cup\u2028on\x85a table"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    shards = packed(tmp_path / "in", tmp_path, captions=tmp_path / "metadata.jsonl")
    assert shards.metadata(0)["caption"] == "a cup on a table"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"file_name": "a.png"}', 'line 1 of .* needs "file_name" and "text"'),
        ("a.png,a cup", "line 1 of .*metadata.jsonl is not JSON"),
        (
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "a.psd", "text": "y"}',
            "line 2 of .* gives a another caption",
        ),
    ],
)
def test_a_captions_file_that_does_not_fit_is_named_with_its_line(text, sentence, tmp_path):
    write_set(tmp_path / "in")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        packed(tmp_path / "in", tmp_path, captions=tmp_path / "metadata.jsonl")
    with pytest.raises(FileNotFoundError, match="the captions file .* does not exist"):
        packed(tmp_path / "in", tmp_path, captions=tmp_path / "no.jsonl")


# ---- the same folder, whoever packs it and whenever


@pytest.fixture
def seven(tmp_path):
    for number in range(7):
        write_set(tmp_path / "in", f"p{number}", f"a cup {number}", foreground=picture((30 * number, 0, 0)))
    write_set(tmp_path / "in", "broken", background=b"")
    return tmp_path / "in"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_two_processes_write_what_one_writes(seven, tmp_path):
    one, two = (PackConfig(shard_size=3, validation=2, processes=n) for n in (1, 2))
    packed_by_one, packed_by_two = (pack(c, seven, tmp_path / str(c.processes), None, str) for c in (one, two))
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and packed_by_one == packed_by_two
    assert (packed_by_one.train + packed_by_one.validation, packed_by_one.skipped) == (7, 1)


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_a_sentence_and_the_command_goes_on(seven, tmp_path, monkeypatch):
    config = PackConfig(shard_size=4, processes=2)
    with (
        monkeypatch.context() as patch,
        pytest.raises(RuntimeError, match="died, perhaps for want of memory; run the same"),
    ):
        patch.setattr(room, "_pack_shard", die)
        pack(config, seven, tmp_path / "out", None, str)
    assert pack(replace(config, processes=1), seven, tmp_path / "out", None, str).train == 7


def test_pictures_kept_back_are_drawn_from_the_seed_and_not_trained_on(seven, tmp_path):
    kept = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{seed}-{len(kept)}"
        pack(PackConfig(validation=3, seed=seed, processes=1), seven, out, None, str)
        names = {
            split: {Shards(out / split).metadata(i)["sources"][0] for i in range(len(Shards(out / split)))}
            for split in ("train", "validation")
        }
        assert not names["train"] & names["validation"] and len(names["train"] | names["validation"]) == 7
        kept.append(names["validation"])
    assert kept[0] == kept[1] != kept[2]
    with pytest.raises(ValueError, match="validation must leave pictures to train on, got 8 of 8"):
        pack(PackConfig(validation=8, processes=1), seven, tmp_path / "all", None, str)


def test_a_broken_off_packing_goes_on_and_ends_with_the_same_bytes(seven, tmp_path, monkeypatch):
    config, out = PackConfig(shard_size=2, processes=1), tmp_path / "out"
    pack(config, seven, tmp_path / "whole", None, str)
    write = room.write_shard

    def broken_off(directory, number, examples):
        if number == 2:
            raise KeyboardInterrupt
        write(directory, number, examples)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "write_shard", broken_off)
        pack(config, seven, out, None, str)
    said = []
    pack(config, seven, out, None, said.append)
    assert said[-1].endswith("(2 of 2)") and contents(out) == contents(tmp_path / "whole")


def test_other_options_and_pictures_that_are_gone_are_refused_in_the_same_folder(seven, tmp_path):
    out = tmp_path / "out"
    pack(ONE, seven, out, None, str)
    before = contents(out)
    with pytest.raises(ValueError, match=r"options \(size differ\); choose another folder"):
        pack(PackConfig(size=64, processes=1), seven, out, None, str)
    (seven / "p0.txt").unlink()
    with pytest.raises(
        ValueError, match=r"other pictures, 1 of which are gone .*\(first p0: has no caption.*put them back"
    ):
        pack(ONE, seven, out, None, str)
    assert contents(out) == before


def test_the_digest_of_shards_is_also_that_of_their_pictures(tmp_path):
    digests = set()
    for colour in ("red", "lime"):
        write_set(tmp_path / colour, foreground=picture(colour))
        pack(ONE, tmp_path / colour, tmp_path / f"{colour}-out", None, str)
        digests.add(Shards(tmp_path / f"{colour}-out" / "train").digest())
    assert len(digests) == 2


def test_links_are_followed_within_the_folder_and_named_where_they_are_not(tmp_path):
    write_set(tmp_path / "real", "r")
    write_set(tmp_path / "a", "x")
    write_set(tmp_path / "a" / "sub", "y")
    for name, target in (("out", "../real"), ("in.link", "sub"), ("loop", "."), ("dead.png", "nowhere.png")):
        (tmp_path / "a" / name).symlink_to(target)
    for part in ("foreground", "background", "mask"):
        (tmp_path / "a" / f"z.{part}.png").symlink_to(f"x.{part}.png")
    (tmp_path / "a" / "z.txt").symlink_to("x.txt")
    sources, skipped = find_sources(tmp_path / "a")
    assert [source.name for source in sources] == ["sub/y", "x", "z"]
    assert sorted(skipped) == [
        "dead.png: is a link to what is not there",
        "in.link: is a link to a folder that is read already",
        "loop: is a link to a folder that is read already",
        "out: is a link that leads out of the folder; put the files themselves there, or give --follow-links",
    ]
    assert [source.name for source in find_sources(tmp_path / "a", follow_links=True)[0]] == [
        "out/r",
        "sub/y",
        "x",
        "z",
    ]


@pytest.mark.parametrize("empty", [True, False])
def test_a_wrong_folder_leaves_what_an_earlier_packing_said_of_its_pictures(empty, tmp_path):
    write_set(tmp_path / "in", "good")
    write_set(tmp_path / "in", "bad", caption=None)
    packed(tmp_path / "in", tmp_path)
    before = contents(tmp_path / "out")
    assert b"bad: " in before["skipped.txt"]
    (tmp_path / "wrong").mkdir()
    if not empty:
        write_set(tmp_path / "wrong", caption=None)
    with pytest.raises(ValueError, match="wrong holds no layered picture with a caption, and . other pictures$"):
        packed(tmp_path / "wrong", tmp_path)
    assert contents(tmp_path / "out") == before


def test_a_disk_that_fills_is_a_sentence_and_the_command_goes_on(seven, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(
            OSError, match=r"000000.tar cannot be written \(File too large\); make room and run the same"
        ):
            packed(seven, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(packed(seven, tmp_path)) == 7
    assert not [name for name in os.listdir(tmp_path / "out" / "train") if "partial" in name]
