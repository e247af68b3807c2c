"""A checkpoint and a data set -> every figure of the project, as a dictionary, a JSON file and a Markdown table.

Sets of composites are compared, all at the size the checkpoint was trained on: at another one the judges would tell
sharpness, not things, apart. A picture of another size or shape is scaled, and cut to its middle square.
- real: pictures of one split, `test` or `validation`, or of a folder of shards;
- generated: what the checkpoint draws for the captions of some of them, one each;
- other real pictures: of the split `train`, or the rest of the folder. They teach the probes and set the FID's floor.
Wherever fewer pictures are used than there are, they are spread evenly. A launcher's processes share the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import check_ranges, config_to_dict
from ..data.buckets import center_crop
from ..data.cache_folder import evenly_spaced
from ..data.claim import hash_file
from ..data.shards import Shards
from ..generate import GenerateConfig
from ..io.atomic import atomic_path, write_whole
from ..io.checkpoint import read_metadata
from ..layers import Layers
from ..model.autoencoder import Autoencoder
from ..model.device import pick_device, place
from ..model.saliency import Preset
from ..model.text2layer import Text2Layer, load_autoencoder
from .drawing import (
    LIST,
    DrawingTask,
    Drawn,
    EvaluateFiles,
    Progress,
    Scores,
    concatenate,
    draw,
    find_masks,
    judge_pictures,
)
from .features import Probe, train_probe
from .judges import Judges, open_judges
from .metrics import batches, frechet_distance, reconstruct, share_error
from .sharing import ProcessGroup, join_processes
from .table import MASK_METRICS, with_errors

Metrics = dict[str, Any]
WORDS = {"foreground": "thing", "background": "place"}  # what a probe should recognise in which layer
SPLITS = ("test", "validation")  # the first that there is


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured, and how pictures are drawn."""

    limit: int | None = None  # at most so many real pictures and prompts; None = all of them
    prompts: int = 256  # captions to draw
    probe_examples: int = 4000  # train pictures that teach the probes
    probe_scales: tuple[float, ...] = (1.0,)  # they are scaled by these in turn, and back: 0.5 teaches soft ones too
    saliency_count: int = 256  # generated pictures shown to the saliency network, 5 s each on one core
    saliency_real_count: int = 64  # real pictures shown to it, for an anchor
    saliency_range: Preset = "isnet"  # which network the file holds: model/saliency.py, CONTRACTS
    threads: int = 1  # of the networks that onnxruntime runs on the CPU
    batch_size: int = 16
    judged_size: int | None = None  # pixels along a side of what the judges see; None = what the model was trained on
    generation: GenerateConfig = GenerateConfig()  # how pictures are drawn; the size is what the model was trained on

    def __post_init__(self) -> None:
        check_ranges(self, **dict.fromkeys(("probe_examples", "batch_size", "threads"), (1, 10**12)))
        if not self.probe_scales or not all(0 < scale <= 1 for scale in self.probe_scales):
            raise ValueError(
                f"EvaluateConfig.probe_scales must be numbers above 0, up to 1, got {list(self.probe_scales)}"
            )
        if self.judged_size is not None and self.judged_size < 8:
            raise ValueError(f"EvaluateConfig.judged_size must be at least 8 pixels, got {self.judged_size}")
        for name in ("limit", "prompts"):
            if (value := getattr(self, name)) is not None and value < 2:
                raise ValueError(f"EvaluateConfig.{name} must be at least 2, as a covariance needs, got {value}")


