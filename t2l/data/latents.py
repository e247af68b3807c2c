"""The latent cache: mean and std of every picture's latents with its captions, so that the UNet never waits for pictures.

    DIR/cache.json                 size, downscale, a hash of the autoencoder, the number of files
    DIR/autoencoder.safetensors    the autoencoder that made them, and that will decode them
    DIR/000000.safetensors         mean, std (n, C, h, w) float16; captions as JSON in the metadata; one file per shard

Written shard by shard: the same command goes on where it stopped. `encode` is a callable, so data knows no model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..io.atomic import atomic_path
from ..io.checkpoint import read_tensors, write_tensors
from ..layers import Layers
from .example import ways_to_say
from .shards import Shards

FILE_LENGTH = 1000  # pictures in a file of the cache
Encode = Callable[[Layers], tuple[Tensor, Tensor]]  # layers -> mean and std of the posterior


def cache_latents(
    encode: Encode,
    autoencoder: Path,
    data: Path,
    out: Path,
    size: int,
    batch_size: int = 16,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Encode every picture of the shards in `data`, resized to size x size, into the folder `out`.

    autoencoder: the file `encode` came from; it is kept beside the latents. process: this one's number among `processes`
    that share the work by whole files; the folder is the same whatever their number. Raises ValueError when `out` holds
    the latents of another autoencoder, data set or size.
    """
    shards = Shards(data)
    chunks = list(torch.arange(len(shards)).split(FILE_LENGTH))
    _claim(out, autoencoder, {"size": size, "pictures": len(shards), "files": len(chunks)})
    mine = range(process, len(chunks), processes)
    for number in tqdm(mine, unit="file", desc="latents", disable=process > 0):
        path = out / f"{number:06d}.safetensors"
        if path.exists():
            continue
        means, stds, captions = [], [], []
        for indices in chunks[number].split(batch_size):
            examples = [shards[int(i)] for i in indices]
            mean, std = encode(Layers.cat([_resized(e.layers, size) for e in examples]))
            means.append(mean.half().cpu())
            stds.append(std.half().cpu())
            captions += [ways_to_say(shards.metadata(int(i))) for i in indices]
        tensors = {"mean": torch.cat(means), "std": torch.cat(stds)}
        write_tensors(path, tensors, {"captions": json.dumps(captions)})


class Latents:
    """A finished cache in memory. Raises FileNotFoundError or ValueError when it is missing or unfinished.

    mean, std: (n, C, h, w) float16. captions: for every picture, the ways to say what it shows. about: cache.json.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "cache.json").is_file():
            raise FileNotFoundError(f"{folder} holds no latent cache; make one with `t2l cache-latents`")
        self.about: dict[str, Any] = json.loads((folder / "cache.json").read_text())
        paths = [folder / f"{number:06d}.safetensors" for number in range(self.about["files"])]
        if missing := [path.name for path in paths if not path.exists()]:
            raise ValueError(
                f"the latent cache {folder} is unfinished, {len(missing)} of {len(paths)} files are missing "
                f"(first {missing[0]}); run the same `t2l cache-latents` again"
            )
        parts = [read_tensors(path) for path in paths]
        self.size: int = self.about["size"]  # of the pictures, in pixels
        self.autoencoder = folder / "autoencoder.safetensors"
        self.mean = torch.cat([tensors["mean"] for tensors, _ in parts])
        self.std = torch.cat([tensors["std"] for tensors, _ in parts])
        self.captions: list[list[str]] = [c for _, metadata in parts for c in json.loads(metadata["captions"])]

    def __len__(self) -> int:
        return len(self.mean)


def _claim(out: Path, autoencoder: Path, about: dict[str, int]) -> None:
    """Write cache.json and keep the autoencoder, or check that they are the ones already there."""
    about_text = json.dumps(about | {"autoencoder": hashlib.sha256(autoencoder.read_bytes()).hexdigest()})
    path = out / "cache.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(about_text):
        raise ValueError(
            f"{out} holds latents of another autoencoder, data set or size ({path.read_text()}); "
            f"take another folder for {about_text}"
        )
    with atomic_path(out / "autoencoder.safetensors") as partial:
        shutil.copyfile(autoencoder, partial)
    with atomic_path(path) as partial:
        partial.write_text(about_text)


def _resized(layers: Layers, size: int) -> Layers:
    if layers.size == (size, size):
        return layers
    stacked = F.interpolate(layers.stacked(), size=(size, size), mode="bilinear", antialias=True)
    return Layers.from_stacked(stacked.clamp(0, 1))
