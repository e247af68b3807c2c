"""A checkpoint and a data set -> every figure of the project, as a dictionary, a JSON file and a Markdown table.

Sets of composites are compared, all at the size the checkpoint was trained on: at another one the judges would tell sharpness,
not things, apart. A picture of another size or shape is scaled, and cut to its middle square.
- real: pictures of one split, `test` or `validation`, or of a folder of shards;
- generated: what the checkpoint draws for the captions of some of them, one each;
- other real pictures: of the split `train`, or of the rest of the folder. They teach the probes and set the FID's floor.
Wherever fewer pictures are used than there are, they are spread evenly. Processes that a launcher started share the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import config_to_dict
from ..data.buckets import cover
from ..data.cache_folder import spread
from ..data.shards import Shards
from ..generate import GenerateConfig
from ..io.atomic import atomic_path
from ..io.checkpoint import read_metadata
from ..layers import Layers
from ..model.autoencoder import Autoencoder
from ..model.device import pick_device, place
from ..model.saliency import Preset
from ..model.text2layer import Text2Layer, load_autoencoder
from .drawing import LIST, DrawingTask, Drawn, Progress, Said, concatenated, digest_of, draw, find_masks, look
from .features import Probe, train_probe
from .figures import MASK_FIGURES, with_errors
from .judges import open_judges
from .metrics import batches, frechet_distance, reconstruct, share_error
from .sharing import Share, joined

Figures = dict[str, Any]
WORDS = {"foreground": "thing", "background": "place"}  # what a probe should recognise in which layer
SPLITS = ("test", "validation")  # the first that there is


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured, and how pictures are drawn."""

    limit: int | None = None  # at most so many real pictures and prompts; None = all of them
    prompts: int = 256  # captions to draw
    probe_examples: int = 4000  # train pictures that teach the probes
    saliency_count: int = 256  # generated pictures shown to the saliency network, 5 s each on one core
    saliency_real_count: int = 64  # real pictures shown to it, for an anchor
    saliency_range: Preset = "isnet"  # which network the file holds: model/saliency.py, CONTRACTS
    threads: int = 1  # of the networks that onnxruntime runs on the CPU
    batch_size: int = 16
    generation: GenerateConfig = GenerateConfig()  # how pictures are drawn; the size is what the model was trained on

    def __post_init__(self) -> None:
        for name in ("probe_examples", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"EvaluateConfig.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "prompts"):
            if (value := getattr(self, name)) is not None and value < 2:
                raise ValueError(f"EvaluateConfig.{name} must be at least 2, as a covariance needs, got {value}")


@dataclass(frozen=True, kw_only=True)
class EvaluateFiles:
    """The files beside checkpoint, data and figures: the user's own judges and masks, and pictures to be written."""

    saliency: Path | None = None  # a salient-object network as `saliency_model` takes it
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
class Task:
    """All that the figures need, opened and checked before the work begins. What only a whole model needs may be None."""

    autoencoder: Autoencoder
    test: Shards
    indices: Sequence[int]  # of the real pictures that are measured
    config: EvaluateConfig
    share: Share
    tell: Progress
    drawing: DrawingTask | None = None
    train: Shards | None = None
    words: tuple[str, ...] = ()  # the layers that a probe can name

    @property
    def asked(self) -> list[int]:
        """The real pictures whose captions are drawn."""
        return [self.indices[i] for i in spread(len(self.indices), self.config.prompts)]


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
) -> Figures:
    """Measure a checkpoint on the data set in the folder `data`, write the figures to `json_path` and return them.

    data: a folder with the splits `train` and `test` or `validation`, or one of shards. split: which; test when None and there.
    device, dtype: where the networks lie, and the checkpoint's precision; the judges' is float32. A checkpoint that holds an
    autoencoder alone has "generation": None, and then neither the train split nor an optional package is needed.

    Raises FileNotFoundError, ValueError, OSError or ModuleNotFoundError with one sentence, before anything slow, when
    something is missing, does not fit or cannot be written.
    """
    config, files, started = config or EvaluateConfig(), files or EvaluateFiles(), time.monotonic()
    where = pick_device(device)
    with joined() as share:
        tell = progress if progress is not None and share.is_main else _quiet
        outputs = [Path(json_path), files.samples, files.export and files.export / LIST]
        for path in filter(None, outputs if share.is_main else ()):
            check_writable(path)
        split, test, train = open_data(Path(data), split)
        where = share.card(where)
        autoencoder, model = load_models(Path(checkpoint))
        for network in (autoencoder,) if model is None else (model.autoencoder, model.unet, model.text_encoder):
            place(network, where, dtype)
        indices = spread(len(test), config.limit or len(test))
        task = Task(autoencoder, test, indices, config, share, tell)
        notes: list[str] = []
        if model is None:
            notes += _unused(files)
        else:
            config = replace(config, generation=_at_trained_size(model, config.generation))
            task = whole_task(replace(task, config=config), model, train, files, where, Path(checkpoint), notes)
        for note in notes:
            tell(note)
        figures: Figures = {"checkpoint": Path(checkpoint).name, "config": config_to_dict(config), "split": split}
        figures |= {"device": where.type, "dtype": dtype, "counts": {"test": len(indices)}, "notes": notes}
        measure(task, figures, Path(json_path))
        figures["seconds"] = round(time.monotonic() - started, 1)
        _write(task, figures, Path(json_path))
    return figures