@dataclass(frozen=True, eq=False)
class Task:
    """All that the metrics need, opened and checked before the work. What only a whole model needs may be None."""

    autoencoder: Autoencoder
    test: Shards
    indices: Sequence[int]  # of the real pictures that are measured
    config: EvaluateConfig
    group: ProcessGroup
    tell: Progress
    drawing: DrawingTask | None = None
    train: Shards | None = None
    words: tuple[str, ...] = ()  # the layers that a probe can name

    @property
    def prompted(self) -> list[int]:
        """The real pictures whose captions are drawn."""
        return [self.indices[i] for i in evenly_spaced(len(self.indices), self.config.prompts)]


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    json_path: str | Path,
    config: EvaluateConfig | None = None,
    files: EvaluateFiles | None = None,
    progress: Progress | None = None,
    split: str | None = None,
    device: str = "auto",
    dtype: str = "fp32",
) -> Metrics:
    """Measure a checkpoint on the data set in the folder `data`, write the metrics to `json_path` and return them.

    data: a folder with the splits `train` and `test` or `validation`, or one of shards. split: which; test when None
    and there. device, dtype: where the networks lie, and the checkpoint's precision; the judges' is float32. An
    autoencoder alone has "generation": None, and needs neither the train split nor an optional package.

    Raises FileNotFoundError, ValueError, OSError or ModuleNotFoundError with one sentence, before anything slow, when
    something is missing, does not fit or cannot be written.
    """
    config, files, started = config or EvaluateConfig(), files or EvaluateFiles(), time.monotonic()
    where = pick_device(device)
    with join_processes() as group:
        tell = progress if progress is not None and group.is_main else lambda line: None
        outputs = [Path(json_path), files.samples, files.export and files.export / LIST]
        for path in filter(None, outputs if group.is_main else ()):
            check_writable(path)
        split, test, train = open_data(Path(data), split)
        where = group.pick_card(where)
        autoencoder, model = load_models(Path(checkpoint))
        for network in (autoencoder,) if model is None else (model.autoencoder, model.unet, model.text_encoder):
            place(network, where, dtype)
        indices = evenly_spaced(len(test), config.limit or len(test))
        task = Task(autoencoder, test, indices, config, group, tell)
        notes: list[str] = []
        if model is None:
            notes += _note_unused(files)
        else:
            size = model.trained_size
            config = replace(config, generation=replace(config.generation, height=size, width=size))
            task = open_whole_model(replace(task, config=config), model, train, files, where, Path(checkpoint), notes)
        for note in notes:
            tell(note)
        metrics: Metrics = {"checkpoint": Path(checkpoint).name, "config": config_to_dict(config), "split": split}
        metrics |= {"device": where.type, "dtype": dtype, "counts": {"test": len(indices)}, "notes": notes}
        measure(task, metrics, Path(json_path))
        metrics["seconds"] = round(time.monotonic() - started, 1)
        _write(task, metrics, Path(json_path))
    return metrics


def open_whole_model(
    task: Task,
    model: Text2Layer,
    train: Path | None,
    files: EvaluateFiles,
    device: torch.device,
    checkpoint: Path,
    notes: list[str],
) -> Task:
    """The task of a checkpoint that draws. Sentences about metrics that there will not be are added to the notes."""
    config, has_layers = task.config, task.autoencoder.config.has_layers
    if files.masks is not None and not has_layers:
        raise ValueError(
            f"{checkpoint} paints pictures without layers, so that there is no mask to compare; leave out --masks"
        )
    shards = None if train is None else open_split(train.parent, train.name)
    learnt = [] if shards is None else evenly_spaced(len(shards), config.probe_examples)
    words = tuple(
        layer for layer in WORDS if shards is not None and _can_train_probe(layer, task, shards, learnt, notes)
    )
    device = device if device.type != "mps" else torch.device("cpu")  # it has no antialiased bicubic kernel
    saliency, segmenter = (path if has_layers else None for path in (files.saliency, files.segmenter))
    networks = (saliency, files.features, files.clip, config.threads, config.saliency_range, segmenter)
    judges = open_judges(config.judged_size or model.trained_size, device, *networks)
    settings = (model, judges, task.test, config.generation, config.batch_size, task.group, task.tell, files)
    drawing = DrawingTask(*settings, hash_file(checkpoint) if files.export or files.masks else "")
    if files.masks is not None:
        find_masks(drawing, files.masks, task.prompted)  # what does not fit is said before anything slow
    return replace(task, drawing=drawing, train=shards, words=words)


def measure(task: Task, metrics: Metrics, json_path: Path) -> None:
    """Add every figure to the dictionary; it is written once more before the saliency network begins."""
    task.tell(f"reconstructing {len(task.indices)} real pictures")
    measured, seen = measure_autoencoder(task)
    metrics["autoencoder"] = with_errors(measured)
    metrics["generation"] = None
    if task.drawing is None:
        return
    drawn = draw(task.drawing, task.prompted, task.config.saliency_count)
    metrics["counts"]["generated"] = len(drawn.indices)
    metrics["generation"] = measure_generation(task, drawn, seen, metrics)
    _write(task, metrics, json_path)  # the saliency network may take half an hour: what there is, is safe
    found, counts = measure_saliency(task, task.drawing, drawn)
    metrics["generation"] |= found
    metrics["counts"] |= counts


