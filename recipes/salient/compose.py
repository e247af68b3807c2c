"""Pictures with a known mask: cut-outs over backgrounds, made to look taken in one place as far as that goes without a
renderer.

A picture is (H, W, 3) and a mask (H, W), floats in [0, 1]; a cut-out is premultiplied, (H, W, 4).
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .sources import Store

REAL = 0.1  # share of real photographs, and of cut-outs from such
TEXTURES, MOST = {"ufoai", "skimage"}, 3.0  # surfaces, and how much they weigh at most: a photograph group has 2
SUBJECTS = ((0, 0.09), (1, 0.71), (2, 0.13), (3, 0.07))  # how many a picture has, and how often


class Composer:
    """Draws samples from the decoded sources. held_out: from the sources that training never sees."""

    def __init__(self, folder: Path, held_out: bool = False) -> None:
        self.cutouts = _Part(folder, "cutouts", held_out)
        self.real_cutouts, self.real = (
            _Part(folder, name, held_out) if (folder / f"{name}.json").is_file() else None
            for name in ("real-cutouts", "real")
        )
        self.plates = _Part(folder, "plates", held_out)
        self.photos = _Part(folder, "photos", held_out)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A picture and its mask. size: height, width."""
        if self.real and rng.random() < REAL:
            return self._real(rng, size)
        picture, plain = self.background(rng, size)
        counts, shares = zip(*SUBJECTS, strict=True)
        count = int(rng.choice(counts, p=shares))
        if count and not plain and rng.random() < 0.1:  # small things out of focus behind the subject are no subject
            picture = self._distract(rng, picture)
        mask = np.zeros(size, np.float32)
        for _ in range(count):
            cut = self._posed(rng, size, shrink=count**-0.5)
            alpha = cut[..., 3]
            if alpha.max() < 0.5:
                continue
            colours = self._lit(rng, cut, picture)
            if rng.random() < 0.55:
                picture = cast_shadow(rng, picture, alpha)
            picture = picture * (1 - alpha[..., None]) + colours * alpha[..., None]
            mask = 1 - (1 - mask) * (1 - alpha)
        return photographed(rng, picture), mask

    def _real(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A photograph of a subject, mirrored, cut and toned at random."""
        part = crop(rng, self.real.draw(rng), size, least=0.7)
        return photographed(rng, jittered(rng, part[..., :3], 0.25)), part[..., 3]

    def background(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, bool]:
        """A picture without a subject, and whether it is plain."""
        kind = rng.choice(["photo", "plate", "two", "plain"], p=[0.34, 0.26, 0.2, 0.2])
        if kind == "plain":
            return plain_background(rng, size), True
        if kind == "two":
            picture = self._wall_and_floor(rng, size)
        else:
            picture = crop(rng, (self.photos if kind == "photo" else self.plates).draw(rng), size)
        if rng.random() < 0.5:
            picture = blurred(picture, rng.uniform(0, 5) * size[0] / 256)
        return jittered(rng, picture, 0.3), False

    def texture(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return crop(rng, (self.photos if rng.random() < 0.7 else self.plates).draw(rng), size)

    def _wall_and_floor(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        walls = [self.texture(rng, size) if rng.random() < 0.6 else plain_background(rng, size) for _ in range(2)]
        line = np.linspace(0, 1, size[0], dtype=np.float32)[:, None, None]
        slope = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :, None] * rng.normal(0, 0.05)
        share = np.clip((line + slope - rng.uniform(0.35, 0.85)) * size[0] / rng.uniform(1, 8) + 0.5, 0, 1)
        walls[0] = blurred(walls[0], rng.uniform(0, 4))
        return walls[0] * (1 - share) + walls[1] * share

    def _posed(self, rng: np.random.Generator, size: tuple[int, int], shrink: float) -> np.ndarray:
        """A cut-out somewhere in the frame: mostly near the middle, sometimes tiny, huge, or cut by the border."""
        cut = Image.frombytes("CMYK", *_image_arguments(self._cutout(rng)))  # four channels, nothing more
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        extent = shrink * float(
            rng.choice([rng.uniform(0.35, 0.95), rng.uniform(0.1, 0.35), rng.uniform(0.95, 1.5)], p=[0.74, 0.13, 0.13])
        )
        scale = extent * min(size) / max(cut.size)
        stretch = math.exp(rng.normal(0, 0.12))
        new = [max(4, round(n * scale * f)) for n, f in zip(cut.size, (stretch, 1 / stretch), strict=True)]
        cut = cut.resize(new, Image.Resampling.BICUBIC)
        angle = rng.normal(0, 12) if rng.random() < 0.8 else rng.uniform(0, 360)
        cut = cut.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        spread = 0.13 if rng.random() < 0.7 else 0.3
        x, y = (round((0.5 + rng.normal(0, spread)) * n - m / 2) for n, m in zip(size[::-1], cut.size, strict=True))
        frame = Image.new("CMYK", size[::-1])
        frame.paste(cut, (x, y))
        return np.asarray(frame, np.float32) / 255

    def _cutout(self, rng: np.random.Generator) -> np.ndarray:
        return (self.real_cutouts if self.real_cutouts and rng.random() < REAL else self.cutouts).draw(rng)

    def _lit(self, rng: np.random.Generator, cut: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """The thing's straight colours in the light of the picture, sometimes with a photograph's surface."""
        size, alpha = cut.shape[:2], cut[..., 3:]
        colours = np.clip(cut[..., :3] / np.maximum(alpha, 1e-3), 0, 1)
        surface = rng.random()
        if surface < 0.2:  # a photograph cut to its outline, keeping some of its shading
            texture = self.texture(rng, size)
            grey = grey_of(colours)
            colours = texture * (1 + rng.uniform(0, 1.2) * (grey - _mean(grey, alpha)))
        elif surface < 0.5:
            texture = grey_of(self.texture(rng, size))
            colours = colours * (1 + np.float32(rng.uniform(0.2, 0.9)) * (texture - texture.mean()))
        if rng.random() < 0.15:
            colours = colours @ hue_turn(rng.uniform(0, 2 * np.pi))
        ground = _mean(picture, np.ones((*size, 1), np.float32))
        toward = rng.uniform(0.7, 1) if rng.random() < 0.12 else rng.uniform(0, 0.45)  # 12 %: hidden by its colour
        colours = colours + np.float32(toward) * (ground - _mean(colours, alpha))
        light = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :, None] * rng.normal(0, 0.2)
        light = light + np.linspace(-1, 1, size[0], dtype=np.float32)[:, None, None] * rng.normal(0, 0.2)
        return np.clip(jittered(rng, np.clip(colours * (1 + light), 0, 1), 0.25), 0, 1)

    def _distract(self, rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
        for _ in range(rng.integers(1, 4)):
            cut = self._posed(rng, picture.shape[:2], shrink=0.35)
            colours = picture * (1 - cut[..., 3:]) + self._lit(rng, cut, picture) * cut[..., 3:]
            picture = picture * 0.2 + colours * 0.8
        return blurred(picture, rng.uniform(2.5, 6))


class _Part:
    """The training half or the held-out part of a store. Sources are drawn evenly, however many pictures each has."""

    def __init__(self, folder: Path, name: str, held_out: bool) -> None:
        self.store = Store(folder, name)
        by_source: dict[str, list[int]] = {}
        for i, row in enumerate(self.store.rows):
            if row["held_out"] == held_out:
                by_source.setdefault(row["source"], []).append(i)
        groups: dict[str, list[list[int]]] = {}
        for source, indices in by_source.items():
            groups.setdefault(source.split("/")[0], []).append(indices)
        self.groups = list(groups.values())
        self.weights = np.array(
            [min(len(group) ** 0.5, MOST if name in TEXTURES else 99) for name, group in groups.items()]
        )
        self.weights /= self.weights.sum()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        group = self.groups[rng.choice(len(self.groups), p=self.weights)]
        indices = group[rng.integers(len(group))]
        return self.store[indices[rng.integers(len(indices))]]


def crop(rng: np.random.Generator, picture: np.ndarray, size: tuple[int, int], least: float = 0.35) -> np.ndarray:
    """A random part of a picture in another size, mirrored half of the time."""
    height, width = picture.shape[:2]
    largest = min(height / size[0], width / size[1])
    scale = largest * rng.uniform(least, 1) ** 0.7
    h, w = size[0] * scale, size[1] * scale
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    mode = "RGB" if picture.shape[2] == 3 else "CMYK"  # four channels, nothing more
    image = Image.frombytes(mode, (width, height), picture.tobytes()).resize(
        size[::-1], Image.Resampling.BILINEAR, (x, y, x + w, y + h), 1.5
    )
    part = np.asarray(image, np.float32) / 255
    return part[:, ::-1] if rng.random() < 0.5 else part


def plain_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """One colour, a gradient, stripes or a few soft blobs, as of a studio or flat clip art; white often."""
    white = rng.random() < 0.3
    colour = np.float32([1, 1, 1]) * rng.uniform(0.85, 1) if white else rng.random(3).astype(np.float32)
    other = np.clip(colour + rng.normal(0, 0.25), 0, 1) if rng.random() < 0.6 else rng.random(3).astype(np.float32)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32) / max(size)
    kind, angle = rng.random(), rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    if kind < 0.25 or white and kind < 0.6:
        share = np.zeros_like(x)
    elif kind < 0.55:
        share = np.clip(along * rng.uniform(0.5, 2) + 0.5, 0, 1)
    elif kind < 0.7:
        share = np.clip(np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)) * rng.uniform(0.8, 2), 0, 1)
    elif kind < 0.85:
        share = np.clip(np.sin(along * rng.uniform(10, 90)) * rng.uniform(1, 20) + 0.5, 0, 1) * rng.uniform(0.1, 1)
    else:
        coarse = Image.fromarray(rng.random((rng.integers(2, 9), rng.integers(2, 9))).astype(np.float32))
        share = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
        share = (share > 0.5).astype(np.float32) if rng.random() < 0.3 else share
    return (colour * (1 - share[..., None]) + other * share[..., None]).astype(np.float32)


def cast_shadow(rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A soft shadow of the outline, moved and flattened, which is no part of the mask."""
    height, width = alpha.shape
    shadow = Image.fromarray((alpha * 255).astype(np.uint8))
    squash = rng.uniform(0.15, 1) if rng.random() < 0.6 else 1
    rows = np.flatnonzero(alpha.max(1) > 0.5)
    foot, shear = (rows[-1] if len(rows) else height), rng.normal(0, 0.5)
    dx, dy = rng.normal(0, 0.03) * width, abs(rng.normal(0, 0.02)) * height
    terms = (1, shear / squash, -dx - shear / squash * foot, 0, 1 / squash, foot - (foot + dy) / squash)
    shadow = shadow.transform(shadow.size, Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    shadow = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 9)))
    strength = np.asarray(shadow, np.float32)[..., None] / 255 * rng.uniform(0.2, 0.75)
    return picture * (1 - strength)


