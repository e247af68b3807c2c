"""What the limits on strangers' files cost in normal use: layer files opened by us and by psd-tools and Pillow alone,
and the memory that opening and stacking them takes.

    python benchmarks/strangers.py

Time: 2048 x 2048, three layers, one process, both after another in every round; both give floats in
[0, 1]; processor time. Memory: a fork for each file, its peak above what it held at its start.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from psd_tools import PSDImage

from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_file import open_layer_file, save_layer_file

ROUNDS, SIDE = 9, 2048
MEMORY = {  # canvas, size and number of layers
    "1 layer of 24 megapixels": ((4000, 6000), (4000, 6000), 1),
    "2 layers of 24 megapixels": ((4000, 6000), (4000, 6000), 2),
    "3 layers of 24 megapixels": ((4000, 6000), (4000, 6000), 3),
    "20 layers of 0.25 megapixels on 100": ((10000, 10000), (500, 500), 20),
}


def picture(height: int, width: int, seed: int) -> Layer:
    """Smooth colours with a little grain, and a soft mask: it compresses about as photographs do."""
    generator = torch.Generator().manual_seed(seed)
    pixels = F.interpolate(torch.rand(1, 4, 16, 16, generator=generator), size=(height, width), mode="bicubic")[0]
    pixels[:3] += torch.randn(1, height, width, generator=generator) * 0.01
    return Layer(image=pixels[:3].clamp(0, 1), mask=pixels[3:].clamp(0, 1), name=f"layer {seed}")


def layers(size: tuple[int, int], count: int) -> tuple[Layer, ...]:
    return tuple(picture(*size, seed) for seed in range(count))


def with_psd_tools(path: Path) -> None:
    """Every layer as psd-tools gives it: floats in [0, 1]."""
    for layer in PSDImage.open(path):
        layer.numpy()


def with_pillow(path: Path) -> None:
    """Every layer's PNG, as Pillow decodes it."""
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.startswith("data/"):
                np.asarray(Image.open(file.open(name), formats=("PNG",))).astype(np.float32) / 255


def timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(ending: str, alone: Callable[[Path], None], folder: Path) -> None:
    """Print how long we take beside the library alone."""
    path = folder / f"a{ending}"
    save_layer_file(Stack(SIDE, SIDE, layers((SIDE, SIDE), 3)), path)
    rounds = [(timed(lambda: open_layer_file(path)), timed(lambda: alone(path))) for _ in range(ROUNDS)]
    ratios = sorted(ours / theirs for ours, theirs in rounds[1:])
    ours, theirs = (statistics.median(x) for x in zip(*rounds[1:], strict=True))
    print(
        f"{ending}: ours {ours:.3f} s, the library alone {theirs:.3f} s, ratio {statistics.median(ratios):.3f} "
        f"({ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f} in the middle half)"
    )


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes in a fork, above what it held at its start."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = resident()
        call()
        os.write(writer, str(resident() - before).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = int(pipe.read())
    os.wait()
    return told


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str, canvas: tuple[int, int], size: tuple[int, int], count: int, folder: Path) -> None:
    """Print the peak of opening a file, and of opening and stacking it."""
    for ending in (".psd", ".ora"):
        path = folder / f"{count}-{canvas[0]}{ending}"
        if os.fork() == 0:  # so that this process stays small
            save_layer_file(Stack(*canvas, layers(size, count)), path)
            os._exit(0)
        os.wait()
        opened = peak(lambda path=path: open_layer_file(path))
        stacked = peak(lambda path=path: open_layer_file(path).stack.composite())
        print(f"{name}, {ending}: opened {opened / 2**20:,.0f} MB, opened and stacked {stacked / 2**20:,.0f} MB")


def main() -> None:
    os.environ.setdefault("T2L_MAX_PIXELS", "100000000")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, (canvas, size, count) in MEMORY.items():
            measure(name, canvas, size, count, Path(folder))
        compare(".psd", with_psd_tools, Path(folder))
        compare(".ora", with_pillow, Path(folder))


if __name__ == "__main__":
    main()
