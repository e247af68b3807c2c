"""The paper's steps, a stage each: it answers for each sample of a batch, with a sample or why it is dropped.

Stages know nothing of processes, shards or sources. What a stage answers for a picture depends on that picture alone,
so neither the engine nor the number of workers changes a data set.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...compositing.split import SplitConfig, find_hole, split
from ...config import check_ranges
from ...io.image import to_pixels
from ...io.picture_file import BROKEN, Unreadable, decode_colours
from ...layers import Layers
from ..layer_sources import LONGEST, SMALLEST
from .hashes import perceptual_hash
from .sources import Record

Saliency = Callable[[Tensor], Tensor]  # pictures -> soft masks (N, 1, H, W)
Inpainter = Callable[[Tensor, Tensor], Tensor]  # pictures, holes (N, 1, H, W) with 1 = to be painted -> pictures
Judge = Callable[[Tensor, Tensor], Tensor]  # pictures, masks -> scores (N,), 1 = surely good
MASK, INPAINTING = "mask", "inpainting"  # the judges: of (picture, mask), and of (background, mask)
HALF = 0.5
IN_A_ROW = 32  # pictures that fail one after another: then it is not the pictures


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What is taken, what is done to it, and what is dropped. OUT/config.json carries it."""

    seed: int = 0  # draws which pictures are kept back
    size: int = 512  # pixels of the shorter side of what is written; the paper's
    crop: bool = True  # the middle square, as the paper; False keeps the shape
    smallest: int = 256  # pixels of a source's shorter side, at least
    largest_aspect: float = 3.0  # longer side / shorter side of a source, at most
    longest_caption: int = 10_000  # characters
    licences: tuple[str, ...] = ()  # the only ones that are taken, `*` for any letters; () = all, also unknown ones
    deduplicate: bool = True  # drop what looks like a picture that came before
    hash_distance: int = 2  # bits of 64 in which two pictures that look alike differ, at most
    split: SplitConfig = field(default_factory=SplitConfig)
    mask_threshold: float | None = None  # the least score of the mask filter that is kept; None = the filter's own
    inpainting_threshold: float | None = None  # and of the inpainting filter
    unfiltered: bool = False  # keep what the filters would drop, with its scores: the paper's LAION-L2I (U)
    validation: int = 0  # source pictures that are kept back, not to be trained on
    shard_size: int = 100  # source pictures a shard, the unit of restart; 10,000 for many millions
    batch_size: int = 8  # pictures that a model sees at once
    shown: int = 2  # dropped pictures of every shard and stage that are kept in OUT/dropped, to be looked at

    def __post_init__(self) -> None:
        check_ranges(
            self,
            seed=(0, 2**63 - 1),
            size=(SMALLEST, LONGEST),
            smallest=(1, LONGEST),
            largest_aspect=(1, 1000),
            longest_caption=(1, 1_000_000),
            hash_distance=(0, 7),
            validation=(0, 10**9),
            shard_size=(1, 100_000),
            batch_size=(1, 1024),
            shown=(0, 1000),
        )
        for name in ("mask_threshold", "inpainting_threshold"):
            if getattr(self, name) is not None:
                check_ranges(self, **{name: (0, 1)})


@dataclass(frozen=True)
class Models:
    """What a worker computes with."""

    saliency: Saliency
    inpaint: Inpainter
    judges: Mapping[str, Judge] = field(default_factory=dict)  # by MASK and INPAINTING; those that are there
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of the judges: the least score that is good
    device: torch.device = torch.device("cpu")  # where pictures wait for them

    def threshold(self, name: str, wanted: float | None) -> float:
        """The one asked for, or else the judge's own."""
        return self.thresholds.get(name, HALF) if wanted is None else wanted


