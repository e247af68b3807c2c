"""A run folder: what a training run was asked for, what it measured, and what it needs to go on.

config.json                    the config, and what the run is made from; another one in the same folder is refused
stats.jsonl                    one line per logged step
state.pt                       weights, EMA, optimiser, step: for resuming (replaced atomically)
state-0005000/                 the same in parts, of a model that is spread over the processes
snapshot.safetensors           EMA weights and config: for use
snapshot-0005000.safetensors   the same after so many steps, every `keep_every` of them
lora.safetensors               of a run with lora_rank: what was added, as a file of its own
samples/                       picture grids
losses.png                     what stats.jsonl says, as a picture
save                           put there by whoever wants state and snapshot now; taken away when they are written
tensorboard/                   what stats.jsonl holds, for TensorBoard
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from ..data.several import Data
from ..io.atomic import atomic_path, remove_partials, write_whole
from ..io.plot import write_plot
from . import sharded
from .configs import LoopConfig
from .identity import keep_identity
from .processes import Processes


class Run:
    """Opens or continues the run folder of a config. Raises ValueError if it belongs to another config, data or start.

    Every process opens it and calls the same methods; only the main one writes. made_from: what the run begins with, by
    the option that names it. any_processes: go on also when the state was written by another number of processes: the
    batches are the same, the last digits of their sums are not. accept_changes: as `keep_identity` takes it.
    """

    def __init__(
        self,
        folder: str | Path,
        config: LoopConfig,
        processes: Processes,
        made_from: Mapping[str, Data | None] = MappingProxyType({}),
        any_processes: bool = False,
        accept_changes: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._processes = processes
        self._any_processes = any_processes
        self._config = config
        self._tensorboard: Any = None
        self.samples = self.folder / "samples"
        self.snapshot = self.folder / "snapshot.safetensors"
        self._state = self.folder / "state.pt"
        self._stats = self.folder / "stats.jsonl"
        if processes.is_main:
            self.samples.mkdir(parents=True, exist_ok=True)
            remove_partials(self.folder)
            sharded.remove_unfinished(self.folder)
            has_work = self.has_state() or self.snapshot.exists()
            keep_identity(self.folder / "config.json", config, made_from, has_work, accept_changes)
        processes.wait()

    def has_state(self) -> bool:
        """Whether there is a state to go on from."""
        return self._state.exists() or any(self.folder.glob("state-*"))

    def load_state(self, template: Callable[[], dict[str, Any]] | None = None) -> dict[str, Any] | None:
        """The last saved state, or None at the start. Log lines written after it are dropped, they will come again.

        template: gives today's state of a sharded model, to be filled. Raises ValueError for a damaged state, for one
        of another number of processes unless allowed, and for a sharded one where a whole one is needed, or vice versa.
        """
        self._check_kind(template is not None)
        world_size = self._processes.world_size
        if template is None:
            state = self._read_state()
        else:
            state = sharded.load(lambda: template() | {"processes": world_size}, self.folder)
        step, count = (0, world_size) if state is None else (state["step"], state.get("processes", 1))
        if count != world_size and not self._any_processes:
            raise ValueError(
                f"the run folder {self.folder} was trained by {count} processes and there are {world_size} now; start "
                f"{count}, or add --any-processes to go on with the same batches and other last digits"
            )
        if self._processes.is_main:
            self._drop_stats_after(step)
            if self._config.tensorboard:
                self._tensorboard = _tensorboard(self.folder / "tensorboard", step)
        return state

    def _check_kind(self, is_sharded: bool) -> None:
        """One process keeps a whole state, several with sharding "fsdp" a sharded one; neither reads the other's."""
        if is_sharded and self._state.exists():
            raise ValueError(
                f"the run folder {self.folder} holds the state of one process, which several with sharding fsdp cannot "
                "go on from: start one, or remove state.pt to start this run again"
            )
        if not is_sharded and any(self.folder.glob("state-*")):
            raise ValueError(
                f"the run folder {self.folder} holds a state that is spread over several processes, which one cannot "
                "go on from: start as many as before, or remove it to start this run again"
            )

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state.exists():
            return None
        try:
            on_card = self._processes.device.type != "cpu"  # which need not hold the state beside the networks
            return torch.load(self._state, map_location="cpu", mmap=on_card, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(
                f"{self._state} cannot be read ({error}); remove it to start this run again, its snapshot stays usable"
            ) from error

    def save_state(self, state: dict[str, Any], is_sharded: bool = False) -> None:
        """Replace the state atomically: a kill or a full disk at any moment leaves the old one or the new one."""
        state |= {"processes": self._processes.world_size}
        full_disk = (OSError, RuntimeError)  # torch wraps what the system says
        with self.writing(f"the state of step {state['step']}", full_disk):
            if is_sharded:
                sharded.save(state, self.folder, state["step"])
            elif self._processes.is_main:
                with atomic_path(self._state) as partial, open(partial, "wb") as file:
                    torch.save(state, file)

    def write_snapshot(self, write: Callable[[Path], Any], step: int) -> None:
        """Replace the snapshot by what `write` puts at the path it is given; a copy is kept every `keep_every` steps.

        To be called before `save_state`: when the snapshot fails, the command that goes on comes to this step again.
        """
        if not self._processes.is_main:
            return
        with self.writing(f"the snapshot of step {step}"):
            write(self.snapshot)
            if self.keeps(step):
                with atomic_path(self.folder / f"snapshot-{step:07d}.safetensors") as partial:
                    shutil.copyfile(self.snapshot, partial)

    @contextmanager
    def writing(self, what: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
        """Says in a sentence that something was not written, and that the run can go on. kinds: errors that mean it."""
        try:
            yield
        except kinds as error:
            raise OSError(
                f"{what} cannot be written, is the disk full? ({first_line(error)}); the run folder {self.folder} "
                "holds the state before it: make room and run the same command again"
            ) from error

    def keeps(self, step: int) -> bool:
        return bool(self._config.keep_every) and step % self._config.keep_every == 0

    def saves(self, step: int) -> bool:
        """Whether state and sample are written after so many steps."""
        return step % self._config.save_every == 0 or step == self._config.num_steps or self.keeps(step)

    def logs(self, step: int) -> bool:
        """Whether the means since the last time are logged after so many steps."""
        return step % self._config.log_every == 0 or step == self._config.num_steps

    def progress(self, batches: Iterator[Any], start: int, steps: int, name: str) -> tqdm:
        """The batches with a progress bar, on the main process's screen; none where TQDM_DISABLE=1."""
        hidden = {} if self._processes.is_main else {"disable": True}
        return tqdm(batches, initial=start, total=steps, unit="step", desc=name, **hidden)

    def log(self, values: dict[str, float | int]) -> None:
        """Append one line to stats.jsonl; `step` is among the values."""
        if not self._processes.is_main:
            return
        with self.writing(f"the log of step {values['step']}"), open(self._stats, "a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")
        if self._tensorboard is not None:
            for name in values.keys() - {"step"}:
                self._tensorboard.add_scalar(name, values[name], values["step"])
            self._tensorboard.flush()

    def draw_losses(self) -> None:
        if self._processes.is_main:
            with self.writing("the picture of the losses"):
                write_plot(self._stats, self.folder / "losses.png")

    def close(self) -> None:
        """Wait until every process is done and everything is written."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._processes.wait()

    def _drop_stats_after(self, step: int) -> None:
        if not self._stats.exists():
            return
        lines = self._stats.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill cuts one off
        write_whole(self._stats, "".join(line for line in whole if json.loads(line)["step"] <= step))


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer that goes on after `step`, whatever was written later before a kill."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=true needs the package tensorboardX: pip install tensorboardX") from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
