"""Numbers, choices and texts that come by a wire: core checks those of widgets alone, so a node looks at all of them again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from numbers import Integral, Real
from typing import Any

from comfy_api.v0_0_2 import io

LONGEST_TEXT = 100_000  # characters


def validated(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Makes an `execute` refuse what its schema does not allow, in a sentence that names the node and the input.

    Whole numbers may come as floats without a fraction. Lists of a node with is_input_list are checked entry by entry. Names
    of files are left to the node, whose list of them changes. Nothing, as None or a list without entries, is no wire.
    """

    names, schema = list(inspect.signature(execute).parameters)[1:], None

    @wraps(execute)
    def checked_execute(cls: Any, *values: Any, **inputs: Any) -> io.NodeOutput:
        nonlocal schema
        inputs |= dict(zip(names, values, strict=False))  # core gives names; a script may not
        schema = schema or cls.define_schema()  # once: ranges stay, and that of Load Layers walks through folders
        for socket in schema.inputs:
            source = f"{schema.display_name}: {socket.id}"
            many = schema.is_input_list and isinstance(inputs.get(socket.id), list)
            if _is_nothing(inputs.get(socket.id), many):
                _leave_out(inputs, socket, source)
            if socket.id not in inputs or not (check := _check_of(socket)):
                continue
            value = inputs[socket.id]
            inputs[socket.id] = [check(x, socket, source) for x in value] if many else check(value, socket, source)
        return execute(cls, **inputs)

    return checked_execute


def refusal(cls: Any, **given: Any) -> str | None:
    """The sentence about the first widget that the schema does not allow, for validate_inputs; None comes by a wire."""
    schema = cls.define_schema()
    for socket in schema.inputs:
        check = _check_of(socket)
        if check and given.get(socket.id) is not None:
            try:
                check(given[socket.id], socket, f"{schema.display_name}: {socket.id}")
            except ValueError as error:
                return str(error)
    return None


def _leave_out(inputs: dict[str, Any], socket: Any, source: str) -> None:
    """Nothing on a wire is no wire. Raises ValueError where one is needed."""
    if not socket.optional:
        raise ValueError(f"{source} is needed, got nothing; look at the node that it comes from")
    inputs.pop(socket.id, None)


def _is_nothing(value: Any, many: bool) -> bool:
    return all(entry is None for entry in value) if many else value is None


def _check_of(socket: Any) -> Callable[[Any, Any, str], Any] | None:
    kinds = {io.Int.Input: _whole, io.Float.Input: _number, io.Combo.Input: _choice, io.Boolean.Input: _switch}
    kinds[io.String.Input] = _text
    return next((check for kind, check in kinds.items() if isinstance(socket, kind)), None)


def _number(value: Any, socket: Any, source: str) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    low, high = _bounds(socket)
    if not is_number or not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{source} must be a number{_range(socket)}, got {shown(value)}")
    return float(value)


def _whole(value: Any, socket: Any, source: str) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    low, high = _bounds(socket)
    if isinstance(value, bool) or not is_whole or not low <= value <= high:
        raise ValueError(f"{source} must be a whole number{_range(socket)}, got {shown(value)}")
    return int(value)


def _choice(value: Any, socket: Any, source: str) -> Any:
    if socket.id in FILES:
        return value
    if not isinstance(value, str) or value not in socket.options:
        raise ValueError(f"{source} must be one of {', '.join(socket.options)}, got {shown(value)}")
    return value


FILES = ("file", "checkpoint", "autoencoder")  # combos whose nodes find out themselves what a name means


def _switch(value: Any, socket: Any, source: str) -> bool:
    if not isinstance(value, (bool, Integral)) or value not in (0, 1):
        raise ValueError(f"{source} must be true or false, got {shown(value)}")
    return bool(value)


def _text(value: Any, socket: Any, source: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError(f"{source} must be a text of at most {LONGEST_TEXT:,} characters, got {shown(value)}")
    return value


def kind_of(value: Any) -> str:
    """What came, by its type."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _bounds(socket: Any) -> tuple[float, float]:
    """The least and the most that a number may be."""
    low, high = socket.min, socket.max
    return -math.inf if low is None else low, math.inf if high is None else high


def _range(socket: Any) -> str:
    return "" if socket.min is None or socket.max is None else f" from {socket.min:g} to {socket.max:g}"


def shown(value: Any) -> str:
    """A value inside a sentence: short, and a tensor by its kind."""
    if not isinstance(value, (str, int, float)):
        return kind_of(value)
    text = repr(value[:100]) if isinstance(value, str) else _digits(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _digits(value: int | float) -> str:
    """A number as text; Python writes no whole number of more than 4300 digits."""
    return repr(value) if isinstance(value, float) or abs(value) < 10**80 else "a number of many digits"
