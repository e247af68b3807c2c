"""What a checkpoint draws for a data set's captions, looked at by the judges; composites for people, and their masks.

KEY.composite.png       one picture each, as `export` leaves it; KEY is the data set's, %XX for what no file name holds
composites.jsonl        one line each: key, file, prompt, seed, and all else that the picture depends on
KEY.mask.png, KEY.png   what a person drew on it, white = foreground, as `find_masks` reads it, there or elsewhere
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget import parse_json, read_text, shown
from ..data.buckets import center_crop
from ..data.shards import Shards
from ..generate import GenerateConfig, generate
from ..io.atomic import write_whole
from ..io.image import contact_sheet, save_png, to_image, to_pixels
from ..io.picture_file import read_mask
from ..layers import Layers
from ..model.text2layer import Text2Layer
from .judges import Judges
from .metrics import batches, check_finite, mask_iou
from .sharing import ProcessGroup

LIST = "composites.jsonl"
Progress = Callable[[str], None]  # gets lines for people
Scores = dict[str, Tensor]  # what the judges say of some pictures, one row each: "lite0", "clean", "clip", "human"


@dataclass(frozen=True, kw_only=True)
class EvaluateFiles:
    """The files beside checkpoint, data and metrics: the user's own judges and masks, and pictures to be written."""

    saliency: Path | None = None  # a salient-object network as `saliency_model` takes it, or as `load_salient` does
    segmenter: Path | None = None  # the same, taught by true masks of pictures of this kind
    features: Path | None = None  # InceptionV3 as `open_inception` takes it
    clip: Path | None = None  # CLIP as `open_clip` takes it
    masks: Path | None = None  # a folder of people's masks as `find_masks` reads it
    samples: Path | None = None  # a PNG to write, a contact sheet of the first batch of generated pictures
    export: Path | None = None  # a folder to write composites to

    def __post_init__(self) -> None:
        for f in fields(self):
            if (value := getattr(self, f.name)) is not None:
                object.__setattr__(self, f.name, Path(value))


@dataclass(frozen=True, eq=False)
class DrawingTask:
    """All that drawing needs, opened and checked before the work begins."""

    model: Text2Layer
    judges: Judges
    test: Shards
    config: GenerateConfig
    batch_size: int
    group: ProcessGroup
    tell: Progress
    files: EvaluateFiles
    checkpoint: str = ""  # SHA-256 of the file, where composites are exported or masks read


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the checkpoint drew, and this process's first pictures."""

    indices: Sequence[int]  # of the pictures whose captions were drawn
    scores: Scores  # len(indices) rows each; "human" is NaN where there is no mask
    kept: list[Layers]  # one per batch of this process


def draw(task: DrawingTask, indices: Sequence[int], keep: int) -> Drawn:
    """One picture per example's caption; the first `keep` have layers. Raises ValueError for masks that do not fit."""
    masks = {} if task.files.masks is None else find_masks(task, task.files.masks, indices)
    parts, kept, local = [], [], task.group.local_part(list(enumerate(batches(indices, task.batch_size))))
    for done, (number, batch) in enumerate(local, 1):
        start = number * task.batch_size
        prompts = [task.test.metadata(i)["caption"] for i in batch]
        layers = generate(task.model, prompts, replace(task.config, seed=task.config.seed + start)).layers
        check_finite(layers, "the diffusion model")
        if start == 0 and task.files.samples is not None:
            save_png(contact_sheet(layers, prompts, task.model.autoencoder.config.has_layers), task.files.samples)
        scores = {"lite0": task.judges.features(layers)} | task.judges.others(layers, prompts)
        if task.files.masks is not None:
            scores["human"] = _human_iou(layers, [masks.get(i) for i in batch])
        if task.files.export is not None:
            for i, pixels in zip(batch, layers.composite(), strict=True):
                save_png(to_image(pixels), task.files.export / file_name(task.test.key(i)))
        parts.append(scores)
        kept.append(layers[: max(keep - start, 0)])
        task.tell(
            f"drew {min(done * task.group.world_size * task.batch_size, len(indices))} of {len(indices)} pictures"
        )
    drawn = Drawn(indices, concatenate(task.group.gather(parts)), kept)
    if task.files.export is not None and task.group.is_main:
        rows = [describe_composite(task, i, position) for position, i in enumerate(indices)]
        write_whole(task.files.export / LIST, "".join(json.dumps(found) + "\n" for found in rows))
    return drawn


