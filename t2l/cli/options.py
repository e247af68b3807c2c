"""What the commands share: options and their types, checks before the work, the config, and lines for people."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..model.saliency import SaliencyModel

Command = Callable[..., Any]  # (function, name, is_hidden) -> the parser's add_argument

MODELS = Path(__file__).resolve().parent.parent.parent / "models"  # the shipped checkpoint, beside the package
SMALLEST, LARGEST = 64, 4096  # pixels along a side
DTYPES = ("fp32", "fp16", "bf16")
FILTERS = ("mask", "inpainting")  # kinds of quality filters


def add_overrides(add: Any) -> None:
    add("overrides", nargs="*", metavar="name=value", help="replaces one value of the config, e.g. seed=1")


def add_device(add: Any, with_dtype: bool = True) -> None:
    """Where a command's networks run, and how precise their weights are there."""
    cards = "auto, cpu, cuda, cuda:N or mps (default: auto, the card where there is one)"
    add("--device", default="auto", metavar="NAME", help=cards)
    if with_dtype:
        add("--dtype", choices=DTYPES, default="fp32", help="precision of the networks (default: %(default)s)")


def add_out(add: Any, help: str) -> None:
    add("--out", type=Path, required=True, metavar="DIR", help=help)


def add_validation(add: Any, help: str) -> None:
    add("--validation", type=whole("validation", 0, 10**9), metavar="N", help=help)


def add_data(add: Any, option: str, required: bool, help: str) -> None:
    """An option that names folders of shards, each as often as is wanted."""
    add(option, type=data_set, action="append", required=required, metavar="DIR[:TIMES]", help=help)


def data_set(text: str) -> Any:
    """An argparse type: a folder of shards, or FOLDER:TIMES."""
    from ..data.several import Repeated

    try:
        return Repeated.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_models(add: Any) -> None:
    saliency = "an .onnx file that finds the subject (default: the shipped network)"
    add("--saliency", type=Path, metavar="FILE", help=saliency)
    presets = "what that file is: isnet, u2net, birefnet, inspyrenet, icon, imagenet (default: as the file tells)"
    add("--preset", default="auto", metavar="NAME", help=presets)
    inpainting = "what paints the background: fill, patchmatch, or the path of a network (default: %(default)s)"
    add("--inpainting", default="fill", metavar="NAME|PATH", help=inpainting)


def open_saliency(file: Path | None, preset: Any, device: torch.device) -> SaliencyModel:
    """What finds subjects: a user's .onnx file, or the network that ships."""
    from ..model.saliency import saliency_model
    from ..model.salient import load_salient

    return load_salient(None, device) if file is None else saliency_model(file, preset=preset, device=device)


def whole(name: str, low: int, high: int) -> Any:
    """An argparse type: a whole number in [low, high]."""
    return _ranged(name, int, "a whole number", low, high)


def number(name: str, low: float, high: float) -> Any:
    """An argparse type: a number in [low, high]."""
    return _ranged(name, float, "a number", low, high)


def _ranged(name: str, kind: Any, words: str, low: float, high: float) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{name} must be {words} from {low:g} to {high:g}, got {text!r}")
        return value

    return parse


def size(text: str) -> tuple[int, int]:
    """`N` or `WxH` as (height, width)."""
    try:
        width, height = (int(part) for part in (text.lower().split("x") if "x" in text.lower() else (text, text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"size is written 256 or 640x360 (width x height), got {text!r}") from None
    if not SMALLEST <= min(width, height) <= max(width, height) <= LARGEST:
        raise argparse.ArgumentTypeError(f"width and height must be from {SMALLEST} to {LARGEST} pixels, got {text!r}")
    return height, width


def default_checkpoint() -> Path:
    """The checkpoint that ships in models/. Raises FileNotFoundError when the package was installed without it."""
    found = sorted(MODELS.glob("text2layer*.safetensors"))  # filters and other small networks lie beside it
    if not found:
        raise FileNotFoundError(
            "no checkpoint ships with this installation; name one with --checkpoint FILE.safetensors "
            "(the repository has one in models/)"
        )
    return found[0]


def check_out(folder: Path, needed: int = 1 << 20) -> None:
    """Raises OSError when `needed` bytes cannot be written under the folder, which need not exist yet."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"the output folder {folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"the output folder {folder} cannot be written: no permission in {existing}")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"the output folder {folder} needs {needed >> 20} MB, {free >> 20} MB are free")


def config_of(cls: type, args: argparse.Namespace, **options: object) -> Any:
    """The config of a command: the file's values or the defaults, then name=value and the options that were given."""
    from ..budget import read_object
    from ..config import dotted_names, load_config, override, present_name

    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    config = override(load_config(cls, args.config) if "config" in args else cls(), args.overrides + given)
    names = dotted_names(read_object(args.config, "the config file")) if "config" in args else []
    for name in dict.fromkeys([*names, *(text.partition("=")[0] for text in args.overrides)]):
        if (now := present_name(cls, name)) != name:
            note_once(f"{name} is now called {now}; the old name goes on working")
    return config


def print_once(line: object) -> None:
    """Print from the first of the processes that accelerate or torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def note_once(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        note(sentence)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def note(sentence: str) -> None:
    say(f"t2l: note: {sentence}")
