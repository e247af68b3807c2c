"""A small salient-object network of our own: a picture in, a soft mask of its subject out, in plain torch.

The encoder is EfficientNet-Lite0 up to stage six (efficientnet.py), the decoder joins its maps from coarse to fine like
a U-Net (Ronneberger et al. 2015, arXiv 1505.04597). recipes/salient trains the weights, models/salient.safetensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import config_from_dict
from ..io.checkpoint import fill_exactly, read_tensors, write_tensors
from .efficientnet import STAGES, Lite0Stages
from .saliency import SaliencyModel

FILE = Path(__file__).parents[2] / "models" / "salient.safetensors"
CONFIG = "text2layer.salient"  # the metadata's key
MAPS = (0, 1, 2, 4, 5)  # the stages whose maps are used: 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture
STEP = 32  # pixels per pixel of the coarsest map


@dataclass(frozen=True, kw_only=True)
class SalientConfig:
    """What a SalientNet is built from."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 96)  # of the decoder at 1/2, 1/4, 1/8, 1/16 and 1/32
    sizes: tuple[int, ...] = (256, 480)  # it looks at about size x size pixels: the whole, then the edges


class SalientNet(nn.Module):
    """Pixels (N, 3, H, W) in [0, 1], sides multiples of 32 -> logits of the mask, (N, 1, H/2, W/2).

    In training also those at 1/8 and 1/16, which supervise the decoder on its way (Lee et al. 2015, arXiv 1409.5185).
    """

    def __init__(self, config: SalientConfig | None = None) -> None:
        super().__init__()
        self.config = config or SalientConfig()
        widths, inputs = self.config.widths, [STAGES[i][-1] for i in MAPS]
        self.encoder = Lite0Stages(STAGES[:6])
        self.overview = nn.Conv2d(inputs[-1], widths[-1], 1)
        self.lateral = nn.ModuleList(_conv(i, o, 1) for i, o in zip(inputs, widths, strict=True))
        coarser = [*widths[1:], widths[-1]]
        self.join = nn.ModuleList(_conv(c, o, 3) for c, o in zip(coarser, widths, strict=True))
        self.smooth = nn.ModuleList(_conv(o, o, 3) for o in widths)
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.side_heads = nn.ModuleList(nn.Conv2d(widths[i], 1, 1) for i in (2, 3))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The logits, finest first; alone outside of training."""
        stages = self.encoder.stage_maps(pixels)
        maps = [stages[i] for i in MAPS]
        x = self.overview(maps[-1].mean(dim=(2, 3), keepdim=True))  # what the whole picture shows
        levels = []
        for i in reversed(range(len(maps))):
            x = F.interpolate(x, maps[i].shape[-2:], mode="bilinear")
            x = self.smooth[i](F.relu(self.join[i](x) + self.lateral[i](maps[i])))
            levels.append(x)
        logits = [self.head(levels[-1])]
        if self.training:
            logits += [head(levels[-1 - i]) for head, i in zip(self.side_heads, (2, 3), strict=True)]
        return logits


def _conv(width: int, out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def load_salient(path: str | Path | None = None, device: torch.device | None = None) -> SaliencyModel:
    """Our network as a function of pictures (N, 3, H, W) of any size, giving soft masks (N, 1, H, W), 1 = salient.

    path: a file of `save_salient`, the shipped one if None. The masks come back on the pictures' device.
    Raises FileNotFoundError, or ValueError for a file that holds no such network.
    """
    net = load_salient_net(path or FILE).to(device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def predict(pixels: Tensor) -> Tensor:
        masks = [mask_of(net, pixels[i : i + 1].float(), device) for i in range(len(pixels))]
        return torch.cat(masks) if masks else pixels.new_zeros(0, 1, *pixels.shape[-2:])

    return predict


def mask_of(net: SalientNet, picture: Tensor, device: torch.device | None) -> Tensor:
    """The mask (1, 1, H, W) of one picture (1, 3, H, W): the mean over every size, straight and mirrored."""
    height, width = picture.shape[-2:]
    largest = working_size(height, width, max(net.config.sizes))
    seen = [_predict_logits(net, picture, working_size(height, width, size), device) for size in net.config.sizes]
    logits = torch.stack([F.interpolate(x, largest, mode="bilinear") for x in seen]).mean(dim=0)
    mask = logits.sigmoid().to(picture.device)
    return F.interpolate(mask, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


def _predict_logits(net: SalientNet, picture: Tensor, size: tuple[int, int], device: torch.device | None) -> Tensor:
    """Logits of one picture at a size, (1, 1, h / 2, w / 2), on the device."""
    x = F.interpolate(picture, size, mode="bilinear", antialias=True)
    both = torch.cat([x, x.flip(-1)]).to(device).contiguous(memory_format=torch.channels_last)
    straight, mirrored = net(both)[0].float().split(1)
    return (straight + mirrored.flip(-1)) / 2


def working_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in whole STEPs with about the picture's shape, at most 4 : 1, and about size x size pixels."""
    aspect = min(max(height / width, 0.25), 4.0)
    sides = size * math.sqrt(aspect), size / math.sqrt(aspect)
    rows, columns = (max(STEP, round(side / STEP) * STEP) for side in sides)
    return rows, columns


def load_salient_net(path: str | Path) -> SalientNet:
    """The network of a file, frozen. Raises FileNotFoundError, or ValueError for a file that holds no such network."""
    tensors, metadata = read_tensors(path)
    if CONFIG not in metadata:
        raise ValueError(f"{path} is no salient-object network of ours: its metadata has no {CONFIG}")
    net = SalientNet(config_from_dict(SalientConfig, json.loads(metadata[CONFIG])))
    fill_exactly(_weights(net), tensors, str(path))
    return net.eval().requires_grad_(False)


def save_salient(path: str | Path, net: SalientNet) -> None:
    """Write the weights in half precision, BatchNorm in single, with the config in the metadata."""
    tensors = {name: x.half() if x.dim() == 4 else x for name, x in _weights(net).items()}
    write_tensors(path, tensors, {CONFIG: json.dumps(asdict(net.config))})


def _weights(net: SalientNet) -> dict[str, Tensor]:
    """Everything but BatchNorm's counters, which nothing reads."""
    return {name: x for name, x in net.state_dict().items() if not name.endswith("num_batches_tracked")}