def photographed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """What a lens, a sensor and a JPEG encoder do to a picture."""
    picture = jittered(rng, picture, 0.15)
    if rng.random() < 0.45:
        picture = blurred(picture, rng.uniform(0.2, 1.3))
    if rng.random() < 0.05:
        picture = np.repeat(grey_of(picture), 3, -1)
    if rng.random() < 0.5:
        picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.003, 0.05))
    pixels = (picture.clip(0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.6:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(30, 96)))
        pixels = np.asarray(Image.open(file).convert("RGB"))
    return pixels.astype(np.float32) / 255


def jittered(rng: np.random.Generator, picture: np.ndarray, amount: float) -> np.ndarray:
    """Another brightness, contrast, saturation, warmth and gamma."""
    brightness, contrast, saturation, warmth = (1 + rng.normal(0, amount, 4) * (0.6, 0.6, 1, 0.3)).tolist()
    grey = grey_of(picture)
    mean = float(grey.mean())
    picture = grey + (picture - grey) * max(0.0, saturation)
    picture = (picture - mean) * max(0.3, contrast) + mean
    picture = picture * (np.float32([warmth, 1, 2 - warmth]) * np.float32(max(0.3, brightness)))
    curve = np.linspace(0, 1, 1024, dtype=np.float32) ** np.float32(np.exp(rng.normal(0, amount)))
    return curve[(picture.clip(0, 1) * 1023).astype(np.int16)]


