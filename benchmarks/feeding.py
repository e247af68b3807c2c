"""What feeds a card: python benchmarks/feeding.py [pictures] [formats] [cache] [unet] [memory] [--before FOLDER].

pictures   pieces for the autoencoder that one reading process makes in a second of its processor's time, of pictures of
           1024, 512 and 256 pixels, and how many processes a card of 125 pieces a second needs. --before: another
           checkout, measured in turn with this one by the same script
formats    what decoding a picture of 1024 pixels takes in other formats than the shards' own
cache      the share of the time that cache-latents waits for data, with a network of fixed time in the place of the
           autoencoder
unet       the same of the UNet's batches, drawn in between and ahead of their use
memory     what a data set of 57 million pictures takes in a process, on files that are links to one file
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CARD = 125  # pieces a second
ROUNDS = 5
PICTURES = 57_020_000  # of the paper


def layers(size: int, seed: int):
    """A picture as noisy as a photograph (0.3 MB at 1024 pixels), another behind it, a disc with a soft edge."""
    from t2l.layers import Layers

    rng = np.random.default_rng(seed)

    def photograph() -> torch.Tensor:
        coarse = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), np.uint8)).resize((size, size))
        noisy = np.asarray(coarse) + rng.normal(0, 6, (size, size, 3))
        return torch.from_numpy(noisy.clip(0, 255)).permute(2, 0, 1)[None].float().round() / 255

    y, x = np.mgrid[:size, :size] - size / 2
    mask = torch.from_numpy(((size / 3 - np.hypot(x, y)) / 8 + 0.5).clip(0, 1))[None, None].float()
    return Layers(photograph(), photograph(), mask)


def write_pictures(folder: Path, size: int, count: int) -> Path:
    from t2l.data.example import Example
    from t2l.data.shards import write_shard

    examples = (Example(f"k{i:04d}", layers(size, i), caption=f"a cup on table {i}") for i in range(count))
    write_shard(folder, 0, examples)
    return folder


# ---- pictures


def time_pieces(folder: Path) -> None:
    """Print the seconds of processor time that a piece takes, by the size of its picture. Runs on any checkout."""
    from t2l.data.crops import CropBatches, CropConfig
    from t2l.data.shards import Shards

    torch.set_num_threads(1)  # as in a reading process
    seconds = {}
    for size in (1024, 512, 256):
        config = CropConfig(batch_size=16, crop=min(256, size // 2))
        batches = CropBatches(Shards(folder / str(size)), config, 0)
        batches[0]
        start = time.process_time()
        for step in range(1, 5):
            batches[step]
        seconds[size] = (time.process_time() - start) / (4 * config.batch_size)
    print(json.dumps(seconds))


def pictures(before: Path | None) -> None:
    checkouts = {"before": before, "after": Path(__file__).parent.parent}
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in (1024, 512, 256):
            write_pictures(Path(folder) / str(size), size, 16)
        for _ in range(ROUNDS):
            for name, checkout in checkouts.items():
                if checkout is not None:
                    command = [sys.executable, __file__, "--pieces", folder]
                    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
                    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                    for size, seconds in json.loads(said).items():
                        times.setdefault((name, size), []).append(seconds)
    for (name, size), seconds in sorted(times.items(), key=lambda item: (-int(item[0][1]), item[0][0] == "after")):
        rate = 1 / statistics.median(seconds)
        spread = f"{1 / max(seconds):.0f} to {1 / min(seconds):.0f}"
        print(
            f"{size} px, {name}: {rate:.0f} pieces a second ({spread}), {CARD / rate:.1f} processes for {CARD} a second"
        )


def formats() -> None:
    from t2l.io.image import to_image

    pixels = layers(1024, 0)
    kinds = {"webp": {"quality": 92, "method": 2}, "jpeg": {"quality": 92}, "png": {}}
    for picture, kind in [(pixels.foreground, kind) for kind in kinds] + [(pixels.mask, "png")]:
        buffer, seconds = io.BytesIO(), []
        to_image(picture[0]).save(buffer, kind, **kinds[kind])
        for _ in range(20):
            start = time.process_time()
            Image.open(io.BytesIO(buffer.getvalue())).load()
            seconds.append(time.process_time() - start)
        name, size = "a mask" if picture.shape[1] == 1 else "colours", len(buffer.getvalue())
        print(f"{name} of 1024 px as {kind}, {size:,} bytes: {1000 * statistics.median(seconds):.1f} ms to decode")


# ---- cache and unet


class Network:
    """A network that takes a fixed time, and what passes between its calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ends: list[float] = []
        self.begins: list[float] = []

    def __call__(self, found: object = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.begins.append(time.perf_counter())
        time.sleep(self.seconds)
        self.ends.append(time.perf_counter())
        batch = len(found.foreground) if hasattr(found, "foreground") else 1
        return torch.zeros(batch, 4, 32, 32), torch.ones(batch, 4, 32, 32)

    def waits(self) -> list[float]:
        """Seconds between the calls, without the first ones."""
        return [begin - end for begin, end in zip(self.begins[3:], self.ends[2:], strict=False)]

    def waiting(self) -> float:
        """The share of the time that passes between the calls."""
        return sum(self.waits()) / (self.ends[-1] - self.ends[2])


def shown(shares: list[float]) -> str:
    return f"{statistics.median(shares):.2%} ({min(shares):.2%} to {max(shares):.2%}) of its time"


def cache() -> None:
    from t2l.data import cache_folder
    from t2l.data.latents import cache_latents

    cache_folder.FILE_LENGTH = 64  # so that files end on the way
    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder) / "data", 512, 160)
        (Path(folder) / "autoencoder").write_bytes(b"")
        shares: dict[tuple[int, int], list[float]] = {(slow, workers): [] for slow in (1, 2) for workers in (0, 1, 2)}
        for number in range(3):
            reading = Network(0)
            cache_latents(reading, Path(folder) / "autoencoder", data, Path(folder) / f"{number}", 256)
            seconds = statistics.median(reading.waits())
            for (slow, workers), found in shares.items():
                network, out = Network(slow * seconds), Path(folder) / f"{number}-{slow}-{workers}"
                cache_latents(network, Path(folder) / "autoencoder", data, out, 256, workers=workers)
                found.append(network.waiting())
        print(f"cache-latents, 512 px to 256: one process reads {16 / seconds:.0f} pictures a second, lastly")
        for (slow, workers), found in shares.items():
            print(f"network {slow} x as slow, {workers} workers: waits {shown(found)}")


