"""Text embeddings beside the latents: what a frozen text encoder says of every distinct caption, encoded once.

    DIR/text-000000.safetensors    embedding (n, tokens, width) float16; captions as JSON in the metadata

The first caption is the empty one, the others follow in the order of the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .cache_folder import (
    DATA,
    Content,
    Rows,
    alone,
    claim,
    compare,
    divide,
    read_about,
    read_files,
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


def read_texts(folder: Path, files: int) -> tuple[list[str], Rows]:
    """The captions of a finished cache, the empty one first, and their embeddings."""
    contents = read_files(folder, _names(files))
    captions = [caption for _, metadata in contents for caption in json.loads(metadata["captions"])]
    return captions, Rows(tensors["embedding"] for tensors, _ in contents)


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
