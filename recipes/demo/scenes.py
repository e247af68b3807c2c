"""Places we paint ourselves: a wooden table, a brick wall, a beach, snow, space, water, plain walls.

A scene is a function of (rng, side) that returns RGB (side, side, 3) floats, about [0, 1]; it is drawn at twice the
size of the picture it becomes. Textures are periodic, so that they can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]
WALLS = {
    "blue": (0.36, 0.58, 0.86),
    "pink": (0.96, 0.66, 0.74),
    "yellow": (0.97, 0.82, 0.36),
    "gray": (0.62, 0.63, 0.65),
}
WATERS = [((0.30, 0.80, 0.88), (0.02, 0.22, 0.45)), ((0.35, 0.85, 0.78), (0.02, 0.30, 0.40))]
WOODS = [  # dark and light grain
    ((0.42, 0.25, 0.13), (0.70, 0.47, 0.28)),
    ((0.48, 0.30, 0.17), (0.80, 0.58, 0.38)),
    ((0.30, 0.17, 0.09), (0.52, 0.32, 0.19)),
    ((0.44, 0.22, 0.12), (0.66, 0.38, 0.23)),
]
ROOMS = [(0.88, 0.86, 0.82), (0.70, 0.76, 0.80), (0.80, 0.74, 0.66), (0.60, 0.66, 0.60), (0.45, 0.45, 0.48)]
BRICKS = [
    ((0.62, 0.29, 0.21), (0.78, 0.74, 0.68)),
    ((0.70, 0.38, 0.27), (0.80, 0.77, 0.72)),
    ((0.52, 0.24, 0.19), (0.62, 0.59, 0.55)),
]


def noise(rng: Generator, shape: tuple[int, int], slope: float = 1.0, smooth: tuple[float, float] = (0, 0)) -> Array:
    """Periodic noise, zero mean, unit variance: amplitude falls as frequency ** -slope; smooth: blur along y and x."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None] * shape[0], np.fft.rfftfreq(shape[1])[None] * shape[1]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1
    blurred = (fy / shape[0] * smooth[0]) ** 2 + (fx / shape[1] * smooth[1]) ** 2
    envelope = radius**-slope * np.exp(-19.75 * blurred)  # about 2 pi^2: the spectrum of a Gaussian blur
    envelope[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * envelope, s=shape)
    return (field / field.std()).astype(np.float32)


def mix(low: ArrayLike, high: ArrayLike, t: Array) -> Array:
    """Colours between two RGB triples, or two pictures, by t (H, W)."""
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - t) + np.asarray(high, np.float32) * t


def smoothstep(low: float, high: float, x: Array) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _axes(side: int) -> tuple[Array, Array]:
    """y and x, 0 to 1, as a column and a row."""
    line = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return line[:, None], line[None]


