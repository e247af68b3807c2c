"""`t2l build` measured: kills and resumption, one worker beside two, memory, and the rembg command line beside it.

    python benchmarks/build.py kills WORK       2,000 pictures, killed at five random moments and resumed: the same
                                                bytes?
    python benchmarks/build.py scale WORK       one worker and two, in turn, three times
    python benchmarks/build.py memory WORK      the largest process at 200 and at 2,000 pictures
    python benchmarks/build.py rembg WORK --rembg rembg --network isnet.onnx --pictures FOLDER    both on the same
                                                                                                  files, in turn

WORK: a folder for pictures and results. The first three draw their pictures, a bright disc on a dark scene, and have
models that cost next to nothing, so that decoding, splitting, encoding and the bookkeeping are what is measured; --real
takes `t2l build` with its own defaults instead.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageDraw
from torch import Tensor

from t2l.compositing.bleed import push_pull
from t2l.compositing.split import SplitConfig
from t2l.config import override
from t2l.data.build import BuildConfig, Models, build

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WORKERS, KILLS = 2, 5


def draw(folder: Path, count: int, side: int = 320) -> Path:
    """JPEG files with captions, each another picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(0, 100, (9, 9, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        x, y, radius = rng.integers(80, side - 80), rng.integers(80, side - 80), rng.integers(40, 80)
        colour = tuple(int(c) for c in rng.integers(200, 256, 3))
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        data = io.BytesIO()
        image.save(data, "jpeg", quality=92)
        path.with_suffix(".txt").write_text(f"a disc, number {number}")
        path.write_bytes(data.getvalue())
    return folder


def brightness(pictures: Tensor) -> Tensor:
    return ((pictures.amax(dim=1, keepdim=True) - 0.6) * 4).clamp(0, 1)


def smooth_fill(pictures: Tensor, hole: Tensor) -> Tensor:
    return push_pull(pictures, 1 - hole)


@dataclass(frozen=True)
class CheapModels:
    """What is bright is the subject; what is behind it is smooth."""

    def __call__(self) -> Models:
        return Models(brightness, smooth_fill)

    def identity(self) -> dict[str, str]:
        return {"name": "cheap"}


def command(source: Path, out: Path, workers: int, real: bool, *more: object) -> list[str]:
    """`t2l build`, or the same with the models above."""
    start = [sys.executable, "-m", "t2l", "build"] if real else [sys.executable, __file__, "build"]
    return [str(word) for word in (*start, source, "--out", out, "--workers", workers, *more)]


def build_cheaply(argv: list[str]) -> None:
    source, _, out, _, workers, *overrides = argv
    config = override(BuildConfig(split=SplitConfig(free_colours=False)), overrides)
    build(config, Path(source), Path(out), CheapModels(), int(workers), progress=lambda line: None)


def run(argv: list[str], environment: dict[str, str] = ENVIRONMENT) -> tuple[float, float]:
    """Seconds on the clock, and processor seconds of the process and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(argv, env=environment, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, spent


def digest(out: Path) -> str:
    """A hash of every file under train."""
    found = hashlib.sha256()
    for path in sorted((out / "train").iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def kills(work: Path, count: int, seed: int, real: bool) -> None:
    """Unbroken, then killed KILLS times and resumed."""
    source = draw(work / "pictures", count)
    given = (2, real, "size=128")
    seconds, _ = run(command(source, work / "whole", *given))
    print(f"unbroken: {seconds:.0f} s, {json.loads((work / 'whole' / 'dataset.json').read_text())['kept']}", flush=True)
    draws, parts = random.Random(seed), 2 * progress(work / "whole")["shards"]
    for kill, part in enumerate(sorted(draws.sample(range(parts), KILLS)), 1):
        process = subprocess.Popen(
            command(source, work / "killed", *given), env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and sum(progress(work / "killed").values()) < part:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, seconds / parts))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"kill {kill}: {progress(work / 'killed')}", flush=True)
    run(command(source, work / "killed", *given))
    print("the same bytes:", digest(work / "killed") == digest(work / "whole"))
    print("left over:", [path.name for path in (work / "killed").rglob("*partial*")])


def progress(out: Path) -> dict[str, int]:
    """How many parts of the work are finished: shards that were looked through, and shards."""
    looked = len(list(out.glob("hashes/train-*.npy")))
    return {"looked through": looked, "shards": len(list(out.glob("train/*.report.json")))}


def scale(work: Path, count: int, real: bool, rounds: int) -> None:
    """Pictures a second with one worker and with two, with the time to start taken out by a run of one shard."""
    source = draw(work / "pictures", count)
    small = draw(work / "few", 2)
    ratios = []
    for turn in range(rounds):
        rates = []
        for workers in (1, 2):
            options = ("size=256", f"shard_size={max(1, count // 20)}")
            shutil.rmtree(work / "out", ignore_errors=True)
            begin, _ = run(command(small, work / "out", workers, real, "size=256", "shard_size=1"))
            shutil.rmtree(work / "out", ignore_errors=True)
            whole, spent = run(command(source, work / "out", workers, real, *options))
            rates.append(count / (whole - begin))
            print(
                f"round {turn + 1}, {workers} workers: {rates[-1]:.2f} pictures/s ({whole:.0f} s, {spent:.0f} s of "
                f"processor; start {begin:.0f} s)"
            )
        ratios.append(rates[1] / rates[0])
    print(f"two workers / one: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {statistics.median(ratios):.2f}")


def memory(work: Path, real: bool) -> None:
    """The largest resident set of the process and of its workers."""
    for count in (200, 2000):
        source = draw(work / f"memory-{count}", count)
        shutil.rmtree(work / "out", ignore_errors=True)
        process = subprocess.Popen(
            command(source, work / "out", 2, real, "size=128"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        most: dict[str, int] = {}
        while process.poll() is None:
            for name, size in resident(process.pid).items():
                most[name] = max(most.get(name, 0), size)
            time.sleep(0.1)
        print(
            f"{count} pictures: " + ", ".join(f"{name} {size >> 20} MB" for name, size in sorted(most.items())),
            flush=True,
        )


def resident(pid: int) -> dict[str, int]:
    """Bytes of the command's process, and of its largest child."""
    try:
        process = psutil.Process(pid)
        children = [child.memory_info().rss for child in process.children(recursive=True)]
        return {"command": process.memory_info().rss, "largest worker": max(children, default=0)}
    except psutil.NoSuchProcess:
        return {}


def rembg(work: Path, program: str, file: Path, pictures: Path, size: int, rounds: int) -> None:
    """Pictures a second of both commands on the same files, in turn; a run on two pictures, one a worker, is taken
    off.
    """
    paths = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    few, source = captioned(work / "photograph", paths[:WORKERS]), captioned(work / "photographs", paths)
    extra = json.dumps({"model_path": str(file)})
    theirs = ENVIRONMENT | {"U2NET_HOME": str(file.parent), "OMP_NUM_THREADS": str(WORKERS)}
    out, options = work / "out", ("shard_size=1", "batch_size=1", f"size={size}", "deduplicate=false")

    def run_ours(folder: Path) -> tuple[float, float]:
        return run(command(folder, out, WORKERS, True, "--saliency", file, "--filters", "off", *options))

    def run_rembg(folder: Path) -> tuple[float, float]:
        out.mkdir()
        return run([program, "p", "-m", "dis_custom", "-x", extra, str(folder), str(out)], theirs)

    ratios = []
    for turn in range(rounds):
        rates = []
        for name, work_on in (("t2l build", run_ours), ("rembg", run_rembg)):
            times = []
            for folder in (few, source):
                shutil.rmtree(out, ignore_errors=True)
                times.append(work_on(folder))
            clock, processor = ((times[1][i] - times[0][i]) / (len(paths) - WORKERS) for i in (0, 1))
            rates.append((1 / clock, 1 / processor))
            print(f"round {turn + 1}, {name}: {clock:.1f} s, {processor:.2f} s of processor a picture", flush=True)
        ratios.append([ours / other for ours, other in zip(*rates, strict=True)])
    for what, values in zip(("by the clock", "by processor time"), zip(*ratios, strict=True), strict=True):
        print(
            f"t2l build / rembg {what}: {', '.join(f'{x:.2f}' for x in values)}; median {statistics.median(values):.2f}"
        )


def captioned(folder: Path, paths: list[Path]) -> Path:
    """Copies of pictures with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        shutil.copy(path, folder / f"{number:04d}{path.suffix}")
        (folder / f"{number:04d}.txt").write_text("a photograph")
    return folder


def main() -> None:
    if sys.argv[1:2] == ["build"]:
        return build_cheaply(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "scale", "memory", "rembg"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rembg", default="rembg")
    parser.add_argument("--network", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--real", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "kills":
        kills(args.work, args.count, args.seed, args.real)
    elif args.what == "scale":
        scale(args.work, args.count, args.real, args.rounds)
    elif args.what == "memory":
        memory(args.work, args.real)
    else:
        rembg(args.work, args.rembg, args.network, args.pictures, args.size, args.rounds)


if __name__ == "__main__":
    main()
