"""Plates of places: views into panoramas, crops of photos, painted scenes."""

from __future__ import annotations

import io
import json
import re
import warnings
from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2l.compositing.resample import gaussian_blur
from t2l.config import config_from_dict
from t2l.io.picture_file import FORMATS

from .scenes import SCENES

LONGEST = 1600  # pixels a photo keeps along its longer side
GRADES = {  # what shadows and lights are multiplied with
    "night": ((0.16, 0.22, 0.38), (0.44, 0.54, 0.80)),
    "dusk": ((0.38, 0.30, 0.62), (0.95, 0.58, 0.55)),
    "warm": ((0.95, 0.70, 0.42), (1.20, 1.00, 0.66)),
}
SOFTEST = 2.5 / 256  # standard deviation of the blur as a share of the picture's side


@dataclass(frozen=True, kw_only=True)
class Place:
    """One row of places.json."""

    name: str
    phrases: tuple[str, ...]  # background captions, the usual one first
    kind: str  # panorama, photo or drawn
    files: tuple[str, ...] = ()
    pitch: tuple[float, float] = (-12, 4)  # panorama: degrees, negative looks down
    fov: tuple[float, float] = (65, 95)  # panorama: degrees
    exposure: float = 1.0  # panorama: brighter above 1
    regions: tuple[tuple[float, ...], ...] = ()  # photo: usable left, top, right, bottom, as shares
    scene: str = ""  # drawn: a function of scenes.py
    colour: str = ""  # drawn: its colour, where it takes one
    weight: float = 1.0  # how often, 1 = usual
    lights: tuple[str, ...] = ()  # what it may be graded to: some of LIGHTS


@cache
def load_places() -> tuple[Place, ...]:
    """The curated places."""
    rows = json.loads((Path(__file__).parent / "places.json").read_text())["places"]
    return tuple(config_from_dict(Place, row) for row in rows)


class Plates(Protocol):
    """Panoramas and photos by their ids, decoded (pictures.py)."""

    def panorama(self, source: str, exposure: float) -> Tensor: ...

    def photo(self, source: str) -> Tensor: ...


class PlaceArtist:
    """Draws plates; keeps the decoded panoramas and photos."""

    def __init__(self, plates: Plates) -> None:
        self._plates = plates
        self._pictures: dict[str, Tensor] = {}

    def draw(self, place: Place, rng: np.random.Generator, size: int) -> tuple[Tensor, str | None]:
        """A plate (3, size, size) in [0, 1] and the id of the file it came from, None for a painted one."""
        source = str(rng.choice(place.files)) if place.files else None
        if source is None:
            extra = (place.colour,) if place.colour else ()
            drawn = SCENES[place.scene](rng, 2 * size, *extra)
            plate = torch.from_numpy(np.ascontiguousarray(drawn, np.float32)).permute(2, 0, 1)
            plate = F.avg_pool2d(plate[None], 2)[0]
        elif place.kind == "panorama":
            plate = panorama_view(self._panorama(source, place.exposure), rng, place.pitch, place.fov, size)
        else:
            plate = photo_crop(self._photo(source), rng, place.regions[place.files.index(source)], size)
        if rng.random() < 0.5:
            plate = plate.flip(-1)
        return out_of_focus(vary(plate, rng), rng), source

    def _panorama(self, source: str, exposure: float) -> Tensor:
        if source not in self._pictures:
            self._pictures[source] = self._plates.panorama(source, exposure)
        return self._pictures[source]

    def _photo(self, source: str) -> Tensor:
        if source not in self._pictures:
            self._pictures[source] = self._plates.photo(source)
        return self._pictures[source]


def vary(plate: Tensor, rng: np.random.Generator) -> Tensor:
    """Slightly other brightness, contrast and warmth."""
    contrast, brightness, warmth = rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(-0.03, 0.03)
    tint = torch.tensor([1 + warmth, 1.0, 1 - warmth]).view(3, 1, 1) * brightness
    mean = plate.mean()
    return ((plate - mean) * contrast + mean).mul(tint).clamp(0, 1).float()


def in_light(picture: Tensor, light: str) -> Tensor:
    """A picture by day, (3, H, W) in [0, 1], as it looks at night, in fog, at dusk or in warm light: film grades."""
    luma = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    if light == "fog":  # the farther, which is the higher in the frame, the less is seen
        veil = torch.linspace(0.88, 0.45, picture.shape[-2]).view(1, -1, 1)
        return torch.lerp(torch.lerp(picture, luma, 0.5), torch.tensor([0.80, 0.82, 0.84]).view(3, 1, 1), veil)
    muted = torch.lerp(picture, luma, 0.35)
    shadows, lights = (torch.tensor(colour).view(3, 1, 1) for colour in GRADES[light])
    return (muted * torch.lerp(shadows, lights, luma)).clamp(0, 1)


def out_of_focus(plate: Tensor, rng: np.random.Generator) -> Tensor:
    """Blurred by up to SOFTEST: photos are sharp and panoramas are not, and no place shall be known by that."""
    sigma = rng.uniform(0, SOFTEST) * plate.shape[-1]
    return gaussian_blur(plate[:, None], sigma)[:, 0]


