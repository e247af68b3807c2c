"""Text embeddings beside the latents: what a frozen text encoder says of every distinct caption, encoded once.

    DIR/text-000000.safetensors    embedding (n, tokens, width) float16; captions as JSON in the metadata

The first caption is the empty one, the others follow in the order of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache_folder import (
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

EncodeText = Callable[[Sequence[str]], Tensor]  # captions -> (N, tokens, width)


def cache_texts(
    encode: EncodeText,
    encoder: str,
    data: Path,
    out: Path,
    batch_size: int = 64,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = alone,
) -> None:
    """Encode every caption of the shards in `data`, and the empty one, into the folder `out` of their latents.

    encoder: a hash of what `encode` came from. process, processes, wait: as `cache_latents` takes them. Raises ValueError when
    `out` holds the embeddings of another encoder or data set.
    """
    shards = Shards(data)
    captions = list(dict.fromkeys(["", *(way for i in range(len(shards)) for way in ways_to_say(shards.metadata(i)))]))
    begun = read_about(out).get("text", {}).get("files")
    chunks = [captions[rows.start : rows.stop] for rows in divide(len(captions), begun)]
    about = {"encoder": encoder, "captions": len(captions), "files": len(chunks)}
    claim(out, {"text": about, DATA: shards.digest()}, addition=True)

    def make(number: int) -> Content:
        chunk = chunks[number]
        parts = [encode(chunk[i : i + batch_size]).half().cpu() for i in range(0, len(chunk), batch_size)]
        return {"embedding": torch.cat(parts)}, {"captions": json.dumps(chunk)}

    write_files(out, _names(len(chunks)), make, process, processes, wait, "texts")


def read_texts(folder: Path, about: Any) -> tuple[list[str], Rows]:
    """The captions of a finished cache, the empty one first, and their embeddings. about: what its cache.json says of them.

    Raises ValueError for files that are missing or say something else.
    """
    names = _names(read_number(about if isinstance(about, dict) else {}, "files", folder, MOST_READ))
    contents = read_files(folder, names)
    captions = [read_captions(metadata, name) for name, (_, metadata) in zip(names, contents, strict=True)]
    for name, said, (tensors, _) in zip(names, captions, contents, strict=True):
        embedding = tensors.get("embedding")
        if embedding is None or embedding.ndim != 3 or len(embedding) != len(said):
            raise ValueError(f"{name} needs an embedding of each of its {len(said)} captions; make the cache again")
        if not all(isinstance(caption, str) for caption in said):
            raise ValueError(f"{name}: its captions must be texts")
    return [caption for said in captions for caption in said], Rows(tensors["embedding"] for tensors, _ in contents)


def check_texts(encode: EncodeText, captions: Sequence[str], embeddings: Rows, count: int) -> str:
    """Encode `count` captions spread over a cache again; returns and raises as `compare`."""
    numbers = spread(len(captions), count)
    pairs = (
        (f"embedding of {captions[i]!r}", embeddings[torch.tensor([i])], encode([captions[i]]).float().cpu())
        for i in numbers
    )
    return compare(f"the embeddings of {len(numbers)} captions", pairs, torch.float16)


def _names(files: int) -> list[str]:
    return [f"text-{number:06d}.safetensors" for number in range(files)]
