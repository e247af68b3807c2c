import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import ImageCms
from psd_tools import PSDImage
from psd_tools.constants import BlendMode as PsdMode
from psd_tools.constants import Resource, Tag

from t2l.compositing.blend import BlendMode
from t2l.compositing.stack import Layer, Stack
from t2l.io.psd_read import open_psd
from t2l.io.psd_write import save_psd
from tests.io.conftest import assert_same, noise, varied_stack


@pytest.mark.parametrize("mask_as", ["layer mask", "transparency"])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_stack_comes_back_bit_for_bit(tmp_path, depth, mask_as):
    stack = varied_stack(2**depth - 1)
    save_psd(stack, tmp_path / "a.psd", depth, mask_as)
    opened = open_psd(tmp_path / "a.psd")
    assert_same(opened.stack, stack)
    assert not opened.notes


@pytest.mark.parametrize("depth", [8, 16])
def test_the_merged_picture_is_the_composite(tmp_path, stack, depth):
    save_psd(stack, tmp_path / "a.psd", depth)
    merged = torch.from_numpy(PSDImage.open(tmp_path / "a.psd").numpy("color")).movedim(-1, 0)
    assert (merged - stack.composite()).abs().max() <= 0.5001 / (2**depth - 1)


@pytest.mark.parametrize("depth", [8, 16])
def test_what_is_transparent_is_transparent_in_the_merged_picture(tmp_path, stack, depth):
    save_psd(Stack(40, 60, stack.layers[3:]), tmp_path / "a.psd", depth)
    alpha = torch.from_numpy(PSDImage.open(tmp_path / "a.psd").numpy("shape"))[:, :, 0]
    assert (alpha - Stack(40, 60, stack.layers[3:]).flattened()[1][0]).abs().max() <= 0.5001 / (2**depth - 1)


IN_PHOTOSHOP = {"grain extract": "linear light", "grain merge": "linear light", "soft light krita": "soft light"}


def test_every_blend_mode_comes_back_and_those_that_photoshop_lacks_as_others(tmp_path, stack):
    layers = [replace(stack.layers[3], blend_mode=mode, name=mode) for mode in BlendMode.__args__]
    save_psd(Stack(40, 60, tuple(layers)), tmp_path / "a.psd")
    found = [layer.blend_mode for layer in open_psd(tmp_path / "a.psd").stack.layers]
    assert found == [IN_PHOTOSHOP.get(mode, mode) for mode in BlendMode.__args__]


@pytest.mark.parametrize(("depth", "error"), [(8, 1.001), (16, 0.005)])
@pytest.mark.parametrize("mode", ["grain extract", "grain merge"])
def test_grain_looks_the_same_in_photoshop(tmp_path, stack, mode, depth, error):
    """b + s - 1/2 and b - s + 1/2 as linear light, b + 2 s - 1, of other colours; 8 bits round those by half a
    level.
    """
    grain = replace(stack.layers[0], image=noise(3, 40, 60, seed=8), blend_mode=mode)
    stack = Stack(40, 60, (stack.layers[0], grain))
    save_psd(stack, tmp_path / "a.psd", depth)
    found = open_psd(tmp_path / "a.psd").stack.composite()
    assert (found - stack.composite()).abs().max() * 255 <= error


def test_soft_light_is_photoshop_s(tmp_path):
    """Pixels of a file that Photoshop wrote, psd-tools' rgb-blend-modes.psd: backdrop, layer, result; a root gives 16
    more.
    """
    known = torch.tensor([[5, 255, 19], [6, 255, 22], [4, 255, 15], [7, 255, 26], [6, 249, 21], [3, 255, 12]]).T / 255
    below, above = (Layer(image=x.expand(3, 1, -1), mask=torch.ones(1, 1, 6)) for x in known[:2])
    save_psd(Stack(1, 6, (below, replace(above, blend_mode="soft light"))), tmp_path / "a.psd")
    found = open_psd(tmp_path / "a.psd").stack.composite()
    assert (found - known[2]).abs().max() * 255 <= 1


