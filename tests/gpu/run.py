"""make test-gpu: the tests with the marker `gpu`, or a sentence where there is no card."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


def main(words: list[str]) -> int:
    if not torch.cuda.is_available():
        sys.stdout.write(f"There is no CUDA card that torch {torch.__version__} sees: nothing was tested.\n")
        return 0
    return pytest.main(["-m", "gpu", "-rs", "--rootdir", str(ROOT), str(Path(__file__).parent), *words])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
