"""A picture on its way through the stages: a record of the source, a sample, at the end an example or dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...layers import Layers


@dataclass(frozen=True)
class Record:
    """What a source says of one picture."""

    name: str  # in the source: a path or a key
    data: bytes  # the picture's file
    caption: str = ""
    source: str = ""  # its address, where it is known
    licence: str = ""
    sha256: str = ""  # of data


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture that was not dropped so far."""

    number: int  # in the whole source
    record: Record
    picture: Tensor | None = None  # (1, 3, H, W)
    mask: Tensor | None = None  # (1, 1, H, W)
    layers: Layers | None = None  # N = 1
    looks: int = 0  # its perceptual hash
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