def whole_task(
    task: Task,
    model: Text2Layer,
    train: Path | None,
    files: EvaluateFiles,
    device: torch.device,
    checkpoint: Path,
    notes: list[str],
) -> Task:
    """The task of a checkpoint that draws. Sentences about figures that there will not be are added to the notes."""
    config, has_layers = task.config, task.autoencoder.config.has_layers
    if files.masks is not None and not has_layers:
        raise ValueError(
            f"{checkpoint} paints pictures without layers, so that there is no mask to compare; leave out --masks"
        )
    shards = None if train is None else open_split(train.parent, train.name)
    learnt = [] if shards is None else spread(len(shards), config.probe_examples)
    words = tuple(layer for layer in WORDS if shards is not None and _can_tell(layer, task, shards, learnt, notes))
    saliency = files.saliency if has_layers else None
    device = device if device.type != "mps" else torch.device("cpu")  # it has no antialiased bicubic kernel
    judges = open_judges(
        model.trained_size, device, saliency, files.features, files.clip, config.threads, config.saliency_range
    )
    settings = {"samples": files.samples, "export": files.export, "masks": files.masks}
    digest = digest_of(checkpoint) if files.export or files.masks else ""
    drawing = DrawingTask(
        model, judges, task.test, config.generation, config.batch_size, task.share, task.tell, digest, **settings
    )
    if files.masks is not None:
        find_masks(drawing, files.masks, task.asked)  # what does not fit is said before anything slow
    return replace(task, drawing=drawing, train=shards, words=words)


def measure(task: Task, figures: Figures, json_path: Path) -> None:
    """Add every figure to the dictionary; it is written once more before the saliency network begins."""
    task.tell(f"reconstructing {len(task.indices)} real pictures")
    measured, seen = reconstruct_all(task)
    figures["autoencoder"] = with_errors(measured)
    figures["generation"] = None
    if task.drawing is None:
        return
    drawn = draw(task.drawing, task.asked, task.config.saliency_count)
    figures["counts"]["generated"] = len(drawn.indices)
    figures["generation"] = generation_figures(task, drawn, seen, figures)
    _write(task, figures, json_path)  # the saliency network may take half an hour: what there is, is safe
    found, counts = look_for_salient_objects(task, task.drawing, drawn)
    figures["generation"] |= found
    figures["counts"] |= counts


def reconstruct_all(task: Task) -> tuple[Said, Said]:
    """The autoencoder's figures, one row per real picture, and Lite0 features of the "real" and "reconstructed" composites."""
    parts = []
    for indices in task.share.mine(list(batches(task.indices, task.config.batch_size))):
        parts.append(_reconstructed(task, [_picture(task, i) for i in indices]))
    said = concatenated(task.share.gather(parts))
    seen: Said = {name: said.pop(name) for name in ("real", "reconstructed") if name in said}
    return (said if task.autoencoder.config.has_layers else {"composite_psnr": said["composite_psnr"]}), seen


def _reconstructed(task: Task, pictures: list[Layers]) -> Said:
    """What is said of one batch; pictures of one size go through the network together."""
    parts = []
    for _, same in groupby(pictures, key=lambda layers: layers.size):
        target = Layers.cat(list(same))
        figures, predicted = reconstruct(task.autoencoder, target)
        said = {name: values.cpu() for name, values in figures.items()}
        if task.drawing is not None:
            judges = task.drawing.judges
            said |= {"real": judges.features(target), "reconstructed": judges.features(predicted)}
        parts.append(said)
    return concatenated(parts)


def _picture(task: Task, index: int) -> Layers:
    """One real picture; as it is for an autoencoder alone, which has no size of its own."""
    layers = task.test[index].layers
    size = task.drawing.judges.size if task.drawing is not None else None
    return layers if size is None else cover(layers, (size, size))


