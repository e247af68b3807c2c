"""Dataclass configs <-> JSON, and `name=value` overrides for the command line.

A config is a frozen dataclass beside the class it builds. Nested dataclasses become nested objects. Unknown names and
values of the wrong kind are refused, with the names that exist. A class variable OLD_NAMES says what fields were called
in earlier versions, old -> new: those names go on working, in files and on the command line.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from .budget import read_object, shown

Config = TypeVar("Config")
MOST_NAMES = 12  # in one message


def check_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """Raise ValueError that names a field out of its range; both ends belong to it, every item of a tuple counts."""
    for name, (low, high) in ranges.items():
        found = getattr(config, name)
        for value in found if isinstance(found, tuple) else (found,):
            if not low <= value <= high:  # nor is NaN
                raise ValueError(
                    f"{type(config).__name__}.{name} must lie from {low:g} to {high:g}, got {shown(found)}"
                )


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values (tuples become lists when written)."""
    return asdict(config)


def config_from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """Build a config dataclass from JSON values. Raises ValueError for a name or a value the class does not have."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    old = getattr(cls, "OLD_NAMES", {})
    if twice := sorted(name for name in values if old.get(name) in values):
        raise ValueError(
            f"{cls.__name__} has {twice[0]} and {old[twice[0]]}, which are one thing: leave {twice[0]} out"
        )
    values = {old.get(name, name): value for name, value in values.items()}
    if unknown := sorted(values.keys() - known):
        names = ", ".join(shown(name)[1:-1] for name in unknown[:MOST_NAMES])
        there_are = f"it has {', '.join(sorted(known))}{did_you_mean(unknown[0], known)}"
        raise ValueError(f"{cls.__name__} has no {names}; {there_are}")
    hints = typing.get_type_hints(cls)
    try:
        return cls(**{name: _convert(f"{cls.__name__}.{name}", hints[name], v) for name, v in values.items()})
    except TypeError as error:
        raise ValueError(f"{cls.__name__} is incomplete: {error}") from error


def load_config(cls: type[Config], path: str | Path) -> Config:
    """Read a config from a JSON file. Raises FileNotFoundError, or ValueError naming the file."""
    path = Path(path)
    values = read_object(path, "the config file")
    try:
        return config_from_dict(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def override(config: Config, assignments: list[str]) -> Config:
    """The config with `name=value` or `outer.inner=value` replaced; values are JSON, or else plain text.

    Raises ValueError for a text without `=` and for names the config does not have.
    """
    values = config_to_dict(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"an override is written name=value, got {assignment!r}")
        *outer, last = present_name(type(config), name).split(".")
        node = values
        for part in outer:
            if not isinstance(node.get(part), dict):
                raise ValueError(f"{type(config).__name__} has no {name}; it has {', '.join(sorted(values))}")
            node = node[part]
        node[last] = _parse(text)
    return config_from_dict(type(config), values)


def present_name(cls: Any, name: str) -> str:
    """What `outer.inner`, as an earlier version may have called it, is called now; unknown names as they are."""
    first, dot, rest = name.partition(".")
    first = getattr(cls, "OLD_NAMES", {}).get(first, first)
    inner = typing.get_type_hints(cls).get(first)
    return first + dot + (present_name(inner, rest) if is_dataclass(inner) else rest)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a misspelt name, nothing where no name is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def dotted_names(values: dict[str, Any]) -> list[str]:
    """Every name of nested objects, as `outer.inner`."""
    inner = (
        [name] + [f"{name}.{n}" for n in dotted_names(v)] if isinstance(v, dict) else [name]
        for name, v in values.items()
    )
    return [name for names in inner for name in names]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _convert(name: str, hint: Any, value: Any) -> Any:
    """One JSON value as the annotated type: int, float, bool, str, tuple, dataclass, Literal or a union with None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(name, next(a for a in args if a is not type(None)), value)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, args))}, got {shown(value)}")
        return value
    if is_dataclass(hint) and isinstance(value, dict):
        return config_from_dict(hint, value)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(name, args[0], v) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else math.inf
    wanted = origin or hint
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be {wanted.__name__}, got {shown(value)}")
    return value


def differences(found: Any, wanted: Any) -> tuple[str, str]:
    """What differs of two configs of one class, as each of them says it: norm 'none', patch 2."""
    names = [f.name for f in fields(found) if getattr(found, f.name) != getattr(wanted, f.name)]
    one, other = (", ".join(f"{name} {getattr(config, name)!r}" for name in names) for config in (found, wanted))
    return one, other
