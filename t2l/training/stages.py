"""The commands of a recipe: what a stage may take from the ones before it, what it makes, and how."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..data.workers import end_with_the_caller
from ..evaluation.report import EvaluateConfig, EvaluateFiles, evaluate
from ..evaluation.table import markdown_table
from ..generate import GenerateConfig, generate
from ..io.atomic import write_whole
from ..io.image import contact_sheet, save_png
from ..model.convert import convert_model, export_snapshot
from ..model.text2layer import Text2Layer
from .configs import AutoencoderTrainConfig, UNetTrainConfig
from .fit import Tell
from .latent_cache import CacheConfig, write_cache
from .train_autoencoder import train_autoencoder
from .train_unet import train_unet

CLONE = Path(__file__).resolve().parents[2]  # where recipes/ lies beside t2l/


class Place(NamedTuple):
    """Where a stage works, and with what."""

    path: Path  # its folder, or its file
    taken: Mapping[str, Path]  # what it takes, by the names of its command
    device: str
    tell: Tell


@dataclass(frozen=True)
class Takes:
    """What a stage may take: the product of a stage of one of these commands, or a split of the data set."""

    commands: tuple[str, ...] = ()  # none = a file of the user's own
    default: str | None = None
    is_required: bool = True

    @property
    def is_split(self) -> bool:
        return self.commands == (DATA,)

    @property
    def is_stage(self) -> bool:
        return bool(self.commands) and not self.is_split


@dataclass(frozen=True)
class Command:
    """What all stages of one command have in common."""

    config: type
    run: Callable[[Any, Place], None]
    takes: Mapping[str, Takes] = field(default_factory=dict)
    ending: str = ""  # of the file it makes; none = a folder
    product: str = ""  # what later stages take, in that folder; none = all of it


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How the data set is made: by `python -m MODULE --out DIR name=value ...`, which goes on where it was stopped.

    With --check it only says whether the values are right: exit code 0, or another and a sentence on stderr.
    """

    module: str
    config: dict[str, Any] = field(default_factory=dict)

    def words(self, out: Path) -> list[str]:
        """What comes after `python -m MODULE`."""
        return ["--out", str(out.resolve()), *(f"{name}={json.dumps(value)}" for name, value in self.config.items())]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a checkpoint is written."""

    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    autoencoder: dict[str, Any] = field(default_factory=dict)  # values of its config; then it is written alone


def check_data(config: DataConfig, out: Path) -> None:
    """Ask the module that makes a data set whether it takes these values. Raises ValueError with what it says."""
    command = [sys.executable, "-m", config.module, *config.words(out), "--check"]
    paths = [str(CLONE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    asked = subprocess.run(command, capture_output=True, text=True, env=environment)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"{config.module} ended with code {asked.returncode}"]
        raise ValueError(f"{DATA}: {said[-1]}")


def draw_samples(model: Text2Layer, prompts: Sequence[str], path: Path) -> None:
    """A training run's sample grid: the same prompts and noise every time, at the size it trains on."""
    size = model.trained_size
    drawn = generate(model, prompts, GenerateConfig(height=size, width=size))
    save_png(contact_sheet(drawn.layers, prompts, model.autoencoder.config.has_layers), path)


def _make_data(config: DataConfig, place: Place) -> None:
    """In a process of its own, which ends with this one: what it sets, e.g. torch's threads, is not for training."""
    process = get_context("spawn").Process(target=_run_module, args=(config.module, config.words(place.path)))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        raise RuntimeError(
            f"{config.module} has not finished the data set in {place.path}, the line before says why; run the same "
            "command again to go on"
        )


def _run_module(module: str, words: list[str]) -> None:
    end_with_the_caller()
    sys.path[:0] = [os.getcwd(), str(CLONE)]
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(130)


def _train_autoencoder(config: AutoencoderTrainConfig, place: Place) -> None:
    given = (place.taken["data"], place.path, place.taken.get("init"), place.taken.get("validation"))
    train_autoencoder(config, *given, device=place.device, tell=place.tell)


def _cache_latents(config: CacheConfig, place: Place) -> None:
    taken = place.taken
    given = (taken["autoencoder"], taken["data"], place.path, config, taken.get("text_encoder"))
    write_cache(*given, device=place.device)


def _train_unet(config: UNetTrainConfig, place: Place) -> None:
    taken = place.taken
    given = (taken["latents"], place.path, taken.get("init"), draw_samples, taken.get("validation"))
    train_unet(config, *given, device=place.device, tell=place.tell)


def _export(config: ExportConfig, place: Place) -> None:
    source = place.taken["checkpoint"]
    if changes := [f"{name}={json.dumps(value)}" for name, value in config.autoencoder.items()]:
        convert_model(source, place.path, config.dtype, overrides=changes)
    elif rounded := export_snapshot(source, place.path, config.dtype):
        place.tell(rounded)


def _evaluate(config: EvaluateConfig, place: Place) -> None:
    """figures.json, the same as a table in figures.md, and some pictures in samples.png."""
    taken, split = place.taken, place.taken["data"]
    files = EvaluateFiles(
        **{name: taken.get(name) for name in ("saliency", "segmenter", "features", "clip")},
        samples=place.path / "samples.png",
    )
    figures = place.path / "figures.json"
    metrics = evaluate(
        taken["checkpoint"], split.parent, figures, config, files, place.tell, split.name, device=place.device
    )
    write_whole(place.path / "figures.md", markdown_table(metrics) + "\n")


DATA = "data"  # the stage that makes the data set, and the command of it
SNAPSHOT = "snapshot.safetensors"
TRAIN_SPLIT, OTHER_SPLIT = Takes((DATA,), "train"), Takes((DATA,), is_required=False)
AUTOENCODERS = ("train-autoencoder", "train-unet", "export")
MODELS = ("train-unet", "export")
FILE = Takes(is_required=False)
COMMANDS = {
    DATA: Command(DataConfig, _make_data),
    "train-autoencoder": Command(
        AutoencoderTrainConfig,
        _train_autoencoder,
        {"data": TRAIN_SPLIT, "validation": OTHER_SPLIT, "init": Takes(AUTOENCODERS, is_required=False)},
        product=SNAPSHOT,
    ),
    "cache-latents": Command(
        CacheConfig,
        _cache_latents,
        {"autoencoder": Takes(AUTOENCODERS), "data": TRAIN_SPLIT, "text_encoder": Takes(MODELS, is_required=False)},
    ),
    "train-unet": Command(
        UNetTrainConfig,
        _train_unet,
        {
            "latents": Takes(("cache-latents",)),
            "validation": Takes(("cache-latents",), is_required=False),
            "init": Takes(MODELS, is_required=False),
        },
        product=SNAPSHOT,
    ),
    "export": Command(ExportConfig, _export, {"checkpoint": Takes(AUTOENCODERS)}, ending=".safetensors"),
    "evaluate": Command(
        EvaluateConfig,
        _evaluate,
        {"checkpoint": Takes(AUTOENCODERS), "data": Takes((DATA,))}
        | dict.fromkeys(("saliency", "segmenter", "features", "clip"), FILE),
        product="figures.json",
    ),
}
