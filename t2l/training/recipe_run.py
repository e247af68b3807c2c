"""Does what a recipe says, stage after stage, and goes on where it was stopped.

RUN/stages.json        what each stage was begun with, and whether it is finished
RUN/STAGE              the folder of a stage: the run folder of a training, the latents, the figures
RUN/STAGE.safetensors  what export wrote
RUN/data               the data set, unless it lies elsewhere
*.replaced             what was set aside, to begin a stage again
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..budget import read_object
from ..config import config_from_dict, config_to_dict
from ..io.atomic import write_whole
from ..model.device import pick_device
from .fit import Tell
from .recipe import Recipe, Stage
from .stages import DATA, Place, check_data

RECORD = "stages.json"


class RecipeRun:
    """The folder of a recipe: what is finished, what was begun, what is to do. Raises ValueError for a damaged record.

    run: the folder, the recipe's own when None. data: where the data set is, or will be made; RUN/data when None.
    """

    def __init__(self, recipe: Recipe, run: Path | None = None, data: Path | None = None) -> None:
        self.recipe = recipe
        self.folder = Path(run or recipe.run)
        self.data = Path(data or self.folder / DATA)
        record = self.folder / RECORD
        self._record = read_object(record, "the record of a recipe's stages") if record.exists() else {}

    def path(self, stage: Stage) -> Path:
        """The folder of a stage, or the file that it makes."""
        return self.data if stage.command == DATA else self.folder / f"{stage.name}{stage.kind.ending}"

    def product(self, stage: Stage) -> Path:
        """What later stages take."""
        return self.path(stage) / stage.kind.product if stage.kind.product else self.path(stage)

    def state(self, stage: Stage) -> str:
        """finished, begun or to do."""
        if stage.name not in self._record:
            return "to do"
        return "finished" if self._found(stage).get("finished") and self.product(stage).exists() else "begun"

    def place(self, stage: Stage, device: str, tell: Tell) -> Place:
        """Where a stage works, and with what."""
        taken = {name: self._taken(stage, name, value) for name, value in stage.takes.items()}
        return Place(self.path(stage), taken, device, tell)

    def _taken(self, stage: Stage, name: str, value: str) -> Path:
        if stage.kind.takes[name].is_split:
            return self.data / value
        return self.product(self.recipe.stage(value)) if value in stage.sources() else Path(value)

    def select(self, first: str | None = None, last: str | None = None) -> list[Stage]:
        """The stages from one to another, both included. Raises ValueError for a name there is not."""
        stages = self.recipe.stages
        begin = 0 if first is None else stages.index(self.recipe.stage(first))
        end = len(stages) if last is None else stages.index(self.recipe.stage(last)) + 1
        if begin >= end:
            raise ValueError(f"{last} comes before {first} in {self.recipe.path}, so that nothing lies between them")
        return list(stages[begin:end])

    def check(self, selected: Sequence[Stage]) -> None:
        """Raise ValueError when what is there does not fit what is wanted, before anything is computed."""
        for stage in selected:
            if names := self.differing(stage):
                raise ValueError(
                    f"{self.recipe.path}: stage {stage.name} was {self.state(stage)} in {self.folder} with other "
                    f"values ({', '.join(names)} differ); take another --run folder, or set it aside, with what is "
                    f"made of it, by --redo {stage.name}"
                )
            for name in stage.sources():
                self._check_source(stage, name, selected)
            if stage.command == DATA and self.state(stage) != "finished":
                try:
                    check_data(stage.config, self.data)
                except ValueError as error:
                    raise ValueError(f"{self.recipe.path}: {error}") from error

    def _check_source(self, stage: Stage, name: str, selected: Sequence[Stage]) -> None:
        """Raise unless what a stage takes from another is there, or will be by then."""
        there = {other.name: other for other in self.recipe.stages}
        if name not in there:  # the recipe does not make its data set
            if missing := [split for split in stage.splits() if not (self.data / split).is_dir()]:
                raise FileNotFoundError(
                    f"{self.recipe.path}: stage {stage.name} takes the split {missing[0]}, and the data set "
                    f"{self.data} holds no folder of that name; name another with --data DIR"
                )
        elif there[name] not in selected and self.state(there[name]) != "finished":
            raise ValueError(
                f"{self.recipe.path}: stage {stage.name} takes {name}, which is not finished in {self.folder}; begin "
                f"there, with --from {name} or without --from"
            )

    def set_aside(self, name: str) -> list[str]:
        """Rename what a stage and those that take from it have made, so that they begin again; returns their names."""
        again = [self.recipe.stage(name)]
        for stage in self.recipe.stages:
            if stage not in again and {other.name for other in again} & {*stage.sources()}:
                again.append(stage)
        found = [stage for stage in again if stage.name in self._record]
        for stage in reversed(found):  # a kill leaves what is not made of anything newer
            _rename_aside(self.path(stage))
            del self._record[stage.name]
            self._write()
        return [stage.name for stage in found]

    def note(self, stage: Stage, finished: bool) -> None:
        """Write down what a stage was begun with, and whether it is finished."""
        self._record[stage.name] = _made_of(stage) | {"finished": finished}
        self._write()

    def _write(self) -> None:
        write_whole(self.folder / RECORD, json.dumps(self._record, indent=2) + "\n")

    def _found(self, stage: Stage) -> dict[str, Any]:
        found = self._record.get(stage.name)
        return found if isinstance(found, dict) else {}

    def differing(self, stage: Stage) -> list[str]:
        """The names of what a stage was begun with and is wanted otherwise; values that change nothing may differ."""
        if stage.name not in self._record:
            return []
        found, wanted = self._found(stage), _made_of(stage)
        if isinstance(config := found.get("config"), dict):
            try:  # what an older version did not know yet had today's default, and may have had another name
                found = found | {"config": config_to_dict(config_from_dict(stage.kind.config, config))}
            except ValueError:
                pass
        before, now = (_compared(values, stage) for values in (found, wanted))
        return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def run_recipe(
    recipe: Recipe,
    run: Path | None = None,
    data: Path | None = None,
    first: str | None = None,
    last: str | None = None,
    device: str = "auto",
    tell: Tell = lambda sentence: None,
) -> Path:
    """Run the stages of a recipe that are not finished, from `first` to `last`; returns what the last one made.

    run, data: as `RecipeRun` takes them. The same call goes on where it was stopped, inside a stage too. With `first`
    the stages before it are taken as they are. Raises ValueError before anything is computed, and what the stages do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a recipe runs in one process; under a launcher of several give its stages to train-autoencoder, "
            "cache-latents and train-unet one by one"
        )
    folder = RecipeRun(recipe, run, data)
    selected = folder.select(first, last)
    folder.check(selected)
    pick_device(device)  # what is not there is said before anything is computed
    renewed: set[str] = set()  # what takes from these looks for itself whether it is still the same
    for stage in selected:
        where = f"stage {stage.name} ({recipe.stages.index(stage) + 1} of {len(recipe.stages)})"
        if folder.state(stage) == "finished" and not renewed & {*stage.sources()}:
            tell(f"{where} is finished")
            continue
        tell(f"{where}: {stage.command}")
        folder.note(stage, False)
        try:
            stage.kind.run(stage.config, folder.place(stage, device, tell))
        except KeyboardInterrupt as stopped:  # a training has a sentence of its own
            raise KeyboardInterrupt(*(stopped.args or (f"stopped in {where}; what was finished is kept",))) from None
        folder.note(stage, True)
        renewed.add(stage.name)
        _release()
    return folder.product(selected[-1])


def _release() -> None:
    """Give back what a stage held: compiled networks keep their weights."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _made_of(stage: Stage) -> dict[str, Any]:
    values = {"command": stage.command, "takes": dict(stage.takes), "config": config_to_dict(stage.config)}
    return json.loads(json.dumps(values))  # tuples become lists


def _compared(values: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """What must be the same, by dotted names."""
    values = {name: values.get(name, {}) for name in ("command", "takes", "config")}
    config = json.loads(json.dumps(values["config"]))
    nothing = getattr(stage.kind.config, "CHANGES_NOTHING", ())
    kept = {name: value for name, value in config.items() if name not in nothing}
    return _flat({"command": values["command"]} | values["takes"]) | _flat(kept)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested objects as one, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat


def _rename_aside(path: Path) -> None:
    if not path.exists():
        return
    names = (f"{path.name}.replaced{f'-{number}' if number > 1 else ''}" for number in range(1, 10**6))
    path.rename(next(aside for name in names if not (aside := path.with_name(name)).exists()))
