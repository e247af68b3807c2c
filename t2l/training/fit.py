"""The one training loop: what a run does between its first batch and its last snapshot, whatever is trained.

A `Task` is what is trained: its networks, what a step does with a batch, its validation, its snapshot and its state.
`fit` sees to the order of things, to the run folder, to people who want to stop or to look, and to devices that fail.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model.precision import fast_kernels
from .configs import LoopConfig
from .loop import Meter, TrainingStopped, learning_rate
from .processes import Processes
from .run import Run, first_line
from .update import Updater

Tell = Callable[[str], None]  # gets sentences for people
# How a failing card is reported.
LOST = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL", "MPS backend", "device-side")


class StepResult(NamedTuple):
    """What a step gives back, 0-dim tensors on the device."""

    values: Mapping[str, Tensor]  # to log, detached
    finite: Tensor  # bool; False: it was skipped and changed nothing


class Task:
    """One training: its networks and optimisers. What is trained, and how, is in the subclasses."""

    name = ""
    sharded = False  # whether each process holds a part of the networks

    def __init__(self, config: LoopConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.device = processes.device
        self.model: nn.Module
        self.ema: Any
        self.update: Updater

    def step(self, batch: Any, step: int) -> StepResult:
        """One optimiser step."""
        raise NotImplementedError

    def validation_loss(self) -> float | None:
        """The loss of the EMA weights on always the same pictures; None without any. Every process must ask."""
        raise NotImplementedError

    def snapshot(self, step: int) -> Callable[[Path], Any]:
        """What writes the EMA weights for use to a path. Every process must ask; only the main one may write."""
        raise NotImplementedError

    def write_sample(self, step: int, folder: Path) -> None:
        """Pictures of the EMA weights, always of the same things; by the main process alone, after `snapshot`."""
        raise NotImplementedError

    def stateful(self) -> dict[str, Any]:
        """What has a state_dict that going on needs, by name."""
        return {"model": self.model, "ema": self.ema} | self.update.stateful()

    def updaters(self) -> list[Updater]:
        """Every optimiser with its network, the main one first."""
        return [self.update]

    def lr(self, step: int) -> float:
        return learning_rate(step, self.config.num_steps, self.config.lr, self.config.lr_warmup_steps)

    def state(self, step: int) -> dict[str, Any]:
        """Everything that resuming needs; `step` steps are done."""
        state = {name: module.state_dict() for name, module in self.stateful().items()}
        return {"step": step, "skipped": self.update.guard.skipped} | state

    def load_state(self, state: dict[str, Any] | None) -> int:
        """Take over a saved state; returns the step to go on with."""
        if state is None:
            return 0
        self.update.guard.skipped = state["skipped"]
        for name, module in self.stateful().items():
            try:
                module.load_state_dict(state[name])
            except (KeyError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"the state of step {state['step']} does not fit what this config trains ({name}: "
                    f"{first_line(error)}): take another folder, with --init for this run's snapshot"
                ) from error
        return state["step"]


def fit(task: Task, batches: Callable[[int], Iterator[Any]], run: Run, tell: Tell) -> Path:
    """Train until config.num_steps, from the run folder's last state when there is one; returns the snapshot's path.

    batches: step -> the batches from that step on. Ctrl-C and SIGTERM save and raise KeyboardInterrupt with a sentence;
    a file named `save` in the run folder, or SIGUSR1, saves and goes on. Raises TrainingStopped with what helps when
    the loss is no number, when memory is short or when the device fails; the folder then holds the last state.
    """
    start = task.load_state(run.load_state((lambda: task.state(0)) if task.sharded else None))
    steps, meter = task.config.num_steps, Meter()
    bar = run.progress(meter.timed(batches(start)), start, steps, task.name)
    with Requests(run.folder) as requests, fast_kernels(task.device, task.config.precision):
        for step, batch in enumerate(bar, start):
            with explain_failures(task, step, run.folder):
                meter.add(*task.step(batch, step))
            done = step + 1
            if run.logs(done):
                stats = _log(task, meter, run, done)
                loss = stats.get(main_loss(stats), float("nan"))
                bar.set_postfix(loss=f"{loss:.4f}", wait=f"{stats['data_wait']:.1%}")
            asks = task.processes.world_size == 1 or run.logs(done)  # several ask where they wait for each other anyway
            stop = asks and task.processes.any(requests.stop)
            save = asks and task.processes.any(requests.save)
            if run.saves(done) or stop or save:
                _save(task, run, done, tell)
                requests.clear_save()
            if stop and done < steps:
                run.close()
                raise KeyboardInterrupt(
                    f"stopped after step {done} of {steps}; {run.folder} holds its state and its snapshot"
                )
    run.close()
    return run.snapshot


def main_loss(stats: Mapping[str, float]) -> str:
    """The name of what is minimised among the logged values."""
    return "total" if "total" in stats else "loss"


def _log(task: Task, meter: Meter, run: Run, done: int) -> dict[str, float]:
    stats = task.processes.means(meter.flush()) | {"lr": task.lr(done - 1), "skipped": task.update.guard.skipped}
    run.log({"step": done, **stats})
    for updater in task.updaters():
        updater.guard.check(done)
    return stats


def _save(task: Task, run: Run, done: int, tell: Tell) -> None:
    """Validation, snapshot, state and sample; the snapshot first, because a run goes on from its state."""
    loss = task.validation_loss()
    if loss is not None:
        run.log({"step": done, "validation_loss": loss})
    run.write_snapshot(task.snapshot(done), done)
    run.save_state(task.state(done), task.sharded)
    run.draw_losses()
    if task.processes.is_main:
        try:
            task.write_sample(done, run.samples)
        except Exception as error:  # a picture is no reason to end a run, whatever is wrong with it
            tell(f"the sample of step {done} could not be drawn, the run goes on: {type(error).__name__}: {error}")


class Requests:
    """What people ask of a run while it trains: to stop at the end of a step, or to save and go on.

    Ctrl-C a second time ends at once. Signals reach a program's main thread only; elsewhere there is the file alone.
    """

    def __init__(self, folder: Path) -> None:
        self.stop = False
        self._save = False
        self._file = folder / "save"
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def save(self) -> bool:
        return self._save or self._file.exists()

    def clear_save(self) -> None:
        self._save = False
        self._file.unlink(missing_ok=True)

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():
            names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1
            numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that reads pictures: it ends with the run, or when it is ended
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif number == getattr(signal, "SIGUSR1", None):
            self._save = True
        elif self.stop:
            raise KeyboardInterrupt
        else:
            self.stop = True


@contextmanager
def explain_failures(task: Task, step: int, folder: Path) -> Iterator[None]:
    """What a device fails with in a step, as TrainingStopped that says what helps."""
    going_on = f"{folder} holds the last state: run the same command again"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingStopped(
            f"step {step} needs more memory than {task.device} has ({first_line(error)}); gradient_checkpointing=true "
            "keeps far less and changes nothing, gradient_accumulation_steps=2 or more computes the batch in parts, "
            "optimizer=adamw8bit keeps small moments, lora_rank trains little of a UNet; "
            f"{going_on}, with --accept-changes where another value changes results"
        ) from error
    except RuntimeError as error:
        if isinstance(error, TrainingStopped) or not any(sign in str(error) for sign in LOST):
            raise
        raise TrainingStopped(
            f"{task.device} failed in step {step} ({first_line(error)}); {going_on} when it works again"
        ) from error


def check_memory(task: Task, available: int | None) -> None:
    """Raise ValueError when weights, gradients, moments and EMA alone need more bytes than the device has.

    To be called before the model goes there, with what is not trained frozen. available: as `memory_of` says it.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in task.model.parameters()]
    kept, trained = 2 * sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    parts = task.processes.world_size if task.sharded else 1
    moments = 0.5 if task.config.optimizer == "adamw8bit" else 2
    needed, smaller = (int((kept + (1 + share) * trained) / parts) for share in (moments, 0.5))
    if available is None or needed <= available:
        return
    ways = [f"optimizer=adamw8bit ({_gib(smaller)})"] if moments == 2 and smaller <= available else []
    if task.name == "unet":
        ways += [f"sharding=fsdp on {-(-needed * parts // int(0.8 * available))} such cards", "lora_rank=64"]
    ways += ["a smaller model"]
    raise ValueError(
        f"weights, gradients, moments and EMA need {_gib(needed)} and {task.device} has {_gib(available)}, before any "
        f"activation; what would fit: {', '.join(ways)}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