def generation_figures(task: Task, drawn: Drawn, seen: Said, figures: Figures) -> dict[str, float | None]:
    """Every figure of generated pictures but those of the saliency network, which are None as yet.

    seen: Lite0 features of the "real" and the "reconstructed" composites of task.indices. Adds counts and notes.
    """
    assert task.drawing is not None, "an autoencoder alone draws nothing"
    count = len(drawn.indices)
    found: dict[str, float | None] = dict.fromkeys(MASK_FIGURES)
    others = look_at_others(task, task.drawing, count)
    if task.words:
        found |= probe_figures(task, drawn, seen, others.learnt)
        figures["counts"]["train"] = len(others.learnt)
    where = {index: position for position, index in enumerate(task.indices)}
    same = seen["real"][[where[index] for index in drawn.indices]]
    real_floor = others.lite0 if task.train is not None else None  # the rest of a folder is among the real ones
    found["fid"] = frechet_distance(drawn.said["lite0"], seen["real"])
    found["fid_real"] = _floor(real_floor, seen["real"])
    found["fid_reconstruction"] = frechet_distance(seen["reconstructed"], seen["real"])
    found["fid_equal"] = frechet_distance(drawn.said["lite0"], same)
    found["fid_equal_real"] = _floor(others.lite0, same, count)
    if "human" in drawn.said:
        found |= with_errors({"mask_iou_human": drawn.said["human"]})
        figures["counts"]["human"] = int((~drawn.said["human"].isnan()).sum())
    found |= own_figures(task.drawing, drawn, others)
    for note in _fid_notes(drawn, len(others.lite0), task.train is None):
        figures["notes"].append(note)
        task.tell(note)
    return found


@dataclass(frozen=True, eq=False)
class Others:
    """Real pictures beside those whose captions are drawn."""

    learnt: Tensor  # Lite0 features of train pictures, which teach the probes
    lite0: Tensor  # of at most as many as were drawn
    clean: Tensor | None  # Clean-FID's features of the same


def look_at_others(task: Task, drawing: DrawingTask, count: int) -> Others:
    """At most `count` other real pictures: of the split `train`, else of the rest of the folder."""
    if task.train is not None:
        shards, chosen = task.train, spread(len(task.train), task.config.probe_examples if task.words else count)
    else:
        asked = set(task.asked)
        rest = [i for i in range(len(task.test)) if i not in asked]
        shards, chosen = task.test, [rest[i] for i in spread(len(rest), count)]
    task.tell(f"looking at {len(chosen)} other real pictures")
    learnt = look(drawing, shards, chosen, lambda layers, _: {"lite0": drawing.judges.features(layers)})
    features = learnt.get("lite0", torch.zeros(0, 1))
    few = spread(len(chosen), count)
    clean = None
    if drawing.judges.inception is not None:
        said = look(
            drawing, shards, [chosen[i] for i in few], lambda layers, _: {"clean": drawing.judges.clean(layers)}
        )
        clean = said.get("clean")
    return Others(features, features[few], clean)


def probe_figures(task: Task, drawn: Drawn, seen: Said, learnt: Tensor) -> dict[str, float | None]:
    """How often a probe, taught by the Lite0 features of train pictures, names thing and place, and the standard errors."""
    assert task.train is not None, "a probe learns from the train split"
    found: dict[str, float | None] = {}
    for layer in task.words:
        probe = train_probe(learnt, _labels(task.train, spread(len(task.train), task.config.probe_examples), layer))
        truth = _labels(task.test, task.indices, layer)
        found |= _top1(probe, f"{layer}_top1", drawn.said["lite0"], _labels(task.test, drawn.indices, layer))
        found |= _top1(probe, f"{layer}_top1_real", seen["real"], truth)
        found |= _top1(probe, f"{layer}_top1_reconstruction", seen["reconstructed"], truth)
    return found


def own_figures(drawing: DrawingTask, drawn: Drawn, others: Others) -> dict[str, float | None]:
    """The figures of the user's own InceptionV3 and CLIP; n generated pictures against the n real ones of their captions."""
    if not drawn.said.keys() & {"clean", "clip"}:
        return {}
    real = look(drawing, drawing.test, drawn.indices, drawing.judges.others)
    found: dict[str, float | None] = {}
    if "clean" in real:
        found["clean_fid"] = frechet_distance(drawn.said["clean"], real["clean"])
        found["clean_fid_real"] = _floor(others.clean, real["clean"], len(real["clean"]))
    if "clip" in real:
        found |= with_errors({"clip": drawn.said["clip"], "clip_real": real["clip"]})
    return found


