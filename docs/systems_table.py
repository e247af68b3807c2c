"""One table of what `t2l evaluate` and the training runs say about several systems: python docs/systems_table.py
runs/system-*
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {  # heading -> where it stands in figures.json
    "composite PSNR": ("autoencoder", "composite_psnr"),
    "mask IOU": ("autoencoder", "mask_iou"),
    "hidden background PSNR": ("autoencoder", "hidden_background_psnr"),
    "thing top-1": ("generation", "foreground_top1"),
    "place top-1": ("generation", "background_top1"),
    "FID": ("generation", "fid"),
}


def row(run: Path) -> str:
    """A run folder with figures.json in it as one line of the table."""
    figures = json.loads((run / "figures.json").read_text())
    system = json.loads((run / "config.json").read_text())["system"]
    last = json.loads((run / "stats.jsonl").read_text().splitlines()[-1])
    values = [figures[part].get(name) for part, name in COLUMNS.values()]
    cells = ["-" if value is None else f"{value:.3g}" for value in values]
    return " | ".join([f"| {system}", str(last["step"]), f"{last['loss']:.4f}", *cells]) + " |"


if __name__ == "__main__":
    headings = ["system", "steps", "loss", *COLUMNS]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *(row(Path(run)) for run in sys.argv[1:])]
    sys.stdout.write("\n".join(lines) + "\n")
