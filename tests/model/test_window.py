"""A picture on a grid of latents, followed through what nodes do to them."""

import pytest
import torch
import torch.nn.functional as F

from t2l.model.window import Window, followed

SIZE = (90, 97)  # on a grid of 12 x 13 cells of 8 pixels


def latents(grid=(12, 13), n=2, seed=0):
    """Latents as smooth as those of a picture."""
    coarse = torch.randn(n, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=grid, mode="bicubic")


def padded_picture(size=SIZE):
    """A picture of one value for each pixel, and its decoded grid with padding of -1: what is cut out must be the
    picture.
    """
    picture = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    return picture, F.pad(picture, (0, -size[1] % 8, 0, -size[0] % 8), value=-1)


MOVES = {
    "nothing": lambda x: x,
    "vertically": lambda x: x.flip(-2),
    "horizontally": lambda x: x.flip(-1),
    "90": lambda x: x.rot90(1, (3, 2)),
    "180": lambda x: x.rot90(2, (3, 2)),
    "270": lambda x: x.rot90(3, (3, 2)),
}


@pytest.mark.parametrize("second", MOVES)
@pytest.mark.parametrize("first", MOVES)
@pytest.mark.parametrize("size", [(90, 97), (100, 97), (64, 64), (9, 17)])
def test_flips_and_quarter_turns_move_the_picture_without_its_padding(size, first, second):
    """Padding came to the left, and the picture's own last columns were cut off."""
    window, (picture, decoded) = Window.of(size, 8), padded_picture(size)
    before = latents(window.grid)
    for name in (first, second):
        after = MOVES[name](before)
        window, before = followed(window, before, after), after
        picture, decoded = MOVES[name](picture), MOVES[name](decoded)
    assert torch.equal(window.of_decoded(decoded, 8), picture)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 2), (4, 5)])
def test_a_crop_keeps_what_is_picture_of_it(row, column, copied):
    window, (picture, decoded) = Window.of(SIZE, 8), padded_picture()
    before = latents()
    cut = before[..., row : row + 8, column : column + 8]
    window = followed(window, before, cut.clone() if copied else cut)
    found = window.of_decoded(decoded[..., 8 * row : 8 * row + 64, 8 * column : 8 * column + 64], 8)
    assert torch.equal(found, picture[..., 8 * row : 8 * row + 64, 8 * column : 8 * column + 64])


def test_a_view_of_a_plain_picture_is_found_where_it_was_cut_out():
    before = torch.zeros(1, 4, 13, 12).mT  # all cells are alike, and the memory lies across
    assert followed(Window.of(SIZE, 8), before, before[..., 4:, 5:]) == Window((8, 8), 0, 0, 7.25, 7.125)


def test_a_crop_of_padding_alone_holds_no_picture():
    before = latents((13, 13))
    assert followed(Window((13, 13), 0, 0, 12, 12), before, before[..., 12:, :]) is None


@pytest.mark.parametrize("mode", ["nearest-exact", "bilinear", "area", "bicubic"])
@pytest.mark.parametrize(("factor", "size"), [(2, (180, 194)), (1.5, (135, 146)), (3, (270, 291)), (0.5, (45, 48))])
def test_a_picture_enlarged_by_a_factor_is_so_many_times_as_large(factor, size, mode):
    before = latents()
    after = F.interpolate(before, size=[round(12 * factor), round(13 * factor)], mode=mode)
    window = followed(Window.of(SIZE, 8), before, after)
    assert window.of_decoded(torch.zeros(1, 1, 8 * after.shape[-2], 8 * after.shape[-1]), 8).shape[-2:] == size


@pytest.mark.parametrize("grid", [(25, 25), (64, 64), (32, 20)])
def test_a_picture_enlarged_to_a_size_fills_it_without_padding(grid):
    before = latents((13, 13))
    window = followed(Window.of((100, 100), 8), before, F.interpolate(before, size=grid, mode="bilinear"))
    height, width = 8 * grid[0], 8 * grid[1]
    decoded = torch.where(torch.arange(width) < width * 12.5 / 13, 1.0, -1.0).expand(1, 1, height, width)
    found = window.of_decoded(decoded, 8)
    assert found.shape[-2:] == (height, width) and (found > 0).float().mean() > 0.99


def test_the_middle_that_core_cuts_out_before_it_enlarges_is_followed():
    before = latents((13, 13))
    window = followed(Window.of((100, 100), 8), before, F.interpolate(before[..., 3:10], size=(32, 16)))
    assert window == Window((32, 16), 0, 0, 12.5 * 32 / 13, 16, (13 / 12.5, 1.0))


def test_a_picture_without_padding_is_never_resampled():
    before = latents((13, 13))
    window = followed(Window.of((104, 104), 8), before, F.interpolate(before, size=(20, 20)))
    decoded = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert window.is_whole and torch.equal(window.of_decoded(decoded, 8), decoded)


def test_the_least_of_a_picture_is_a_pixel():
    assert Window((1, 1), 0.99, 0.5, 0.01, 0.01, (0.1, 1)).of_decoded(torch.ones(1, 7, 8, 8), 8).shape == (1, 7, 1, 1)


@pytest.mark.parametrize("after", [latents(seed=1), latents(n=1), torch.zeros(2, 4, 12, 13)])
def test_other_latents_on_the_same_grid_show_a_picture_in_the_same_place(after):
    window = Window.of(SIZE, 8)
    assert followed(window, latents(), after) == window


@pytest.mark.parametrize(
    "after",
    [
        torch.cat([latents(), latents()], dim=-1),
        F.pad(latents(), (2, 2, 3, 3)),
        latents((20, 31), seed=1),
        latents()[None],
        torch.zeros(2, 3, 24, 26),
        torch.full((2, 4, 24, 26), torch.nan),
        torch.zeros(2, 4, 0, 13),
        latents().to("meta"),
        latents().to_sparse(),
        None,
    ],
)
def test_what_cannot_be_followed_is_not_guessed(after):
    assert followed(Window.of(SIZE, 8), latents(), after) is None
