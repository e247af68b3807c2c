"""How the demo draws: cut-outs, colours, places and captions."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.demo.captions import LIGHTS, SIZES, describe, load_things
from recipes.demo.cutouts import (
    COLOURS,
    Pose,
    can_recolour,
    extend_colours,
    place_cutout,
    random_pose,
    read_cutout,
    recolour,
)
from recipes.demo.pictures import PackagePictures
from recipes.demo.places import PlaceArtist, decode_panorama, in_light, load_places, out_of_focus
from recipes.demo.sources import HERE, licence_of

FREE = {"MIT", "CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US", "CC-BY-4.0", "public domain"}


def disc(size: int, colour: tuple[int, int, int]) -> torch.Tensor:
    """A premultiplied cut-out of one colour."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = (np.hypot(y, x) < size / 2 - 2).astype(np.uint8) * 255
    straight = np.broadcast_to(np.uint8(colour), (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([straight, alpha])).save(buffer, "png")
    return read_cutout(buffer.getvalue())


def test_a_cutout_reaches_the_borders_of_its_box():
    cutout = disc(300, (200, 10, 10))
    alpha = cutout[3]
    assert min(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) > 0.5


def test_noise_under_transparent_pixels_never_shows():
    """The emoji files hold arbitrary colours under alpha 0; they once fringed every outline."""
    rgba = np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[16:48, 16:48] = (0, 200, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "png")
    foreground, _ = place_cutout(read_cutout(buffer.getvalue()), Pose(0.5, 0.5, 0.8), 64)
    expected = torch.tensor([0, 200 / 255, 0]).view(3, 1, 1).expand_as(foreground)
    torch.testing.assert_close(foreground, expected, atol=0.02, rtol=0)


def test_extended_colours_are_the_old_ones_where_the_thing_is_solid():
    straight = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    alpha = torch.zeros(1, 32, 32)
    alpha[:, 8:20, 8:20] = 1
    extended = extend_colours(straight * alpha, alpha)
    solid = (slice(None), slice(8, 20), slice(8, 20))
    torch.testing.assert_close(extended[solid], straight[solid], atol=2e-3, rtol=0)
    assert extended.min() >= straight[solid].min() - 1e-4 and extended.max() <= straight[solid].max() + 1e-4


def test_a_thing_is_whole_inside_the_frame_and_large_enough():
    cutout, rng = disc(120, (10, 10, 200)), np.random.default_rng(0)
    for _ in range(60):
        pose = random_pose(rng, cutout, grounded=True)
        mask = place_cutout(cutout, pose, 64)[1]
        border = torch.cat([mask[0, 0], mask[0, -1], mask[0, :, 0], mask[0, :, -1]])
        rows = (mask[0] > 0.5).any(1).sum().item() / 64
        assert border.max() < 0.05
        assert 0.40 <= rows <= 0.82


def test_the_same_thing_elsewhere_is_the_same_pixels_moved_by_whole_latent_cells():
    cutout, rng = disc(120, (10, 10, 200)), np.random.default_rng(0)
    poses = [random_pose(rng, cutout, grounded=False) for _ in range(20)]
    first = place_cutout(cutout, poses[0], 128)[1]
    assert len(set(poses)) > 3
    for pose in poses:
        cells = ((pose.x - poses[0].x) * 16, (pose.y - poses[0].y) * 16)
        assert all(n == round(n) for n in cells)
        moved = first.roll((8 * round(cells[1]), 8 * round(cells[0])), dims=(1, 2))
        torch.testing.assert_close(place_cutout(cutout, pose, 128)[1], moved, atol=1e-4, rtol=0)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_recoloured_thing_has_that_hue_and_keeps_its_outline(colour):
    cutout = disc(120, (200, 60, 20))
    painted = recolour(cutout, colour)
    r, g, b = painted[:3, 60, 60].tolist()
    if colour in ("white", "black"):
        assert max(r, g, b) - min(r, g, b) < 0.12 and (min(r, g, b) > 0.8 if colour == "white" else max(r, g, b) < 0.3)
        return
    strongest = {"red": r, "yellow": min(r, g), "green": g, "blue": b, "purple": min(r, b), "orange": r, "pink": r}
    strongest = (strongest | {"brown": r})[colour]
    weakest = {"red": max(g, b), "yellow": b, "green": max(r, b), "blue": max(r, g), "purple": g}
    weakest = (weakest | {"orange": b, "pink": g, "brown": b})[colour]
    assert strongest > weakest + 0.15
    assert torch.equal(painted[3], cutout[3])


def test_a_gray_thing_cannot_be_recoloured():
    assert can_recolour(disc(64, (200, 60, 20)))
    assert not can_recolour(disc(64, (120, 120, 120)))


@pytest.mark.parametrize("place", load_places(), ids=lambda place: place.name)
def test_every_place_is_drawn_complete_and_the_same_again(place, source_files):
    plates = [
        PlaceArtist(PackagePictures(source_files.__getitem__)).draw(place, np.random.default_rng(5), 32)[0]
        for _ in range(2)
    ]
    assert plates[0].shape == (3, 32, 32) and plates[0].dtype == torch.float32
    assert torch.isfinite(plates[0]).all() and plates[0].min() >= 0 and plates[0].max() <= 1
    assert torch.equal(*plates)


def test_a_place_out_of_focus_keeps_its_light_and_is_never_sharper():
    plate = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for soft in [out_of_focus(plate, rng) for _ in range(20)]:
        torch.testing.assert_close(soft.mean(dim=(1, 2)), plate.mean(dim=(1, 2)), rtol=0, atol=0.01)
        assert soft.diff(dim=-1).abs().mean() <= plate.diff(dim=-1).abs().mean() + 1e-6
    gray = torch.full((3, 64, 64), 0.25)
    torch.testing.assert_close(out_of_focus(gray, rng), gray)


def test_a_broken_sun_is_white_and_spoils_nothing(source_files):
    shown = decode_panorama(source_files["hdri/park.exr.js"], exposure=1.0)
    assert shown.shape == (3, 32, 64)
    assert torch.isfinite(shown).all()
    assert (shown[:, :14].amin(0) > 0.2).all()  # no black or pure blue hole in the sky


def test_a_module_without_a_panorama_is_refused():
    with pytest.raises(ValueError, match="base64 EXR"):
        decode_panorama(b"export default 1", exposure=1.0)


def test_every_caption_is_plain_lower_case_and_there_are_few_words():
    rng, words = np.random.default_rng(0), set()
    for thing in load_things():
        for place in load_places():
            for colour in ("", *COLOURS) if thing.recolour else ("",):
                looks = {"colour": colour, "size": str(rng.choice(["", *SIZES]))}
                texts = describe(thing, place, rng, 0.5, **looks, light=str(rng.choice(["", *place.lights])))
                assert all(re.fullmatch(r"[a-z, -]+", text) for text in texts.values()), texts
                words |= set(texts["caption"].replace(",", "").split())
    assert len(words) < 800


def test_what_a_thing_looks_like_and_in_which_light_is_said():
    things, places = ({row.name: row for row in rows} for rows in (load_things(), load_places()))
    texts = describe(things["teapot"], places["forest"], np.random.default_rng(0), 1.0, "red", "small", "night")
    assert texts["foreground_caption"] == "a small red teapot"
    assert texts["background_caption"] == "in a forest at night"


def test_every_light_is_an_even_change_that_tells_a_place_from_day():
    day = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    lit = {light: in_light(day, light) for light in LIGHTS}
    assert set(LIGHTS) >= {light for place in load_places() for light in place.lights}
    assert all(x.shape == day.shape and 0 <= x.min() and x.max() <= 1 for x in lit.values())
    assert lit["night"].mean() < 0.5 * day.mean() and lit["night"][2].mean() > 1.3 * lit["night"][0].mean()
    assert lit["fog"].std() < 0.6 * day.std() and lit["fog"][:, 0].std() < lit["fog"][:, -1].std()
    assert lit["warm"][0].mean() > 1.3 * lit["warm"][2].mean()
    assert lit["dusk"].mean() < 0.8 * day.mean()


@pytest.mark.parametrize(("size", "least", "most"), [("small", 0.3, 0.55), ("large", 0.75, 0.98)])
def test_a_small_thing_is_small_and_a_large_one_is_whole(size, least, most):
    cutout, rng = disc(120, (10, 10, 200)), np.random.default_rng(0)
    for _ in range(20):
        mask = place_cutout(cutout, random_pose(rng, cutout, True, size), 64)[1][0]
        assert least < (mask > 0.5).any(1).sum().item() / 64 < most
        assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) < 0.05


