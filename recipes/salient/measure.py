"""Mask IOU of salient-object networks on composites whose mask is known, none of whose sources was trained on.

    plain   one whole held-out cut-out, 35 to 80 % of the side, over held-out photographs, panoramas and scenes
    stamps  the same with photographs of things (Debian's tuxpaint-stamps-default, GPL-2, for testing only) over
            photographs of plasma-workspace-wallpapers and mate-backgrounds
    hard    as in training: several, cut, tiny, huge, hidden by their colour
    empty   the backgrounds alone: the share of the picture that is masked

Writes a CSV with one row per picture and prints means with standard errors.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2l.evaluation.metrics import mask_iou
from t2l.model.saliency import SaliencyModel, saliency_model
from t2l.model.salient import load_salient

from .compose import Composer, blurred, cast_shadow, crop, jittered, photographed
from .sources import read_cutout

SIZE = (384, 384)
WALLPAPERS = (
    "wallpapers/Path wallpapers/EveningGlow wallpapers/FallenLeaf wallpapers/BytheWater wallpapers/ColdRipple "
    "wallpapers/DarkestHour wallpapers/summer_1am wallpapers/OneStandsOut"
).split()
NATURE = ("GreenMeadow", "Dune", "Storm", "Wood", "Blinds", "RainDrops")
KINDS = ("animals", "clothes", "food", "household", "plants", "sports", "vehicles", "hobbies")


def stamps(root: Path) -> list[Path]:
    """Photographs of things that are large enough and have an outline."""
    files = [f for kind in KINDS for f in sorted((root / "tuxpaint/stamps" / kind).rglob("*.png"))]
    return [f for f in files if _is_fit(f)]


def _is_fit(file: Path) -> bool:
    with Image.open(file) as picture:
        if min(picture.size) < 150 or "A" not in picture.getbands():
            return False
    return read_cutout(file.read_bytes()) is not None


def wallpapers(root: Path) -> list[np.ndarray]:
    files = [max((root / name / "contents/images").iterdir(), key=lambda f: f.stat().st_size) for name in WALLPAPERS]
    files += [root / "backgrounds/mate/nature" / f"{name}.jpg" for name in NATURE]
    return [_small(file) for file in files]


def _small(file: Path) -> np.ndarray:
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def plain_composite(rng: np.random.Generator, cut: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One whole thing in front of a background, in its light, with a soft shadow half of the time."""
    height, width = SIZE
    image = Image.frombytes("CMYK", (cut.shape[1], cut.shape[0]), cut.tobytes())
    scale = rng.uniform(0.35, 0.8) * height / max(image.size)
    image = image.resize([max(1, round(n * scale)) for n in image.size], Image.Resampling.BICUBIC)
    x, y = (int(rng.integers(0, n - m + 1)) for n, m in zip((width, height), image.size, strict=True))
    frame = Image.new("CMYK", (width, height))
    frame.paste(image, (x, y))
    pixels = np.asarray(frame, np.float32) / 255
    alpha = pixels[..., 3:]
    colours = np.clip(pixels[..., :3] / np.maximum(alpha, 1e-3), 0, 1)
    mean = (colours * alpha).sum((0, 1)) / alpha.sum()
    colours = jittered(rng, np.clip(colours + rng.uniform(0, 0.3) * (background.mean((0, 1)) - mean), 0, 1), 0.1)
    if rng.random() < 0.5:
        background = cast_shadow(rng, background, alpha[..., 0])
    return photographed(rng, background * (1 - alpha) + colours * alpha), alpha[..., 0]


def samples(arguments: argparse.Namespace) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(set, number, picture, mask); the same pictures for every network."""
    composer, walls = Composer(arguments.cache, held_out=True), wallpapers(arguments.test)
    files = stamps(arguments.test)
    for i in range(arguments.count):
        rng = np.random.default_rng([7, i])
        wall = crop(rng, walls[i % len(walls)], SIZE)
        wall = blurred(wall, rng.uniform(0, 5)) if rng.random() < 0.5 else wall
        cut = read_cutout(files[rng.integers(len(files))].read_bytes())
        assert cut is not None, "stamps are chosen by being read"
        yield "stamps", i, *plain_composite(rng, cut, wall)
        place, _ = composer.background(rng, SIZE)
        yield "plain", i, *plain_composite(rng, composer.cutouts.draw(rng), place)
        yield "hard", i, *_with_subject(composer, rng)
        if i % 3 == 0:
            yield "empty", i, wall, np.zeros(SIZE, np.float32)


def _with_subject(composer: Composer, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    while True:
        picture, mask = composer.sample(rng, SIZE)
        if mask.mean() > 0.01:
            return picture, mask


def soft_iou(predicted: Tensor, target: Tensor) -> float:
    """sum of the smaller / sum of the larger."""
    return float(torch.minimum(predicted, target).sum() / torch.maximum(predicted, target).sum().clamp(min=1e-6))


def measure(predict: SaliencyModel, picture: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    x = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
    found, target = predict(x), torch.from_numpy(np.ascontiguousarray(mask))[None, None]
    if not mask.any():
        return {"masked": float((found > 0.5).float().mean())}
    return {"iou": mask_iou(found, target).item(), "soft iou": soft_iou(found, target)}


def summary(rows: list[dict[str, str | float]]) -> Iterator[str]:
    keys = sorted({(str(row["set"]), str(row["figure"])) for row in rows})
    for name, figure in keys:
        values = np.array([row["value"] for row in rows if (row["set"], row["figure"]) == (name, figure)], float)
        error = values.std(ddof=1) / len(values) ** 0.5
        yield f"{name:7} {figure:8} {values.mean():.4f} +- {error:.4f}  median {np.median(values):.4f}  n {len(values)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder that sources.py wrote")
    parser.add_argument("--test", type=Path, required=True, help="usr/share of the test-only Debian packages, unpacked")
    parser.add_argument("--network", help="an .onnx file, or a file of ours; the shipped one if not given")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--csv", type=Path, required=True)
    arguments = parser.parse_args()
    is_onnx = (arguments.network or "").endswith(".onnx")
    predict = saliency_model(arguments.network, preset="auto") if is_onnx else load_salient(arguments.network)
    rows: list[dict[str, str | float]] = []
    for name, i, picture, mask in samples(arguments):
        rows += [{"set": name, "i": i, "figure": k, "value": v} for k, v in measure(predict, picture, mask).items()]
    with arguments.csv.open("w", newline="") as file:
        table = csv.DictWriter(file, ["set", "i", "figure", "value"])
        table.writeheader()
        table.writerows(rows)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