def grey_of(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W, 1)."""
    return (picture.reshape(-1, 3) @ np.full(3, 1 / 3, np.float32)).reshape(*picture.shape[:2], 1)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255


def hue_turn(angle: float) -> np.ndarray:
    """The matrix that turns colours (..., 3) about the grey axis."""
    c, s, t = math.cos(angle), math.sin(angle) / math.sqrt(3), (1 - math.cos(angle)) / 3
    return np.float32([[c + t, t + s, t - s], [t - s, c + t, t + s], [t + s, t - s, c + t]])


def _mean(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return alpha.reshape(-1) @ values.reshape(alpha.size, -1) / max(float(alpha.sum()), 1e-3)


def _image_arguments(cut: np.ndarray) -> tuple[tuple[int, int], bytes]:
    return (cut.shape[1], cut.shape[0]), cut.tobytes()


def sheet(folder: Path, out: Path, held_out: bool = False, count: int = 48, side: int = 192) -> None:
    """Samples and their masks as one picture, to look at before training."""
    composer, rng = Composer(folder, held_out), np.random.default_rng(0)
    rows = []
    for _ in range(count // 8):
        samples = [composer.sample(rng, (side, side)) for _ in range(8)]
        rows.append(np.concatenate([picture for picture, _ in samples], 1))
        rows.append(np.concatenate([np.repeat(mask[..., None], 3, -1) for _, mask in samples], 1))
    Image.fromarray((np.concatenate(rows) * 255).astype(np.uint8)).save(out)


if __name__ == "__main__":
    import sys

    sheet(Path(sys.argv[1]), Path(sys.argv[2]), held_out="held-out" in sys.argv)