class ModelFactory(Protocol):
    """Opens the models, once in every worker. A frozen dataclass: it travels to other processes, is compared there."""

    def __hash__(self) -> int: ...

    def __call__(self) -> Models: ...

    def identity(self) -> dict[str, Any]:
        """What config.json says of the models, JSON values: another run with others is refused."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture that was not dropped so far."""

    number: int  # in the whole source
    record: Record
    picture: Tensor | None = None  # (1, 3, H, W)
    mask: Tensor | None = None  # (1, 1, H, W)
    layers: Layers | None = None  # N = 1
    hash: int = 0  # its perceptual hash
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.number:08d}"

    def dropped(self, stage: str, reason: str) -> Dropped:
        """reason: a sentence without a subject, e.g. "has no caption"."""
        return Dropped(self.number, self.record.name, stage, reason, self)


@dataclass(frozen=True, eq=False)
class Dropped:
    """A picture that is not in the data set, and why."""

    number: int
    name: str
    stage: str  # source, caption, licence, picture, duplicate, mask, model, mask filter, inpainting filter
    reason: str
    sample: Sample | None = None  # as it was when it was dropped


Item = Sample | Dropped


class Stage(Protocol):
    """A step of the recipe."""

    def setup(self) -> None:
        """Called once in every worker, before the first batch. Raises ValueError for a model that does not fit."""

    def __call__(self, batch: Sequence[Sample]) -> list[Item]:
        """One answer for each sample, in their order."""


def reading_stages(config: BuildConfig) -> list[Stage]:
    """What needs no model."""
    return [CheckTexts(config), Decode(config)]


def model_stages(config: BuildConfig, models: Models) -> list[Stage]:
    """What needs models, in the paper's order."""
    stages: list[Stage] = [FindSubject(models, config), SplitLayers(models, config)]
    wanted = {MASK: config.mask_threshold, INPAINTING: config.inpainting_threshold}
    for name in (name for name in wanted if name in models.judges):
        threshold = 0.0 if config.unfiltered else models.threshold(name, wanted[name])
        stages.append(Filter(name, models, threshold))
    return stages


def run_stages(stages: Sequence[Stage], batch: Sequence[Item]) -> list[Item]:
    """A batch after all stages; what is dropped stays in its place."""
    items = list(batch)
    for stage in stages:
        alive = [item for item in items if isinstance(item, Sample)]
        answers = iter(stage(alive) if alive else ())
        items = [next(answers) if isinstance(item, Sample) else item for item in items]
    return items


