"""What a run folder belongs to: a config, data and a start. What may change when the run goes on, and what may not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..budget import read_object
from ..config import config_from_dict, config_to_dict
from ..data.several import Data
from ..io.atomic import write_whole
from .configs import LoopConfig

MADE_FROM = "made_from"  # in config.json, beside the config's own names
BLOCKS, BLOCK = 64, 1 << 16  # of a file, which may have many GB
# What a state's tensors are named and shaped by.
FIXED = set("class model unet text_encoder discriminator optimizer lora_rank".split())
FIXED |= set("frozen freeze_encoder fold_batchnorm sharding".split())


def keep_identity(
    path: Path, config: LoopConfig, made_from: Mapping[str, Data | None], has_work: bool, accept_changes: bool
) -> None:
    """Write a run's config.json, or check that a folder that has work belongs to this config, data and start.

    What CHANGES_NOTHING names may always change, the rest with accept_changes, FIXED and made_from never. Raises
    ValueError that names what differs. An older version's folder lacks made_from, and has it from now on.
    """
    marks = {name: None if source is None else mark_of(source) for name, source in made_from.items()}
    now = json.loads(json.dumps({"class": type(config).__name__, **config_to_dict(config)}))
    if path.exists() and has_work:
        before = _read(path, config)
        marks = _same_sources(path.parent, before.pop(MADE_FROM, {}), marks)
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        changed -= set(config.CHANGES_NOTHING)
        if fixed := sorted(changed & FIXED):
            raise ValueError(
                f"the run folder {path.parent} belongs to another config: {', '.join(fixed)} differ, which its state "
                "depends on; take another folder, with --init for its snapshot if that is to be the start"
            )
        if changed and not accept_changes:
            raise ValueError(
                f"the run folder {path.parent} belongs to another config: {', '.join(sorted(changed))} differ; take "
                "another folder, the config it was started with, or --accept-changes to go on with the new values "
                "from here"
            )
    write_whole(path, json.dumps(now | {MADE_FROM: marks}, indent=2) + "\n")


def mark_of(source: Data) -> str:
    """A hash that tells files and data sets apart in a moment, wherever they lie.

    Of a file its size and 64 blocks, of a latent cache what its cache.json says, of shards their names and sizes, of
    several data sets the marks of all and how often each comes.
    """
    digest = hashlib.sha256()
    if not isinstance(source, Path):
        for one in source:
            digest.update(f"{mark_of(one.folder)} {one.times}\n".encode())
        return digest.hexdigest()
    about = source / "cache.json"
    if source.is_file():
        size = source.stat().st_size
        digest.update(str(size).encode())
        with source.open("rb") as file:
            for number in range(BLOCKS):
                file.seek(number * size // BLOCKS)
                digest.update(file.read(BLOCK))
    elif about.is_file():
        digest.update(json.dumps(read_object(about, "the description of a cache"), sort_keys=True).encode())
    else:
        for part in sorted([*source.glob("*.tar"), *source.glob("*.jsonl")]):
            digest.update(f"{part.name} {part.stat().st_size}\n".encode())
    return digest.hexdigest()


def _read(path: Path, config: LoopConfig) -> dict[str, Any]:
    """What config.json says; an older version's lacks what had one value then, today's default."""
    try:
        before = read_object(path, "the config of this run")
    except ValueError as error:
        raise ValueError(f"{error}; write the config of this run there, or take another folder") from error
    if before.get("class") != type(config).__name__:
        return before
    values = {name: value for name, value in before.items() if name not in ("class", MADE_FROM)}
    kept = {name: before[name] for name in ("class", MADE_FROM) if name in before}
    return kept | json.loads(json.dumps(config_to_dict(config_from_dict(type(config), values))))


def _same_sources(
    folder: Path, before: Mapping[str, str | None], now: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Today's marks. Raises ValueError when a source is another one than the run was begun with."""
    for name, mark in now.items():
        if name in before and before[name] != mark:
            left_out = "is left out now" if mark is None else "was left out then"
            given = "is another one now" if mark and before[name] else left_out
            raise ValueError(
                f"the run folder {folder} was trained with another --{name}, which {given}; give the one it was begun "
                "with, or take another folder"
            )
    return dict(before) | dict(now)
