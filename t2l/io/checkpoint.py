"""Tensors and their metadata in one .safetensors file: written whole or not at all, read with exact names and shapes.

No other format is read, because a pickle (.ckpt, .pt) can run code when it is opened. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic import atomic_path

MOST_NAMES = 12  # named in one message


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
    with _open(path) as file:
        return file.metadata() or {}


def read_names(path: str | Path) -> list[str]:
    """The tensors' names alone. Raises what `read_tensors` raises."""
    with _open(path) as file:
        return list(file.keys())


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a module all of its weights. Raises ValueError as `fill_exactly` does."""
    fill_exactly(module.state_dict(), tensors, source)


@torch.no_grad()
def fill_exactly(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into targets of the same names and shapes; the targets keep their dtype and device.

    Raises ValueError as `check_fits` does, before anything is copied.
    """
    check_fits(targets, tensors, source)
    for name, target in targets.items():
        target.copy_(tensors[name])


def check_fits(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError with every missing, unexpected or misshapen name; `source` begins the sentence."""
    missing = [name for name in targets if name not in tensors]
    unexpected = [name for name in tensors if name not in targets]
    shapes = [(name, tuple(tensors[name].shape), tuple(targets[name].shape)) for name in targets if name in tensors]
    misshapen = [f"{name} {found} instead of {needed}" for name, found, needed in shapes if found != needed]
    kinds = {"it lacks": missing, "it has, unexpectedly,": unexpected, "it has misshapen": misshapen}
    if faults := [f"{words} {_listed(names)}" for words, names in kinds.items() if names]:
        raise ValueError(f"{source} does not fit its config: {'; '.join(faults)}")


def _listed(names: list[str]) -> str:
    text = ", ".join(names[:MOST_NAMES])
    return f"{text} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else text


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

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"the checkpoint {path} does not exist")
    if fault := _fault(path):
        raise ValueError(f"{path} {fault}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file: {_reason(error)}") from error


def _fault(path: Path) -> str | None:
    """Why a file cannot be safetensors (8 bytes of header length, a JSON header, the data), as the end of a sentence."""
    if path.is_dir():
        return "is a folder; a .safetensors file is needed"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        begins_header = file.read(1) == b"{"
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and not begins_header:
            return "is a pickle (.ckpt, .pt), which can run code when it is opened; only .safetensors files are read"
        if start == b"version ":
            return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        if not begins_header:
            return "is not a safetensors file" if size else "is empty; a .safetensors file is needed"
        if 8 + length > size:
            return f"is truncated: it has {size} bytes, its header alone needs {8 + length}"
        file.seek(8)
        needed = 8 + length + _data_length(file.read(length))
    return f"is truncated: it has {size} bytes, {needed} are needed" if needed > size else None


def _data_length(header: bytes) -> int:
    """Bytes of tensors that a header announces; 0 for a header that safetensors will refuse itself."""
    try:
        entries = json.loads(header).values()
        return max((entry["data_offsets"][1] for entry in entries if "data_offsets" in entry), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return 0


def _reason(error: Exception) -> str:
    """safetensors' message without what it adds to the system's: `... (os error 28)` -> the system's sentence."""
    text = str(error)
    _, _, number = text.partition("(os error ")
    return os.strerror(int(number.split(")")[0])) if number else text
