"""One layer kept and the other painted, against free generation: are words followed, does it fit, is there a seam.

    python benchmarks/keep_layer.py DATA [--checkpoint FILE] [--count 64] [--steps 50] [--sheet PNG]

For each kind of kept layer and each way (free: nothing kept; told: the UNet has channels for it, if it does; put back:
at every step through the autoencoder): top-1 of the painted layer's word by a probe on real pictures, with its standard
error; FID of composites with Lite0's features, as `t2l evaluate` has it; the gradient of composites across the mask's
edge over that of the real ones, as a median over pictures, with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from t2l.cli.options import default_checkpoint
from t2l.data.shards import Shards
from t2l.evaluation.features import Probe, train_probe
from t2l.evaluation.judges import Judges, open_judges
from t2l.evaluation.metrics import frechet_distance
from t2l.generate import GenerateConfig, KeptLayer, generate
from t2l.io.image import contact_sheet, save_png
from t2l.keep import KINDS, Kept
from t2l.layers import Layers
from t2l.model.text2layer import Text2Layer
from t2l.model.unet import build_unet, config_of_unet

WORDS: dict[Kept, str] = {"foreground": "place", "background": "thing"}  # the label of what is painted


def without_channels(model: Text2Layer) -> Text2Layer:
    """The same model whose UNet cannot be told a kept layer."""
    channels = model.autoencoder.config.latent_channels
    plain = copy.copy(model)
    state = model.unet.state_dict()
    state["conv_in.weight"] = state["conv_in.weight"][:, :channels]
    config = config_of_unet(model.unet)
    plain.unet = build_unet(type(config)(**vars(config) | {"in_channels": channels})).eval()
    plain.unet.load_state_dict(state)
    return plain


def seam(layers: Layers) -> Tensor:
    """Mean gradient of each composite where its mask's edge is, (N,)."""
    picture, mask = layers.composite(), layers.mask
    edge = F.max_pool2d(mask, 3, 1, 1) - -F.max_pool2d(-mask, 3, 1, 1) > 0.5
    steps = sum(F.pad(picture.diff(dim=dim).abs(), (0, dim == -1, 0, dim == -2)).mean(1, True) for dim in (-1, -2))
    return (steps * edge).sum(dim=(1, 2, 3)) / edge.sum(dim=(1, 2, 3)).clamp(min=1)


def learn(judges: Judges, train: Shards, count: int) -> dict[str, Probe]:
    """Probes for things and places, on real pictures."""
    indices = range(0, len(train), max(1, len(train) // count))
    features = torch.cat([judges.features(train[i].layers) for i in indices])
    return {word: train_probe(features, [train.metadata(i)[word] for i in indices]) for word in WORDS.values()}


def paint(
    model: Text2Layer, true: list[Layers], prompts: list[str], kind: Kept | None, config: GenerateConfig
) -> list[Layers]:
    """A picture for each prompt, with the layer of its own real picture kept."""
    painted = []
    for seed, (layers, prompt) in enumerate(zip(true, prompts, strict=True)):
        keep = None if kind is None else KeptLayer(layers, kind)
        painted.append(generate(model, [prompt], replace(config, seed=seed), keep=keep).layers)
    return painted


def describe(name: str, pictures: list[Layers], words: list[str], labels, judges: Judges, probes, real: Tensor) -> None:
    """Print a row of the table."""
    features = torch.cat([judges.features(layers) for layers in pictures])
    found = []
    for word in words:
        top1 = probes[word].top1(features, labels[word])
        found.append(f"{word} {100 * top1:.1f} +- {100 * math.sqrt(top1 * (1 - top1) / len(features)):.1f} %")
    edges = torch.cat([seam(layers) for layers in pictures]).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    seams = ", ".join(f"{255 * value:.1f}" for value in edges)
    print(f"{name}: {'; '.join(found)}; FID {frechet_distance(features, real):.1f}; gradient at the edge {seams} / 255")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=default_checkpoint())
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--probe", type=int, default=3000, help="real pictures that the probes learn from")
    parser.add_argument("--sheet", type=Path, help="a PNG of the first pictures of each way")
    args = parser.parse_args()
    model = Text2Layer.load(args.checkpoint)
    size = model.trained_size
    judges = open_judges(size, torch.device("cpu"))
    test, train = Shards(args.data / args.split), Shards(args.data / "train")
    indices = range(min(args.count, len(test)))
    probes = learn(judges, train, args.probe)
    labels = {word: [test.metadata(i)[word] for i in indices] for word in WORDS.values()}
    prompts, true = [test.metadata(i)["caption"] for i in indices], [test[i].layers for i in indices]
    real = torch.cat([judges.features(layers) for layers in true])
    config = GenerateConfig(height=size, width=size, num_steps=args.steps)
    describe("real", true, ["thing", "place"], labels, judges, probes, real)
    free = paint(model, true, prompts, None, config)
    describe("free", free, ["thing", "place"], labels, judges, probes, real)
    shown = [*free[:6]]
    ways = {"told": model} if model.keeps else {}
    ways["put back"] = without_channels(model) if model.keeps else model
    for kind in KINDS:
        for way, drawing in ways.items():
            pictures = paint(drawing, true, prompts, kind, config)
            describe(f"{kind} kept, {way}", pictures, [WORDS[kind]], labels, judges, probes, real)
            shown += pictures[:6]
    if args.sheet:
        save_png(contact_sheet(Layers.cat(shown), prompts[:6] * (len(shown) // 6), True), args.sheet)


if __name__ == "__main__":
    main()