def test_the_foreground_keeps_its_colours_under_a_real_mask(tmp_path, stack):
    save_psd(stack, tmp_path / "a.psd", mask_as="layer mask")
    layer = PSDImage.open(tmp_path / "a.psd")[1]
    assert layer.has_mask() and layer.mask.background_color == 0
    assert torch.equal(torch.from_numpy(layer.numpy("color")).movedim(-1, 0), stack.layers[1].image)


def test_the_same_stack_makes_the_same_file_and_it_says_srgb(tmp_path, stack):
    for name in "ab":
        save_psd(stack, tmp_path / f"{name}.psd", 16)
    assert (tmp_path / "a.psd").read_bytes() == (tmp_path / "b.psd").read_bytes()
    profile = PSDImage.open(tmp_path / "a.psd").image_resources.get_data(Resource.ICC_PROFILE)
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))


def test_texts_are_kept_in_the_xmp(tmp_path, stack):
    save_psd(stack, tmp_path / "a.psd", texts={"prompt": '{"text": "a < b & c"}'})
    xmp = PSDImage.open(tmp_path / "a.psd").image_resources.get_data(Resource.XMP_METADATA)
    assert b'<comfyui:prompt>{"text": "a &lt; b &amp; c"}</comfyui:prompt>' in xmp


def test_names_are_cut_and_cleaned_so_that_every_editor_can_hold_them(tmp_path, stack):
    names = ["x" * 300, "tab\there\x00", "lone \ud800 half"]
    layers = [replace(stack.layers[3], name=name) for name in names]
    save_psd(Stack(40, 60, tuple(layers)), tmp_path / "a.psd")
    assert [x.name for x in open_psd(tmp_path / "a.psd").stack.layers] == ["x" * 255, "tabhere", "lone  half"]


def test_a_side_that_the_format_cannot_hold_is_refused(tmp_path):
    layer = Layer(image=torch.zeros(3, 1, 30_001), mask=torch.ones(1, 1, 30_001), name="strip")
    with pytest.raises(ValueError, match=r"at most 30,000 pixels along a side, got 30,001 x 1 \(strip\)"):
        save_psd(Stack(8, 8, (layer,)), tmp_path / "a.psd")
    assert not list(tmp_path.iterdir())


# ---- files that other programs write, made by psd-tools


def new(depth=8, mode="RGB"):
    return PSDImage.new(mode, (60, 40), depth=depth)


def add(psd, parent=None, seed=0, size=(40, 60), **where):
    """A pixel layer of noise with half of it transparent."""
    from PIL import Image

    pixels = (noise(*size, 3, seed=seed) * 255).round().to(torch.uint8).numpy()
    name = where.pop("name", f"layer {seed}")
    layer = (psd if parent is None else parent).create_pixel_layer(Image.fromarray(pixels), name=name, **where)
    return layer


def reopened(psd, path) -> PSDImage:
    psd.save(path)
    return open_psd(path)


def test_a_group_that_only_holds_layers_together_is_opened(tmp_path):
    psd = new()
    add(psd)
    group = psd.create_group(name="pair")
    add(psd, group, 1), add(psd, group, 2)
    assert [x.name for x in reopened(psd, tmp_path / "a.psd").stack.layers] == ["layer 0", "layer 1", "layer 2"]


def test_a_hidden_group_hides_its_layers(tmp_path):
    psd = new()
    add(psd)
    group = psd.create_group(name="pair")
    add(psd, group, 1)
    group.visible = False
    assert [x.visible for x in reopened(psd, tmp_path / "a.psd").stack.layers] == [True, False]


def test_a_faded_group_is_merged_and_fades_as_one(tmp_path):
    psd = new()
    add(psd)
    group = psd.create_group(name="pair")
    add(psd, group, 1, size=(20, 20)), add(psd, group, 2, size=(20, 20), left=10, top=5)
    group.opacity = 51
    stack = reopened(psd, tmp_path / "a.psd").stack
    assert [(x.name, round(x.opacity, 6)) for x in stack.layers] == [("layer 0", 1.0), ("pair", 0.2)]
    assert stack.layers[1].size == (25, 30)  # as large as what is in it