def look_for_salient_objects(
    task: Task, drawing: DrawingTask, drawn: Drawn
) -> tuple[dict[str, float | None], dict[str, int]]:
    """Mean IOU of masks with the salient object, of drawn pictures and of real ones, and how many there were.

    The figure of real pictures, with their true masks, is what a perfect model would reach with this judge.
    """
    if drawing.judges.saliency is None:
        return {}, {"saliency": 0, "saliency_real": 0}
    chosen = [task.indices[i] for i in spread(len(task.indices), task.config.saliency_real_count)]
    real = task.share.mine(list(batches(chosen, task.config.batch_size)))
    sets = {"saliency": drawn.kept, "saliency_real": [Layers.cat([_picture(task, i) for i in part]) for part in real]}
    found: dict[str, float | None] = {}
    counts = {}
    for name, parts in sets.items():
        iou: list[Tensor] = []
        for layers in parts:
            looked = [drawing.judges.saliency_iou(layers[i : i + 1]) for i in range(len(layers))]
            iou.append(torch.cat([torch.zeros(0), *looked]))
            if looked:
                task.tell(f"{name}: looked at {sum(map(len, iou))} of {sum(map(len, parts))} pictures")
        values = torch.cat([torch.zeros(0), *task.share.gather(iou)])
        found |= with_errors({f"mask_iou_{name}": values})
        counts[name] = len(values)
    return found, counts


def open_data(data: Path, split: str | None) -> tuple[str | None, Shards, Path | None]:
    """The split that is measured with its name, and the folder of other real pictures; no name and no folder for bare shards.

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
            f"{data} has no split to measure, neither {' nor '.join(SPLITS)}, and no shards of its own; give a folder that `t2l "
            f"pack --validation N` or `python -m recipes.demo` made, or a folder of shards"
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


def write_json(path: Path, figures: Figures) -> None:
    """Write the figures, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


class _Enough(Exception):
    """Leaves `atomic_path` before the file takes its name."""


def _write(task: Task, figures: Figures, path: Path) -> None:
    if task.share.is_main:
        write_json(path, figures)
    task.share.wait()  # who returns may read the file


def _at_trained_size(model: Text2Layer, config: GenerateConfig) -> GenerateConfig:
    return replace(config, height=model.trained_size, width=model.trained_size)


def _can_tell(layer: str, task: Task, train: Shards, learnt: Sequence[int], notes: list[str]) -> bool:
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
                f"{unnamed} of {len(labels)} pictures in {shards.directory} have no {word}, so {layer}_top1 is left out; give "
                f'every picture a "{word}" in its KEY.json and pack them again'
            )
            return False
    if len(found := set(known)) < 2:
        notes.append(f"{train.directory} shows no {word} but {found.pop()!r}, so {layer}_top1 is left out")
        return False
    return True


def _unused(files: EvaluateFiles) -> list[str]:
    """A sentence about files that were given for nothing."""
    given = [f.name for f in fields(files) if getattr(files, f.name) is not None]
    return [f"an autoencoder alone draws nothing: {', '.join(given)} will not be used"] if given else []


def _top1(probe: Probe, name: str, features: Tensor, labels: Sequence[str]) -> dict[str, float | None]:
    share = probe.top1(features, labels)
    return {name: share, f"{name}_se": share_error(share, len(labels))}


def _floor(others: Tensor | None, real: Tensor, count: int = 2) -> float | None:
    """The distance of two sets of real pictures; None where there are fewer than `count` of the others."""
    return None if others is None or len(others) < count else frechet_distance(others, real)


def _fid_notes(drawn: Drawn, others: int, are_rest: bool) -> list[str]:
    """Sentences about distances that say little, or have no floor. are_rest: whether others are what the captions leave."""
    count, notes = len(drawn.indices), []
    width = max(x.shape[1] for name, x in drawn.said.items() if name in ("lite0", "clean"))
    if count < width:
        notes.append(
            f"FID is of {count} pictures with {width} features: with fewer pictures than features it is mostly bias, so "
            f"compare it only with its floor and with figures of as many pictures; prompts=N draws more"
        )
    if others < count:
        notes.append(
            f"the floor of FID needs {count} real pictures beside those of the captions, there are {others}; "
            f"prompts={max(2, (count + others) // 2 if are_rest else others)} has one"
        )
    return notes


def _labels(shards: Shards, indices: Sequence[int], layer: str) -> list[str]:
    return [shards.metadata(i)[WORDS[layer]] for i in indices]


def _quiet(line: str) -> None:
    """Progress for nobody."""
