"""The latent cache: mean and std of every picture's latents, and captions, so the UNet never waits for pictures.

    DIR/cache.json                 size, number of pictures and files, hashes of autoencoder and data; buckets, text
    DIR/autoencoder.safetensors    the autoencoder that made them, and that will decode them
    DIR/000000.safetensors         mean, std (n, C, h, w) float16, captions (cache_folder.py); 1,000 pictures a file
    DIR/text-000000.safetensors    the captions' embeddings, where a frozen text encoder was given (texts.py)

Of more than ten million pictures a file holds more, so that there are at most 10,000 files (`divide_rows` in
cache_folder.py). With aspect buckets a file holds mean.192x320, std.192x320 and pictures.192x320 for every shape that
occurs, width x height in pixels; `pictures` (n,), rising, are their places in the file, and so in its captions. std may
also be uint8 (`std_to_bytes`), or missing where cache.json says so: then latents are the means. For a UNet that learns
to keep a layer there are also foreground and background, the means of each alone (t2l/keep.py), and mask (n, 1, h, w).

Written file by file: the same command goes on where it stopped. `encode` is a callable, so data knows no model.
"""

from __future__ import annotations

import math
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..budget import shown
from ..io.atomic import atomic_path, remove_partials
from ..io.header import Entry, Header
from ..keep import KINDS, Kept, layers_to_encode, mask_on_grid
from ..layers import Layers
from .ahead import read_ahead, read_in_workers
from .buckets import Size, center_crop, center_crop_stacked, nearest_bucket
from .cache_folder import (
    ABOUT,
    DATA,
    DTYPES,
    MOST_READ,
    Captions,
    Content,
    Rows,
    claim,
    compare,
    divide_rows,
    evenly_spaced,
    no_barrier,
    pack_captions,
    read_about,
    read_headers,
    read_number,
    read_tensor,
    write_files,
)
from .claim import hash_file
from .example import stacked_bytes, training_captions
from .several import Data, SeveralShards, open_shards
from .shards import Shards, locate
from .texts import TextEmbeddings

Encode = Callable[[Layers], tuple[Tensor, Tensor]]  # layers -> mean and std of the posterior
Std = Literal["fp16", "uint8", "none"]  # how a cache keeps the posterior's std
KEEP_PARTS = (*KINDS, "mask")  # tensors of a cache for a UNet that learns to keep a layer
LEAST_STD, MOST_STD, STEPS = 2.0**-16, 2.0**4, 254  # of a std in 8 bits: 254 equal ratios


def cache_latents(
    encode: Encode,
    autoencoder: Path,
    data: Data,
    out: Path,
    size: int,
    batch_size: int = 16,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = no_barrier,
    buckets: Sequence[Size] | None = None,
    std: Std = "fp16",
    workers: int = 0,
    keep: bool = False,
) -> None:
    """Encode every picture of the shards in `data` into the folder `out`, at size x size or the nearest bucket's.

    A picture of another shape is cropped, not squeezed. autoencoder: the file `encode` came from; it is kept beside the
    latents. process: this one's number among `processes` that share the work by whole files; the folder is the same
    whatever their number. wait: returns when all of them have called it. workers: processes that read pictures ahead
    while `encode` computes; 0 reads them in between. keep: each layer alone, too, three times the work. Raises
    ValueError when `out` holds the latents of another autoencoder, data set, size or std, or other buckets, and for a
    std that 8 bits do not hold.
    """
    if process == 0:
        remove_partials(out)
    wait()  # before anybody writes
    shards = open_shards(data)
    chunks = divide_rows(len(shards), begun=read_about(out).get("files"))
    about: dict[str, Any] = {"size": size, "pictures": len(shards), "files": len(chunks)}
    shapes = None if buckets is None else [_format_size(bucket) for bucket in buckets]
    digest = hash_file(autoencoder)
    kept = None if std == "fp16" else std
    about |= {"autoencoder": digest, "buckets": shapes, "std": kept, DATA: shards.digest(), "keep": keep or None}
    claim(out, about)
    with atomic_path(out / "autoencoder.safetensors") as partial:
        shutil.copyfile(autoencoder, partial)

    def make(numbers: Sequence[int]) -> Iterator[Content]:
        cropped = _CroppedPictures(shards, buckets or [(size, size)])
        read = read_in_workers(cropped, chain.from_iterable(chunks[number] for number in numbers), workers)
        # copies, because what two processes share is scarce: 64 MB in a container
        pictures = read_ahead((found._replace(stacked=found.stacked.clone()) for found in read), 2 * batch_size)
        for number in numbers:
            groups, captions = _encode_all(
                encode, islice(pictures if workers else read, len(chunks[number])), batch_size, keep
            )
            yield _name_tensors(groups, std, bucketed=buckets is not None) | pack_captions(captions), {}

    write_files(out, _file_names(len(chunks)), make, process, processes, wait, "latents")