def unet() -> None:
    from t2l.data.ahead import read_ahead
    from t2l.data.batches import LatentBatches
    from t2l.data.latents import Latents, cache_latents
    from t2l.model.tokenizer import Tokenizer
    from t2l.training.configs import UNetTrainConfig

    config = UNetTrainConfig(batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder) / "data", 64, 64)
        (Path(folder) / "autoencoder").write_bytes(b"")
        cache_latents(Network(0), Path(folder) / "autoencoder", data, Path(folder) / "latents", 64)
        batches = LatentBatches(Latents(Path(folder) / "latents"), config.batches, 1.0, Tokenizer())
        for seconds in (0.02, 0.05, 0.2):
            shares: dict[str, list[float]] = {"in between": [], "ahead": []}
            for name, found in [*shares.items()] * ROUNDS:
                network = Network(seconds)
                drawn = (batches[step] for step in range(100))
                for _ in read_ahead(drawn, 4) if name == "ahead" else drawn:
                    network()
                found.append(network.waiting())
            for name, found in shares.items():
                print(f"UNet, 32 latents, steps of {1000 * seconds:.0f} ms, drawn {name}: waits {shown(found)}")


# ---- memory


def link_shards(folder: Path, pictures: int, length: int = 1000) -> Path:
    """A data set of as many pictures whose shards are all one file, of nothing but zeros, under many names."""
    folder.mkdir()
    size = length * 8 * tarfile.BLOCKSIZE
    with (folder / "000000.tar").open("wb") as file:
        file.truncate(size)
    texts = dict.fromkeys(("foreground_caption", "background_caption", "thing", "place"), "") | {
        "caption": "a cup " * 12
    }
    members = {name: [1024, 100] for name in ("foreground.webp", "background.webp", "mask.png", "json")}
    rows = [{"key": f"{i:08d}", "members": members, "metadata": texts, "sha256": "0" * 64} for i in range(length)]
    head = {"shard": "000000.tar", "bytes": size, "count": length}
    (folder / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))
    for number in range(1, pictures // length):
        for kind in ("tar", "jsonl"):
            os.link(folder / f"000000.{kind}", folder / f"{number:06d}.{kind}")
    return folder


def link_latents(folder: Path, pictures: int, length: int = 6000) -> Path:
    """The same of a latent cache, of pictures of three shapes."""
    from t2l.data.cache_folder import pack_captions
    from t2l.io.checkpoint import write_tensors

    folder.mkdir()
    tensors, shapes = {}, {"512x512": (64, 64), "640x384": (48, 80), "384x640": (80, 48)}
    for number, (name, shape) in enumerate(shapes.items()):
        places = torch.arange(length)[number :: len(shapes)]
        tensors[f"mean.{name}"] = torch.zeros(len(places), 1, *shape, dtype=torch.float16)
        tensors |= {f"std.{name}": tensors[f"mean.{name}"].clone(), f"pictures.{name}": places}
    write_tensors(folder / "000000.safetensors", tensors | pack_captions([["a cup " * 12, "a cup"]] * length), {})
    for number in range(1, pictures // length):
        os.link(folder / "000000.safetensors", folder / f"{number:06d}.safetensors")
    about = {"size": 512, "pictures": pictures // length * length, "files": pictures // length, "buckets": list(shapes)}
    (folder / "cache.json").write_text(json.dumps(about))
    return folder


def resident() -> float:
    """Megabytes of this process that are its own."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def read_shards(folder: Path, count: int) -> None:
    """Print what opening a data set takes, and reading `count` of its captions anywhere."""
    from t2l.data.orders import shuffle_epochs
    from t2l.data.shards import Shards

    shuffle_epochs(np.arange(4), 10, 0)
    before, start = resident(), time.perf_counter()
    shards = Shards(folder)
    opened, seconds = resident(), time.perf_counter() - start
    start = time.perf_counter()
    for index in shuffle_epochs(np.arange(count), len(shards), 0).tolist():
        shards.metadata(index)
    each = (time.perf_counter() - start) / count
    print(json.dumps([len(shards), opened - before, resident() - before, seconds, each]))


def read_latents(folder: Path, count: int) -> None:
    """The same of a latent cache, with its latents, in batches of 32."""
    from t2l.data.buckets import BucketOrder
    from t2l.data.latents import Latents

    BucketOrder([10, 5], 2, 0)[0]
    before, start = resident(), time.perf_counter()
    cached = Latents(folder)
    opened, seconds = resident(), time.perf_counter() - start
    order, start = BucketOrder(cached.counts, 32, 0), time.perf_counter()
    for step in range(count // 32):
        bucket, ranks = order[10**6 * step]
        cached.read_bucket(bucket, ranks)
        cached.captions[cached.pictures(bucket, ranks)]
    each = (time.perf_counter() - start) / count
    print(json.dumps([len(cached), opened - before, resident() - before, seconds, each]))


def memory(pictures: int = PICTURES) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, link, reads in (("shards", link_shards, 20_000), ("latents", link_latents, 20_000)):
            made = link(Path(folder) / name, pictures)
            count, opened, most, seconds, each = in_a_process(f"--{name}", str(made), str(reads))
            print(
                f"{name} of {count:,} pictures: {opened:.0f} MB and {seconds:.1f} s to open, {most:.0f} MB after "
                f"{reads:,} reads anywhere, {1000 * each:.2f} ms each"
            )


def in_a_process(*arguments: str) -> list[float]:
    return json.loads(subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--before", type=Path)
    for name in ("pieces", "shards", "latents"):
        parser.add_argument(f"--{name}", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pieces:
        time_pieces(Path(args.pieces[0]))
    elif args.shards:
        read_shards(Path(args.shards[0]), int(args.shards[1]))
    elif args.latents:
        read_latents(Path(args.latents[0]), int(args.latents[1]))
    else:
        parts = {
            "pictures": lambda: pictures(args.before),
            "formats": formats,
            "cache": cache,
            "unet": unet,
            "memory": memory,
        }
        for name in args.parts or parts:
            parts[name]()


if __name__ == "__main__":
    main()