def concatenate(parts: Sequence[Scores]) -> Scores:
    """The scores of batches as those of all."""
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def judge_pictures(
    task: DrawingTask, shards: Shards, indices: Sequence[int], say: Callable[[Layers, Sequence[str]], Scores]
) -> Scores:
    """What `say` says of pictures of a data set at the size that is judged, shared by the processes."""
    parts, size = [], (task.judges.size, task.judges.size)
    for batch in task.group.local_part(list(batches(indices, task.batch_size))):
        layers = Layers.cat([center_crop(shards[i].layers, size) for i in batch])
        parts.append(say(layers, [shards.metadata(i)["caption"] for i in batch]))
    return concatenate(task.group.gather(parts))


def describe_composite(task: DrawingTask, index: int, position: int) -> dict[str, Any]:
    """All that a composite depends on, as JSON values. position: among the pictures that are drawn."""
    key, config = task.test.key(index), task.config
    settings = {name: getattr(config, name) for name in ("num_steps", "guidance_scale", "sampler", "height", "width")}
    prompt, seed = task.test.metadata(index)["caption"], config.seed + position
    return {"key": key, "file": file_name(key), "prompt": prompt, "seed": seed} | settings | {"sha256": task.checkpoint}


def file_name(key: str) -> str:
    """The name of a key's composite. No two keys share one."""
    return _escape(key) + ".composite.png"


def find_masks(task: DrawingTask, folder: Path, indices: Sequence[int]) -> dict[int, Path]:
    """The masks in a folder, by the index of the example for which they were drawn; some pictures may be without.

    Raises FileNotFoundError when there is none, ValueError for one of another size than the pictures, and where the
    folder's list says that it was drawn on other pictures than those to come.
    """
    found = {}
    for i in indices:
        stem = _escape(task.test.key(i))
        path = next((p for p in (folder / f"{stem}.mask.png", folder / f"{stem}.png") if p.is_file()), None)
        if path is not None:
            found[i] = path
    if not found:
        key = _escape(task.test.key(indices[0]))
        raise FileNotFoundError(
            f"{folder} holds no mask of the {len(indices)} pictures that are drawn; the first would be {key}.mask.png "
            f"or {key}.png"
        )
    if (folder / LIST).is_file():
        _check_list(
            folder / LIST, [describe_composite(task, i, position) for position, i in enumerate(indices) if i in found]
        )
    for path in found.values():
        if (size := read_mask(path).size) != (wanted := (task.config.width, task.config.height)):
            raise ValueError(
                f"{path} is {size[0]} x {size[1]}, the picture is {wanted[0]} x {wanted[1]}; save the mask at its size"
            )
    return found


def _check_list(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where pictures that were exported differ from those that will be drawn."""
    listed = {}
    for number, line in enumerate(read_text(path, "the list of composites").splitlines(), 1):
        found = parse_json(line, f"{path}, line {number},")
        if not isinstance(found, dict) or not isinstance(found.get("key"), str):
            raise ValueError(f"{path}, line {number}, names no key: {shown(found)}")
        listed[found["key"]] = {GenerateConfig.OLD_NAMES.get(name, name): value for name, value in found.items()}
    for now in rows:
        then = listed.get(now["key"], now)
        if differing := [name for name in now if then.get(name) != now[name]]:
            name = differing[0]
            raise ValueError(
                f"{path} says that {shown(now['key'])} was drawn with {name} {shown(then.get(name))}, now it is "
                f"{shown(now[name])}; masks count for the pictures they were drawn on, so evaluate what was exported"
            )


def _human_iou(layers: Layers, masks: Sequence[Path | None]) -> Tensor:
    """IOU of every mask with what a person drew on the composite, NaN where there is nothing: (N,)."""
    values = torch.full((len(masks),), torch.nan)
    for i, path in enumerate(masks):
        if path is not None:
            values[i] = mask_iou(layers.mask[i : i + 1], to_pixels(read_mask(path)))[0]
    return values


def _escape(key: str) -> str:
    """A key as a file name: letters, digits and `._-` as they are, the rest in percent signs."""
    text = re.sub(r"[^\w.-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), key)
    return f"%2E{text[1:]}" if text.startswith(".") else text