class Latents:
    """A finished cache, which stays on the disk: in memory are a few numbers for every file and shape.

    counts: how many pictures each bucket has. captions: of every picture. embeddings: of the captions, if it has them.
    about: cache.json. Raises FileNotFoundError or ValueError when it is missing or unfinished.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(f"{folder} holds no latent cache; make one with `t2l cache-latents`")
        self.about: dict[str, Any] = read_about(folder)
        self.size = read_number(self.about, "size", folder)  # of a square picture, in pixels
        self.autoencoder = folder / "autoencoder.safetensors"
        names = _file_names(read_number(self.about, "files", folder, MOST_READ))
        self.captions = Captions()
        groups: dict[tuple[int, ...], list[_Group]] = {}
        self._ends: list[int] = []  # of the pictures of each file
        for number, header in enumerate(read_headers(folder, names)):
            found = _find_groups(folder / names[number], number, header, self.about)
            count = sum(len(group) for group in found)
            for group in found:
                groups.setdefault(group.mean.shape[1:], []).append(group)
            self.captions.add(folder / names[number], header, count)
            self._ends.append(count + (self._ends[-1] if self._ends else 0))
        self._buckets = [_Bucket(of_shape) for _, of_shape in sorted(groups.items())]
        self.counts = [len(bucket.mean) for bucket in self._buckets]
        self.embeddings: TextEmbeddings | None = None
        if "text" in self.about:
            self.embeddings = TextEmbeddings(folder, self.about["text"])
            self.embeddings.check(self.captions)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def sizes(self) -> list[Size]:
        """Every size that pictures may have in it."""
        shapes = self.about.get("buckets", [_format_size((self.size, self.size))])
        try:
            return [(int(height), int(width)) for width, height in (shape.split("x") for shape in shapes)]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{ABOUT} must list its buckets as 192x320, got {shown(shapes)}") from error

    def texts(self) -> Iterator[str]:
        """The empty caption, and every caption of every picture, however often; none stays in memory."""
        return chain([""], self.captions)

    def pictures(self, bucket: int, ranks: Tensor) -> Tensor:
        """The numbers, (N,) in the order of the data, of some pictures of a bucket, which has numbers of its own."""
        return torch.tensor([self._buckets[bucket].picture(rank, self._ends) for rank in ranks.tolist()])

    def read_bucket(self, bucket: int, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of some pictures of a bucket, which numbers its own: (N, C, h, w) each, float32.

        std is 0 where the cache has none.
        """
        found = self._buckets[bucket]
        mean = found.mean[ranks].float()
        if found.std is None:
            return mean, torch.zeros_like(mean)
        std = found.std[ranks]
        return mean, std_from_bytes(std) if std.dtype == torch.uint8 else std.float()

    @property
    def keeps(self) -> bool:
        """Whether it has each layer alone, too."""
        return bool(self.about.get("keep"))

    def read_kept(self, bucket: int, ranks: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
        """The same pictures' kept layer alone: its mean, (N, C, h, w), and the mask, (N, 1, h, w). For `keeps`."""
        found = self._buckets[bucket]
        return found.kept[kept][ranks].float(), found.kept["mask"][ranks].float()

    def read(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The same by their numbers in the order of the data, (N,), all of one bucket."""
        places = [self._place(picture) for picture in pictures.tolist()]
        assert len({bucket for bucket, _ in places}) == 1, "pictures of several shapes make no batch"
        return self.read_bucket(places[0][0], torch.tensor([rank for _, rank in places]))

    def sample_means(self, count: int) -> Tensor:
        """The means of pictures from all over the cache, (N, C, h, w): of several shapes, what all of them have."""
        numbers = torch.arange(len(self))[:: max(1, len(self) // count)][:count]
        means = [self.read(number[None])[0] for number in numbers]
        height, width = (min(mean.shape[side] for mean in means) for side in (2, 3))
        return torch.cat([mean[..., :height, :width] for mean in means])

    def _place(self, picture: int) -> tuple[int, int]:
        """The bucket of a picture, and its number there."""
        file, place = locate(self._ends, picture, "the cache")
        found = ((number, bucket.rank(file, place)) for number, bucket in enumerate(self._buckets))
        return next((number, rank) for number, rank in found if rank is not None)


def std_to_bytes(std: Tensor) -> Tensor:
    """A std in 8 bits, by its logarithm: at most 2.8 % off from 2^-16 to 2^4; less than 2^-16 off below.

    Raises ValueError for a larger one, or for what is no number.
    """
    std = std.double()
    if not bool((std <= MOST_STD).all()):
        raise ValueError(
            f"a std in 8 bits goes up to {MOST_STD:g}, the autoencoder gives {float(std.max()):g}: keep it in float16, "
            "which is the default"
        )
    steps = (std.clamp_min(LEAST_STD / 4) / LEAST_STD).log2() * (STEPS / math.log2(MOST_STD / LEAST_STD))
    return steps.round().add(1).clamp(0, 255).to(torch.uint8)


def std_from_bytes(steps: Tensor) -> Tensor:
    """The inverse, float32; 0 stays 0."""
    ratio = math.log2(MOST_STD / LEAST_STD) / STEPS
    return torch.where(steps > 0, LEAST_STD * ((steps.float() - 1) * ratio).exp2(), 0.0)


def check_latents(encode: Encode, data: Data, cached: Latents, count: int, precision: torch.dtype) -> str:
    """Encode `count` pictures spread over a cache again; returns and raises as `compare`. precision: of `encode`.

    A std that is not kept in float16 is not compared.
    """
    shards = open_shards(data)
    numbers = evenly_spaced(len(cached), count)
    moments = ("mean", "std")[: 1 if "std" in cached.about else 2]

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for number in numbers:
            layers = shards[number].layers
            computed = encode(center_crop(layers, nearest_bucket(layers.size, cached.sizes)))
            for name, moment, again in zip(moments, cached.read(torch.tensor([number])), computed, strict=False):
                yield f"{name} of {shards.key(number)}", moment, again.float().cpu()

    return compare(f"the latents of {len(numbers)} pictures", pairs(), precision)


class _Picture(NamedTuple):
    """A picture as it is encoded."""

    size: Size
    stacked: Tensor  # (1, 7, height, width), floats in [0, 1]
    captions: list[str]


class _CroppedPictures(Dataset):
    def __init__(self, shards: Shards | SeveralShards, sizes: Sequence[Size]) -> None:
        self.shards = shards
        self.sizes = sizes

    def __getitem__(self, number: int) -> _Picture:
        pictures = self.shards.pictures(number)
        size = nearest_bucket(pictures[0].size[::-1], self.sizes)
        captions = training_captions(self.shards.metadata(number))
        return _Picture(size, center_crop_stacked(stacked_bytes(pictures), size), captions)


@dataclass
class _Encoded:
    """The pictures of one file that have one size."""

    pictures: list[int] = field(default_factory=list)  # their places in the file
    waiting: list[Tensor] = field(default_factory=list)  # to be encoded
    mean: list[Tensor] = field(default_factory=list)
    std: list[Tensor] = field(default_factory=list)
    kept: dict[str, list[Tensor]] = field(default_factory=lambda: {part: [] for part in KEEP_PARTS})

    def encode(self, encode: Encode, keep: bool) -> None:
        layers = Layers.from_stacked(torch.cat(self.waiting))
        mean, std = encode(layers)
        self.mean.append(mean.half().cpu())
        self.std.append(std.cpu())
        if keep:
            for kind in KINDS:
                self.kept[kind].append(encode(layers_to_encode(layers, kind))[0].half().cpu())
            self.kept["mask"].append(mask_on_grid(layers.mask, (mean.shape[-2], mean.shape[-1])).half())
        self.waiting.clear()


def _encode_all(
    encode: Encode, pictures: Iterable[_Picture], batch_size: int, keep: bool
) -> tuple[dict[Size, _Encoded], list[list[str]]]:
    """The latents of some pictures by their size, and the captions of each."""
    groups: dict[Size, _Encoded] = {}
    captions: list[list[str]] = []
    for place, (size, stacked, said) in enumerate(pictures):
        captions.append(said)
        group = groups.setdefault(size, _Encoded())
        group.pictures.append(place)
        group.waiting.append(stacked)
        if len(group.waiting) == batch_size:
            group.encode(encode, keep)
    for group in groups.values():
        if group.waiting:
            group.encode(encode, keep)
    return groups, captions


def _name_tensors(groups: dict[Size, _Encoded], std: Std, bucketed: bool) -> dict[str, Tensor]:
    """The tensors of a file: under the names the first caches had, or a name for every shape."""
    tensors: dict[str, Tensor] = {}
    for size, group in groups.items():
        ending = f".{_format_size(size)}" if bucketed else ""
        tensors[f"mean{ending}"] = torch.cat(group.mean)
        if std != "none":
            whole = torch.cat(group.std)
            tensors[f"std{ending}"] = std_to_bytes(whole) if std == "uint8" else whole.half()
        tensors |= {f"{part}{ending}": torch.cat(some) for part, some in group.kept.items() if some}
        if bucketed:
            tensors[f"pictures{ending}"] = torch.tensor(group.pictures)
    return tensors


class _Group(NamedTuple):
    """Pictures of one size in one file."""

    path: Path
    file: int  # its number
    mean: Entry
    std: Entry | None
    pictures: Entry | None  # their places in the file; None = all, in their order
    kept: dict[str, Entry]  # of KEEP_PARTS, where the cache has them

    def __len__(self) -> int:
        return self.mean.shape[0]

    def places(self) -> np.ndarray:
        """Of its pictures in the file, rising."""
        return np.arange(len(self)) if self.pictures is None else read_tensor(self.path, self.pictures)


class _Bucket:
    """All pictures of one shape, numbered by themselves in the order of the data."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self.groups = groups
        self.mean = Rows((group.path, group.mean) for group in groups)
        stds = [(group.path, group.std) for group in groups if group.std is not None]
        self.std = Rows(stds) if stds else None
        self.kept = {part: Rows((group.path, group.kept[part]) for group in groups) for part in groups[0].kept}
        self._files = [group.file for group in groups]  # they rise

    def picture(self, rank: int, ends: Sequence[int]) -> int:
        """The number of one of them among all pictures. ends: of the pictures of each file."""
        part, place = locate(self.mean.ends, rank, "the cache")
        group = self.groups[part]
        start = ends[group.file - 1] if group.file else 0
        if group.pictures is None:
            return start + place
        entry = Entry((1,), group.pictures.dtype, group.pictures.begin + 8 * place)
        return start + int(read_tensor(group.path, entry)[0])

    def rank(self, file: int, place: int) -> int | None:
        """The number, among these, of the picture at a place of a file; None for one of another shape."""
        part = bisect_left(self._files, file)
        if part == len(self._files) or self._files[part] != file:
            return None
        places = self.groups[part].places()
        row = int(np.searchsorted(places, place))
        start = int(self.mean.ends[part - 1]) if part else 0
        return start + row if row < len(places) and places[row] == place else None


def _find_groups(path: Path, file: int, header: Header, about: dict[str, Any]) -> list[_Group]:
    """The groups of a file. Raises ValueError that names it when its tensors are not those of a cache."""
    groups, tensors = [], header.tensors
    needs_std, parts = about.get("std") != "none", KEEP_PARTS if about.get("keep") else ()
    for ending in [key.removeprefix("mean") for key in tensors if key.startswith("mean")]:
        mean, std, pictures = (tensors.get(f"{name}{ending}") for name in ("mean", "std", "pictures"))
        assert mean is not None, "it was looked up"
        fits = std is not None and std.shape == mean.shape and std.dtype in DTYPES if needs_std else std is None
        if len(mean.shape) != 4 or mean.dtype not in DTYPES or not fits:
            raise ValueError(f"{path.name} needs mean{ending} and std{ending} of one shape; make the cache again")
        kept = {part: tensors[f"{part}{ending}"] for part in parts if f"{part}{ending}" in tensors}
        shapes = {part: (mean.shape[0], 1 if part == "mask" else mean.shape[1], *mean.shape[2:]) for part in parts}
        if any(
            part not in kept or kept[part].shape != shapes[part] or kept[part].dtype not in DTYPES for part in parts
        ):
            raise ValueError(f"{path.name} needs {', '.join(parts)} beside mean{ending}; make the cache again")
        groups.append(_Group(path, file, mean, std, pictures, kept))
    kinds_fit = all(group.pictures is None or group.pictures.dtype == "I64" for group in groups)
    places = [group.places() for group in groups] if kinds_fit else []
    together = np.concatenate(places).ravel() if places else np.zeros(0)
    rises = all(len(of) == len(group) and (np.diff(of) > 0).all() for of, group in zip(places, groups, strict=False))
    if not places or not rises or not np.array_equal(np.sort(together), np.arange(sum(map(len, groups)))):
        raise ValueError(f"{path.name} does not say whose latents it holds; make the cache again")
    return groups


def _format_size(size: Size) -> str:
    """As the command line says a size, width x height."""
    height, width = size
    return f"{width}x{height}"


def _file_names(files: int) -> list[str]:
    return [f"{number:06d}.safetensors" for number in range(files)]
