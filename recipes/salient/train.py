"""Train SalientNet on composites whose mask is known, and write it as salient.safetensors into the run's folder.

One core and bfloat16 autocast. The encoder starts from ImageNet, its BatchNorm is folded and its first blocks stay as
they are. What is written is the running average of the weights. `--initial` goes on from an earlier run's weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from t2l.compositing.edges import box_mean
from t2l.config import override
from t2l.model.efficientnet import load_lite0
from t2l.model.salient import SalientConfig, SalientNet, save_salient, working_size

from .compose import Composer

NORM_OF = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
ASPECTS = ((1, 1), (7, 9), (9, 7))  # of the batches: height, width


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2000
    batch_size: int = 12
    side: int = 224  # pixels
    lr: float = 1.5e-3  # of the decoder
    encoder_lr: float = 2e-4
    frozen_blocks: int = 5  # of the encoder: edges, colours and textures, already right
    warmup: int = 60
    minutes: float = 60  # the cosine ends at the steps or at this time, whichever comes first
    ema: float = 0.995


def salient_loss(logits: list[Tensor], mask: Tensor) -> Tensor:
    """Cross-entropy and soft IoU, both with more weight near edges (Wei et al. 2020, arXiv 1911.11445, Eqs. 8 to 11).

    logits: finest first, (N, 1, h, w); mask: (N, 1, H, W). The coarser levels count 0.3 each and see the mask at their
    own size.
    """
    total = mask.new_zeros(())
    for level, x in enumerate(logits):
        if level == 0:
            x, target = F.interpolate(x.float(), mask.shape[-2:], mode="bilinear"), mask
        else:
            x, target = x.float(), F.interpolate(mask, x.shape[-2:], mode="area")
        radius = max(1, 7 * target.shape[-1] // mask.shape[-1])
        weight = 1 + 4 * (box_mean(target, radius) - target).abs()
        cross_entropy = (weight * F.binary_cross_entropy_with_logits(x, target, reduction="none")).sum((1, 2, 3))
        p = x.sigmoid()
        shared = (weight * p * target).sum((1, 2, 3))
        either = (weight * (p + target)).sum((1, 2, 3)) - shared
        smooth = target[0].numel() / 4096  # an empty picture counts too
        loss = cross_entropy / weight.sum((1, 2, 3)) + 1 - (shared + smooth) / (either + smooth)
        total = total + (1.0 if level == 0 else 0.3) * loss.mean()
    return total


Batches = Iterator[tuple[Tensor, Tensor]]


def batches(composer: Composer, seed: int, batch_size: int, side: int) -> Batches:
    """Endless (pictures, masks), (N, 3, H, W) and (N, 1, H, W)."""
    rng = np.random.default_rng(seed)
    while True:
        height, width = ASPECTS[rng.choice(len(ASPECTS), p=[0.5, 0.25, 0.25])]
        size = working_size(height, width, side)
        samples = [composer.sample(rng, size) for _ in range(batch_size)]
        pictures = torch.from_numpy(np.stack([picture for picture, _ in samples])).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([mask for _, mask in samples]))[:, None]
        yield pictures.contiguous(memory_format=torch.channels_last), masks


def start(config: TrainConfig, initial: Path | None, network: SalientConfig | None = None) -> SalientNet:
    """The network with the encoder's ImageNet weights, or with those of an earlier run."""
    net = SalientNet(network)
    if initial is not None:
        fold(net.encoder)
        net.load_state_dict(torch.load(initial, weights_only=True)["net"])
    else:
        wanted, lite0 = net.encoder.state_dict(), load_lite0().state_dict()
        net.encoder.load_state_dict({name: lite0[name] for name in wanted})
        fold(net.encoder)
    frozen = [net.encoder._conv_stem, net.encoder._bn0, *net.encoder._blocks[: config.frozen_blocks]]
    for module in frozen:
        module.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def fold(encoder: nn.Module) -> None:
    """Put the encoder's BatchNorm into its convolutions, where it leaves a bias: a fifth of the time."""
    for module in encoder.modules():
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d):
                norm = getattr(module, NORM_OF[name])
                setattr(module, name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
                setattr(module, NORM_OF[name], nn.Identity())


def unfolded(net: SalientNet) -> SalientNet:
    """A copy with BatchNorm as in the file: it adds the bias and does nothing else."""
    copy = SalientNet(net.config)
    weights, target = net.state_dict(), copy.state_dict()
    for name in target:
        if name in weights:
            target[name] = weights[name]
    for path, module in copy.encoder.named_modules():
        for name, conv in module.named_children():
            if isinstance(conv, nn.Conv2d):
                prefix = ".".join(filter(None, ("encoder", path)))
                norm, key = getattr(module, NORM_OF[name]), f"{prefix}.{NORM_OF[name]}"
                target[f"{key}.weight"] = torch.ones_like(norm.weight)
                target[f"{key}.bias"] = weights[f"{prefix}.{name}.bias"]
                target[f"{key}.running_mean"] = torch.zeros_like(norm.running_mean)
                target[f"{key}.running_var"] = torch.full_like(norm.running_var, 1 - norm.eps)
    copy.load_state_dict(target)
    return copy


def in_training(net: SalientNet) -> SalientNet:
    """Training mode, but for the encoder's BatchNorm, which keeps the statistics of ImageNet."""
    net.train()
    net.encoder.eval()
    return net


def train(
    config: TrainConfig,
    source: Batches,
    run: Path,
    initial: Path | None,
    seed: int,
    network: SalientConfig | None = None,
) -> None:
    """Train on batches as `batches` gives them; writes state.pt and salient.safetensors into the folder `run`."""
    torch.manual_seed(seed)
    net = in_training(start(config, initial, network))
    encoder = [p for p in net.encoder.parameters() if p.requires_grad]
    decoder = [p for name, p in net.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": encoder, "lr": config.encoder_lr}, {"params": decoder, "lr": config.lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    peaks = [group["lr"] for group in groups]
    ema = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True
    )
    begun, losses, waited = time.time(), [], 0.0
    for step in range(config.steps):
        asked = time.time()
        pictures, masks = next(source)
        waited += time.time() - asked
        done = max(step / config.steps, (time.time() - begun) / 60 / config.minutes)
        if done >= 1:
            break
        factor = min((step + 1) / config.warmup, 0.5 + 0.5 * math.cos(math.pi * done))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(pictures)
        loss = salient_loss(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*encoder, *decoder], 5.0)
        optimizer.step()
        ema.update_parameters(net)
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            spent = time.time() - begun
            print(
                f"{step + 1} loss {np.mean(losses[-20:]):.4f} {spent / (step + 1):.2f} s/step data "
                f"{waited / spent:.0%}",
                flush=True,
            )
        if (step + 1) % 100 == 0:
            _save(run, net, ema.module)
    _save(run, net, ema.module)


def _save(run: Path, net: SalientNet, average: SalientNet) -> None:
    torch.save({"net": net.state_dict(), "ema": average.state_dict()}, run / "state.tmp")
    (run / "state.tmp").replace(run / "state.pt")
    save_salient(run / "salient.safetensors", unfolded(average))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder that sources.py wrote")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--initial", type=Path, help="state.pt of an earlier run to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("values", nargs="*", help="name=value of TrainConfig")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    config = override(TrainConfig(), arguments.values)
    source = batches(Composer(arguments.cache), arguments.seed, config.batch_size, config.side)
    train(config, source, arguments.run, arguments.initial, arguments.seed)


if __name__ == "__main__":
    main()
