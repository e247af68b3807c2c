"""What is read out of the files of a layered picture: masks of every kind, named layers, and what looks wrong in
them.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from t2l.compositing.stack import Layer, Stack
from t2l.data.faults import DARK_MASK, DARK_RIM, INVERTED, WHITE_RIM, find_faults
from t2l.data.folder import find_sources
from t2l.data.layer_sources import read_layers
from t2l.data.pack import PackConfig, pack
from t2l.data.shards import Shards
from t2l.io.layer_file import save_layer_file
from t2l.io.picture_file import HAS_AVIF, read_mask
from tests.data.test_pack import ONE, as_bytes, layers, packed, picture, read, reason, same, write_set


def disc(size=(96, 96), soft=6.0, radius=30):
    """A mask with a soft edge, in 8 bits."""
    y, x = np.mgrid[: size[1], : size[0]]
    distance = np.hypot(x - size[0] / 2, y - size[1] / 2)
    return Image.fromarray((np.clip((radius - distance) / soft + 0.5, 0, 1) * 255).round().astype(np.uint8))


def textured(size=(96, 96), seed=0):
    noise = np.random.default_rng(seed).integers(90, 200, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def over(foreground, mask, colour):
    return Image.composite(foreground, Image.new("RGB", mask.size, colour), mask)


# ---- masks


@pytest.mark.parametrize("size", [(36, 32), (144, 128), (37, 33), (9, 8), (7200 // 64, 100)])
def test_a_mask_of_another_size_and_the_same_shape_is_scaled_and_named(size, tmp_path):
    write_set(tmp_path / "in", mask=picture(255, size, "L"))
    assert packed(tmp_path / "in", tmp_path)[0].layers.mask.min() == 1
    assert f"a: its mask of {size[0]} x {size[1]} is scaled to 72 x 64" in (tmp_path / "out" / "notes.txt").read_text()


def test_a_mask_scaled_up_keeps_its_place(tmp_path):
    small = picture(0, (36, 32), "L")
    small.paste(255, (10, 10, 20, 20))
    write_set(tmp_path, mask=small)
    mask = read(tmp_path).mask[0, 0]
    assert mask[21:39, 21:39].min() == 1 and mask[:18].max() == 0 and mask[:, 42:].max() == 0


def test_a_mask_of_another_shape_is_a_reason(tmp_path):
    write_set(tmp_path / "in", mask=picture(255, (64, 72), "L"))
    assert "has layers of different sizes: foreground 72 x 64, background 72 x 64, mask 64 x 72" in reason(
        tmp_path / "in", tmp_path
    )


def test_a_part_that_exif_turns_fits_those_that_lie_as_they_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_set(tmp_path, foreground=as_bytes(picture(size=(64, 72)), "jpeg", exif=exif))
    assert read(tmp_path).size == (64, 72)


def ramp():
    return Image.fromarray(np.linspace(0, 255, 72 * 64).reshape(64, 72).round().astype(np.uint8))


def with_alpha(colour, alpha, mode="RGBA"):
    image = picture(colour, mode=mode[:-1])
    image.putalpha(alpha)
    return image


MASKS = {
    "grey": ramp(),
    "RGB": Image.merge("RGB", [ramp()] * 3),
    "palette": ramp().convert("P"),
    "16 bits": Image.fromarray(np.asarray(ramp()).astype(np.uint16) * 257),
    "grey and alpha": with_alpha(255, ramp(), "LA"),
    "white and alpha": with_alpha((255, 255, 255), ramp()),
    "black and alpha": with_alpha((0, 0, 0), ramp()),
    "the cut-out itself": Image.merge("RGBA", [*textured((72, 64)).split(), ramp()]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_the_same_in_whatever_way_it_is_stored(kind, tmp_path):
    MASKS[kind].save(tmp_path / "m.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "m.png")), np.asarray(ramp()))


def test_a_jpeg_mask_with_its_noise_makes_no_fault(tmp_path):
    data = io.BytesIO()
    disc().save(data, "jpeg", quality=60)
    write_set(tmp_path / "in", size=(96, 96), foreground=textured(), mask=data.getvalue())
    packed(tmp_path / "in", tmp_path)
    assert not (tmp_path / "out" / "notes.txt").exists()


@pytest.mark.skipif(not HAS_AVIF, reason="this pillow has no AVIF")
def test_avif_is_read_like_any_other_kind(tmp_path):
    write_set(tmp_path)
    (tmp_path / "a.foreground.png").rename(tmp_path / "old.png")
    Image.open(tmp_path / "old.png").save(tmp_path / "a.foreground.avif", quality=95)
    (tmp_path / "old.png").unlink()
    wanted = torch.tensor([200, 80, 40]).view(1, 3, 1, 1) / 255
    assert (read(tmp_path).foreground - wanted).abs().max() < 6 / 255


# ---- named layers


def layer(name, colour, box=None, **more):
    image = torch.tensor(colour).view(3, 1, 1).expand(3, 64, 72) / 255
    mask = torch.zeros(1, 64, 72)
    left, top, right, bottom = box or (0, 0, 72, 64)
    mask[:, top:bottom, left:right] = 1
    return Layer(image=image, mask=mask, name=name, **more)


SKY, CUP, SIGN = (90.0, 120.0, 200.0), (200.0, 40.0, 30.0), (255.0, 255.0, 0.0)


def write_stack(folder, *stack, ending="psd"):
    folder.mkdir(parents=True, exist_ok=True)
    save_layer_file(Stack(64, 72, stack), folder / f"a.{ending}")
    (folder / "a.txt").write_text("a cup")


def read_named(folder, rule=""):
    (source,), _ = find_sources(folder)
    return read_layers(replace(source, layer=rule), 1024)


@pytest.mark.parametrize("ending", ["psd", "ora"])
@pytest.mark.parametrize("names", [("background", "foreground"), ("BG", "Fg "), ("Background", "fg")])
def test_layers_named_foreground_and_background_are_taken_and_others_left_out(names, ending, tmp_path):
    below, above = layer(names[0], SKY), layer(names[1], CUP, (20, 20, 50, 50))
    write_stack(
        tmp_path, below, layer("sign", SIGN, (0, 0, 9, 9)), above, layer("draft", SIGN, visible=False), ending=ending
    )
    found, notes = read_named(tmp_path)
    assert found.mask.sum() == 900 and found.foreground[0, :, 30, 30].tolist() == pytest.approx(
        [x / 255 for x in CUP], abs=0.01
    )
    assert found.background[0, :, 2, 2].tolist() == pytest.approx([x / 255 for x in SKY], abs=0.01)
    assert notes == ("left out 'sign', named neither foreground nor background",)


def test_where_only_the_foreground_is_named_all_else_that_is_seen_lies_behind_it(tmp_path):
    write_stack(
        tmp_path, layer("sky", SKY), layer("sign", SIGN, (0, 0, 9, 9)), layer("foreground", CUP, (20, 20, 50, 50))
    )
    found, notes = read_named(tmp_path)
    assert found.background[0, :, 2, 2].tolist() == pytest.approx([1, 1, 0], abs=0.01) and not notes


def test_a_layer_is_chosen_by_name_as_in_load_layers(tmp_path):
    """The highest of that name, also when it is hidden, over all others that are seen."""
    stack = (layer("sky", SKY), layer("cup", CUP, (20, 20, 50, 50), visible=False), layer("sign", SIGN, (0, 0, 9, 9)))
    write_stack(tmp_path, *stack)
    found, _ = read_named(tmp_path, "cup")
    wanted = Stack(64, 72, stack).to_layers("cup")
    for part in ("foreground", "background", "mask"):
        torch.testing.assert_close(getattr(found, part), getattr(wanted, part), atol=1 / 255, rtol=0)


def write_groups(path):
    from psd_tools import PSDImage

    psd = PSDImage.new("RGB", (72, 64))
    parts = {"background": [(SKY, (0, 0, 72, 64))], "foreground": [(CUP, (20, 20, 40, 50)), (SIGN, (40, 20, 50, 50))]}
    for name, inside in parts.items():
        group = psd.create_group(name=name)
        for colour, (left, top, right, bottom) in inside:
            image = Image.new("RGB", (right - left, bottom - top), tuple(int(x) for x in colour))
            group.create_pixel_layer(image, name="x", top=top, left=left)
    path.parent.mkdir(parents=True, exist_ok=True)
    psd.save(path)


@pytest.mark.parametrize("rule", ["", "foreground"])
def test_groups_named_foreground_and_background_are_merged(rule, tmp_path):
    write_groups(tmp_path / "a.psd")
    (tmp_path / "a.txt").write_text("a cup")
    found, notes = read_named(tmp_path, rule)
    assert found.mask.sum() == 900 and not notes
    seen = [found.foreground[0, :, 30, x].tolist() for x in (30, 45)]
    assert seen == [pytest.approx([x / 255 for x in colour], abs=0.01) for colour in (CUP, SIGN)]


def test_a_name_that_no_layer_bears_is_a_reason_with_those_there_are(tmp_path):
    write_stack(tmp_path / "in", layer("sky", SKY), layer("cup", CUP, (20, 20, 50, 50)))
    with pytest.raises(ValueError, match="no picture in .* can be trained on"):
        packed(tmp_path / "in", tmp_path, PackConfig(processes=1, foreground_layer="mug"))
    line = (tmp_path / "out" / "skipped.txt").read_text()
    assert line.startswith(
        "a.psd: no layer is called 'mug'; there are 'sky', 'cup', or 'top' for the highest visible one"
    )


def test_layers_that_nobody_named_say_what_to_do(tmp_path):
    write_stack(tmp_path / "in", *(layer(f"l{number}", SKY) for number in range(4)))
    line = reason(tmp_path / "in", tmp_path)
    assert line.startswith("a.psd: has 4 visible layers; two are needed") and "or say with --layer which it is" in line


def test_a_file_of_two_layers_is_read_as_ever_whatever_they_are_called(tmp_path):
    (tmp_path / "in").mkdir()
    stack = Stack.from_layers(layers(), names=("foreground", "background"))
    save_layer_file(stack, tmp_path / "in" / "a.psd")
    (tmp_path / "in" / "a.txt").write_text("a cup")
    assert same(read(tmp_path / "in"), layers())


# ---- what looks wrong


def test_a_mask_of_zeros_and_ones_is_named(tmp_path):
    assert find_faults(textured(), None, disc().point(lambda x: x > 127)) == [DARK_MASK]
    numbers = np.asarray(disc()).astype(np.uint16)  # 8 bits' values in 16
    Image.fromarray(numbers).save(tmp_path / "m.png")
    assert find_faults(textured(), None, read_mask(tmp_path / "m.png")) == [DARK_MASK]


def test_a_mask_that_is_the_opposite_of_the_foreground_s_alpha_is_named():
    inverse = disc().point(lambda x: 255 - x)
    assert find_faults(textured(), disc(), inverse) == [INVERTED]
    assert find_faults(textured(), disc(), disc()) == find_faults(textured(), disc(radius=20), disc()) == []


@pytest.mark.parametrize(("colour", "fault"), [("black", DARK_RIM), ("white", WHITE_RIM)])
@pytest.mark.parametrize("soft", [1.5, 3, 12])
def test_a_premultiplied_cut_out_is_told_by_the_colours_of_its_soft_edge(soft, colour, fault):
    mask = disc(soft=soft)
    foreground = over(textured(), mask, colour)
    if colour == "black":
        assert find_faults(foreground, None, mask) == [fault]
    else:
        assert find_faults(foreground.point(lambda x: x), None, mask) == [fault]


@pytest.mark.parametrize("seed", range(5))
def test_straight_colours_whole_pictures_and_dark_things_make_no_fault(seed):
    mask, colours = disc(soft=4), textured(seed=seed)
    hard = mask.point(lambda x: 255 * (x > 0))
    for foreground in (
        colours,
        over(colours, hard, "black"),
        over(colours, hard, "white"),
        picture((4, 3, 2), (96, 96)),
    ):
        assert find_faults(foreground, None, mask) == []


def test_an_edge_far_off_in_a_large_picture_is_looked_at():
    mask, foreground = picture(0, (2000, 1500), "L"), picture((0, 0, 0), (2000, 1500))
    mask.paste(disc(), (1800, 1300))
    foreground.paste(over(textured(), disc(), "black"), (1800, 1300))
    assert find_faults(foreground, None, mask) == [DARK_RIM]


def test_faults_are_counted_in_one_line_and_named_in_the_notes(tmp_path):
    for key in "ab":
        write_set(tmp_path / "in", key, mask=disc((72, 64)).point(lambda x: x > 127))
    write_set(
        tmp_path / "in",
        "c",
        foreground=with_alpha((200, 80, 40), disc((72, 64))),
        mask=disc((72, 64)).point(lambda x: 255 - x),
    )
    write_set(tmp_path / "in", "d", caption="cup " * 80)
    found = pack(
        ONE,
        tmp_path / "in",
        tmp_path / "out",
        None,
        str,
        count_tokens=lambda texts: [len(text.split()) + 2 for text in texts],
    )
    assert found.train == 4
    assert found.faults == (
        "2 with a mask that never exceeds 1/255, 1 with a mask that looks inverted, "
        "1 with more than 77 tokens of caption"
    )
    notes = (tmp_path / "out" / "notes.txt").read_text().splitlines()
    assert [line[:3] for line in notes] == ["a: ", "b: ", "c: ", "d: "] and notes[0] == f"a: {DARK_MASK}"
    assert len(Shards(tmp_path / "out" / "train")) == 4