def test_a_clipped_layer_is_seen_only_inside_its_base(tmp_path):
    psd = new()
    add(psd)
    add(psd, seed=1, size=(20, 20), left=5, top=5, name="base")
    clipped = add(psd, seed=2, name="clipped")
    clipped.clipping = True
    stack = reopened(psd, tmp_path / "a.psd").stack
    assert [x.name for x in stack.layers] == ["layer 0", "base"]
    assert torch.equal(stack.layers[1].image, noise(40, 60, 3, seed=2).movedim(-1, 0)[:, 5:25, 5:25])


def test_a_layer_clipped_to_what_is_left_out_is_shown_and_named(tmp_path):
    psd = new()
    add(psd)
    gone = add(psd, seed=1)
    gone._record.channel_info, gone._channels[:] = [], []
    add(psd, seed=2, size=(9, 9), name="clipped").clipping = True
    opened = reopened(psd, tmp_path / "a.psd")
    assert [x.name for x in opened.stack.layers] == ["layer 0", "clipped"]
    assert opened.notes == ("'clipped' is clipped to what is left out, and shown without that",)


@pytest.mark.parametrize("outside", [0, 255])
def test_a_mask_lies_where_it_says_and_goes_on_in_its_background_colour(tmp_path, outside):
    from PIL import Image

    psd = new()
    layer = add(psd)
    layer.create_mask(Image.new("L", (10, 6), 128), left=20, top=15)
    layer.mask.data.background_color = outside
    expected = torch.full((1, 40, 60), outside / 255)
    expected[:, 15:21, 20:30] = 128 / 255
    assert torch.equal(reopened(psd, tmp_path / "a.psd").stack.layers[0].mask, expected)


def test_a_grey_document_becomes_a_grey_picture(tmp_path):
    from PIL import Image

    psd = new(mode="L")
    grey = (noise(40, 60, seed=3) * 255).round().to(torch.uint8).numpy()
    psd.create_pixel_layer(Image.fromarray(grey), name="grey")
    image = reopened(psd, tmp_path / "a.psd").stack.layers[0].image
    assert torch.equal(image, noise(40, 60, seed=3).expand(3, -1, -1))


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_colours_that_cannot_be_shown_are_refused_in_one_sentence(tmp_path, mode):
    new(mode=mode).save(tmp_path / "a.psd")
    with pytest.raises(
        ValueError, match=f"a.psd is in {mode} colours, which are not shown here; save a copy of it in RGB"
    ):
        open_psd(tmp_path / "a.psd")


def test_a_file_without_layers_is_its_picture(tmp_path):
    from PIL import Image

    pixels = (noise(40, 60, 3) * 255).round().to(torch.uint8).numpy()
    PSDImage.frompil(Image.fromarray(pixels)).save(tmp_path / "a.psd")
    opened = open_psd(tmp_path / "a.psd")
    assert torch.equal(opened.stack.composite(), noise(40, 60, 3).movedim(-1, 0)) and not opened.notes


def test_what_is_not_read_is_named(tmp_path):
    psd = new()
    add(psd, name="snow").blend_mode = b"diss"
    assert reopened(psd, tmp_path / "a.psd").notes == ("the blend mode dissolve of 'snow' is shown as normal",)


# ---- Photoshop's advanced blending options


def plain(psd, colour, parent=None, mode=None, **tags):
    """An opaque layer of one colour, with these blocks."""
    from PIL import Image

    layer = (psd if parent is None else parent).create_pixel_layer(
        Image.new("RGB", (60, 40), colour), name=f"layer {len(psd)}"
    )
    layer.blend_mode = mode or layer.blend_mode
    for tag, value in tags.items():
        layer.tagged_blocks.set_data(Tag[tag], value)
    return layer


def colour_of(opened) -> list[int]:
    return (opened.stack.composite()[:, 20, 30] * 255).round().int().tolist()


