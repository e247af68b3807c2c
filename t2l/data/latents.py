"""The latent cache: mean and std of every picture's latents with its captions, so that the UNet never waits for pictures.

    DIR/cache.json                 size, number of pictures and files, hashes of autoencoder and data; buckets and text if there are
    DIR/autoencoder.safetensors    the autoencoder that made them, and that will decode them
    DIR/000000.safetensors         mean, std (n, C, h, w) float16; captions as JSON in the metadata; 1,000 pictures a file
    DIR/text-000000.safetensors    the captions' embeddings, where a frozen text encoder was given (texts.py)

Of more than ten million pictures a file holds more, so that there are at most 10,000 files (`divide` in cache_folder.py).
With aspect buckets a file holds mean.192x320, std.192x320 and pictures.192x320 for every shape that occurs, width x height
in pixels; `pictures` (n,) are their places in the file, and so in its captions.

Written file by file: the same command goes on where it stopped. `encode` is a callable, so data knows no model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..budget import shown
from ..io.atomic import atomic_path, remove_partials
from ..layers import Layers
from .buckets import Size, cover, nearest_bucket
from .cache_folder import (
    ABOUT,
    DATA,
    MOST_READ,
    Content,
    Rows,
    alone,
    claim,
    compare,
    divide,
    read_about,
    read_captions,
    read_files,
    read_number,
    spread,
    write_files,
)
from .example import ways_to_say
from .shards import Shards
from .texts import read_texts

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
    wait: Callable[[], None] = alone,
    buckets: Sequence[Size] | None = None,
) -> None:
    """Encode every picture of the shards in `data` into the folder `out`, at size x size or at the nearest bucket's size.

    A picture of another shape is cropped, not squeezed. autoencoder: the file `encode` came from; it is kept beside the
    latents. process: this one's number among `processes` that share the work by whole files; the folder is the same whatever
    their number. wait: returns when all of them have called it. Raises ValueError when `out` holds the latents of another
    autoencoder, data set, size or other buckets.
    """
    if process == 0:
        remove_partials(out)
    wait()  # before anybody writes
    shards = Shards(data)
    chunks = divide(len(shards), begun=read_about(out).get("files"))
    about = {"size": size, "pictures": len(shards), "files": len(chunks)}
    shapes = None if buckets is None else [_shape(bucket) for bucket in buckets]
    digest = hashlib.sha256(autoencoder.read_bytes()).hexdigest()
    claim(out, about | {"autoencoder": digest, "buckets": shapes, DATA: shards.digest()})
    with atomic_path(out / "autoencoder.safetensors") as partial:
        shutil.copyfile(autoencoder, partial)

    def make(number: int) -> Content:
        groups = _encoded(encode, shards, chunks[number], buckets or [(size, size)], batch_size)
        captions = json.dumps([ways_to_say(shards.metadata(i)) for i in chunks[number]])
        return _named(groups, bucketed=buckets is not None), {"captions": captions}

    write_files(out, _names(len(chunks)), make, process, processes, wait, "latents")


class Latents:
    """A finished cache, which stays on the disk. Raises FileNotFoundError or ValueError when it is missing or unfinished.

    texts: every distinct caption, the empty one first. ways: (n, k), the numbers of a picture's captions among them.
    buckets: (n,), the number of a picture's bucket. embeddings: of the texts, (len(texts), tokens, width), if it has them.
    about: cache.json.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(f"{folder} holds no latent cache; make one with `t2l cache-latents`")
        self.about: dict[str, Any] = read_about(folder)
        self.size = read_number(self.about, "size", folder)  # of a square picture, in pixels
        self.autoencoder = folder / "autoencoder.safetensors"
        names = _names(read_number(self.about, "files", folder, MOST_READ))
        contents = read_files(folder, names)
        groups = _stored(contents, names)
        self._mean, self._std = Rows(group.mean for group in groups), Rows(group.std for group in groups)
        self._row, self.buckets = _rows_and_buckets(groups)
        self.embeddings: Rows | None = None
        self.texts = [""]
        if "text" in self.about:
            self.texts, self.embeddings = read_texts(folder, self.about["text"])
        captions = [read_captions(metadata, name) for name, (_, metadata) in zip(names, contents, strict=True)]
        _check_captions(captions, len(self._row))
        self.ways = self._numbered([ways for said in captions for ways in said])

    def __len__(self) -> int:
        return len(self._row)

    @property
    def sizes(self) -> list[Size]:
        """Every size that pictures may have in it."""
        shapes = self.about.get("buckets", [_shape((self.size, self.size))])
        try:
            return [(int(height), int(width)) for width, height in (shape.split("x") for shape in shapes)]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{ABOUT} must list its buckets as 192x320, got {shown(shapes)}") from error

    def read(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of some pictures of one bucket, by their numbers (N,): (N, C, h, w) each, float32."""
        rows = self._row[pictures]
        return self._mean[rows], self._std[rows]

    def _numbered(self, captions: list[list[str]]) -> Tensor:
        """The captions as numbers of texts; those that are new are added to them."""
        numbers = {text: number for number, text in enumerate(self.texts)}
        ways = torch.tensor([[numbers.setdefault(text, len(numbers)) for text in texts] for texts in captions])
        if self.embeddings is not None and len(numbers) > len(self.texts):
            raise ValueError(
                f"the latent cache has no embedding of the caption {shown(list(numbers)[len(self.texts)])}; its latents and its "
                "embeddings are of different data, make it again in another folder"
            )
        self.texts = list(numbers)
        return ways


def check_latents(encode: Encode, data: Path, cached: Latents, count: int, precision: torch.dtype) -> str:
    """Encode `count` pictures spread over a cache again; returns and raises as `compare`. precision: of `encode`."""
    shards = Shards(data)
    numbers = spread(len(cached), count)

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for number in numbers:
            layers = shards[number].layers
            computed = encode(cover(layers, nearest_bucket(layers.size, cached.sizes)))
            for name, moment, again in zip(("mean", "std"), cached.read(torch.tensor([number])), computed, strict=True):
                yield f"{name} of {shards.key(number)}", moment, again.float().cpu()

    return compare(f"the latents of {len(numbers)} pictures", pairs(), precision)


@dataclass
class _Group:
    """The pictures of one file that have one size."""

    pictures: list[int] = field(default_factory=list)  # their places in the file
    waiting: list[Layers] = field(default_factory=list)  # to be encoded
    mean: list[Tensor] = field(default_factory=list)
    std: list[Tensor] = field(default_factory=list)

    def encode(self, encode: Encode) -> None:
        mean, std = encode(Layers.cat(self.waiting))
        self.mean.append(mean.half().cpu())
        self.std.append(std.half().cpu())
        self.waiting.clear()


def _encoded(
    encode: Encode, shards: Shards, indices: Sequence[int], sizes: Sequence[Size], batch_size: int
) -> dict[Size, _Group]:
    """The latents of some pictures by their size."""
    groups: dict[Size, _Group] = {}
    for place, index in enumerate(indices):
        layers = shards[index].layers
        size = nearest_bucket(layers.size, sizes)
        group = groups.setdefault(size, _Group())
        group.pictures.append(place)
        group.waiting.append(cover(layers, size))
        if len(group.waiting) == batch_size:
            group.encode(encode)
    for group in groups.values():
        if group.waiting:
            group.encode(encode)
    return groups


def _named(groups: dict[Size, _Group], bucketed: bool) -> dict[str, Tensor]:
    """The tensors of a file: under the names the first caches had, or a name for every shape."""
    tensors: dict[str, Tensor] = {}
    for size, group in groups.items():
        ending = f".{_shape(size)}" if bucketed else ""
        tensors |= {f"mean{ending}": torch.cat(group.mean), f"std{ending}": torch.cat(group.std)}
        if bucketed:
            tensors[f"pictures{ending}"] = torch.tensor(group.pictures)
    return tensors


class _Stored(NamedTuple):
    """Pictures of one size in one file."""

    pictures: Tensor  # (n,), their numbers in the whole cache
    mean: Tensor
    std: Tensor


def _stored(contents: Sequence[Content], names: Sequence[str]) -> list[_Stored]:
    """The groups of all files. Raises ValueError that names the file whose tensors are not those of a cache."""
    groups, start = [], 0
    for name, (tensors, _) in zip(names, contents, strict=True):
        found = []
        for ending in [key.removeprefix("mean") for key in tensors if key.startswith("mean")]:
            mean, std = tensors[f"mean{ending}"], tensors.get(f"std{ending}")
            if std is None or mean.ndim != 4 or mean.shape != std.shape:
                raise ValueError(f"{name} needs mean{ending} and std{ending} of one shape; make the cache again")
            found.append(_Stored(tensors.get(f"pictures{ending}", torch.arange(len(mean))), mean, std))
        count = sum(len(group.mean) for group in found)
        places = torch.cat([group.pictures for group in found]) if found else torch.empty(0)
        if not found or not torch.equal(places.sort().values, torch.arange(count)):
            raise ValueError(f"{name} does not say whose latents it holds; make the cache again")
        groups += [group._replace(pictures=start + group.pictures) for group in found]
        start += count
    return groups


def _check_captions(files: Sequence[list[Any]], count: int) -> None:
    """Raise ValueError unless every picture has as many captions as the others."""
    rows = [row for said in files for row in said]
    are_texts = all(isinstance(row, list) and all(isinstance(text, str) for text in row) for row in rows)
    if len(rows) != count or not are_texts or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"the captions of the latent cache are not those of its {count} pictures; make the cache again"
        )


def _rows_and_buckets(groups: Sequence[_Stored]) -> tuple[Tensor, Tensor]:
    """Of every picture, the row that is its own when the groups are laid end to end, and the number of its shape."""
    pictures = torch.cat([group.pictures for group in groups])
    rows = torch.empty_like(pictures)
    rows[pictures] = torch.arange(len(pictures))
    shapes = list(dict.fromkeys(group.mean.shape[1:] for group in groups))
    buckets = torch.cat([torch.full((len(group.mean),), shapes.index(group.mean.shape[1:])) for group in groups])
    return rows, buckets[rows]


def _shape(size: Size) -> str:
    """As the command line says a size, width x height."""
    height, width = size
    return f"{width}x{height}"


def _names(files: int) -> list[str]:
    return [f"{number:06d}.safetensors" for number in range(files)]
