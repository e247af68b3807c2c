"""Pictures on disk."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from t2l.io.image import checkerboard, clean_stem, contact_sheet, read_image, save_layers, save_png, to_image
from t2l.layers import Layers


def layers(n=1, size=(40, 60)):
    return Layers.from_stacked(torch.rand(n, 7, *size, generator=torch.Generator().manual_seed(0)))


def test_layers_come_back_to_half_a_step_of_eight_bits(tmp_path):
    picture = layers()
    foreground, background, mask, composite, cutout = save_layers(picture, tmp_path, "teapot")
    expected = {foreground: picture.foreground, background: picture.background, composite: picture.composite()}
    for path, pixels in expected.items():
        torch.testing.assert_close(read_image(path), pixels, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(read_image(mask, "L"), picture.mask, atol=0.5 / 255 + 1e-6, rtol=0)
    assert cutout.name == "teapot_cutout.png"


def test_the_cutout_keeps_the_colours_under_alpha_zero(tmp_path):
    picture = Layers(layers().foreground, layers().background, torch.zeros(1, 1, 40, 60))
    rgba = read_image(save_layers(picture, tmp_path)[-1], "RGBA")
    assert (rgba[:, 3] == 0).all()
    torch.testing.assert_close(rgba[:, :3], picture.foreground, atol=0.5 / 255 + 1e-6, rtol=0)


def test_several_pictures_are_numbered(tmp_path):
    paths = save_layers(layers(3), tmp_path / "new" / "folder", "cat")
    assert len(paths) == 15 and all(path.is_file() for path in paths)
    assert [path.name for path in paths[:6:5]] == ["cat_01_foreground.png", "cat_02_foreground.png"]


@pytest.mark.parametrize(
    ("stem", "clean"),
    [
        ("a red teapot, on a table!", "a-red-teapot-on-a-table"),
        ("../../etc/passwd", "etc-passwd"),
        ("/root/x", "root-x"),
        (".hidden", "hidden"),
        ("\U0001f98a", "picture"),
        ("", "picture"),
        ("x" * 500, "x" * 80),
        ("a\x00b\\c", "a-b-c"),
    ],
)
def test_stems_become_plain_file_names(stem, clean, tmp_path):
    assert clean_stem(stem) == clean
    assert all(path.parent == tmp_path for path in save_layers(layers(), tmp_path, stem))


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out/picture_foreground.png cannot be written: (Not a directory|File exists)"):
        save_layers(layers(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match=r"x\.png cannot be written: File too large"):
            save_png(to_image(layers().foreground[0]), tmp_path / "x.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_link_to_elsewhere_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "picture_mask.png").symlink_to(elsewhere)
    save_layers(layers(), tmp_path / "out")
    assert elsewhere.read_text() == "mine" and not (tmp_path / "out" / "picture_mask.png").is_symlink()


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    image.save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", "L").mul(255).round()[0, 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_what_is_no_picture_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="the picture .*no.png does not exist"):
        read_image(tmp_path / "no.png")
    save_png(to_image(layers().foreground[0]), tmp_path / "x.png")
    for content in (b"text", (tmp_path / "x.png").read_bytes()[:300]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(
            ValueError, match="broken.png (is no picture that can be read|cannot be read: it is cut off)"
        ):
            read_image(tmp_path / "broken.png")


def test_the_contact_sheet_shows_every_picture_in_four_rows():
    one, two = (contact_sheet(layers(n, (160, 200))) for n in (1, 2))
    assert one.height == two.height and two.width - one.width == 210
    assert one.height == 4 * 160 + 3 * 10 + 2 * 28
    assert contact_sheet(layers(17, (160, 200))).height > 3 * 4 * 160


def test_the_contact_sheet_of_a_model_without_layers_shows_the_composite_alone():
    flat = Layers.flat(layers(1, (160, 200)).background)
    assert contact_sheet(flat, has_layers=False).height < 2 * 160
    assert np.array_equal(np.array(contact_sheet(flat))[-188:], np.array(contact_sheet(flat, has_layers=False))[-188:])


def test_the_contact_sheet_shows_the_pixels():
    picture = layers(1, (160, 200))
    sheet = np.array(contact_sheet(picture))
    shown = sheet[28 + 170 : 28 + 170 + 160, 28 + 118 : 28 + 118 + 200]
    background = np.array(to_image(picture.background[0]))
    assert (shown[1:-1, 1:-1] == background[1:-1, 1:-1]).all()  # inside the one-pixel rim


def test_captions_of_any_length_stay_within_their_column():
    short = contact_sheet(layers(2, (160, 200)), ["a cat", ""])
    long = contact_sheet(layers(2, (160, 200)), ["word " * 3000, "x" * 10_000])
    assert short.width == long.width and long.height - short.height == 2 * 20


def test_the_checkerboard_has_squares():
    board = checkerboard(16, 24, square=8)
    assert board.shape == (1, 3, 16, 24)
    assert board[0, 0, 0, 0] == board[0, 0, 8, 8] != board[0, 0, 0, 8]
