"""What a .safetensors file says of itself before a tensor is touched: names, kinds of number, shapes, metadata.

8 bytes of header length, a JSON header, the data. Sizes, types, depth and offsets are checked here, with sentences of
ours; safetensors, which loads the tensors, checks them once more. Imports no torch: `t2l info` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from ..budget import HEADER_BYTES, METADATA, NAME_LENGTH, as_text, check_regular, parse_json, shown, shown_path

MOST_NAMES = 12  # named in one message
MOST_AXES = 16  # of a tensor
FLOATS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}  # kinds that weights have, in bits
OTHERS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64}
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
BITS = FLOATS | OTHERS | PACKED
PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class HasShape(Protocol):
    """A tensor, or what a header says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def is_floating_point(self) -> bool: ...


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "F32"  # one of BITS
    begin: int = field(default=0, compare=False)  # where its bytes begin in the file

    def is_floating_point(self) -> bool:
        """Whether torch can make weights of it."""
        return self.dtype in FLOATS


@dataclass(frozen=True)
class Header:
    """Everything in a file but the numbers."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """The checked header of a file, of which nothing else is read.

    Raises FileNotFoundError, or ValueError with a sentence for a pickle, a pipe, a truncated or non-safetensors file.
    """
    path = Path(path)
    size, name = check_regular(path, "the checkpoint"), shown_path(path)
    with path.open("rb") as file:
        start, brace = file.read(8), file.read(1)
        length = int.from_bytes(start, "little")
        if fault := _fault(start, brace, size):
            raise ValueError(f"{name} {fault}")
        HEADER_BYTES.check(length, f"{name} has a header of")
        file.seek(8)
        header = file.read(length)
    try:
        found = parse_json(as_text(header, "its header"), "its header")
        metadata = _metadata(found.pop("__metadata__", {}))
        longest = max(found, key=len, default="")
        NAME_LENGTH.check(len(longest), f"the name {shown(longest)} has")
        places = [(name, *_entry(name, entry)) for name, entry in found.items()]
        needed = 8 + length + max((end for *_, end, _ in places), default=0)
        if needed <= size:
            _check_places([(begin, end) for _, begin, end, _ in places], size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{name} is a damaged safetensors file: {error}") from error
    if needed > size:
        raise ValueError(f"{name} is truncated: it has {size} bytes, {needed} are needed")
    return Header({tensor: replace(entry, begin=8 + length + begin) for tensor, begin, _, entry in places}, metadata)


def check_fits(targets: Mapping[str, HasShape], tensors: Mapping[str, HasShape], source: str) -> None:
    """Raise ValueError with all that is missing, unexpected or of another shape; `source` begins the sentence."""
    missing = [name for name in targets if name not in tensors]
    unexpected = [name for name in tensors if name not in targets]
    pairs = [(name, tensors[name], targets[name]) for name in targets if name in tensors]
    shapes = [(name, tuple(found.shape), tuple(needed.shape)) for name, found, needed in pairs]
    misshapen = [f"{name} {found} instead of {needed}" for name, found, needed in shapes if found != needed]
    kinds = [name for name, found, needed in pairs if found.is_floating_point() != needed.is_floating_point()]
    faults = {"it lacks": missing, "it has, unexpectedly,": unexpected, "it has misshapen": misshapen}
    faults["it has in another kind of number"] = kinds
    if said := [f"{words} {listed(names)}" for words, names in faults.items() if names]:
        raise ValueError(f"{source} does not fit its config: {'; '.join(said)}")


def listed(names: list[str]) -> str:
    """Names in a sentence, not too many."""
    text = ", ".join(name if len(name) <= 200 else f"{name[:200]}..." for name in names[:MOST_NAMES])
    return f"{text} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else text


def _fault(start: bytes, brace: bytes, size: int) -> str | None:
    """Why a file cannot be safetensors, by its first bytes, as the end of a sentence."""
    length = int.from_bytes(start, "little")
    if start[:2] in PICKLES and brace != b"{":
        return "is a pickle (.ckpt, .pt), which can run code when it is opened; only .safetensors files are read"
    if start == b"version ":
        return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if brace != b"{":
        return "is not a safetensors file" if size else "is empty; a .safetensors file is needed"
    if 8 + length > size:
        return f"is truncated: it has {size} bytes, its header alone needs {8 + length}"
    return None


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"its metadata must be texts by name, got {shown(found)}")
    METADATA.check(len(found), "it has")
    return found


def _entry(name: str, found: Any) -> tuple[int, int, Entry]:
    """Where a tensor begins and ends in the data, and what it is."""
    if not isinstance(found, dict):
        raise ValueError(f"it describes the tensor {shown(name)} by {shown(found)}")
    dtype, shape, offsets = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"the tensor {shown(name)} has an unknown kind of number, {shown(dtype)}")
    if not _are_counts(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"the tensor {shown(name)} has no shape, but {shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the tensor {shown(name)} needs two data_offsets, got {shown(offsets)}")
    begin, end = offsets
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise ValueError(
            f"the tensor {shown(name)}, {dtype} of shape {shape}, cannot lie at the bytes {begin} to {end}"
        )
    return begin, end, Entry(tuple(shape), dtype)


def _are_counts(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(x) is int and 0 <= x < 2**63 for x in found)


def _check_places(places: list[tuple[int, int]], length: int) -> None:
    """Raise ValueError unless the tensors lie end to end and fill the data."""
    position = 0
    for begin, end in sorted(places):
        if begin != position:
            raise ValueError(f"its tensors overlap or leave a gap at byte {min(begin, position)} of the data")
        position = end
    if position != length:
        raise ValueError(f"it has {length - position} bytes that belong to no tensor")
