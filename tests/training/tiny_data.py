"""A data set for recipes in tests: python -m tests.training.tiny_data --out DIR [--check] count=8"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from t2l.data.example import Example
from t2l.data.shards import shard_is_finished, write_shard
from t2l.layers import Layers


def example(number: int) -> Example:
    generator = torch.Generator().manual_seed(number)
    pixels = F.interpolate(torch.rand(1, 7, 6, 6, generator=generator), size=(64, 64), mode="bilinear")
    thing, place = ("cup", "cat")[number % 2], ("table", "forest")[number // 2 % 2]
    texts = {"foreground_caption": f"a {thing}", "background_caption": f"on a {place}"}
    labels = {"thing": thing, "place": place}
    layers = Layers.from_stacked(pixels)
    return Example(f"k-{number:06d}", layers, caption=f"a {thing} on a {place}", labels=labels, **texts)


def main() -> int | str:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("values", nargs="*")
    args = parser.parse_intermixed_args()
    values = {"count": 8} | {name: json.loads(text) for name, _, text in (word.partition("=") for word in args.values)}
    if unknown := values.keys() - {"count"}:
        return f"tiny_data has no {', '.join(unknown)}"
    for number, split in enumerate(("train", "validation") if not args.check else ()):
        if not shard_is_finished(args.out / split, 0):
            first = number * values["count"]
            write_shard(args.out / split, 0, [example(first + i) for i in range(values["count"])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