def test_articles_fit_their_nouns():
    by_name, place = {thing.name: thing for thing in load_things()}, load_places()[0]
    rng = np.random.default_rng(0)
    plain = {
        name: describe(by_name[name], place, rng)["foreground_caption"] for name in ("apple", "ufo", "grapes", "moon")
    }
    assert plain["apple"] == "an apple"
    assert plain["ufo"] == "a ufo"
    assert plain["grapes"] == "grapes"
    assert plain["moon"] == "the moon"
    assert describe(by_name["apple"], place, rng, colour="red")["foreground_caption"] == "a red apple"


def test_names_are_unique_and_every_file_has_a_free_licence():
    things, places = load_things(), load_places()
    assert len({thing.name for thing in things}) == len(things)
    assert len({place.name for place in places}) == len(places)
    sources = [source for thing in things for source in thing.pictures] + [s for p in places for s in p.files]
    assert {licence_of(source)[0] for source in sources} <= FREE
    assert {licence for licence, _ in json.loads((HERE / "packages.json").read_text())["licences"].values()} <= FREE


def test_the_example_of_the_readme_can_be_drawn():
    teapot = next(thing for thing in load_things() if thing.name == "teapot")
    assert teapot.recolour and not teapot.held_out
    assert "on a wooden table" in [phrase for place in load_places() for phrase in place.phrases]
