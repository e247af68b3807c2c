"""Text embeddings beside the latents: what a frozen text encoder says of every distinct caption, encoded once.

    DIR/text-000000.safetensors    embedding (n, tokens, width) float16; captions as JSON in the metadata

The first caption is the empty one, the others follow in the order of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import shown
from ..io.header import Header, read_header
from .cache_folder import (
    DATA,
    DTYPES,
    MOST_READ,
    Content,
    Rows,
    claim,
    compare,
    divide_rows,
    evenly_spaced,
    no_barrier,
    read_about,
    read_captions,
    read_headers,
    read_number,
    write_files,
)
from .example import training_captions
from .several import Data, open_shards
from .shards import locate

EncodeText = Callable[[Sequence[str]], Tensor]  # captions -> (N, tokens, width)


def cache_texts(
    encode: EncodeText,
    encoder: str,
    data: Data,
    out: Path,
    batch_size: int = 64,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = no_barrier,
) -> None:
    """Encode every caption of the shards in `data`, and the empty one, into the folder `out` of their latents.

    encoder: a hash of what `encode` came from. process, processes, wait: as `cache_latents` takes them. Raises
    ValueError when `out` holds the embeddings of another encoder or data set.
    """
    shards = open_shards(data)
    captions = list(
        dict.fromkeys(["", *(way for i in range(len(shards)) for way in training_captions(shards.metadata(i)))])
    )
    begun = read_about(out).get("text", {}).get("files")
    chunks = [captions[rows.start : rows.stop] for rows in divide_rows(len(captions), begun)]
    about = {"encoder": encoder, "captions": len(captions), "files": len(chunks)}
    claim(out, {"text": about, DATA: shards.digest()}, addition=True)

    def make(numbers: Sequence[int]) -> Iterator[Content]:
        for chunk in (chunks[number] for number in numbers):
            parts = [encode(chunk[i : i + batch_size]).half().cpu() for i in range(0, len(chunk), batch_size)]
            yield {"embedding": torch.cat(parts)}, {"captions": json.dumps(chunk)}

    write_files(out, _file_names(len(chunks)), make, process, processes, wait, "texts")


class TextEmbeddings:
    """The embeddings of a finished cache by their captions, which stay on the disk; 16 bytes a caption are in memory.

    about: what cache.json says of them. Raises ValueError for files that are missing or say something else.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        names = _file_names(read_number(about if isinstance(about, dict) else {}, "files", folder, MOST_READ))
        parts, hashes = [], []
        for name, header in zip(names, read_headers(folder, names), strict=True):
            said, entry = _read_file_captions(header, name), header.tensors.get("embedding")
            if entry is None or len(entry.shape) != 3 or entry.shape[0] != len(said) or entry.dtype not in DTYPES:
                raise ValueError(f"{name} needs an embedding of each of its {len(said)} captions; make the cache again")
            parts.append((folder / name, entry))
            hashes.append(_hash_captions(said))
        self._paths = [path for path, _ in parts]
        self._rows = Rows(parts)
        together = np.concatenate(hashes)
        self._order = np.argsort(together, kind="stable")
        self._hashes = together[self._order]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, captions: Sequence[str]) -> Tensor:
        """(N, tokens, width), float32. Raises ValueError for a caption that has none."""
        return self._rows[torch.from_numpy(self._find(captions))].float()

    def check(self, captions: Iterable[str]) -> None:
        """Raise ValueError unless there is an embedding of each of many captions."""
        rest = iter(captions)
        while chunk := list(islice(rest, 10_000)):
            self._find(chunk)

    def caption(self, number: int) -> str:
        """Of one of the embeddings, which are numbered in the order of the files; the empty caption is the first."""
        part, place = locate(self._rows.ends, number, "the cache")
        return _read_file_captions(read_header(self._paths[part]), self._paths[part].name)[place]

    def _find(self, captions: Sequence[str]) -> np.ndarray:
        wanted = _hash_captions(captions)
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        if (missing := np.flatnonzero(self._hashes[places] != wanted)).size:
            raise ValueError(
                f"the latent cache has no embedding of the caption {shown(captions[missing[0]])}; its latents and its "
                "embeddings are of different data, make it again in another folder"
            )
        return self._order[places]


def check_texts(encode: EncodeText, embeddings: TextEmbeddings, count: int) -> str:
    """Encode `count` captions spread over a cache again; returns and raises as `compare`."""
    captions = [embeddings.caption(number) for number in evenly_spaced(len(embeddings), count)]
    pairs = (
        (f"embedding of {caption!r}", embeddings[[caption]], encode([caption]).float().cpu()) for caption in captions
    )
    return compare(f"the embeddings of {len(captions)} captions", pairs, torch.float16)


def _read_file_captions(header: Header, name: str) -> list[str]:
    """The captions of a file. Raises ValueError for what are no texts."""
    captions = read_captions(header.metadata, name)
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{name}: its captions must be texts")
    return captions


def _hash_captions(captions: Sequence[str]) -> np.ndarray:
    """64 bits of each: among ten million two are alike once in 370,000 data sets."""
    data = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in captions)
    return np.frombuffer(data, "<u8")


def _file_names(files: int) -> list[str]:
    return [f"text-{number:06d}.safetensors" for number in range(files)]