def decode_panorama(data: bytes, exposure: float) -> Tensor:
    """An equirectangular EXR, base64 inside a JavaScript module, as display colours in [0, 1].

    Returned at twice its size, (3, 2 H, 2 W), so that a view can be read from it bilinearly.
    """
    return doubled(tone_map(data, exposure))


def doubled(picture: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] at twice its size."""
    larger = F.interpolate(picture[None], scale_factor=2, mode="bicubic", align_corners=False)
    return larger[0].clamp(0, 1).contiguous()


def tone_map(data: bytes, exposure: float) -> Tensor:
    """The display colours of a panorama as it comes, (3, H, W) in [0, 1].

    Tone-mapped here, before anything is interpolated: one infinite pixel (the sun) would spoil a whole view.
    exposure: 1 = the picture's own middle gray.
    """
    import OpenEXR  # only the demo's panoramas need it

    encoded = re.search(rb"base64,([A-Za-z0-9+/=]+)", data)
    if encoded is None:
        raise ValueError("a panorama must be a JavaScript module with base64 EXR data, found none in it")
    with OpenEXR.File(io.BytesIO(b64decode(encoded[1]))) as exr:
        channels = exr.channels()
        radiance = channels["RGB" if "RGB" in channels else "RGBA"].pixels[..., :3].astype(np.float32)
    overflown = (radiance < 0).any(-1) & (np.abs(radiance).max(-1) > 20 * np.nanmedian(radiance))  # the sun
    radiance = np.where(np.isfinite(radiance) & ~overflown[..., None], radiance.clip(0), 1e4)
    middle = radiance.mean(-1)[len(radiance) // 4 : -len(radiance) // 4]
    exposed = radiance * (exposure * 0.2 / np.exp(np.log(middle + 1e-4).mean()))
    shown = exposed * (1 + exposed / 9) / (1 + exposed)  # Reinhard's curve with its white point at 3
    display = torch.from_numpy(np.clip(shown * 1.1, 0, 1) ** (1 / 2.2)).permute(2, 0, 1).float()
    return _without_specks(display)


def _without_specks(picture: Tensor) -> Tensor:
    """Pixels far from the median of their neighbours, (3, H, W): the lossy EXR rings around lamps and the sun."""
    for radius in (1, 2):
        side = 2 * radius + 1
        around = F.unfold(F.pad(picture[None], (radius,) * 4, mode="replicate"), side)
        median = around.view(3, side * side, *picture.shape[1:]).median(1).values
        far = (picture - median).abs().amax(0, keepdim=True) > 0.16
        picture = torch.where(far, median, picture)
    return picture.contiguous()


def panorama_view(
    panorama: Tensor, rng: np.random.Generator, pitch: tuple[float, float], fov: tuple[float, float], size: int
) -> Tensor:
    """A random perspective view, (3, size, size): any yaw; pitch and field of view in degrees from their ranges."""
    yaw, tilt = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*pitch))
    reach = float(np.tan(np.radians(rng.uniform(*fov)) / 2))
    line = torch.linspace(-1, 1, 2 * size) * reach
    y, x = torch.meshgrid(-line, line, indexing="ij")
    up, forward = y * np.cos(tilt) + np.sin(tilt), np.cos(tilt) - y * np.sin(tilt)
    longitude = (torch.atan2(x, forward) + yaw) / (2 * np.pi) % 1
    latitude = torch.atan2(up, torch.hypot(x, forward)) / (np.pi / 2)
    margin = 8  # columns repeated at both ends, so that the seam does not show
    wrapped = torch.cat([panorama[..., -margin:], panorama, panorama[..., :margin]], dim=-1)
    width = panorama.shape[-1]
    column = (longitude * width + margin) / (width + 2 * margin) * 2 - 1
    grid = torch.stack([column, -latitude], dim=-1)[None].float()
    view = F.grid_sample(wrapped[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(view, 2)[0]


def decode_photo(data: bytes) -> Tensor:
    """A JPEG as (3, H, W) in [0, 1], made smaller when it is large."""
    return pixels(shrink_photo(data))


def pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def shrink_photo(data: bytes) -> Image.Image:
    """A JPEG as RGB, with at most LONGEST pixels along its longer side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # one photo has 168 megapixels
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    picture.draft("RGB", (LONGEST, LONGEST))
    rgb = picture.convert("RGB")
    rgb.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return rgb


def photo_crop(photo: Tensor, rng: np.random.Generator, region: tuple[float, ...], size: int) -> Tensor:
    """A random square of a photo's usable region, (3, size, size)."""
    height, width = photo.shape[1:]
    left, top, right, bottom = (round(share * n) for share, n in zip(region, (width, height) * 2, strict=True))
    side = int(min(right - left, bottom - top) * rng.uniform(0.55, 0.9))
    x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
    square = photo[None, :, y : y + side, x : x + side]
    return F.interpolate(square, size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