def group_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in their order, in lists with `size` samples each; the last may have fewer."""
    batch: list[Item] = []
    alive = 0
    for item in items:
        batch.append(item)
        alive += isinstance(item, Sample)
        if alive == size:
            yield batch
            batch, alive = [], 0
    if batch:
        yield batch


class PerPicture:
    """A stage that looks at each picture alone; a ValueError is its reason to drop one."""

    name = ""

    def setup(self) -> None:
        """Most need nothing."""

    def __call__(self, batch: Sequence[Sample]) -> list[Item]:
        return [self._answer(sample) for sample in batch]

    def _answer(self, sample: Sample) -> Item:
        try:
            return self.work(sample)
        except ValueError as error:
            return sample.dropped(self.name, str(error))

    def work(self, sample: Sample) -> Item:
        raise NotImplementedError


class CheckTexts(PerPicture):
    """A caption there must be, of a length that can be meant, and a licence among those that are taken."""

    name = "caption"

    def __init__(self, config: BuildConfig) -> None:
        self.config = config

    def work(self, sample: Sample) -> Item:
        record = sample.record
        caption, licence = " ".join(record.caption.split()), " ".join(record.licence.split())
        if not caption:
            raise ValueError("has no caption")
        if len(caption) > self.config.longest_caption:
            raise ValueError(
                f"has a caption of {len(caption):,} characters; at most {self.config.longest_caption:,} are taken"
            )
        if self.config.licences and not any(_matches(licence, allowed) for allowed in self.config.licences):
            return sample.dropped("licence", f"has the licence {licence[:100]}" if licence else "has no licence")
        source = " ".join(record.source.split())
        return replace(sample, record=replace(record, caption=caption, licence=licence, source=source))


def _matches(licence: str, allowed: str) -> bool:
    return fnmatch(licence.casefold(), allowed.casefold())


class Decode(PerPicture):
    """The file as pixels of the size that is written, upright sRGB over white, and what it looks like."""

    name = "picture"

    def __init__(self, config: BuildConfig) -> None:
        self.config = config

    def work(self, sample: Sample) -> Item:
        try:
            image, alpha = decode_colours(io.BytesIO(sample.record.data), self._check)
        except Unreadable as error:
            raise ValueError(str(error)) from error
        if alpha is not None:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        image = _resized(image, self.config)
        picture = to_pixels(image)
        return replace(sample, picture=picture, hash=perceptual_hash(image), record=replace(sample.record, data=b""))

    def _check(self, file: Image.Image) -> None:
        """Before it is decoded; a large JPEG is then decoded at half, a quarter or an eighth of its size."""
        config, low, high = self.config, min(file.size), max(file.size)
        if low < config.smallest:
            raise Unreadable(f"has {file.width} x {file.height} pixels; {config.smallest} along a side are needed")
        if high > config.largest_aspect * low:
            raise Unreadable(f"has {file.width} x {file.height} pixels, more than {config.largest_aspect:g} to 1")
        file.draft(None, (2 * config.size, 2 * config.size))


def _resized(image: Image.Image, config: BuildConfig) -> Image.Image:
    """The shorter side as asked for, and of the longer one all or the middle."""
    low = min(image.size)
    if config.crop:
        left, top = (image.width - low) // 2, (image.height - low) // 2
        box, size = (left, top, left + low, top + low), (config.size, config.size)
    else:
        box = (0, 0, *image.size)
        size = cast(tuple[int, int], tuple(round(side * config.size / low) for side in image.size))
    how = Image.Resampling.HAMMING if config.size < low else Image.Resampling.BICUBIC
    return image.resize(size, how, box)


class Deduplicate(PerPicture):
    """Drops what `find_duplicates` named. path: its table, (D, 2) int64, sorted."""

    name = "duplicate"

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self) -> None:
        self.table = np.load(self.path, mmap_mode="r", allow_pickle=False) if self.path.is_file() else np.zeros((0, 2))

    def work(self, sample: Sample) -> Item:
        row = int(np.searchsorted(self.table[:, 0], sample.number))
        if row < len(self.table) and self.table[row, 0] == sample.number:
            raise ValueError(f"looks like picture {int(self.table[row, 1]):08d}, which came before")
        return sample


class PerBatch:
    """A stage with a model. Pictures of one shape go through it together."""

    def __init__(self, models: Models) -> None:
        self.models, self.halving = models, Halving()

    def setup(self) -> None:
        """A first picture, so that a model that does not fit is told of before the work."""
        self.compute([_first_sample()])

    def __call__(self, batch: Sequence[Sample]) -> list[Item]:
        answers: dict[int, Item] = {}
        for shape in dict.fromkeys(_picture(sample).shape for sample in batch):
            alike = [sample for sample in batch if _picture(sample).shape == shape]
            for sample, answer in zip(alike, self.halving(self.compute, alike), strict=True):
                answers[sample.number] = sample.dropped("model", answer) if isinstance(answer, str) else answer
        return [answers[sample.number] for sample in batch]

    def compute(self, batch: Sequence[Sample]) -> list[Item]:
        """The answers for pictures of one shape."""
        raise NotImplementedError

    def joined(self, parts: Iterable[Tensor]) -> Tensor:
        """A batch where the models want it."""
        return torch.cat(list(parts)).to(self.models.device)


class FindSubject(PerBatch):
    """The soft mask of what stands out. A picture without a subject is dropped, and one that is all subject."""

    def __init__(self, models: Models, config: BuildConfig) -> None:
        super().__init__(models)
        self.config = config.split

    def compute(self, batch: Sequence[Sample]) -> list[Item]:
        pictures = self.joined(_picture(sample) for sample in batch)
        masks = self.models.saliency(pictures).float().cpu()
        _check_answer("saliency", masks, (len(batch), 1, *pictures.shape[2:]))
        return [self._answer(sample, mask) for sample, mask in zip(batch, masks.clamp(0, 1).split(1), strict=True)]

    def _answer(self, sample: Sample, mask: Tensor) -> Item:
        sample = replace(sample, mask=mask)
        if mask.max() <= self.config.threshold:
            return sample.dropped("mask", f"has no subject: its mask is {mask.max():.2f} at most")
        if bool(find_hole(mask, self.config).all()):
            return sample.dropped("mask", "is all subject: nothing is left of a background")
        return sample


class SplitLayers(PerBatch):
    """Foreground and background, by the paper's steps 3 and 4 (`split`)."""

    def __init__(self, models: Models, config: BuildConfig) -> None:
        super().__init__(models)
        self.config = config.split

    def compute(self, batch: Sequence[Sample]) -> list[Item]:
        pictures, masks = self.joined(map(_picture, batch)), self.joined(map(_mask, batch))
        layers = split(pictures, masks, inpaint=self.models.inpaint, config=self.config).to("cpu", torch.float32)
        _check_answer("inpainting", layers.stacked, (len(batch), 7, *pictures.shape[2:]))
        return [replace(sample, layers=layers[row : row + 1]) for row, sample in enumerate(batch)]


