"""`t2l build`, which takes flat pictures apart, a data set at a time, and the models it opens in every worker."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    FILTERS,
    MODELS,
    Command,
    add_device,
    add_models,
    add_out,
    add_overrides,
    add_validation,
    check_out,
    config_of,
    note,
    open_saliency,
    say,
    whole,
)

if TYPE_CHECKING:
    from ..data.build import Models

SHIPPED = "default"
OFF = "off"
NAMES = ("fill", "patchmatch")  # of inpainters without weights


def add_commands(command: Command) -> None:
    """Put this file's command and its options into the command line."""
    add = command(build, "build")
    source = (
        "a folder with captions beside the pictures, a .csv, .jsonl or .parquet that names pictures, or img2dataset's"
    )
    add("source", type=Path, metavar="SOURCE", help=f"{source} .tar")
    add_out(add, "folder for train and validation, the ledger, what was dropped")
    add_models(add)
    filters = "folder with mask-filter.safetensors and inpainting-filter.safetensors; off (default: the shipped ones)"
    add("--filters", default=SHIPPED, metavar="DIR", help=filters)
    add("--unfiltered", action="store_true", help="keep what the filters would drop, with its scores")
    add("--licences", metavar="A,B", help="the only licences that are taken, * for any letters, e.g. 'CC0*,CC-BY-4.0'")
    add_validation(add, "source pictures to keep back (default: 0)")
    add("--follow-links", action="store_true", help="read also pictures outside of SOURCE's folder")
    engine = "processes here, or a Ray cluster (default: %(default)s)"
    add("--engine", choices=("local", "ray"), default="local", help=engine)
    workers = "at once, each with its own models (default: one a processor, or one on a card)"
    add("--workers", type=whole("workers", 1, 10_000), metavar="N", help=workers)
    add_device(add)
    add_overrides(add)


def build(args: argparse.Namespace) -> None:
    """Take captioned pictures apart into layers, filter them and write shards to train on; the same command goes on."""
    check_out(args.out)
    from ..data.ahead import count_processors
    from ..data.build import BuildConfig
    from ..data.build import build as run
    from ..model.device import pick_device
    from ..model.saliency import find_saliency

    device = pick_device(args.device)
    licences = args.licences and json.dumps([name.strip() for name in args.licences.split(",") if name.strip()])
    unfiltered = "true" if args.unfiltered else None
    config = config_of(BuildConfig, args, validation=args.validation, licences=licences, unfiltered=unfiltered)
    saliency, filters = args.saliency and find_saliency(args.saliency), _find_filters(args.filters)
    models = ModelFiles(saliency, args.preset, args.inpainting, filters, str(device), args.dtype)
    workers = args.workers or (count_processors() if device.type == "cpu" else 1)
    cards = float(device.type == "cuda")
    built = run(config, args.source, args.out, models, workers, args.engine, cards, args.follow_links, say)
    say(str(built))
    if built.dropped:
        note(f"{args.out / 'dropped.csv'} says why; dropped.jpg and kept.jpg beside it show some")
    print(args.out)


@dataclass(frozen=True)
class ModelFiles:
    """Opens the models of a build, in whichever process needs them."""

    saliency: Path | None  # None = the shipped one
    preset: str
    inpainting: str
    filters: tuple[Path, ...]  # of FILTERS
    device: str
    dtype: str

    def __call__(self) -> Models:
        import torch

        from ..data.build import Models
        from ..model.filters import load_filter
        from ..model.inpainting import inpainter

        device = torch.device(self.device)
        judges = {name: load_filter(path, device) for name, path in zip(FILTERS, self.filters, strict=False)}
        thresholds = {name: judge.config.threshold for name, judge in judges.items()}
        saliency = open_saliency(self.saliency, self.preset, device)
        return Models(saliency, inpainter(self.inpainting, device, self.dtype), judges, thresholds, device)

    def identity(self) -> dict[str, Any]:
        """The files by their content, so that one that was moved is the same."""
        from ..model.salient import FILE

        files = {"saliency": self.saliency or FILE, **dict(zip(FILTERS, self.filters, strict=False))}
        known: dict[str, Any] = {name: _digest(path) for name, path in files.items()}
        known["inpainter"] = self.inpainting if self.inpainting in NAMES else _digest(Path(self.inpainting))
        return known | {"preset": self.preset if self.saliency else "", "dtype": self.dtype}


def _find_filters(name: str) -> tuple[Path, ...]:
    """The files of both filters, or none. Raises FileNotFoundError for a folder without them."""
    if name == OFF:
        return ()
    folder = MODELS if name == SHIPPED else Path(name)
    files = tuple(folder / f"{kind}-filter.safetensors" for kind in FILTERS)
    if missing := [file.name for file in files if not file.is_file()]:
        if name != SHIPPED:
            raise FileNotFoundError(
                f"there is no {' and no '.join(missing)} in {folder}; `t2l train-filter` writes them"
            )
        note("no quality filters ship with this installation: nothing is judged")
        return ()
    return files


def _digest(path: Path) -> str:
    """What tells a model's file, or the files of a folder, from another one."""
    if not path.exists():
        raise FileNotFoundError(f"there is no model {path}")
    from ..training.identity import mark_of

    if path.is_file():
        return mark_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{file.name} {mark_of(file)} " for file in files).encode()).hexdigest()
