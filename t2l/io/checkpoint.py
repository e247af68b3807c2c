"""Tensors and their metadata in one .safetensors file: written whole or not at all, read with exact names and shapes.

No other format is read, because a pickle (.ckpt, .pt) can run code when it is opened. Knows no model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import shown_path
from .atomic import atomic_path
from .header import check_fits, listed, read_header


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, or leave what was there; the same content gives the same bytes.

    Raises OSError for a full disk or an unwritable folder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as partial:
        try:
            save_file(_apart(tensors), partial, dict(metadata))
            _sort_metadata(partial)
        except SafetensorError as error:
            raise OSError(_reason(error)) from error


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that changes from call to call; here the names rise."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same characters in another order; else the file stays as it is
            file.seek(8)
            file.write(text.ljust(length))


def read_tensors(path: str | Path, prefixes: tuple[str, ...] = ("",)) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor whose name begins with one of the prefixes, on the CPU, and the metadata.

    Raises FileNotFoundError, or ValueError for a pickle, a truncated file and anything else that is not safetensors.
    """
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefixes)]
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata alone; no tensor is loaded. Raises what `read_tensors` raises."""
    return read_header(path).metadata


def read_names(path: str | Path) -> list[str]:
    """The tensors' names alone. Raises what `read_tensors` raises."""
    return list(read_header(path).tensors)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a module all of its weights. Raises ValueError as `fill_exactly` does."""
    fill_exactly(module.state_dict(), tensors, source)


@torch.no_grad()
def fill_exactly(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into targets of the same names and shapes; the targets keep their dtype and device.

    Raises ValueError as `check_fits` and `check_finite` do, before anything is copied.
    """
    check_fits(targets, tensors, source)
    check_finite(tensors, source)
    for name, target in targets.items():
        target.copy_(tensors[name])


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError that names weights which are infinite or no numbers; `source` begins the sentence."""
    if broken := [name for name, x in tensors.items() if x.is_floating_point() and not _is_finite(x)]:
        raise ValueError(
            f"{source} has weights that are not finite: {listed(broken)}; it is damaged, take another copy"
        )


def _is_finite(x: Tensor) -> bool:
    """By the sum, at the speed of the memory; one by one only where a sum says nothing."""
    total = x.float().sum() if x.element_size() == 1 else x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(total.isfinite()) or bool(x.isfinite().all())


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two in one storage: what safetensors asks for."""
    apart, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return apart


@contextmanager
def _open(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    read_header(path)  # checked by us first, with our sentences
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        reason = _reason(error) if "(os error " in str(error) else "its header is not as safetensors writes it"
        raise ValueError(f"{shown_path(path)} is a damaged safetensors file: {reason}") from error


def _reason(error: Exception) -> str:
    """The system's words for the number in safetensors' message: `(os error 28)`, before 0.6 `Os { code: 28, ... }`."""
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    return os.strerror(int(number[1])) if number else str(error)
