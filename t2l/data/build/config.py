"""How flat pictures become layered ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...compositing.split import SplitConfig
from ...config import check_ranges
from ..layer_sources import LONGEST, SMALLEST


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
