"""A recipe: one TOML file that says how a checkpoint is made, from the data set to the figures.

    name = "mine"
    [data]                          # how the data set is made; without it, it is there: --data DIR
    module = "recipes.demo"         # python -m recipes.demo --out DIR train=24000
    config = {train = 24000}
    [defaults.train-unet]           # of every stage of that command
    batch_size = 64
    [[stages]]                      # in their order; autoencoder, latents, init ... name stages before this one
    name = "unet-128"
    command = "train-unet"
    latents = "latents-128"
    [stages.config]                 # as in the JSON configs, what is left out is the default
    num_steps = 20000

All of it is checked when it is read. `recipe_run` does what it says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..budget import read_text, shown
from ..config import config_from_dict, did_you_mean, override
from .stages import COMMANDS, DATA, Command, DataConfig, Takes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = ("name", "run", "data", "defaults", "stages")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of a stage: its folder's name, and what comes before the dot


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe. takes: what its command takes -> the name of a stage, of a split, or of a file."""

    name: str
    command: str
    takes: Mapping[str, str]
    config: Any

    @property
    def kind(self) -> Command:
        return COMMANDS[self.command]

    def sources(self) -> list[str]:
        """The names of the stages that it takes something from."""
        takes = self.kind.takes
        found = [value for name, value in self.takes.items() if takes[name].is_stage and not is_file(value)]
        return [DATA, *found] if self.splits() else found

    def splits(self) -> list[str]:
        """The splits of the data set that it takes."""
        return [value for name, value in self.takes.items() if self.kind.takes[name].is_split]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is made. The stage that makes the data set, where there is one, is the first."""

    path: Path
    name: str
    run: Path  # where everything goes, unless it is told otherwise
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of a name. Raises ValueError with those there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise ValueError(
            f"{self.path} has no stage {shown(name)}; it has {', '.join(names)}{did_you_mean(name, names)}"
        )


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it. changes: STAGE.name=value, or COMMAND.name=value for all stages of a command.

    Raises FileNotFoundError, or ValueError with one sentence that names the file, the stage and what is wrong there.
    """
    path = Path(path)
    text = read_text(path, "the recipe")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    with _inside(path):
        _check_names(values, TOP, "a recipe")
        name = _text(values, "name", path.stem)
        if not NAME.fullmatch(name):
            raise ValueError(f"name must be of letters, digits, - and _, got {shown(name)}")
        stages = _read_stages(values)
        if not stages:
            raise ValueError("a recipe needs at least one [[stages]]")
        recipe = Recipe(path=path, name=name, run=Path(_text(values, "run", f"runs/{name}")), stages=stages)
        return changed(recipe, changes)


def is_file(value: str) -> bool:
    """Whether what a stage takes is a file or a folder of the user's own: its name has a / or a dot, no stage's has."""
    return "/" in value or "." in value


