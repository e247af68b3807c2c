"""What comes by a wire: core checks only widgets, so a node checks it all again, and says in its name what is wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

import comfy.model_management as mm
from comfy_api.v0_0_2 import io

from ..t2l.budget import shown

LONGEST_TEXT = 100_000  # characters
Item = TypeVar("Item")


@contextmanager
def node_errors(name: str) -> Iterator[None]:
    """What is refused, cannot be read or is missing is said in the name of a node, or of one of its inputs."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ValueError(f"{name}: {error}") from error


def until_cancelled(items: Iterable[Item]) -> Iterator[Item]:
    """The items; Cancel in ComfyUI ends the work before the next one."""
    for item in items:
        mm.throw_exception_if_processing_interrupted()
        yield item


def validated(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Makes an `execute` refuse what its schema does not allow, and say all its errors in the name of the node.

    Whole numbers may come as floats without a fraction. Lists of a node with is_input_list are checked entry by entry.
    Names of files are left to the node, whose list of them changes. Nothing, as None or an empty list, is no wire.
    """

    names, schema = list(inspect.signature(execute).parameters)[1:], None

    @wraps(execute)
    def checked_execute(cls: Any, *values: Any, **inputs: Any) -> io.NodeOutput:
        nonlocal schema
        inputs |= dict(zip(names, values, strict=False))  # core gives names; a script may not
        schema = schema or cls.define_schema()  # once: ranges stay, and that of Load Layers walks through folders
        with node_errors(schema.display_name):
            for socket in schema.inputs:
                many = schema.is_input_list and isinstance(inputs.get(socket.id), list)
                if _is_nothing(inputs.get(socket.id), many):
                    _leave_out(inputs, socket)
                if socket.id not in inputs or not (check := _check_of(socket)):
                    continue
                value = inputs[socket.id]
                inputs[socket.id] = [check(x, socket) for x in value] if many else check(value, socket)
            return execute(cls, **inputs)

    return checked_execute


def refusal(node: str, check: Callable[[Any], Any], value: Any) -> bool | str:
    """What `validate_inputs` of a node answers: True, or the sentence with which the check refuses a value.

    None comes through a wire, and is looked at when the node runs.
    """
    try:
        with node_errors(node):
            if value is not None:
                check(value)
            return True
    except ValueError as error:
        return str(error)


def check_choices(cls: Any, given: dict[str, Any]) -> None:
    """Raises ValueError for the first widget that the schema of a node does not allow; None comes by a wire."""
    for socket in cls.define_schema().inputs:
        check = _check_of(socket)
        if check and given.get(socket.id) is not None:
            check(given[socket.id], socket)


def _leave_out(inputs: dict[str, Any], socket: Any) -> None:
    """Nothing on a wire is no wire. Raises ValueError where one is needed."""
    if not socket.optional:
        raise ValueError(f"{socket.id} is needed, got nothing; look at the node that it comes from")
    inputs.pop(socket.id, None)


def _is_nothing(value: Any, many: bool) -> bool:
    return all(entry is None for entry in value) if many else value is None


def _check_of(socket: Any) -> Callable[[Any, Any], Any] | None:
    kinds = {io.Int.Input: _whole, io.Float.Input: _number, io.Combo.Input: _choice, io.Boolean.Input: _switch}
    kinds[io.String.Input] = _text
    return next((check for kind, check in kinds.items() if isinstance(socket, kind)), None)


def _number(value: Any, socket: Any) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    low, high = _bounds(socket)
    if not is_number or not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{socket.id} must be a number{_range(socket)}, got {describe(value)}")
    return float(value)


def _whole(value: Any, socket: Any) -> int:
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    low, high = _bounds(socket)
    if isinstance(value, bool) or not is_whole or not low <= value <= high:
        raise ValueError(f"{socket.id} must be a whole number{_range(socket)}, got {describe(value)}")
    return int(value)


def _choice(value: Any, socket: Any) -> Any:
    if socket.id in FILES:
        return value
    if not isinstance(value, str) or value not in socket.options:
        raise ValueError(f"{socket.id} must be one of {', '.join(socket.options)}, got {describe(value)}")
    return value


FILES = ("file", "checkpoint", "autoencoder")  # combos whose nodes find out themselves what a name means


def _switch(value: Any, socket: Any) -> bool:
    if not isinstance(value, (bool, Integral)) or value not in (0, 1):
        raise ValueError(f"{socket.id} must be true or false, got {describe(value)}")
    return bool(value)


def _text(value: Any, socket: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError(f"{socket.id} must be a text of at most {LONGEST_TEXT:,} characters, got {describe(value)}")
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


def describe(value: Any) -> str:
    """A value inside a sentence: short, and a tensor by its kind."""
    if not isinstance(value, (str, int, float)):
        return kind_of(value)
    if isinstance(value, int) and abs(value) >= 10**80:
        return "a number of many digits"  # Python writes no whole number of more than 4300
    return shown(value)
