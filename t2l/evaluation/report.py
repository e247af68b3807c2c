"""A checkpoint and a data set -> every figure of the project, as a dictionary, a JSON file and a Markdown table.

Three sets of composites are compared, all at the size the checkpoint was trained on: at another one the judges would tell
sharpness, not things, apart.
- test: pictures of the split `test`, whose (thing, place) pairs no training picture shows;
- generated: what the checkpoint draws for the captions of test pictures, one each;
- train: pictures of the split `train`, which teach the probes and stand for "real" in fid_real.
Wherever fewer pictures are used than a split holds, they are spread evenly over it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import config_to_dict
from ..data.shards import Shards
from ..generate import GenerateConfig, generate
from ..io.atomic import atomic_path
from ..io.checkpoint import read_metadata
from ..io.image import contact_sheet, save_png
from ..layers import Layers
from ..model.autoencoder import Autoencoder
from ..model.text2layer import Text2Layer, load_autoencoder
from .features import EfficientNetLite0, load_lite0, train_probe
from .metrics import batches, check_finite, evaluate_autoencoder, frechet_distance, mask_iou, mean_figure, spread
from .saliency import SaliencyModel, saliency_model

Figures = dict[str, Any]
Progress = Callable[[str], None]  # gets lines for people

AUTOENCODER_FIGURES = {  # the keys of the JSON file, and what the figure should be
    "mask_iou": ">= 0.99",
    "mask_l1": "<= 0.008",
    "composite_psnr": ">= 25 dB",
    "foreground_psnr": ">= 27 dB",
    "visible_background_psnr": ">= 25 dB",
    "hidden_background_psnr": ">= 19 dB",
    "recompose_l1": "<= 0.02",
    "recompose_max": "",
}
GENERATION_FIGURES = {
    "foreground_top1": ">= half of real",
    "foreground_top1_real": "",
    "foreground_top1_reconstruction": "",
    "background_top1": ">= half of real",
    "background_top1_real": "",
    "background_top1_reconstruction": "",
    "mask_iou_saliency": ">= 0.885 (the paper)",
    "mask_iou_saliency_real": "",
    "fid": "",
    "fid_real": "",
    "fid_reconstruction": "",
}
WORDS = {"foreground": "thing", "background": "place"}  # what a probe should recognise in which layer


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured, and how pictures are drawn."""

    limit: int | None = None  # at most so many test pictures and prompts; None = all of them
    prompts: int = 256  # captions of test pictures to draw
    probe_examples: int = 4000  # train pictures that teach the probes
    saliency_count: int = 256  # generated pictures shown to the saliency network, 5 s each on one core
    saliency_real_count: int = 64  # test pictures shown to it, for an anchor
    threads: int = 1  # of the saliency network
    batch_size: int = 16
    generation: GenerateConfig = GenerateConfig()  # how pictures are drawn; the size is what the model was trained on

    def __post_init__(self) -> None:
        for name in ("prompts", "probe_examples", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"EvaluateConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"EvaluateConfig.limit must be at least 2, as a covariance needs, got {self.limit}")


@dataclass(frozen=True, eq=False)
class Judges:
    """The frozen networks that look at composites, on the CPU."""

    network: EfficientNetLite0
    saliency: SaliencyModel | None
    size: int  # pixels along a side of what the network is shown

    @torch.no_grad()
    def features(self, layers: Layers) -> Tensor:
        """Lite0 features of the composites at `size`, (N, 1280)."""
        composites = layers.composite().float().cpu()
        if layers.size != (self.size, self.size):
            composites = F.interpolate(composites, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network(composites)

    def saliency_iou(self, layers: Layers) -> Tensor:
        """IOU of each mask with the salient object of its composite, (N,)."""
        assert self.saliency is not None, "saliency_iou is asked for only with a saliency network"
        return mask_iou(layers.mask.float().cpu(), self.saliency(layers.composite()))


@dataclass(frozen=True, eq=False)
class GenerationTask:
    """All that the generation's figures need, opened and checked before the work begins."""

    model: Text2Layer
    judges: Judges
    test: Shards
    train: Shards
    config: EvaluateConfig
    tell: Progress
    samples: Path | None  # where a contact sheet goes


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the checkpoint drew."""

    indices: Sequence[int]  # of the test pictures whose captions were drawn
    features: Tensor  # (len(indices), 1280), of the composites
    kept: list[Layers]  # the first saliency_count pictures


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    json_path: str | Path,
    config: EvaluateConfig | None = None,
    saliency: str | Path | None = None,
    samples: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Measure a checkpoint on the data set in the folder `data`, write the figures to `json_path` and return them.

    saliency: the ISNet file or folder of `saliency_model`; without it the mask_iou_saliency figures are None.
    samples: a PNG file for a contact sheet of the first batch of generated pictures. A checkpoint that holds an
    autoencoder alone has "generation": None, and then neither the train split nor an optional package is needed.

    Raises FileNotFoundError, ValueError, OSError or ModuleNotFoundError with one sentence, before anything slow, when
    something is missing, does not fit or cannot be written.
    """
    config, tell, started = config or EvaluateConfig(), progress or _quiet, time.monotonic()
    sheet = None if samples is None else Path(samples)
    for path in filter(None, (Path(json_path), sheet)):
        check_writable(path)
    test = open_split(data, "test")
    autoencoder, model = load_models(Path(checkpoint))
    task = None
    if model is not None:
        config = replace(config, generation=_at_trained_size(model, config.generation))
        train = open_split(data, "train")
        _check_words(test, train)
        has_masks = autoencoder.config.has_layers
        judge = saliency_model(saliency, config.threads) if saliency is not None and has_masks else None
        judges = Judges(load_lite0(), judge, model.trained_size)
        task = GenerationTask(model, judges, test, train, config, tell, sheet)

    indices = spread(config.limit or len(test), len(test))
    tell(f"reconstructing {len(indices)} test pictures")
    real, reconstructed = [], []

    def observe(target: Layers, predicted: Layers) -> None:
        if task is not None:
            real.append(task.judges.features(target))
            reconstructed.append(task.judges.features(predicted))

    figures: Figures = {"checkpoint": Path(checkpoint).name, "config": config_to_dict(config)}
    figures["counts"] = {"test": len(indices)}
    measured = evaluate_autoencoder(autoencoder, test, len(indices), config.batch_size, observe)
    if not autoencoder.config.has_layers:
        measured = {"composite_psnr": measured["composite_psnr"]}
    figures["autoencoder"] = measured
    figures["generation"] = None
    if task is not None:
        drawn = draw(task, [indices[i] for i in spread(config.prompts, len(indices))])
        figures["generation"] = recognition_figures(task, drawn, indices, torch.cat(real), torch.cat(reconstructed))
        figures["counts"] |= {"generated": len(drawn.indices), "train": min(config.probe_examples, len(task.train))}
        write_json(Path(json_path), figures)  # the saliency network may take half an hour: what there is, is safe
        saliency_figures, counts = look_for_salient_objects(task, drawn, indices)
        figures["generation"] |= saliency_figures
        figures["counts"] |= counts
    figures["seconds"] = round(time.monotonic() - started, 1)
    write_json(Path(json_path), figures)
    return figures


def draw(task: GenerationTask, indices: Sequence[int]) -> Drawn:
    """One picture for the caption of each test picture."""
    config, size = task.config.generation, task.config.batch_size
    features, kept = [], []
    for start, batch in zip(count(step=size), batches(indices, size)):
        prompts = [task.test.metadata(i)["caption"] for i in batch]
        layers = generate(task.model, prompts, replace(config, seed=config.seed + start)).layers
        check_finite(layers, "the diffusion model")
        if start == 0 and task.samples is not None:
            save_png(contact_sheet(layers, prompts, task.model.autoencoder.config.has_layers), task.samples)
        features.append(task.judges.features(layers))
        kept += [layers[i : i + 1] for i in range(len(layers))][: max(task.config.saliency_count - start, 0)]
        task.tell(f"drew {start + len(batch)} of {len(indices)} pictures")
    return Drawn(indices, torch.cat(features), kept)


def recognition_figures(
    task: GenerationTask, drawn: Drawn, indices: Sequence[int], real: Tensor, reconstructed: Tensor
) -> dict[str, float | None]:
    """The figures of GENERATION_FIGURES that need Lite0 alone; those of the saliency network are None as yet.

    indices: of the test pictures; real, reconstructed: (len(indices), 1280), features of their composites.
    """
    learnt = spread(task.config.probe_examples, len(task.train))
    known = train_features(task, learnt)
    figures: dict[str, float | None] = dict.fromkeys(GENERATION_FIGURES)
    for layer, word in WORDS.items():
        probe = train_probe(known, _labels(task.train, learnt, word))
        figures[f"{layer}_top1"] = probe.top1(drawn.features, _labels(task.test, drawn.indices, word))
        truth = _labels(task.test, indices, word)
        figures[f"{layer}_top1_real"] = probe.top1(real, truth)
        figures[f"{layer}_top1_reconstruction"] = probe.top1(reconstructed, truth)
    anchor = known[spread(len(drawn.indices), len(known))]  # as many as were drawn: the distance has the same bias
    figures["fid"] = frechet_distance(drawn.features, real)
    figures["fid_real"] = frechet_distance(anchor, real)
    figures["fid_reconstruction"] = frechet_distance(reconstructed, real)
    return figures


def train_features(task: GenerationTask, indices: Sequence[int]) -> Tensor:
    """Lite0 features of train composites, (len(indices), 1280)."""
    task.tell(f"looking at {len(indices)} train pictures")
    parts = batches(indices, task.config.batch_size)
    return torch.cat([task.judges.features(Layers.cat([task.train[i].layers for i in part])) for part in parts])


def look_for_salient_objects(
    task: GenerationTask, drawn: Drawn, indices: Sequence[int]
) -> tuple[dict[str, float | None], dict[str, int]]:
    """Mean IOU of masks with the salient object, of drawn pictures and of test pictures, and how many there were.

    The figure of test pictures, with their true masks, is what a perfect model would reach with this judge.
    """
    if task.judges.saliency is None:
        return {}, {"saliency": 0, "saliency_real": 0}
    chosen = [indices[i] for i in spread(task.config.saliency_real_count, len(indices))]
    sets = {"saliency": drawn.kept, "saliency_real": [task.test[i].layers for i in chosen]}
    figures = {}
    for name, pictures in sets.items():
        iou = []
        for done, layers in enumerate(pictures, 1):
            iou.append(task.judges.saliency_iou(layers))
            if done % task.config.batch_size == 0 or done == len(pictures):
                task.tell(f"{name}: looked at {done} of {len(pictures)} pictures")
        figures[f"mask_iou_{name}"] = mean_figure(torch.cat([torch.zeros(0), *iou]))
    return figures, {name: len(pictures) for name, pictures in sets.items()}


def markdown_table(figures: Figures) -> str:
    """The figures as a Markdown table, one row each with what it should be; "-" where one was not measured."""
    rows = ["| figure | value | wanted |", "|---|---|---|"]
    for part, names in (("autoencoder", AUTOENCODER_FIGURES), ("generation", GENERATION_FIGURES)):
        measured = figures.get(part) or {}
        for name, wanted in names.items():
            value = measured.get(name)
            rows.append(f"| {part}.{name} | {'-' if value is None else f'{value:.4g}'} | {wanted} |")
    return "\n".join(rows)


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


def _at_trained_size(model: Text2Layer, config: GenerateConfig) -> GenerateConfig:
    return replace(config, height=model.trained_size, width=model.trained_size)


def _check_words(test: Shards, train: Shards) -> None:
    for word in WORDS.values():
        for shards in (test, train):
            if unnamed := _labels(shards, range(len(shards)), word).count(""):
                raise ValueError(
                    f"{unnamed} of the {len(shards)} pictures in {shards.directory} have no {word}, which evaluate needs to "
                    f'tell whether it was drawn; give every picture a "{word}" in its KEY.json and pack them again'
                )
        if len(found := set(_labels(train, range(len(train)), word))) < 2:
            raise ValueError(f"{train.directory} must show two {word}s or more, to tell apart; it shows {found}")


def _labels(shards: Shards, indices: Sequence[int], word: str) -> list[str]:
    return [shards.metadata(i)[word] for i in indices]


def _quiet(line: str) -> None:
    """Progress for nobody."""
