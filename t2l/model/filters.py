"""The paper's two quality filters: frozen EfficientNet features of a sample and one trained neuron on them.

The paper (Zhang et al. 2023, section 4.2) takes EfficientNet-b0 and trains a neuron alone in place of its last layer:
the mask filter sees picture and mask, the inpainting filter the painted background. Here the network is Lite0, without
squeeze-and-excitation, and the neuron may have several views of a sample (`VIEWS`): the paper's (the whole picture),
closer ones, and by default the maps on both sides of the mask's edge. There a mask that cuts its object and a fill that
does not fit the rest are told from good ones, whatever the object. A file holds the neuron and names its views.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import parse_json, shown_path
from ..compositing.edges import box_mean, square_max
from ..config import check_ranges, config_from_dict, config_to_dict
from ..io.checkpoint import fill_exactly, read_tensors, write_tensors
from .efficientnet import FEATURES, INPUT_SIZE, STAGES, EfficientNetLite0, load_lite0

Kind = Literal["mask", "inpainting"]
# Pictures (N, 3, H, W) and masks (N, 1, H, W) -> scores (N,), 1 = surely good.
Judge = Callable[[Tensor, Tensor], Tensor]
SHIPPED = Path(__file__).resolve().parents[2] / "models"  # mask-filter.safetensors, inpainting-filter.safetensors
RIM_STAGES = (1, 2, 4)  # 56, 28 and 14 places a side of 224: fine enough to have an inside and an outside of an edge
CHANNELS = (3, *(STAGES[stage][-1] for stage in RIM_STAGES))  # of what is compared across the edge: colours and maps
BANDS, RIM, SHAPE = 5, 10, 12  # numbers of each channel, of each map, of each mask
VIEWS = {  # what the neuron sees of a sample -> how many numbers
    "picture": FEATURES,  # the whole picture, as the paper's inpainting filter
    "stages": 2 * sum(stage[-1] for stage in STAGES[1:]),  # mean and deviation of its maps, fine to coarse
    "crop": FEATURES,  # the picture around the region
    "cutout": FEATURES,  # the region alone, on grey
    "bands": BANDS * sum(CHANNELS),  # the maps inside and outside the region's edge, and how these differ
    "rim": RIM * len(CHANNELS),  # how sharp the edge is in the picture, and how fine what lies on either side
    "shape": SHAPE,  # area, extent, softness, how much of the picture's border it touches
}
GREY = 0.5
HIDDEN = 0.1  # of a mask: what is above it was painted over (the paper's)
REACH = 40  # and the hole reaches so much of a side beyond it
AROUND, CLOSE = 0.25, 0.05  # of a region's longer side: what a crop shows around it
SMALLEST = 24  # pixels of a crop's side, at least
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What a filter is. Its file carries it."""

    kind: Kind = "mask"
    views: tuple[str, ...] = ("bands", "rim", "shape")  # of VIEWS; LOG.md 2026-11-27 compares them
    threshold: float = 0.5  # a sample whose score is at least this is good
    trained_on: str = ""  # words for people
    figures: dict[str, float] = field(default_factory=dict)  # on the part of the labels that was held out

    def __post_init__(self) -> None:
        check_ranges(self, threshold=(0, 1))
        if not self.views or not set(self.views) <= VIEWS.keys():
            raise ValueError(
                f"a filter's views must be some of {', '.join(VIEWS)}, got {', '.join(self.views) or 'none'}"
            )

    @property
    def width(self) -> int:
        """How many numbers the neuron sees."""
        return sum(VIEWS[name] for name in self.views)


class Filter:
    """A judge of samples: from pictures and masks it gives scores, of which `config.threshold` is the least good one.

    A mask filter takes picture and mask; an inpainting filter the background and the mask of what was painted over.
    """

    def __init__(
        self, config: FilterConfig, weight: Tensor, bias: Tensor, network: EfficientNetLite0 | None = None
    ) -> None:
        self.config, self.weight, self.bias = config, weight, bias  # (D,) and ()
        self.network = network or load_lite0()

    def __call__(self, pictures: Tensor, masks: Tensor) -> Tensor:
        """Scores in [0, 1], (N,), on the CPU. pictures: (N, 3, H, W), masks: (N, 1, H, W), any size."""
        chunks = zip(pictures.split(BATCH), masks.split(BATCH), strict=True)
        scores = torch.cat([self.judge(self.features(p, m)) for p, m in chunks])
        shows = (masks > 0.5).flatten(1).any(1) | (self.config.kind != "mask")  # a mask filter drops empty masks
        return scores * shows.float().cpu()

    def judge(self, features: Tensor) -> Tensor:
        """Scores of features, (N, D) -> (N,)."""
        return torch.sigmoid(features @ self.weight + self.bias)

    def features(self, pictures: Tensor, masks: Tensor) -> Tensor:
        """What the neuron sees, (N, D) on the CPU."""
        device = next(self.network.parameters()).device
        return filter_features(self.network, self.config, pictures.to(device), masks.to(device))

    def save(self, path: str | Path) -> None:
        """Write the neuron and its config as .safetensors. Raises OSError for a full disk or an unwritable folder."""
        metadata = {"t2l_filter": json.dumps(config_to_dict(self.config), sort_keys=True)}
        write_tensors(path, {"weight": self.weight, "bias": self.bias}, metadata)