def measure_autoencoder(task: Task) -> tuple[Scores, Scores]:
    """The autoencoder's metrics, a row per real picture; Lite0 features of "real" and "reconstructed" composites."""
    parts = []
    for indices in task.group.local_part(list(batches(task.indices, task.config.batch_size))):
        parts.append(_reconstructed(task, [_picture(task, i) for i in indices]))
    scores = concatenate(task.group.gather(parts))
    seen: Scores = {name: scores.pop(name) for name in ("real", "reconstructed") if name in scores}
    return (scores if task.autoencoder.config.has_layers else {"composite_psnr": scores["composite_psnr"]}), seen


def _reconstructed(task: Task, pictures: list[Layers]) -> Scores:
    """The scores of one batch; pictures of one size go through the network together."""
    parts = []
    for _, same in groupby(pictures, key=lambda layers: layers.size):
        target = Layers.cat(list(same))
        metrics, predicted = reconstruct(task.autoencoder, target)
        scores = {name: values.cpu() for name, values in metrics.items()}
        if task.drawing is not None:
            judges = task.drawing.judges
            scores |= {"real": judges.features(target), "reconstructed": judges.features(predicted)}
        parts.append(scores)
    return concatenate(parts)


def _picture(task: Task, index: int) -> Layers:
    """One real picture; as it is for an autoencoder alone, which has no size of its own."""
    layers = task.test[index].layers
    size = task.drawing.judges.size if task.drawing is not None else None
    return layers if size is None else center_crop(layers, (size, size))


def measure_generation(task: Task, drawn: Drawn, seen: Scores, metrics: Metrics) -> dict[str, float | None]:
    """Every figure of generated pictures but those of the saliency network, which are None as yet.

    seen: Lite0 features of the "real" and the "reconstructed" composites of task.indices. Adds counts and notes.
    """
    assert task.drawing is not None, "an autoencoder alone draws nothing"
    count = len(drawn.indices)
    found: dict[str, float | None] = dict.fromkeys(MASK_METRICS)
    others = judge_others(task, task.drawing, count)
    if task.words:
        found |= measure_probes(task, drawn, seen, others.learnt)
        metrics["counts"]["train"] = len(others.learnt)
    where = {index: position for position, index in enumerate(task.indices)}
    same = seen["real"][[where[index] for index in drawn.indices]]
    real_floor = others.lite0 if task.train is not None else None  # the rest of a folder is among the real ones
    found["fid"] = frechet_distance(drawn.scores["lite0"], seen["real"])
    found["fid_real"] = _real_distance(real_floor, seen["real"])
    found["fid_reconstruction"] = frechet_distance(seen["reconstructed"], seen["real"])
    found["fid_equal"] = frechet_distance(drawn.scores["lite0"], same)
    found["fid_equal_real"] = _real_distance(others.lite0, same, count)
    if "human" in drawn.scores:
        found |= with_errors({"mask_iou_human": drawn.scores["human"]})
        metrics["counts"]["human"] = int((~drawn.scores["human"].isnan()).sum())
    found |= measure_by_own_networks(task.drawing, drawn, others)
    for note in _explain_fid(drawn, len(others.lite0), task.train is None):
        metrics["notes"].append(note)
        task.tell(note)
    return found


@dataclass(frozen=True, eq=False)
class Others:
    """Real pictures beside those whose captions are drawn."""

    learnt: Tensor  # Lite0 features of train pictures, which teach the probes
    lite0: Tensor  # of at most as many as were drawn
    clean: Tensor | None  # Clean-FID's features of the same


def judge_others(task: Task, drawing: DrawingTask, count: int) -> Others:
    """At most `count` other real pictures: of the split `train`, else of the rest of the folder."""
    if task.train is not None:
        shards, chosen = task.train, evenly_spaced(len(task.train), task.config.probe_examples if task.words else count)
    else:
        asked = set(task.prompted)
        rest = [i for i in range(len(task.test)) if i not in asked]
        shards, chosen = task.test, [rest[i] for i in evenly_spaced(len(rest), count)]
    task.tell(f"looking at {len(chosen)} other real pictures")
    judges, few, clean = drawing.judges, evenly_spaced(len(chosen), count), None
    scales = task.config.probe_scales if task.words else (1.0,)
    learnt = _look(drawing, shards, chosen, scales)
    soft = [i for i in few if scales[i % len(scales)] < 1]
    lite0 = learnt.clone()
    lite0[soft] = _look(drawing, shards, [chosen[i] for i in soft], (1.0,))
    if judges.inception is not None:
        compared = [chosen[i] for i in few]
        clean = judge_pictures(drawing, shards, compared, lambda layers, _: {"clean": judges.clean(layers)}).get(
            "clean"
        )
    return Others(learnt, lite0[few], clean)


