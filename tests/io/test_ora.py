import io
import json
import zipfile
from dataclasses import replace

import pytest
import torch
from PIL import Image

from t2l.compositing.blend import BlendMode
from t2l.compositing.stack import Stack
from t2l.io.ora import open_ora, save_ora
from tests.io.conftest import assert_same

XML = '<image w="60" h="40"><stack>{}</stack></image>'


def ora(path, stack_xml: str | bytes, **entries: bytes):
    """A file with this stack.xml; entries are named by their end, `a_png` for data/a.png."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("stack.xml", stack_xml)
        for name, data in entries.items():
            file.writestr(f"data/{name.replace('_', '.')}", data)
    return path


def png(*colour: int, size=(60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_stack_comes_back_bit_for_bit(tmp_path, stack):
    save_ora(stack, tmp_path / "a.ora")
    opened = open_ora(tmp_path / "a.ora")
    assert_same(opened.stack, stack)
    assert not opened.notes


def test_every_blend_mode_comes_back(tmp_path, stack):
    layers = [replace(stack.layers[3], blend_mode=mode, name=mode) for mode in BlendMode.__args__]
    save_ora(Stack(40, 60, tuple(layers)), tmp_path / "a.ora")
    assert [layer.blend_mode for layer in open_ora(tmp_path / "a.ora").stack.layers] == list(BlendMode.__args__)


def test_the_file_is_what_the_standard_says(tmp_path, stack):
    save_ora(stack, tmp_path / "a.ora", {"workflow": '{"nodes": []}'})
    with zipfile.ZipFile(tmp_path / "a.ora") as file:
        first = file.infolist()[0]
        assert (first.filename, first.compress_type, file.read(first)) == ("mimetype", 0, b"image/openraster")
        assert json.loads(file.read("workflow.json")) == {"nodes": []}
        thumbnail = Image.open(io.BytesIO(file.read("Thumbnails/thumbnail.png")))
        merged = Image.open(io.BytesIO(file.read("mergedimage.png")))
    assert max(thumbnail.size) <= 256 and merged.size == (60, 40)
    found = torch.frombuffer(bytearray(merged.convert("RGB").tobytes()), dtype=torch.uint8).view(40, 60, 3)
    assert (found.movedim(-1, 0) / 255 - stack.composite()).abs().max() <= 0.5001 / 255


@pytest.mark.parametrize(("opacity", "names"), [(1.0, ["low", "a", "b"]), (0.5, ["low", "pair"])])
def test_a_group_is_opened_when_that_changes_nothing_and_else_merged(tmp_path, opacity, names):
    inner = '<layer name="b" src="data/b.png"/><layer name="a" src="data/a.png" x="7"/>'
    xml = XML.format(f'<stack name="pair" opacity="{opacity}">{inner}</stack><layer name="low" src="data/a.png"/>')
    path = ora(tmp_path / "a.ora", xml, a_png=png(200, 0, 0, 255), b_png=png(0, 100, 0, 102))
    stack = open_ora(path).stack
    assert [layer.name for layer in stack.layers] == names
    assert stack.layers[-1].opacity == opacity


def two(path, operator: str, isolation: str = "", opacity: float = 1.0):
    """A layer over a grey one that covers the left half; both in a group when there is an isolation."""
    inner = f'<layer name="top" src="data/t.png" composite-op="{operator}"/>'
    if isolation:
        inner = f'<stack isolation="{isolation}" opacity="{opacity}">{inner}</stack>'
    xml = XML.format(f'{inner}<layer name="base" src="data/b.png"/>')
    return open_ora(ora(path, xml, t_png=png(100, 50, 220, 255), b_png=png(200, 200, 200, 255, size=(30, 40))))


@pytest.mark.parametrize(
    ("operator", "left", "right"),
    [
        ("krita:linear_dodge", [255, 250, 255], [100, 50, 220]),
        ("krita:soft_light", [191, 174, 219], [100, 50, 220]),
        ("krita:hard_mix_photoshop", [255, 0, 255], [100, 50, 220]),
        ("krita:grain_merge", [172, 122, 255], [100, 50, 220]),
        ("krita:grain_extract", [228, 255, 108], [100, 50, 220]),
        ("svg:src-atop", [100, 50, 220], [255, 255, 255]),
        ("svg:dst-in", [200, 200, 200], [255, 255, 255]),
        ("svg:dst-out", [255, 255, 255], [255, 255, 255]),
        ("svg:dst-atop", [200, 200, 200], [100, 50, 220]),
    ],
)
def test_names_of_krita_and_porter_and_duff_s_operators_are_known(tmp_path, operator, left, right):
    opened = two(tmp_path / "a.ora", operator)
    found = opened.stack.composite()[:, 20, [10, 50]].T * 255
    torch.testing.assert_close(found, torch.tensor([left, right]).float(), atol=0.51, rtol=0)
    assert not any("shown as" in note for note in opened.notes)


@pytest.mark.parametrize(("isolation", "opacity"), [("auto", 1.0), ("auto", 0.5), ("isolate", 1.0), ("isolate", 0.5)])
def test_a_faded_group_is_isolated_whatever_it_says_and_nothing_is_wrong_with_that(tmp_path, isolation, opacity):
    opened = two(tmp_path / "a.ora", "svg:multiply", isolation, opacity)
    colour = torch.tensor([100, 50, 220]) / 255
    mixed = colour * 200 / 255 if (isolation, opacity) == ("auto", 1.0) else colour
    expected = torch.lerp(torch.full((3,), 200 / 255), mixed, opacity)
    torch.testing.assert_close(opened.stack.composite()[:, 20, 10], expected)
    assert not opened.notes


@pytest.mark.parametrize(("size", "grey", "differs"), [((60, 40), 200, 0), ((60, 40), 190, 1), ((1500, 900), 190, 1)])
def test_krita_s_own_picture_is_compared_and_what_differs_is_named(tmp_path, size, grey, differs):
    """Also in a file that is larger than what is compared; the layer leaves three columns free."""
    whole, buffer = Image.new("RGBA", size, (grey, grey, grey, 255)), io.BytesIO()
    whole.paste((0, 0, 0, 0), (0, 0, 3, size[1]))
    whole.save(buffer, "PNG")
    head = f'<image version="0.0.1" w="{size[0]}" h="{size[1]}" xres="72">'
    xml = f'{head}<stack><layer src="data/a.png" x="3"/></stack></image>'
    path = ora(tmp_path / "a.ora", xml, a_png=png(200, 200, 200, 255, size=size))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("mergedimage.png", buffer.getvalue())
    notes = open_ora(path).notes
    assert [note.startswith("Krita's own picture differs in 9") for note in notes] == [True] * differs


def test_what_is_not_read_is_named(tmp_path):
    xml = XML.format('<text name="words"/><layer name="glow" src="data/a.png" composite-op="krita:glow"/>')
    assert open_ora(ora(tmp_path / "a.ora", xml, a_png=png(1, 2, 3, 255))).notes == (
        "the blend mode krita:glow of 'glow' is shown as normal",
        "the text 'words' holds no pixels and is left out",
    )


BOMB = (
    '<!DOCTYPE image [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><image w="1" h="1"><stack>&b;</stack></image>'
)


@pytest.mark.parametrize(
    ("xml", "sentence"),
    [
        (BOMB, "no stack.xml that can be read: it defines entities"),
        (BOMB.encode("utf-16"), "no stack.xml that can be read"),
        ("<image", "no stack.xml that can be read"),
        ('<image w="60" h="40"/>', "holds no layer with pixels"),
        ('<image w="0" h="40"/>', "a canvas of 0 x 40 pixels"),
        ('<image w="x" h="40"/>', "w must be a whole number, got 'x'"),
        ('<image w="99999" h="99999"/>', "is too large"),
        (XML.format('<layer src="../../etc/passwd"/>'), "names a picture outside of itself, '../../etc/passwd'"),
        (XML.format('<layer src="/etc/passwd"/>'), "names a picture outside of itself"),
        (XML.format('<layer src="data/none.png"/>'), "cannot be read as OpenRaster: .*data/none.png"),
        (XML.format('<layer src="stack.xml"/>'), "holds a picture that cannot be read, 'stack.xml'"),
        (XML.format('<layer src="data/a.png" opacity="half"/>'), "the opacity of 'layer' is no number"),
        (XML.format("<stack>" * 40 + "</stack>" * 40), "groups in more than 32 levels"),
        (XML.format('<layer src="data/a.png"/>' * 1001), "more than 1,000 layers"),
    ],
)
def test_a_file_that_means_harm_or_nothing_is_refused_in_one_sentence(tmp_path, xml, sentence):
    with pytest.raises(ValueError, match=rf"a.ora .*{sentence}|a.ora: {sentence}"):
        open_ora(ora(tmp_path / "a.ora", xml, a_png=png(1, 2, 3, 255, size=(2, 2))))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = ora(tmp_path / "a.ora", b"<image>" + b" " * (64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="the entry .stack.xml. has more than 4 MB"):
        open_ora(path)


def test_a_picture_larger_than_memory_is_not_unpacked(tmp_path):
    """A PNG of 30,000 x 30,000 pixels is a few kilobytes when it is empty."""
    empty = png(0, 0, 0, 0, size=(1, 1))
    huge = empty[:16] + (30_000).to_bytes(4, "big") * 2 + empty[24:]
    with pytest.raises(ValueError, match=r"a.ora .*(too large|cannot be read)"):
        open_ora(ora(tmp_path / "a.ora", XML.format('<layer src="data/a.png"/>'), a_png=huge))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.ora").write_bytes(png(1, 2, 3, 4))
    with pytest.raises(ValueError, match="a.ora cannot be read as OpenRaster: it is no zip file, or a damaged one"):
        open_ora(tmp_path / "a.ora")