def _read_stages(values: dict[str, Any]) -> tuple[Stage, ...]:
    defaults = _table(values, "defaults")
    _check_names(defaults, list(COMMANDS), "defaults")
    stages = [] if DATA not in values else [_read_data(_table(values, DATA))]
    rows = values.get("stages", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("stages are written [[stages]], one for each")
    for number, row in enumerate(rows, 1):
        name = _text(row, "name", "")
        if not NAME.fullmatch(name) or name in COMMANDS:
            raise ValueError(
                f"stage {number}: its name must be of letters, digits, - and _, and no command's, got {shown(name)}"
            )
        with _inside(f"stage {name}"):
            if any(stage.name == name for stage in stages):
                raise ValueError("another stage before it has this name")
            stages.append(_read_stage(name, row, defaults, stages, rows))
    return tuple(stages)


def _read_data(values: dict[str, Any]) -> Stage:
    with _inside(DATA):
        _check_names(values, ("module", "config"), "it")
        config = DataConfig(module=_text(values, "module", ""), config=_table(values, "config"))
        if not all(part.isidentifier() for part in config.module.split(".")):
            raise ValueError(
                f"module must name the Python module that makes the data set, e.g. recipes.demo, got "
                f"{shown(config.module)}; leave [data] out for a data set that is there"
            )
    return Stage(name=DATA, command=DATA, takes={}, config=config)


def _read_stage(
    name: str, row: dict[str, Any], defaults: dict[str, Any], before: Sequence[Stage], rows: Sequence[dict[str, Any]]
) -> Stage:
    command = _text(row, "command", "")
    known = [name for name in COMMANDS if name != DATA]
    if command not in known:
        raise ValueError(
            f"command must be one of {', '.join(known)}, got {shown(command)}{did_you_mean(command, known)}"
        )
    kind = COMMANDS[command]
    _check_names(row, ("name", "command", "config", *kind.takes), command)
    later = [str(other.get("name")) for other in rows]
    takes = {}
    for key, what in kind.takes.items():
        if (value := _text(row, key, what.default)) is not None:
            _check_taken(key, value, what, before, later)
            takes[key] = value
        elif what.is_required:
            raise ValueError(f"{command} needs {key}, {_described(what)}")
    values = _merged(_table(defaults, command), _table(row, "config"))
    return Stage(name=name, command=command, takes=takes, config=config_from_dict(kind.config, values))


def _check_taken(key: str, value: str, what: Takes, before: Sequence[Stage], later: Sequence[str]) -> None:
    """Raise ValueError unless a stage can take this: a split's name, a file that is there, or a stage before it."""
    if what.is_split:
        if not NAME.fullmatch(value):
            raise ValueError(f"{key} must be {_described(what)}, got {shown(value)}")
        return
    if is_file(value) or not what.is_stage:
        if not Path(value).exists():
            raise ValueError(f"{key} is the file {value}, which does not exist")
        return
    able = [stage.name for stage in before if stage.command in what.commands]
    if value in able:
        return
    if value in [stage.name for stage in before]:
        found = next(stage.command for stage in before if stage.name == value)
        raise ValueError(f"{key} must be {_described(what)}, and {value} is one of {found}")
    if value in later:
        raise ValueError(f"{key} is {value}, which does not come before it: a stage takes only from those before it")
    names = f"; there are {', '.join(able)}{did_you_mean(value, able)}" if able else "; there is none before it"
    raise ValueError(f"{key} must be {_described(what)}, got {shown(value)}{names}")


def _described(what: Takes) -> str:
    if what.is_split:
        return "the name of a split of the data set, e.g. train or validation"
    return f"the name of a stage of {' or '.join(what.commands)}" if what.is_stage else "a file"


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with STAGE.name=value or COMMAND.name=value replaced."""
    stages = list(recipe.stages)
    for change in changes:
        name, equals, text = change.partition("=")
        target, dot, inner = name.partition(".")
        if not (equals and dot):
            raise ValueError(f"a change is written STAGE.name=value, got {shown(change)}")
        meant = [i for i, stage in enumerate(stages) if target in (stage.name, stage.command)]
        if not meant:
            recipe.stage(target)
        for i in meant:
            place = f"config.{inner}" if stages[i].command == DATA else inner
            with _inside(f"stage {stages[i].name}"):
                stages[i] = replace(stages[i], config=override(stages[i].config, [f"{place}={text}"]))
    return replace(recipe, stages=tuple(stages))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the values of `above` over those of `below`."""
    both = {
        name: _merged(below[name], above[name])
        for name in below.keys() & above.keys()
        if isinstance(below[name], dict) and isinstance(above[name], dict)
    }
    return {**below, **above, **both}


def _text(values: Mapping[str, Any], name: str, default: Any) -> Any:
    value = values.get(name, default)
    if name in values and not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {shown(value)}")
    return value


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a table, got {shown(value)}")
    return value


def _check_names(values: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{what} has no {shown(name)[1:-1]}; it has {', '.join(known)}{did_you_mean(name, known)}")


@contextmanager
def _inside(where: object) -> Iterator[None]:
    """Say where something is wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
