"""The commands from people's pictures to shards."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from .options import (
    FILTERS,
    LARGEST,
    SMALLEST,
    Command,
    add_out,
    add_overrides,
    add_validation,
    check_out,
    config_of,
    note,
    say,
    whole,
)


def add_commands(command: Command) -> None:
    """Put this file's commands and their options into the command line."""
    add = command(build_demo, "build-demo", is_hidden=True)
    add_out(add, "folder for shards, captions and the licence ledger")
    add_overrides(add)

    add = command(pack, "pack")
    folder = "KEY.foreground.png or KEY_fg.png, background and mask; or foreground/KEY.png; or KEY.psd; KEY.txt"
    add("folder", type=Path, metavar="FOLDER", help=folder)
    add_out(add, "folder for train and validation, and what was skipped")
    size = "pixels of the shorter side, at most (default: 1024)"
    add("--size", type=whole("size", SMALLEST, LARGEST), metavar="N", help=size)
    add("--follow-links", action="store_true", help="read also what links lead to outside of FOLDER")
    add_validation(add, "pictures to keep back (default: 0)")
    captions = "a .jsonl, .csv or .json of file_name and text or caption; then no other captions are looked for"
    add("--captions", type=Path, metavar="FILE", help=captions)
    add("--layer", metavar="NAME", help="which layer or group of a .psd or .ora is the foreground, as in Load Layers")
    add_overrides(add)

    add = command(stats, "stats")
    add("folder", type=Path, metavar="DIR", help="data set from pack or build, or folder of shards")
    out = "the page, its numbers go beside it as .json (default: DIR/report.html)"
    add("--out", type=Path, metavar="FILE", help=out)
    add("--workers", type=whole("workers", 0, 1024), default=0, metavar="N", help="processes that read (default: 0)")
    _add_labelling(command)


def _add_labelling(command: Command) -> None:
    add = command(label, "label")
    add("data", type=Path, metavar="DIR", help="shards, as t2l build and t2l pack write them")
    add("--kind", choices=FILTERS, default="mask", help="what is judged (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="where labels are appended (default: labels.jsonl in DIR)")
    port = "0 takes a free one (default: %(default)s)"
    add("--port", type=whole("port", 0, 65535), default=8765, metavar="N", help=port)
    count = "samples to label, drawn from all of them (default: %(default)s, the paper's)"
    add("--count", type=whole("count", 1, 10**6), default=6000, metavar="N", help=count)

    add = command(train_filter, "train-filter")
    add("data", type=Path, metavar="DIR", help="the shards that were labelled")
    labels = "what t2l label wrote; may be given several times (default: labels.jsonl in DIR)"
    add("--labels", type=Path, action="append", metavar="FILE", help=labels)
    add("--kind", choices=FILTERS, default="mask", help="which filter (default: %(default)s)")
    add_out(add, "folder for filter.safetensors, its figures and curves")
    add_overrides(add)


def build_demo(args: argparse.Namespace) -> None:
    """Moved: python -m recipes.demo, in a clone of the repository."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "recipes/demo").is_dir():
        raise ValueError(
            "the demo data set is built by `python -m recipes.demo --out DIR` in a clone of the repository"
        )
    note("build-demo is now `python -m recipes.demo`")
    command = [sys.executable, "-m", "recipes.demo", "--out", str(args.out.resolve()), *args.overrides]
    if code := subprocess.run(command, cwd=clone).returncode:
        sys.exit(code)


def pack(args: argparse.Namespace) -> None:
    """Pack a folder of layered pictures with captions into shards to train on; the same command goes on, and adds new
    ones."""
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
    from ..data.report import write_report
    from ..data.stats import find_splits
    from ..model.tokenizer import Tokenizer

    find_splits(args.folder)
    check_out(out.parent)
    found = write_report(args.folder, out, Tokenizer().counts, args.workers)
    say(f"{found['pictures']:,} pictures; the median caption has {found['tokens']['percentiles']['50']} tokens")
    print(out)


def label(args: argparse.Namespace) -> None:
    """Open a page on this machine to label samples good or bad for a quality filter; the same command goes on."""
    from ..data.labels import LabelFile
    from ..data.shards import Shards
    from ..labelling.samples import Samples
    from ..labelling.server import LabelServer

    shards, out = Shards(args.data), args.out or args.data / "labels.jsonl"
    check_out(out.parent)
    with LabelFile(out, args.kind) as labels, LabelServer(Samples(shards, labels, args.count), args.port) as server:
        print(f"open {server.url} in a browser on this machine; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say(f"{len(labels.labels)} labels in {out}")


def train_filter(args: argparse.Namespace) -> None:
    """Train a quality filter on labels and tell how good it is on sources that were held out."""
    check_out(args.out)
    from ..labelling.train_filter import TrainFilterConfig
    from ..labelling.train_filter import train_filter as train

    config = config_of(TrainFilterConfig, args, kind=args.kind)
    report = train(config, args.data, args.labels or [args.data / "labels.jsonl"], args.out, say)
    say(
        f"held-out sources: AUC {report['auc']:.3f} +- {report['auc_se']:.3f}; from {report['threshold']:.3f} on, "
        f"{report['recall']:.0%} of the good are kept and {report['precision']:.1%} of the kept are good"
    )
    for reason, kept in report["bad_kept"].items():
        say(f"  bad, {reason}: {kept} kept")
    print(args.out / "filter.safetensors")