BELOW, BLUE, GREEN, HOLE = (200, 100, 50), (0, 0, 255), (0, 255, 0), {"BLEND_FILL_OPACITY": 0}


@pytest.mark.parametrize(("fill", "colour"), [(0, [255, 255, 255]), (51, [204, 204, 255]), (255, [0, 0, 255])])
def test_a_deep_knockout_is_a_hole_through_everything_with_its_fill_in_it(tmp_path, fill, colour):
    psd = new()
    plain(psd, BELOW)
    plain(psd, BLUE, KNOCKOUT_SETTING=2, BLEND_FILL_OPACITY=fill)
    assert colour_of(reopened(psd, tmp_path / "a.psd")) == colour


@pytest.mark.parametrize(("knockout", "colour"), [(1, [0, 0, 255]), (2, list(BELOW))])
def test_a_knockout_goes_down_to_its_group_or_to_the_background_layer(tmp_path, knockout, colour):
    psd = new()
    background = plain(psd, BELOW)
    del background._record.channel_info[0], background._channels[0]  # a background layer has no transparency
    plain(psd, BLUE)
    group = psd.create_group(name="group", blend_mode=PsdMode.PASS_THROUGH)
    plain(psd, GREEN, group)
    plain(psd, (9, 9, 9), group, KNOCKOUT_SETTING=knockout, **HOLE)
    assert colour_of(reopened(psd, tmp_path / "a.psd")) == colour


def test_restricted_channels_keep_what_is_below(tmp_path):
    psd = new()
    plain(psd, BELOW)
    plain(psd, BLUE, CHANNEL_BLENDING_RESTRICTIONS_SETTING=[0, 1])
    opened = reopened(psd, tmp_path / "a.psd")
    assert colour_of(opened) == [200, 100, 255] and "changes only some of the channels" in opened.notes[0]


@pytest.mark.parametrize(("as_group", "colour"), [(1, [0, 100, 0]), (0, [0, 255, 0])])
def test_clipped_layers_are_blended_as_a_group_or_each_in_its_own_mode(tmp_path, as_group, colour):
    psd = new()
    plain(psd, BELOW)
    plain(psd, BLUE, mode=PsdMode.MULTIPLY, BLEND_CLIPPING_ELEMENTS=as_group)
    plain(psd, GREEN).clipping = True
    opened = reopened(psd, tmp_path / "a.psd")
    assert colour_of(opened) == colour and not opened.notes


def test_what_the_editor_may_do_in_another_way_is_named(tmp_path):
    psd = new()
    plain(psd, BELOW, mode=PsdMode.LINEAR_LIGHT, TRANSPARENCY_SHAPES_LAYER=0)
    plain(psd, BLUE, KNOCKOUT_SETTING=2, TRANSPARENCY_SHAPES_LAYER=0, **HOLE).opacity = 128
    notes = reopened(psd, tmp_path / "a.psd").notes
    for sentence in (
        "the transparency of 'layer 0' is taken as its shape, which differs in its mode",
        "the opacity of 'layer 1' fades its knockout too; the editor may differ",
        "'layer 1' knocks out in its own shape, and not beyond its transparency",
    ):
        assert sentence in notes


@pytest.mark.parametrize(("depth", "blue"), [(1, 177), (2, 216)])
def test_a_layer_in_faded_groups_that_let_modes_through_is_faded_with_them(tmp_path, depth, blue):
    psd = new()
    plain(psd, BLUE)
    parent = psd
    for _ in range(depth):
        parent = parent.create_group(name="shade", blend_mode=PsdMode.PASS_THROUGH)
        parent.opacity = 128
    plain(psd, (255, 200, 100), parent, mode=PsdMode.MULTIPLY)
    opened = reopened(psd, tmp_path / "a.psd")
    assert colour_of(opened) == [0, 0, blue] and not opened.notes


# ---- names


def without_unicode(path, names: list[bytes]):
    """A file whose layers bear these names, in bytes alone."""
    psd = new()
    for name in names:
        layer = add(psd, size=(1, 1))
        layer.tagged_blocks.pop(Tag.UNICODE_LAYER_NAME, None)
        layer._record.name = name.decode("mac_roman")
    return reopened(psd, path)