def _look(drawing: DrawingTask, shards: Shards, chosen: Sequence[int], scales: Sequence[float]) -> Tensor:
    """Lite0 features of the chosen pictures, scaled by the scales in turn and back; (0, 1) of none."""
    found = torch.zeros(0, 1)
    for turn, scale in enumerate(scales):
        if part := chosen[turn :: len(scales)]:
            features = judge_pictures(drawing, shards, part, partial(_lite0, drawing.judges, scale))["lite0"]
            found = found if len(found) else features.new_zeros(len(chosen), features.shape[1])
            found[turn :: len(scales)] = features
    return found


def _lite0(judges: Judges, scale: float, layers: Layers, captions: Sequence[str]) -> Scores:
    return {"lite0": judges.features(layers, scale)}


def measure_probes(task: Task, drawn: Drawn, seen: Scores, learnt: Tensor) -> dict[str, float | None]:
    """How often a probe, taught by train pictures' Lite0 features, names thing and place, and the standard errors."""
    assert task.train is not None, "a probe learns from the train split"
    found: dict[str, float | None] = {}
    for layer in task.words:
        probe = train_probe(
            learnt, _labels(task.train, evenly_spaced(len(task.train), task.config.probe_examples), layer)
        )
        truth = _labels(task.test, task.indices, layer)
        found |= _top1(probe, f"{layer}_top1", drawn.scores["lite0"], _labels(task.test, drawn.indices, layer))
        found |= _top1(probe, f"{layer}_top1_real", seen["real"], truth)
        found |= _top1(probe, f"{layer}_top1_reconstruction", seen["reconstructed"], truth)
    return found


def measure_by_own_networks(drawing: DrawingTask, drawn: Drawn, others: Others) -> dict[str, float | None]:
    """Metrics of the user's own InceptionV3 and CLIP; n generated pictures against n real ones of their captions."""
    if not drawn.scores.keys() & {"clean", "clip"}:
        return {}
    real = judge_pictures(drawing, drawing.test, drawn.indices, drawing.judges.others)
    found: dict[str, float | None] = {}
    if "clean" in real:
        found["clean_fid"] = frechet_distance(drawn.scores["clean"], real["clean"])
        found["clean_fid_real"] = _real_distance(others.clean, real["clean"], len(real["clean"]))
    if "clip" in real:
        found |= with_errors({"clip": drawn.scores["clip"], "clip_real": real["clip"]})
    return found


def measure_saliency(task: Task, drawing: DrawingTask, drawn: Drawn) -> tuple[dict[str, float | None], dict[str, int]]:
    """Mean IOU of masks with the subject that a network finds, of drawn pictures and of real ones, and how many there
    were.

    The figure of real pictures, with their true masks, is what a perfect model would reach with this judge.
    """
    if not drawing.judges.masks:
        return {}, {"saliency": 0, "saliency_real": 0}
    chosen = [task.indices[i] for i in evenly_spaced(len(task.indices), task.config.saliency_real_count)]
    real = task.group.local_part(list(batches(chosen, task.config.batch_size)))
    sets = {"": drawn.kept, "_real": [Layers.cat([_picture(task, i) for i in part]) for part in real]}
    found: dict[str, float | None] = {}
    counts = {}
    for network in drawing.judges.masks:
        for ending, parts in sets.items():
            name, iou = f"{network}{ending}", [torch.zeros(0)]
            for layers in parts:
                looked = [drawing.judges.mask_iou(network, layers[i : i + 1]) for i in range(len(layers))]
                iou.append(torch.cat([torch.zeros(0), *looked]))
                if looked:
                    task.tell(f"{name}: looked at {sum(map(len, iou))} of {sum(map(len, parts))} pictures")
            values = torch.cat(task.group.gather(iou))
            found |= with_errors({f"mask_iou_{name}": values})
            counts[name] = len(values)
    return found, counts


