"""What a decoder makes of latents that are a little wrong, as a UNet's are, with each way to train its heads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from t2l.data.buckets import center_crop
from t2l.data.cache_folder import evenly_spaced
from t2l.data.shards import Shards
from t2l.data.workers import tell
from t2l.evaluation.metrics import batches, frechet_distance, mask_iou, psnr
from t2l.evaluation.table import with_errors
from t2l.io.atomic import write_whole
from t2l.layers import Layers
from t2l.model.autoencoder import Autoencoder
from t2l.model.efficientnet import load_lite0
from t2l.model.saliency import SaliencyModel
from t2l.model.salient import load_salient
from t2l.model.text2layer import load_autoencoder
from t2l.training.recipe_run import RecipeRun

HEADS = ("joint", "no-sup", "head", "head-stop", "head-recompose", "head-both", "head-decay")
NOISES = (0.0, 0.2, 0.4)  # beside unit variance
COUNT, SIZE = 256, 64


def score_heads(run: RecipeRun, judge: Path, out: Path, prompts: int) -> None:
    """Write {head: {noise: figures}}; NAME_se is a standard error. The same pictures and noise for every head.

    The pictures are of those that no system draws: a head is chosen here, and the systems are compared with the others.
    prompts: how many the systems draw.
    """
    if out.exists():
        return
    shards, finder, found = Shards(run.data / "test"), load_salient(judge), {}
    others = sorted({*range(len(shards))} - {*evenly_spaced(len(shards), prompts)})
    chosen = [others[i] for i in evenly_spaced(len(others), COUNT)]
    pictures = [center_crop(shards[i].layers, (SIZE, SIZE)) for i in chosen]
    for name in HEADS:
        autoencoder = load_autoencoder(run.product(run.recipe.stage(name)))
        found[name] = {str(noise): _score(autoencoder, pictures, noise, finder) for noise in NOISES}
        tell(f"looked at {name}")
    write_whole(out, json.dumps(found, indent=2) + "\n")


@torch.no_grad()
def _score(autoencoder: Autoencoder, pictures: list[Layers], noise: float, finder: SaliencyModel) -> dict:
    """Mask IOU with the true mask and with what the judge finds in the composite, PSNR, and FID of composites."""
    generator, network, parts = torch.Generator().manual_seed(0), load_lite0(torch.device("cpu")), []
    for batch in batches(range(len(pictures)), 32):
        true = Layers.cat([pictures[i] for i in batch])
        mean = autoencoder.encode(true).mean
        wrong = noise / autoencoder.config.latent_scale * torch.randn(mean.shape, generator=generator)
        layers = autoencoder.decode(mean + wrong).layers
        parts.append(
            {
                "mask_iou": mask_iou(layers.mask, true.mask),
                "mask_iou_segmenter": mask_iou(layers.mask, finder(layers.composite())),
                "composite_psnr": psnr(layers.composite(), true.composite()),
                "drawn": network(layers.composite()),
                "real": network(true.composite()),
            }
        )
    rows: dict[str, Tensor] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    drawn, real = rows.pop("drawn"), rows.pop("real")
    return with_errors(rows) | {"fid": frechet_distance(drawn, real)}