@pytest.mark.parametrize(
    ("names", "encoding", "guess"),
    [
        (["Layer 1", "Background"], "ascii", None),
        (["Fl\xe4che", "\xc9bauche", "na\xefve"], "mac_roman", None),
        (["\xe9t\xe9", "\xd6l", "L\u2019\xe9cran 1", "\u201cCaf\xe9\u201d \xa9"], "mac_roman", None),
        (["\u80cc\u666f", "Fl\xe4che"], "utf-8", None),
        (["\u80cc\u666f"], "shift_jis", "Shift-JIS"),
        (["\u30ec\u30a4\u30e4\u30fc 1 \u306e\u30b3\u30d4\u30fc"], "shift_jis", "Shift-JIS"),
        (["\u80cc\u666f", "\u56fe\u5c42 1"], "gbk", "GBK"),
        (["\ubc30\uacbd", "\ub808\uc774\uc5b4 1"], "euc_kr", "EUC-KR"),
        (["\u5716\u5c64 1", "\u80cc\u666f"], "big5", "Big5"),
        (
            ["\u0424\u043e\u043d", "\u0421\u043b\u043e\u0439 1", "\u0414\u0415\u0420\u0415\u0412\u041e"],
            "cp1251",
            "Windows-1251",
        ),
    ],
)
def test_names_without_unicode_are_read_in_the_character_set_that_fits_them(tmp_path, names, encoding, guess):
    opened = without_unicode(tmp_path / "a.psd", [name.encode(encoding) for name in names])
    note = f"the names of layers are stored without Unicode and read as {guess}, which is a guess"
    assert [layer.name for layer in opened.stack.layers] == names
    assert opened.notes == ((note,) if guess else ())


def test_names_in_no_character_set_are_read_all_the_same(tmp_path):
    names = [bytes([128 + i % 128, 255 - i % 100, i]) for i in range(1, 200, 7)]
    assert len(without_unicode(tmp_path / "a.psd", names).stack.layers) == len(names)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.psd").write_bytes(Path(__file__).read_bytes())
    with pytest.raises(ValueError, match="a.psd cannot be read as a PSD"):
        open_psd(tmp_path / "a.psd")
    with pytest.raises(FileNotFoundError, match="b.psd does not exist"):
        open_psd(tmp_path / "b.psd")


def test_a_small_file_that_claims_many_pixels_is_refused_before_they_are_made(tmp_path, stack):
    save_psd(stack, tmp_path / "a.psd")
    psd = PSDImage.open(tmp_path / "a.psd")
    for layer in psd:
        layer._record.right, layer._record.bottom = layer._record.left + 30_000, layer._record.top + 30_000
    with (tmp_path / "b.psd").open("wb") as file:
        psd._record.write(file)
    with pytest.raises(
        ValueError, match=r"b.psd is too large: 30,000 x 30,000 are more than 41,943,040 pixels; scale it down"
    ):
        open_psd(tmp_path / "b.psd")


def test_a_canvas_that_needs_too_much_memory_is_refused(tmp_path):
    layer = Layer(image=torch.zeros(3, 1, 1), mask=torch.ones(1, 1, 1), name="dot")
    save_psd(Stack(40, 60, (layer,)), tmp_path / "a.psd")
    data = bytearray((tmp_path / "a.psd").read_bytes())
    data[14:22] = (30_000).to_bytes(4, "big") * 2  # height and width of the header
    (tmp_path / "a.psd").write_bytes(data)
    with pytest.raises(ValueError, match="a.psd .*is too large: .*30,000 x 30,000"):
        open_psd(tmp_path / "a.psd")


def test_without_psd_tools_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psd_tools", None)
    with pytest.raises(
        ModuleNotFoundError, match="Photoshop files need the package psd-tools: run `pip install psd-tools`"
    ):
        save_psd(varied_stack(), tmp_path / "a.psd")
    assert not list(tmp_path.iterdir())