def open_data(data: Path, split: str | None) -> tuple[str | None, Shards, Path | None]:
    """The split measured with its name, and the folder of other real pictures; no name and no folder for bare shards.

    Raises FileNotFoundError or ValueError with one sentence.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"the data set {data} is no folder that exists")
    if next(data.glob("*.tar"), None) is not None:
        if split is not None:
            raise ValueError(f"{data} is a folder of shards and has no splits; leave out --split {split}")
        return None, open_split(data.parent, data.name), None
    name = split or next((name for name in SPLITS if (data / name).is_dir()), None)
    if name is None:
        raise FileNotFoundError(
            f"{data} has no split to measure, neither {' nor '.join(SPLITS)}, and no shards of its own; give a folder "
            "that `t2l pack --validation N` or `python -m recipes.demo` made, or a folder of shards"
        )
    return name, open_split(data, name), data / "train"


def open_split(data: str | Path, name: str) -> Shards:
    """One split of a data set. Raises FileNotFoundError when the folder lacks it."""
    folder = Path(data) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the data set {data} has no split `{name}`: the folder {folder} does not exist")
    shards = Shards(folder)
    if len(shards) < 2:
        raise ValueError(f"the split {folder} must hold two pictures or more, it holds {len(shards)}")
    return shards


def load_models(checkpoint: Path) -> tuple[Autoencoder, Text2Layer | None]:
    """The autoencoder of a checkpoint and, unless it holds an autoencoder alone, the whole model."""
    if read_metadata(checkpoint).get("kind") == "autoencoder":
        return load_autoencoder(checkpoint), None
    model = Text2Layer.load(checkpoint)
    return model.autoencoder, model


def check_writable(path: Path) -> None:
    """Raises OSError when the file cannot be written; leaves nothing behind but its folder."""
    with suppress(_Enough), atomic_path(path):
        raise _Enough


class _Enough(Exception):
    """Leaves `atomic_path` before the file takes its name."""


def _write(task: Task, metrics: Metrics, path: Path) -> None:
    """Write the metrics, whole or not at all; who returns may read the file."""
    if task.group.is_main:
        write_whole(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    task.group.wait()


def _can_train_probe(layer: str, task: Task, train: Shards, learnt: Sequence[int], notes: list[str]) -> bool:
    """Whether every picture names what a probe should see in a layer, and the train pictures two of them or more.

    Where some do, a note says what is missing.
    """
    word = WORDS[layer]
    known, asked = _labels(train, learnt, layer), _labels(task.test, task.indices, layer)
    if not any(known) and not any(asked):
        return False
    for labels, shards in ((asked, task.test), (known, train)):
        if unnamed := labels.count(""):
            notes.append(
                f"{unnamed} of {len(labels)} pictures in {shards.directory} have no {word}, so {layer}_top1 is left "
                f'out; give every picture a "{word}" in its KEY.json and pack them again'
            )
            return False
    if len(found := set(known)) < 2:
        notes.append(f"{train.directory} shows no {word} but {found.pop()!r}, so {layer}_top1 is left out")
        return False
    return True


def _note_unused(files: EvaluateFiles) -> list[str]:
    """A sentence about files that were given for nothing."""
    given = [f.name for f in fields(files) if getattr(files, f.name) is not None]
    return [f"an autoencoder alone draws nothing: {', '.join(given)} will not be used"] if given else []


def _top1(probe: Probe, name: str, features: Tensor, labels: Sequence[str]) -> dict[str, float | None]:
    accuracy = probe.top1(features, labels)
    return {name: accuracy, f"{name}_se": share_error(accuracy, len(labels))}


def _real_distance(others: Tensor | None, real: Tensor, count: int = 2) -> float | None:
    """The distance of two sets of real pictures; None where there are fewer than `count` of the others."""
    return None if others is None or len(others) < count else frechet_distance(others, real)


def _explain_fid(drawn: Drawn, others: int, are_rest: bool) -> list[str]:
    """Sentences about distances that say little, or have no floor. are_rest: others are what the captions leave."""
    count, notes = len(drawn.indices), []
    width = max(x.shape[1] for name, x in drawn.scores.items() if name in ("lite0", "clean"))
    if count < width:
        notes.append(
            f"FID is of {count} pictures with {width} features: with fewer pictures than features it is mostly bias, "
            "so compare it only with its floor and with figures of as many pictures; prompts=N draws more"
        )
    if others < count:
        notes.append(
            f"the floor of FID needs {count} real pictures beside those of the captions, there are {others}; "
            f"prompts={max(2, (count + others) // 2 if are_rest else others)} has one"
        )
    return notes


def _labels(shards: Shards, indices: Sequence[int], layer: str) -> list[str]:
    return [shards.metadata(i).get(WORDS[layer], "") for i in indices]
