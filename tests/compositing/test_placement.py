from typing import get_args

import pytest
import torch

from t2l.compositing import placement as placing
from t2l.compositing.blend import BlendMode, blend, linear_to_srgb, srgb_to_linear
from t2l.compositing.placement import Placement, move
from t2l.compositing.resample import gaussian_blur
from t2l.layers import Layers

OFF_THE_GRID = Placement(x=1.3, y=-0.6, scale=0.8, rotation=25, opacity=0.7, feather=0.8)


def random_layers(n=2, size=(6, 8), dtype=torch.float32):
    return Layers.from_stacked(torch.rand(n, 7, *size, generator=torch.Generator().manual_seed(0), dtype=dtype))


def pictures(n=1, size=(6, 8)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def plain(foreground, background, mask, size=(2, 2)):
    """One picture with one grey (or one mask value) in each layer."""
    shape = (1, 1, *size)
    grey = [torch.full(shape, float(v), dtype=torch.float64) for v in (foreground, background, mask)]
    return Layers(grey[0].expand(1, 3, *size), grey[1].expand(1, 3, *size), grey[2])


def square(size=(24, 24), edge=8):
    """A white square in the middle of the mask, a horizontal ramp as the foreground, black behind."""
    height, width = size
    mask = torch.zeros(1, 1, *size)
    top, left = (height - edge) // 2, (width - edge) // 2
    mask[..., top : top + edge, left : left + edge] = 1
    ramp = ((torch.arange(width) + 0.5) / width).expand(1, 3, *size)
    return Layers(ramp, torch.zeros(1, 3, *size), mask)


def compose(layers, placement, background=None):
    """The picture of layers over their own background or another one."""
    background = layers.background if background is None else background
    return placing.compose(layers.foreground, layers.mask, background, placement)[0]


def place(layers, placement, background=None):
    """Layers with the foreground and its mask where they are placed."""
    background = layers.background if background is None else background
    foreground, mask = move(layers.foreground, layers.mask, placement, tuple(background.shape[-2:]))
    return Layers(foreground, background, mask)


def assert_same(found, expected):
    assert torch.equal(found.stacked, expected.stacked)


# --- Where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 360, -720])
def test_placing_nowhere_else_changes_no_bit(rotation):
    layers, placement = random_layers(size=(37, 53)), Placement(rotation=rotation)
    assert_same(place(layers, placement), layers)
    assert torch.equal(compose(layers, placement), layers.composite())


def test_placing_nowhere_else_changes_no_bit_of_pictures_with_their_channels_last():
    stacked = torch.rand(2, 37, 53, 7, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    layers = Layers.from_stacked(stacked)
    assert torch.equal(compose(layers, Placement()), layers.composite())


@pytest.mark.parametrize("colour_space", ["srgb", "linear"])
def test_a_colour_space_alone_changes_no_layer(colour_space):
    assert_same(place(random_layers(), Placement(colour_space=colour_space)), random_layers())


def test_a_whole_offset_is_a_shift_without_resampling():
    layers = random_layers()
    placed = place(layers, Placement(x=3, y=-2))
    assert torch.equal(placed.foreground[..., :4, 3:], layers.foreground[..., 2:, :5])
    assert torch.equal(placed.mask[..., :4, 3:], layers.mask[..., 2:, :5])
    assert not placed.mask[..., 4:, :].any() and not placed.mask[..., :3].any()
    assert torch.equal(placed.background, layers.background)


def test_beyond_its_canvas_the_foreground_keeps_the_colour_of_its_edge():
    layers = random_layers()
    placed = place(layers, Placement(x=3))
    assert torch.equal(placed.foreground[..., :3], layers.foreground[..., :1].expand(-1, -1, -1, 3))


@pytest.mark.parametrize("x", [8, -8, 1000, 1000.5])
def test_a_foreground_moved_out_of_the_picture_leaves_the_background(x):
    layers = random_layers()
    assert torch.equal(compose(layers, Placement(x=x)), layers.background)


def test_half_a_pixel_is_the_mean_of_two_neighbours_that_count_as_they_show():
    layers = random_layers(dtype=torch.float64)
    placed = place(layers, Placement(x=0.5))
    seen = layers.foreground * layers.mask
    mask, premultiplied = ((x[..., 1:] + x[..., :-1]) / 2 for x in (layers.mask, seen))
    torch.testing.assert_close(placed.mask[..., 1:], mask)
    torch.testing.assert_close(placed.foreground[..., 1:], premultiplied / mask)
    torch.testing.assert_close(placed.mask[..., 0], layers.mask[..., 0] / 2)


@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", -1), ("flip_vertical", -2)])
def test_a_flip_is_exact_and_undone_by_another(name, axis):
    layers, placement = random_layers(), Placement(**{name: True})
    once = place(layers, placement)
    assert torch.equal(once.foreground, layers.foreground.flip(axis)) and torch.equal(once.mask, layers.mask.flip(axis))
    assert_same(place(once, placement), layers)


@pytest.mark.parametrize("rotation", [90, 180, 270, -90, 450])
@pytest.mark.parametrize("size", [(7, 7), (8, 8)])
def test_quarter_turns_of_a_square_are_rot90_clockwise(rotation, size):
    layers = random_layers(size=size)
    placed = place(layers, Placement(rotation=rotation))
    assert torch.equal(placed.foreground, torch.rot90(layers.foreground, -rotation // 90, (-2, -1)))
    assert torch.equal(placed.mask, torch.rot90(layers.mask, -rotation // 90, (-2, -1)))


def test_a_quarter_turn_of_a_wide_canvas_keeps_its_centre():
    layers = random_layers(size=(4, 6))
    placed = place(layers, Placement(rotation=90))
    turned = torch.rot90(layers.mask, -1, (-2, -1))  # 6 x 4: a row is lost above and below, a column is empty beside
    assert torch.equal(placed.mask[..., 1:5], turned[..., 1:5, :]) and not placed.mask[..., [0, 5]].any()


def test_the_flip_comes_before_the_turn():
    layers = random_layers(size=(7, 7))
    placed = place(layers, Placement(rotation=90, flip_horizontal=True))
    assert torch.equal(placed.mask, torch.rot90(layers.mask.flip(-1), -1, (-2, -1)))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_the_warp_meets_the_exact_quarter_turn(rotation):
    layers = random_layers(size=(7, 9), dtype=torch.float64)
    almost = place(layers, Placement(rotation=rotation + 1e-9))
    torch.testing.assert_close(almost.stacked, place(layers, Placement(rotation=rotation)).stacked)


def test_the_warp_meets_the_exact_shift():
    layers = random_layers(dtype=torch.float64)
    almost = place(layers, Placement(x=2 + 1e-9, y=1 - 1e-9))
    torch.testing.assert_close(almost.stacked, place(layers, Placement(x=2, y=1)).stacked)


def test_rotation_is_clockwise_about_the_centre():
    mask = torch.zeros(1, 1, 21, 21)
    mask[..., 2:5, 9:12] = 1  # above the centre; 45 degrees clockwise it is to the right of it and still above
    layers = Layers(mask.expand(-1, 3, -1, -1), torch.zeros(1, 3, 21, 21), mask)
    turned = place(layers, Placement(rotation=45)).mask[0, 0]
    rows, columns = (turned.sum(axis) @ (torch.arange(21) + 0.5) / turned.sum() for axis in (1, 0))
    distance = 7 / 2**0.5
    torch.testing.assert_close(
        torch.stack([rows, columns]), torch.tensor([10.5 - distance, 10.5 + distance]), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("rotation", [0, 90, 30])
@pytest.mark.parametrize("scale", [0.5, 0.6, 0.75, 1.5, 2.0])
def test_the_area_grows_with_the_square_of_the_scale(scale, rotation):
    layers = square()
    area = place(layers, Placement(scale=scale, rotation=rotation)).mask.sum()
    torch.testing.assert_close(area, scale**2 * layers.mask.sum(), rtol=0.02, atol=0)


def test_scaled_about_the_centre_a_ramp_is_half_as_steep():
    layers = square()
    placed = place(layers, Placement(scale=2))
    expected = 0.5 + (layers.foreground - 0.5) / 2
    inside_or_outside = (placed.mask == 0) | (placed.mask == 1)  # on the edge a colour counts as much as it shows
    torch.testing.assert_close(placed.foreground * inside_or_outside, expected * inside_or_outside)
    assert placed.mask[..., 5:19, 5:19].all() and not placed.mask[..., :3].any()


def test_halving_averages_where_taking_every_other_pixel_would_alias():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 3, 32, 32)
    placed = place(Layers(stripes, stripes, torch.ones(1, 1, 32, 32)), Placement(scale=0.5))
    middle = placed.foreground[..., 10:22, 10:22]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5))
    assert placed.mask.sum() == 16 * 16 and placed.mask[..., 8:24, 8:24].all()


@pytest.mark.parametrize("where", [{"x": 0.5}, {"scale": 0.6}, {"scale": 1.7}, {"rotation": 30, "scale": 0.8}])
def test_a_white_cut_out_on_white_has_no_fringe_of_what_it_hides(where):
    mask = square().mask
    white = torch.ones(1, 3, 24, 24)
    assert compose(Layers(mask * white, white, mask), Placement(**where)).min() > 0.9999


def yellow_disc(hidden, size=64):
    """A soft yellow disc on white paper, over `hidden` where its mask is 0."""
    rows, columns = torch.arange(size)[:, None] - size / 2 + 0.5, torch.arange(size)[None] - size / 2 + 0.5
    mask = ((24 - torch.hypot(rows, columns)) / 6).clamp(0, 1)[None, None]
    yellow = torch.tensor([1.0, 220 / 255, 40 / 255]).view(1, 3, 1, 1).expand(1, 3, size, size)
    return Layers(torch.where(mask > 0, yellow, hidden), torch.ones(1, 3, size, size), mask)


ANYWHERE = [
    {},
    {"x": 0.4, "y": -3.7},
    {"scale": 0.6},
    {"scale": 1.7, "rotation": 31},
    {"x": 30, "flip_horizontal": True},
]


@pytest.mark.parametrize("where", ANYWHERE, ids=str)
@pytest.mark.parametrize("feather", [0.0, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("hidden", [0.0, 0.5, "noise"])
def test_a_feathered_cut_out_shows_nothing_that_was_hidden(where, feather, hidden):
    """Black came with a cut-out's transparent pixels: feathered on white paper, its rim was dark (238, then 209 of
    255).
    """
    under = pictures(size=(64, 64)) if hidden == "noise" else torch.full((1, 3, 64, 64), hidden)
    red = compose(yellow_disc(under), Placement(**where, feather=feather))[:, 0]
    assert (red.min() * 255).round() == 255


@pytest.mark.parametrize("seen", [0.01, 0.05])
def test_a_rim_that_hardly_shows_gives_a_feather_no_colour(seen):
    layers = square()
    rim = (layers.mask == 0).float() * seen
    dirty = Layers(layers.mask.expand(-1, 3, -1, -1), torch.ones(1, 3, 24, 24), layers.mask + rim)
    assert compose(dirty, Placement(feather=2)).min() > 0.999


def test_without_a_feather_what_is_copied_keeps_its_hidden_colours():
    layers = random_layers()
    layers = Layers(layers.foreground, layers.background, (layers.mask > 0.5).float())
    assert torch.equal(place(layers, Placement(opacity=0.5)).foreground, layers.foreground)


def test_whatever_is_resampled_stays_in_range():
    placed = place(random_layers(size=(9, 11)), Placement(scale=3.3, rotation=17, feather=1.5, blend_mode="soft light"))
    assert placed.stacked.min() >= 0 and placed.stacked.max() <= 1


def test_a_foreground_shrunk_to_nothing_is_at_most_a_pixel():
    assert place(square(), Placement(scale=1e-4)).mask.sum() <= 1


# --- Onto what -------------------------------------------------------------------------------------------------------


def test_the_top_left_corners_meet_on_a_background_of_another_size():
    layers, wide = random_layers(n=1), pictures(size=(5, 12))
    placed = place(layers, Placement(x=2), wide)
    assert placed.size == (5, 12) and torch.equal(placed.background, wide)
    assert torch.equal(placed.mask[..., 2:10], layers.mask[..., :5, :])
    assert not placed.mask[..., :2].any() and not placed.mask[..., 10:].any()


@pytest.mark.parametrize(("n", "backgrounds"), [(3, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("placement", [Placement(x=1, blend_mode="overlay"), OFF_THE_GRID])
def test_a_batch_is_its_items_one_by_one(n, backgrounds, placement):
    layers, background = random_layers(n), pictures(backgrounds, size=(7, 5))
    found = compose(layers, placement, background)
    for i in range(3):
        a, b = min(i, n - 1), min(i, backgrounds - 1)
        torch.testing.assert_close(found[i : i + 1], compose(layers[a : a + 1], placement, background[b : b + 1]))


def test_two_batches_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="equally many, or one of either, got 2 foregrounds and 3 backgrounds; give 2"):
        compose(random_layers(2), Placement(), pictures(3))


@pytest.mark.parametrize("shape", [(3, 6, 8), (1, 4, 6, 8), (1, 6, 8, 3)])
def test_a_background_that_is_no_rgb_picture_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"must be RGB pictures \(N, 3, H, W\), got ") as error:
        compose(random_layers(), Placement(), torch.zeros(shape))
    assert str(shape) in str(error.value)


# --- How -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour_space", ["srgb", "linear"])
@pytest.mark.parametrize("blend_mode", get_args(BlendMode))
def test_at_opacity_0_the_background_is_seen_exactly(blend_mode, colour_space):
    placement = Placement(opacity=0, blend_mode=blend_mode, colour_space=colour_space, rotation=10)
    assert torch.equal(compose(random_layers(), placement), random_layers().background)


def test_half_the_opacity_is_half_the_way_from_the_background():
    layers = random_layers(dtype=torch.float64)
    half, full = compose(layers, Placement(opacity=0.5)), compose(layers, Placement())
    torch.testing.assert_close(half, (layers.background + full) / 2)


@pytest.mark.parametrize(
    ("blend_mode", "background", "foreground", "expected"),
    [
        ("normal", 0.2, 0.6, 0.6),
        ("multiply", 0.2, 0.6, 0.12),
        ("screen", 0.2, 0.6, 0.68),
        ("overlay", 0.2, 0.6, 0.24),  # 0.6 * 2 * 0.2
        ("overlay", 0.7, 0.6, 0.76),  # screen(0.6, 0.4)
        ("darken", 0.2, 0.6, 0.2),
        ("lighten", 0.2, 0.6, 0.6),
        ("add", 0.2, 0.6, 0.8),
        ("add", 0.7, 0.6, 1.0),
        ("soft light", 0.2, 0.3, 0.136),  # 0.2 - 0.4 * 0.2 * 0.8
        ("soft light", 0.2, 0.6, 0.2496),  # 0.2 + 0.2 * (0.448 - 0.2), the polynomial
        ("soft light krita", 0.16, 0.6, 0.208),  # 0.16 + 0.2 * (0.4 - 0.16), the root
        ("soft light", 0.64, 0.6, 0.672),  # 0.64 + 0.2 * (0.8 - 0.64)
        ("grain extract", 0.2, 0.6, 0.1),  # 0.2 - 0.6 + 0.5
        ("grain merge", 0.2, 0.6, 0.3),  # 0.2 + 0.6 - 0.5
    ],
)
def test_blend_modes_give_the_colours_computed_by_hand(blend_mode, background, foreground, expected):
    found = compose(plain(foreground, background, mask=1), Placement(blend_mode=blend_mode))
    torch.testing.assert_close(found, torch.full_like(found, expected))


@pytest.mark.parametrize("blend_mode", get_args(BlendMode))
def test_in_light_a_blend_is_that_of_the_light(blend_mode):
    layers, light = plain(0.6, 0.3, mask=1), plain(*srgb_to_linear(torch.tensor([0.6, 0.3])), mask=1)
    found = compose(layers, Placement(blend_mode=blend_mode, colour_space="linear"))
    torch.testing.assert_close(
        srgb_to_linear(found), compose(light, Placement(blend_mode=blend_mode)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("blend_mode", "neutral"),
    [("multiply", 1), ("screen", 0), ("darken", 1), ("lighten", 0), ("add", 0), ("overlay", 0.5), ("soft light", 0.5)],
)
def test_every_blend_mode_has_a_colour_that_leaves_the_background(blend_mode, neutral):
    layers = random_layers(dtype=torch.float64)
    layers = Layers(torch.full_like(layers.foreground, neutral), layers.background, layers.mask)
    torch.testing.assert_close(compose(layers, Placement(blend_mode=blend_mode)), layers.background)


@pytest.mark.parametrize("blend_mode", get_args(BlendMode))
def test_the_picture_is_the_papers_formula_of_the_placed_and_blended_foreground(blend_mode):
    layers, placement = random_layers(), Placement(x=2, rotation=15, blend_mode=blend_mode)
    placed = place(layers, placement)
    seen = Layers(blend(placed.background, placed.foreground, blend_mode), placed.background, placed.mask)
    assert torch.equal(seen.composite(), compose(layers, placement))


@pytest.mark.parametrize(("colour_space", "expected"), [("srgb", 0.5), ("linear", 0.7353569)])
def test_half_white_over_black(colour_space, expected):
    found = compose(plain(1, 0, mask=0.5), Placement(colour_space=colour_space))
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_light_and_back_is_the_same_colour(dtype):
    colour = torch.linspace(0, 1, 4096, dtype=dtype)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(colour)), colour, rtol=0, atol=1e-6)
    torch.testing.assert_close(srgb_to_linear(linear_to_srgb(colour)), colour, rtol=0, atol=1e-6)


# --- Feather ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.4, 1.0, 3.7, 20.0])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_feathered_mask_of_one_value_changes_no_bit(value, sigma):
    mask = torch.full((1, 1, 11, 13), value)
    assert torch.equal(gaussian_blur(mask, sigma), mask)


@pytest.mark.parametrize("feather", [0.5, 1.0, 2.5])
def test_feathering_keeps_the_area_away_from_the_border(feather):
    layers = square()
    feathered = place(layers, Placement(feather=feather)).mask
    torch.testing.assert_close(feathered.sum(), layers.mask.sum())
    assert 0 < feathered[..., 12, 7] < feathered[..., 12, 8] < 1


def test_the_feather_is_the_standard_deviation_in_pixels():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    row = gaussian_blur(point, 4.0).sum((0, 1, 2))
    deviation = (row @ (torch.arange(41.0).double() - 20) ** 2).sqrt()
    assert 3.9 < deviation < 4.0  # a little less: the tails end at three sigma


def test_feathered_edges_at_the_border_of_the_picture_stay_full():
    mask = torch.zeros(1, 1, 9, 30)
    mask[..., :15] = 1
    feathered = gaussian_blur(mask, 2.0)
    assert (feathered[..., :9] == 1).all() and not feathered[..., 21:].any()


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": float("nan")}, "x must be a finite number, got nan; 0.0 is the default"),
        ({"scale": float("inf")}, "scale must be a finite number, got inf; 1.0 is the default"),
        ({"scale": 0.0}, r"scale must be above 0, got 0.0; .* to mirror use the flips"),
        ({"opacity": 50}, r"opacity must be from 0 \(unseen\) to 1 \(full\), got 50; for 50 % give 0.5"),
        ({"feather": -1.0}, r"feather must be 0 or more pixels, got -1.0; 0 \(a sharp edge\) is the default"),
        ({"blend_mode": "softlight"}, "blend_mode must be one of normal, .*soft light, .*, got 'softlight'; normal is"),
        (
            {"colour_space": "sRGB"},
            "colour_space must be one of srgb, linear, comfyui, got 'sRGB'; srgb is the default",
        ),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_what_would_work(values, message):
    with pytest.raises(ValueError, match=message):
        Placement(**values)
