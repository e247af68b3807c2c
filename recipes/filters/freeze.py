"""Write the composites that tests/model/test_shipped_filters.py plants its faults into: held-out sources only, their
truth, their licences.

python -m recipes.filters.freeze --downloads demo-data/downloads --out tests/model/held_out_composites
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F

from t2l.data.example import Example
from t2l.data.shards import write_shard
from t2l.layers import Layers

from ..demo.sources import fetch_sources, licence_of
from .composites import Draughtsman, demo_material

COUNT, SIZE, FIRST = 20, 192, 10_000  # samples; pixels; numbers that train.py does not use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    fetch_sources(args.downloads, print)
    write_shard(args.out, 0, examples(Draughtsman(demo_material(args.downloads), "held")))


def examples(draughtsman: Draughtsman) -> Iterator[Example]:
    for number in range(FIRST, FIRST + COUNT):
        layers, sources = draughtsman.composed(number, False)
        smaller = F.interpolate(layers.stacked(), (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        licences = tuple("Apache-2.0" if source.startswith("scene/") else licence_of(source)[0] for source in sources)
        yield Example(f"{number}", Layers.from_stacked(smaller.clamp(0, 1)), "", sources=sources, licences=licences)


if __name__ == "__main__":
    main()
