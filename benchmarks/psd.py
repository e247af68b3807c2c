"""Our PSD writer against psd-tools used directly: 1024 x 1024, a background and a foreground with a layer mask, 8 bits.

    python benchmarks/psd.py

Both write the same two layers, mask and merged picture, RLE, to a folder in memory where there is one. Medians of
several rounds, one after the other; the ratio is ours / psd-tools.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from psd_tools import PSDImage

from t2l.compositing.stack import Stack
from t2l.io.image import layer_images
from t2l.io.psd_read import open_psd
from t2l.io.psd_write import save_psd
from t2l.layers import Layers

SIDE, ROUNDS = 1024, 7


def picture() -> Layers:
    """Smooth colours with a little grain, and a soft mask: it compresses about as photographs do."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 7, 16, 16, generator=generator), size=(SIDE, SIDE), mode="bicubic")
    grain = torch.randn(1, 7, SIDE, SIDE, generator=generator) * 0.01
    grain[:, 6] = 0
    return Layers.from_stacked((smooth + grain).clamp(0, 1))


def directly(images: dict[str, Image.Image], path: Path) -> None:
    """As the manual of psd-tools does it, beginning with the composite as the merged picture."""
    psd = PSDImage.frompil(images["composite"])
    psd.create_pixel_layer(images["background"], name="background")
    psd.create_pixel_layer(images["foreground"], name="foreground").create_mask(images["mask"])
    psd.save(path)


def timed(write: Callable[[], None]) -> float:
    start = time.perf_counter()
    write()
    return time.perf_counter() - start


def main() -> None:
    layers = picture()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        ours, theirs = Path(folder, "ours.psd"), Path(folder, "theirs.psd")

        def write_directly() -> None:
            directly(layer_images(layers), theirs)  # both begin with tensors

        times: dict[str, list[float]] = {"ours": [], "psd-tools": []}
        for _ in range(ROUNDS):
            times["ours"].append(timed(lambda: save_psd(Stack.from_layers(layers), ours)))
            times["psd-tools"].append(timed(write_directly))
        same = all(
            torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)
            for a, b in zip(open_psd(ours).stack.layers, open_psd(theirs).stack.layers, strict=True)
        )
        sizes = [path.stat().st_size / 2**20 for path in (ours, theirs)]
    mine, other = (statistics.median(x) for x in times.values())
    print(
        f"ours {mine:.2f} s ({sizes[0]:.1f} MB), psd-tools {other:.2f} s ({sizes[1]:.1f} MB), ratio {mine / other:.2f}"
    )
    print(f"the same layers in both files: {same}")


if __name__ == "__main__":
    main()