def _sample(texture: Array, u: Array, v: Array) -> Array:
    """A periodic texture (S, S, C) at u, v in periods, bilinear."""
    side = texture.shape[0]
    wrapped = np.pad(texture, ((1, 1), (1, 1), (0, 0)), mode="wrap")
    places = np.stack([u % 1, v % 1], axis=-1) * side + 1  # in pixels of `wrapped`, 0 = its left edge
    grid = torch.from_numpy((places / (side + 2) * 2 - 1).astype(np.float32))[None]
    picture = torch.from_numpy(wrapped.astype(np.float32)).permute(2, 0, 1)[None]
    return F.grid_sample(picture, grid, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


@lru_cache(maxsize=16)
def wood_texture(number: int) -> Array:
    """Eight planks side by side along x, grain along y, (768, 768, 3)."""
    side, planks = 768, 8
    rng = np.random.default_rng([77, number])
    width = side // planks
    rings = noise(rng, (side, side), 1.2, (90, 6))
    for plank in range(planks):  # no grain runs from one plank into the next
        part = slice(plank * width, (plank + 1) * width)
        rings[:, part] = np.roll(rings[:, part], rng.integers(side), axis=0)
    fibres = noise(rng, (side, side), 0.1, (24, 0.7))
    tone = np.repeat(rng.normal(0, 0.2, planks), width)[None]
    t = 0.5 + 0.17 * np.sin(rings * 5) + 0.10 * rings + 0.10 * fibres + tone
    colour = mix(*WOODS[number % len(WOODS)], t)
    _, x = _axes(side)
    gap = np.abs((x * planks + 0.5) % 1 - 0.5) * width  # pixels to the nearest joint
    return (colour * (0.35 + 0.65 * smoothstep(1.5, 6.0, gap))[..., None]).astype(np.float32)


@lru_cache(maxsize=16)
def brick_texture(number: int) -> Array:
    """Ten courses of five bricks in running bond, (768, 768, 3)."""
    side, courses, per_course = 768, 10, 5
    rng = np.random.default_rng([78, number])
    y, x = _axes(side)
    course = np.floor(y * courses).astype(int)
    shifted = x * per_course + 0.5 * (course % 2)
    brick = np.floor(shifted).astype(int) % per_course
    wobble = noise(rng, (side, side), 1.0, (2, 2)) * 0.9
    to_joint = np.minimum(
        np.abs((shifted + 0.5) % 1 - 0.5) * side / per_course, np.abs((y * courses + 0.5) % 1 - 0.5) * side / courses
    )
    inside = smoothstep(3.5, 7.0, to_joint + wobble)
    tone = rng.normal(0, 0.14, (courses, per_course))[course, brick]
    warmth = rng.normal(0, 0.05, (courses, per_course))[course, brick]
    grain = 0.05 * noise(rng, (side, side), 0.3) + 0.05 * noise(rng, (side, side), 1.2)
    clay, mortar = BRICKS[number % len(BRICKS)]
    face = np.asarray(clay) * (1 + tone + grain)[..., None] + warmth[..., None] * np.array([1, 0.3, -0.2])
    joint = np.asarray(mortar) * (0.88 + 0.06 * noise(rng, (side, side), 0.5))[..., None]
    return mix(joint, face, inside).astype(np.float32)


def _lit(rng: Generator, side: int, strength: float) -> Array:
    """A soft pool of light somewhere in the upper part, about 1 on average, (side, side, 1)."""
    y, x = _axes(side)
    distance = (x - rng.uniform(0.1, 0.9)) ** 2 + (y - rng.uniform(0.0, 0.6)) ** 2
    return (1 + strength * (np.exp(-distance / 0.35) - 0.45))[..., None]


def wooden_table(rng: Generator, side: int) -> Array:
    """A plank table top seen from a little above, a soft wall behind it."""
    y, x = _axes(side)
    edge = rng.uniform(0.36, 0.58)
    horizon = edge - rng.uniform(0.16, 0.4)
    depth = 0.55 / np.maximum(y - horizon, 0.02)
    turn = rng.uniform(-0.6, 0.6) + (np.pi / 2 if rng.random() < 0.45 else 0)
    across, along = (x - 0.5) * depth * 0.9, np.broadcast_to(depth, (side, side))
    zoom = rng.uniform(0.2, 0.32)
    u = zoom * (np.cos(turn) * across - np.sin(turn) * along) + rng.random()
    v = zoom * (np.sin(turn) * across + np.cos(turn) * along) + rng.random()
    table = _sample(wood_texture(int(rng.integers(8))), u, v) * _lit(rng, side, 0.35)
    table *= (0.82 + 0.25 * smoothstep(edge, 1.0, y))[..., None]
    wall = np.asarray(rng.choice(ROOMS))
    behind = wall * _lit(rng, side, 0.4) * (1 + 0.03 * noise(rng, (side, side), 2.0))[..., None]
    behind = behind * (1 - 0.22 * smoothstep(edge - 0.12, edge, y))[..., None]
    return mix(behind, table, np.broadcast_to(smoothstep(edge - 0.004, edge + 0.004, y), (side, side)))


def brick_wall(rng: Generator, side: int) -> Array:
    """A wall seen nearly frontally."""
    y, x = _axes(side)
    zoom, tilt = rng.uniform(0.4, 0.65), rng.normal(0, 0.02)
    lean = 1 + rng.uniform(-0.2, 0.2) * (x - 0.5)  # farther away at one side
    u = (x - 0.5) * zoom * lean + tilt * y + rng.random()
    v = (y - 0.5) * zoom * lean - tilt * x + rng.random()
    return _sample(brick_texture(int(rng.integers(6))), u, v) * _lit(rng, side, 0.5)


def plain_wall(rng: Generator, side: int, colour: str) -> Array:
    """A studio backdrop: one colour, wall and floor flow into each other."""
    y, _ = _axes(side)
    base = np.clip(np.asarray(WALLS[colour]) * rng.uniform(0.9, 1.08) + rng.normal(0, 0.015, 3), 0, 1)
    bend = rng.uniform(0.62, 0.82)
    floor = smoothstep(bend - 0.10, bend + 0.10, y)
    shade = 1 - 0.09 * np.exp(-(((y - bend) / 0.09) ** 2)) + 0.10 * floor
    return base * shade[..., None] * _lit(rng, side, 0.28) + 0.006 * noise(rng, (side, side), 0.2)[..., None]


def _sky(rng: Generator, side: int, top: ArrayLike, bottom: ArrayLike, clouds: float) -> Array:
    y, _ = _axes(side)
    sky = mix(top, bottom, np.broadcast_to(y / 0.55, (side, side)))
    cover = smoothstep(0.3, 1.8, noise(rng, (side, side), 1.7, (0.6, 0)) + clouds)
    return mix(sky, (1.0, 1.0, 1.0), 0.85 * cover)


def _ground_noise(rng: Generator, side: int, horizon: float, slope: float = 0.6) -> Array:
    """Noise lying on a plane that reaches the horizon: finer and calmer far away."""
    y, x = _axes(side)
    depth = 0.25 / np.maximum(y - horizon, 0.01)
    field = noise(rng, (512, 512), slope)[..., None]
    lying = _sample(field, (x - 0.5) * depth * 0.7 + 0.5, np.broadcast_to(depth * 0.9, (side, side)))[..., 0]
    return lying * np.clip(1.3 / depth, 0, 1)


def beach(rng: Generator, side: int) -> Array:
    """Sand, a shallow sea with surf, a bright sky."""
    y, x = _axes(side)
    horizon, shore = rng.uniform(0.34, 0.46), rng.uniform(0.56, 0.70)
    picture = _sky(rng, side, (0.28, 0.55, 0.88), (0.80, 0.90, 0.97), rng.uniform(-0.8, 0.3))
    wave = noise(rng, (side, side), 0.8, (1.0, 14)) * (0.4 + y)
    sea = mix((0.08, 0.40, 0.62), (0.35, 0.78, 0.78), (y - horizon) / (shore - horizon) + 0.12 * wave)
    picture = mix(picture, sea, np.broadcast_to(smoothstep(horizon - 0.003, horizon + 0.003, y), (side, side)))
    line = shore + 0.05 * (x - 0.5) * rng.uniform(-2, 2) + 0.012 * noise(rng, (1, side), 1.8)
    sand = mix((0.80, 0.68, 0.48), (0.95, 0.86, 0.68), 0.55 + 0.25 * _ground_noise(rng, side, horizon))
    wet = smoothstep(0.10, 0.02, y - line)
    picture = mix(picture, sand * (1 - 0.28 * wet)[..., None], smoothstep(0, 0.006, y - line))
    foam = np.exp(-(((y - line + 0.006) / 0.010) ** 2)) * (0.75 + 0.25 * noise(rng, (side, side), 0.8))
    return mix(picture, (0.97, 0.99, 1.0), foam) * rng.uniform(0.92, 1.02)


def snow(rng: Generator, side: int) -> Array:
    """A snowy field, hazy hills with firs, a pale sky, a few flakes."""
    y, x = _axes(side)
    horizon = rng.uniform(0.42, 0.55)
    picture = mix((0.56, 0.68, 0.82), (0.88, 0.91, 0.95), np.broadcast_to(y / horizon, (side, side)))
    for depth, tint in ((0.10, (0.70, 0.78, 0.87)), (0.05, (0.52, 0.63, 0.72))):
        ridge = horizon - depth - 0.03 * noise(rng, (1, side), 1.8)
        firs = 0.07 * (1 - depth * 7) * np.abs(noise(rng, (1, side), 0.4, (0, 3)))
        picture = mix(picture, tint, smoothstep(-0.004, 0.004, y - ridge + np.maximum(firs, 0)))
    bank = horizon + 0.015 * noise(rng, (1, side), 1.9)
    drifts = noise(rng, (side, side), 1.6, (3, 20))
    light = 0.65 + 0.18 * drifts + 0.10 * _ground_noise(rng, side, horizon - 0.05)
    ground = mix((0.78, 0.85, 0.94), (1.0, 1.0, 1.0), light)
    picture = mix(picture, ground, smoothstep(-0.004, 0.004, y - bank))
    return _dots(rng, picture, int(rng.integers(50, 110)), (4, 10), (1.0, 1.0, 1.0), 0.9)


def _dots(
    rng: Generator, picture: Array, count: int, radii: tuple[float, float], colour: ArrayLike, strength: float
) -> Array:
    """Soft round dots, radii in pixels."""
    side = picture.shape[0]
    for _ in range(count):
        cy, cx, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(*radii)
        rows = slice(max(0, int(cy - 3 * radius)), int(cy + 3 * radius) + 1)
        columns = slice(max(0, int(cx - 3 * radius)), int(cx + 3 * radius) + 1)
        y, x = np.mgrid[rows, columns]
        y, x = y[: max(0, side - rows.start)], x[: max(0, side - rows.start)]
        y, x = y[:, : max(0, side - columns.start)], x[:, : max(0, side - columns.start)]
        spot = strength * rng.uniform(0.4, 1) * np.exp(-((np.hypot(y - cy, x - cx) / radius) ** 4))
        picture[rows, columns] = mix(picture[rows, columns], colour, spot)
    return picture


def space(rng: Generator, side: int) -> Array:
    """Stars before a coloured nebula, sometimes the limb of a planet."""
    y, x = _axes(side)
    glow = [(0.42, 0.16, 0.55), (0.12, 0.28, 0.62), (0.55, 0.18, 0.35), (0.10, 0.42, 0.50)]
    first, second = rng.permutation(len(glow))[:2]
    picture = np.full((side, side, 3), (0.02, 0.02, 0.06), np.float32)
    for colour in (glow[first], glow[second]):
        cloud = smoothstep(-0.3, 2.4, noise(rng, (side, side), 1.6))
        picture = picture + 0.8 * cloud[..., None] * np.asarray(colour, np.float32)
    picture = _dots(rng, picture, 110, (1.5, 3.0), (1.0, 1.0, 1.0), 1.0)
    picture = _dots(rng, picture, 14, (3.5, 7), (1.0, 0.95, 0.85), 1.0)
    if rng.random() < 0.4:
        radius, cx = rng.uniform(0.8, 1.6), rng.uniform(0.0, 1.0)
        distance = np.hypot(x - cx, y - (rng.uniform(0.84, 0.95) + radius)) - radius
        bands = np.exp(distance * 9) + 0.1 * noise(rng, (side, side), 1.2, (1, 6))
        surface = mix((0.10, 0.12, 0.22), (0.35, 0.45, 0.70), bands)
        picture = mix(picture, surface, smoothstep(0.004, -0.004, distance))
    return picture


def underwater(rng: Generator, side: int) -> Array:
    """Blue water with rays from above, bubbles and a sandy ground."""
    y, x = _axes(side)
    top, deep = WATERS[0 if rng.random() < 0.6 else 1]  # light, deep
    picture = mix(top, deep, np.broadcast_to(y**0.8, (side, side)) + 0.04 * noise(rng, (side, side), 2.0))
    angle = (x - rng.uniform(-0.2, 1.2)) / (y + rng.uniform(0.4, 0.8))
    profile = noise(rng, (1, 1024), 0.9, (0, 5))[0]
    rays = profile[np.mod((angle * 260).astype(int), 1024)]
    picture = mix(picture, (0.85, 1.0, 1.0), 0.32 * smoothstep(0.2, 2.0, rays) * (1 - y) ** 1.2)
    floor = rng.uniform(0.76, 0.9) + 0.02 * noise(rng, (1, side), 1.8)
    sand = mix((0.20, 0.46, 0.50), (0.62, 0.74, 0.62), 0.4 + 0.2 * _ground_noise(rng, side, 0.6) + 0.6 * (y - 0.8))
    picture = mix(picture, sand, 0.9 * smoothstep(-0.02, 0.04, y - floor))
    return _dots(rng, picture, int(rng.integers(8, 22)), (5, 16), (0.85, 0.98, 1.0), 0.6)


SCENES: dict[str, Callable[..., Array]] = {
    scene.__name__: scene for scene in (wooden_table, brick_wall, plain_wall, beach, snow, space, underwater)
}