class Filter(PerBatch):
    """A judge's score, kept with the sample; what scores below the threshold is dropped."""

    def __init__(self, name: str, models: Models, threshold: float) -> None:
        super().__init__(models)
        self.name, self.threshold = name, threshold

    def compute(self, batch: Sequence[Sample]) -> list[Item]:
        seen = _picture if self.name == MASK else _background
        pictures, masks = self.joined(map(seen, batch)), self.joined(map(_mask, batch))
        scores = self.models.judges[self.name](pictures, masks).float().cpu()
        _check_answer(f"{self.name} filter's", scores, (len(batch),))
        return [self._answer(sample, round(score, 4)) for sample, score in zip(batch, scores.tolist(), strict=True)]

    def _answer(self, sample: Sample, score: float) -> Item:
        sample = replace(sample, scores=sample.scores | {self.name: score})
        if score < self.threshold:
            return sample.dropped(f"{self.name} filter", f"scores {score:.3f}, below {self.threshold:g}")
        return sample


def _check_answer(what: str, found: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(found.shape) != shape or not bool(found.isfinite().all()):
        raise ValueError(f"the {what} model must give finite values of {shape}, it gave {tuple(found.shape)}")


def _first_sample() -> Sample:
    """A grey picture whose left half is its subject."""
    picture = torch.full((1, 3, SMALLEST, SMALLEST), 0.5)
    mask = (torch.arange(SMALLEST) < SMALLEST // 2).float().expand(1, 1, SMALLEST, SMALLEST)
    return Sample(0, Record("", b""), picture, mask, Layers(picture, picture, mask))


def _picture(sample: Sample) -> Tensor:
    assert sample.picture is not None, "Decode comes before"
    return sample.picture


def _mask(sample: Sample) -> Tensor:
    assert sample.mask is not None, "FindSubject comes before"
    return sample.mask


def _background(sample: Sample) -> Tensor:
    assert sample.layers is not None, "SplitLayers comes before"
    return sample.layers.background


class Halving:
    """compute(batch) -> its answers; for a picture that fails also alone, a reason in words.

    Raises RuntimeError when IN_A_ROW pictures fail one after another: a card that was lost must not empty a data set.
    """

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, compute: Callable[[Sequence[Sample]], list[Item]], batch: Sequence[Sample]) -> list[Item | str]:
        try:
            answers = compute(batch)
            self.failed = 0
            return [*answers]
        except BROKEN as error:
            reason = _reason(error)
        _free_memory()  # out of the except: the traceback holds what did not fit
        if len(batch) > 1:
            half = len(batch) // 2
            return self(compute, batch[:half]) + self(compute, batch[half:])
        self.failed += 1
        if self.failed == IN_A_ROW:
            raise RuntimeError(
                f"{IN_A_ROW} pictures in a row failed, the last one: {reason}; the shard is not written, "
                "run the same command again when the cause is gone"
            )
        return [reason]


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in text:
        return "needs more memory than there is, also alone"
    return f"failed: {text}"


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
