"""The paper's steps, one stage each: a stage takes a batch of samples and answers for each one, with a sample or with why it is dropped.

Stages know nothing of processes, shards or sources. What a stage answers for a picture depends on that picture alone, so neither the
engine nor the number of workers changes a data set.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...compositing.split import find_hole, split
from ...io.picture_file import Unreadable, decode_colours
from ...layers import Layers
from ..layers_found import SMALLEST
from .config import BuildConfig
from .halving import Halving
from .hashes import looks_of
from .models import INPAINTING, MASK, Models
from .sample import Item, Record, Sample


class Stage(Protocol):
    """A step of the recipe."""

    def setup(self) -> None:
        """Called once in every worker, before the first batch. Raises ValueError for a model that does not fit."""

    def __call__(self, batch: Sequence[Sample]) -> list[Item]:
        """One answer for each sample, in their order."""


def cheap_stages(config: BuildConfig) -> list[Stage]:
    """What needs no model."""
    return [CheckTexts(config), Decode(config)]


def model_stages(config: BuildConfig, models: Models) -> list[Stage]:
    """What needs models, in the paper's order."""
    stages: list[Stage] = [FindSubject(models, config), TakeApart(models, config)]
    wanted = {MASK: config.mask_threshold, INPAINTING: config.inpainting_threshold}
    for name in (name for name in wanted if name in models.judges):
        threshold = 0.0 if config.unfiltered else models.threshold(name, wanted[name])
        stages.append(Filter(name, models, threshold))
    return stages


def through(stages: Sequence[Stage], batch: Sequence[Item]) -> list[Item]:
    """A batch after all stages; what is dropped stays in its place."""
    items = list(batch)
    for stage in stages:
        alive = [item for item in items if isinstance(item, Sample)]
        answers = iter(stage(alive) if alive else ())
        items = [next(answers) if isinstance(item, Sample) else item for item in items]
    return items


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
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


class OneByOne:
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


class CheckTexts(OneByOne):
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


class Decode(OneByOne):
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
        picture = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 255
        return replace(sample, picture=picture, looks=looks_of(image), record=replace(sample.record, data=b""))

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


class Deduplicate:
    """Drops what `find_duplicates` named. path: its table, (D, 2) int64, sorted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self) -> None:
        self.table = np.load(self.path, mmap_mode="r", allow_pickle=False) if self.path.is_file() else np.zeros((0, 2))

    def __call__(self, batch: Sequence[Sample]) -> list[Item]:
        return [self._answer(sample) for sample in batch]

    def _answer(self, sample: Sample) -> Item:
        row = int(np.searchsorted(self.table[:, 0], sample.number))
        if row < len(self.table) and self.table[row, 0] == sample.number:
            return sample.dropped("duplicate", f"looks like picture {int(self.table[row, 1]):08d}, which came before")
        return sample


class Batched:
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


class FindSubject(Batched):
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


class TakeApart(Batched):
    """Foreground and background, by the paper's steps 3 and 4 (`split`)."""

    def __init__(self, models: Models, config: BuildConfig) -> None:
        super().__init__(models)
        self.config = config.split

    def compute(self, batch: Sequence[Sample]) -> list[Item]:
        pictures, masks = self.joined(map(_picture, batch)), self.joined(map(_mask, batch))
        layers = split(pictures, masks, inpaint=self.models.inpaint, config=self.config).to("cpu", torch.float32)
        _check_answer("inpainting", layers.stacked, (len(batch), 7, *pictures.shape[2:]))
        return [replace(sample, layers=layers[row : row + 1]) for row, sample in enumerate(batch)]


class Filter(Batched):
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
    assert sample.layers is not None, "TakeApart comes before"
    return sample.layers.background
