"""What tests on a card share: they skip without one, and their figures are written at the end."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

FIGURES: dict[str, float | str] = {}


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")


@pytest.fixture
def figures():
    """Name -> figure; the name says the unit. All go to $OUT/gpu.json and gpu.md."""
    return FIGURES


def pytest_sessionfinish():
    if not FIGURES:
        return
    out = Path(os.environ.get("OUT") or "out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    (out / "gpu.json").write_text(json.dumps(about | FIGURES, indent=2) + "\n")
    rows = [f"| {name} | {value if isinstance(value, str) else f'{value:.4g}'} |" for name, value in FIGURES.items()]
    title = f"{about['card']}, torch {about['torch']}, CUDA {about['cuda']}; `make test-gpu`"
    (out / "gpu.md").write_text("\n".join([title, "", "| figure | value |", "|---|---|", *rows]) + "\n")


def seconds_each(run, count):
    """Mean seconds of a call on the card, after two that warm up."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count