def load_filter(path: str | Path, device: torch.device | None = None) -> Filter:
    """A filter of a file, or one that ships: "mask" or "inpainting".

    Raises FileNotFoundError, ValueError for a file that is no filter, and ModuleNotFoundError without the extra `eval`.
    """
    shipped = SHIPPED / f"{path}-filter.safetensors"
    path = shipped if path in ("mask", "inpainting") and not Path(path).exists() else Path(path)
    tensors, metadata = read_tensors(path)
    if "t2l_filter" not in metadata:
        raise ValueError(f"{shown_path(path)} is no quality filter; `t2l train-filter` writes one")
    try:
        config = config_from_dict(FilterConfig, parse_json(metadata["t2l_filter"], "its config"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{shown_path(path)} has a config that cannot be read: {error}") from error
    neuron = {"weight": torch.empty(config.width), "bias": torch.empty(())}
    fill_exactly(neuron, tensors, shown_path(path))
    return Filter(config, neuron["weight"], neuron["bias"], load_lite0(device))


@torch.no_grad()
def filter_features(network: EfficientNetLite0, config: FilterConfig, pictures: Tensor, masks: Tensor) -> Tensor:
    """What a filter's neuron sees of pictures (N, 3, H, W) and masks (N, 1, H, W), on one device: (N, D) on the CPU."""
    sight = _Sight(network, pictures.float(), masks.float(), config)
    return torch.cat([getattr(sight, name) for name in config.views], dim=1).float().cpu()


class _Sight:
    """The views of some samples. Each is computed when it is asked for, and what two of them need is computed once."""

    def __init__(self, network: EfficientNetLite0, pictures: Tensor, masks: Tensor, config: FilterConfig) -> None:
        self.network, self.pictures, self.masks = network, pictures, masks
        # What the filter looks at, (N, 1, H, W): the mask, or the hole that was painted over, a little more than it.
        reach = max(1, max(masks.shape[-2:]) // REACH)
        self.region = masks if config.kind == "mask" else square_max((masks > HIDDEN).float(), reach)
        self.stages_needed = len(STAGES) + 1 if "crop" in config.views else max(RIM_STAGES) + 1

    @property
    def picture(self) -> Tensor:
        return self._whole[-1].mean(dim=(2, 3))

    @property
    def stages(self) -> Tensor:
        return torch.cat([torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1) for x in self._whole[1:-1]], dim=1)

    @property
    def crop(self) -> Tensor:
        return self._maps[-1].mean(dim=(2, 3))

    @property
    def cutout(self) -> Tensor:
        pictures, region = self._close(self.pictures, CLOSE), self._close(self.region, CLOSE)
        return self.network(torch.lerp(torch.full_like(pictures, GREY), pictures, region))

    @property
    def bands(self) -> Tensor:
        return torch.cat([_bands(x, region) for x, region in self._sides], dim=1)

    @property
    def rim(self) -> Tensor:
        return torch.cat(
            [part for x, region in self._sides for part in (_contrast(x, region), _fineness(x, region))], dim=1
        )

    @property
    def shape(self) -> Tensor:
        size = (INPUT_SIZE, INPUT_SIZE)
        region, soft = (F.interpolate(x, size, mode="area") for x in (self.region, self.masks))
        return _shape((region > 0.5).float(), soft)

    @cached_property
    def _whole(self) -> list[Tensor]:
        return self.network.maps(self.pictures)

    @cached_property
    def _around(self) -> Tensor:
        return self._close(self.pictures, AROUND)

    @cached_property
    def _maps(self) -> list[Tensor]:
        return self.network.maps(self._around, self.stages_needed)

    @property
    def _sides(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The crop's colours and maps, each with the region at its size."""
        region = self._close(self.region, AROUND)
        for x in (F.avg_pool2d(self._around, 4), *(self._maps[stage] for stage in RIM_STAGES)):
            yield x, F.adaptive_avg_pool2d(region, (x.shape[-2], x.shape[-1]))

    def _close(self, x: Tensor, margin: float) -> Tensor:
        """The region's square and some of its surroundings, (N, C, INPUT_SIZE, INPUT_SIZE)."""
        size = (INPUT_SIZE, INPUT_SIZE)
        pieces = []
        for picture, region in zip(x, self.region, strict=True):
            top, left, bottom, right = _square(region[0] > 0.5, margin)
            piece = picture[None, :, top:bottom, left:right]
            pieces.append(F.interpolate(piece, size, mode="bilinear", antialias=True, align_corners=False))
        return torch.cat(pieces)


def _square(region: Tensor, margin: float) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a square around a region (H, W) in the picture; for an empty region, all of it."""
    height, width = region.shape
    rows, columns = (torch.nonzero(region.any(axis)).flatten().tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, height, width
    side = max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    half = max(side * (1 + 2 * margin), SMALLEST) / 2
    y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    return max(0, int(y - half)), max(0, int(x - half)), min(height, int(y + half) + 1), min(width, int(x + half) + 1)


def _reach(x: Tensor) -> int:
    """How wide the strips along an edge are: 1/28 of a map's side."""
    return max(1, x.shape[-1] // 28)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """(N, C, H, W) weighed by (N, 1, H, W): (N, C)."""
    return (x * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1e-3)


def _bands(x: Tensor, region: Tensor) -> Tensor:
    """Means along both sides of the edge, and how they differ, also from what is farther away: (N, BANDS C)."""
    reach = 2 * _reach(x)
    wide, core = square_max(region, reach), 1 - square_max(1 - region, reach)
    inner, outer, deep, far = (_mean(x, w) for w in (region * (1 - core), wide - region, core, 1 - wide))
    return torch.cat([inner, outer, (inner - outer).abs(), (deep - inner).abs(), (outer - far).abs()], dim=1)


def _contrast(x: Tensor, region: Tensor) -> Tensor:
    """How far the edge's sides differ, place by place, beside the map's own deviation: quantiles and mean, (N, 6)."""
    reach = _reach(x)
    inside, outside = box_mean(region, reach), box_mean(1 - region, reach)
    within, around = box_mean(x * region, reach), box_mean(x * (1 - region), reach)
    gap = within / inside.clamp(min=1e-3) - around / outside.clamp(min=1e-3)
    gap = (gap.abs() / x.std(dim=(2, 3), keepdim=True).clamp(min=0.02)).mean(dim=1)
    rim = (torch.minimum(inside, outside) > 0.15)[:, 0]
    return torch.stack([_spread(values[there]) for values, there in zip(gap, rim, strict=True)])


def _spread(values: Tensor) -> Tensor:
    if not values.numel():
        return values.new_zeros(6)
    return torch.cat([values.quantile(values.new_tensor([0.1, 0.25, 0.5, 0.75, 0.9])), values.mean()[None]])


def _fineness(x: Tensor, region: Tensor) -> Tensor:
    """Fine contrast inside the region and around it, the logarithm of their ratio and its size: (N, 4)."""
    fine = (x - box_mean(x, _reach(x))).abs().mean(dim=1, keepdim=True)
    around = square_max(region, 2 * _reach(x)) - region
    inside, outside = _mean(fine, region), _mean(fine, around)
    ratio = (inside + 1e-3).log() - (outside + 1e-3).log()
    return torch.cat([inside, outside, ratio, ratio.abs()], dim=1)


def _shape(region: Tensor, soft: Tensor) -> Tensor:
    """Numbers of a region (N, 1, H, W) and of the soft mask: (N, SHAPE)."""
    area = region.mean(dim=(1, 2, 3))
    height, width = (region.amax(dim=axis).mean(dim=(1, 2)) for axis in (3, 2))
    edge = (square_max(region, 1) - region).mean(dim=(1, 2, 3))
    half = ((soft > 0.1) & (soft < 0.9)).float().mean(dim=(1, 2, 3))
    border = [region[..., 0, :], region[..., -1, :], region[..., :, 0], region[..., :, -1]]
    touched = torch.cat([side.mean(dim=2) for side in border], dim=1)
    filled = area / (height * width).clamp(min=1e-4)
    relative = [edge / (area + 1e-4).sqrt(), half / (area + 1e-4)]
    numbers = torch.stack([area, (area + 1e-4).log(), height, width, filled, edge, *relative], dim=1)
    return torch.cat([numbers, touched], dim=1)
