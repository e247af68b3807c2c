"""The nodes against ComfyUI's own, in one process, at Stable Diffusion 1.x geometry with random weights, on the CPU or
on a card.

    python benchmarks/comfy_nodes.py [decode] [encode] [sample] [tiled] [load] [cuda]

COMFYUI_PATH names the checkout, else the one `make test` unpacks. Ratios of medians, ours / theirs; `tiled` compares
the peak memory of two processes that decode 2048 x 2048, where a tile of a shape that was decoded before takes that
one's result: the network runs once per shape instead of a hundred times, and holds as much memory; `load` times the
import of the pack in a fresh process that has ComfyUI's.
"""

from __future__ import annotations

import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".comfy" / "ComfyUI"))
CUDA = "cuda" in sys.argv  # the autoencoder in fp16 on the card, which is asked for its peak memory too
SIDE, ROUNDS = 512 if CUDA else 256, 7  # pixels, and how often each is timed


def start_comfyui(folder: Path) -> None:
    """Make ComfyUI's modules and ours, as a pack in `folder`, importable; on the CPU."""
    if not (folder / "text2layer").exists():
        (folder / "text2layer").symlink_to(ROOT, target_is_directory=True)
    sys.path[:0] = [str(COMFYUI), str(folder)]
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.fp16_vae = not CUDA, CUDA
    args.bf16_vae = "tiled" in sys.argv and not CUDA  # float32 takes most of an hour for 2048 x 2048
    importlib.import_module("comfy.sd")


def write_models(folder: Path, whole: bool) -> None:
    """autoencoder.safetensors and, if asked for, checkpoint.safetensors, random weights."""
    from t2l import AutoencoderConfig, DiffusionConfig, LayeredAutoencoder, Text2Layer
    from t2l.model.text2layer import save_autoencoder
    from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
    from t2l.model.unet import UNetConfig, build_unet

    autoencoder = LayeredAutoencoder(AutoencoderConfig()).eval()
    save_autoencoder(autoencoder, folder / "autoencoder.safetensors", fold=True)
    if whole:
        unet, text_encoder = build_unet(UNetConfig()), TextEncoder(TextEncoderConfig())
        model = Text2Layer(autoencoder, unet, text_encoder, DiffusionConfig(prediction="eps"))
        model.save(folder / "checkpoint.safetensors")


def ours(folder: Path) -> Any:
    return importlib.import_module("text2layer.nodes.autoencoder").ManagedAutoencoder(
        folder / "autoencoder.safetensors"
    )


def theirs(folder: Path) -> Any:
    sd, utils = importlib.import_module("comfy.sd"), importlib.import_module("comfy.utils")
    return sd.VAE(sd=utils.load_torch_file(str(folder / "autoencoder.safetensors"), safe_load=True))


def compare(name: str, first: Callable[[], object], second: Callable[[], object]) -> None:
    """Time both in turn and print the ratio of the medians."""
    import torch

    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first round warms up
            for run, kept in zip((first, second), times, strict=True):
                start = time.perf_counter()
                run()
                if CUDA:
                    torch.cuda.synchronize()
                kept.append(time.perf_counter() - start)
    a, b = (statistics.median(kept[1:]) for kept in times)
    if CUDA:
        mine, stock = (peak_memory(run) for run in (first, second))
        print(
            f"{name}, peak memory: ours {mine / 2**20:.0f} MiB, theirs {stock / 2**20:.0f} MiB, ratio "
            f"{mine / stock:.3f}"
        )
    print(f"{name}: ours {a:.2f} s, theirs {b:.2f} s, ratio {a / b:.3f}", flush=True)


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes of the card's memory that torch holds at most while it runs."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        run()
    return torch.cuda.max_memory_allocated()


def decode(folder: Path) -> None:
    import torch

    mine, stock, latents = ours(folder), theirs(folder), torch.randn(1, 4, SIDE // 8, SIDE // 8)
    compare("Decode Layers against one VAE Decode", lambda: mine.decode(latents), lambda: stock.decode(latents))
    three = torch.cat([latents] * 3)
    compare(
        "Decode Layers against three",
        lambda: mine.decode(latents),
        lambda: [stock.decode(x[None]) for x in three],
    )


def encode(folder: Path) -> None:
    import torch

    layers = importlib.import_module("text2layer.t2l.layers").Layers.from_stacked(torch.rand(1, 7, SIDE, SIDE))
    mine, stock, picture = ours(folder), theirs(folder), torch.rand(1, SIDE, SIDE, 3)
    compare("Encode Layers against VAE Encode", lambda: mine.encode(layers), lambda: stock.encode(picture))


def sample(folder: Path) -> None:
    import torch

    path = str(folder / "checkpoint.safetensors")
    sd, comfy_sample = importlib.import_module("comfy.sd"), importlib.import_module("comfy.sample")
    read_parts = importlib.import_module("text2layer.t2l.model.text2layer").read_parts
    diffusion = importlib.import_module("text2layer.nodes.diffusion_model")
    config = importlib.import_module("text2layer.t2l.model.autoencoder").AutoencoderConfig()
    mine = diffusion.build_model(read_parts(path), config, path)
    stock = sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
    words, latent = [[torch.randn(1, 77, 768), {}]], torch.zeros(1, 4, SIDE // 8, SIDE // 8)

    def run(model: Any) -> object:
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        return comfy_sample.sample(
            model, noise, 4, 4.0, "euler", "normal", words, words, latent, disable_pbar=True, seed=0
        )

    compare("KSampler, four steps, our MODEL against the stock loader's", lambda: run(mine), lambda: run(stock))


def once_per_shape(decode: Callable[..., Any]) -> Callable[..., Any]:
    """Decodes the first latents of every shape, and gives that result for all others of the shape."""
    results: dict[tuple[int, ...], Any] = {}

    def remembered(latents: Any, *args: Any, **kwargs: Any) -> Any:
        if tuple(latents.shape) not in results:
            results[tuple(latents.shape)] = decode(latents, *args, **kwargs)
        return results[tuple(latents.shape)]

    return remembered


def tiled_in_this_process(folder: Path, whose: str) -> None:
    import torch

    latents = torch.randn(1, 4, 256, 256)
    with torch.inference_mode():
        if whose == "ours":
            mine = ours(folder)
            mine.model.decode = once_per_shape(mine.model.decode)
            mine.decode_tiled(latents, 512, 64)
        else:
            stock = theirs(folder)
            stock.first_stage_model.decode = once_per_shape(stock.first_stage_model.decode)
            stock.decode_tiled(latents, tile_x=64, tile_y=64, overlap=8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def tiled(folder: Path) -> None:
    command = [sys.executable, __file__, "tiled", str(folder)]
    peaks = [int(subprocess.check_output([*command, whose], text=True).split()[-1]) for whose in ("ours", "theirs")]
    print(f"tiled 2048 x 2048, peak memory: ours {peaks[0]} kB, theirs {peaks[1]} kB, ratio {peaks[0] / peaks[1]:.3f}")


def load(folder: Path) -> None:
    code = f"import sys; sys.argv[1:] = ['load']; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import comfy_nodes, time, importlib, pathlib; comfy_nodes.start_comfyui(pathlib.Path({str(folder)!r}))\n"
    code += "import comfy_api.v0_0_2, folder_paths; start = time.perf_counter()\n"
    code += "importlib.import_module('text2layer.nodes'); print(time.perf_counter() - start)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1]) for _ in range(3)]
    print(f"the pack imports in {min(times[1:]):.3f} s")


def main(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, whole="sample" in parts)
        start_comfyui(folder)
        for part in parts:
            {"decode": decode, "encode": encode, "sample": sample, "tiled": tiled, "load": load}[part](folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["tiled"] and len(sys.argv) == 4:
        start_comfyui(Path(sys.argv[2]))
        tiled_in_this_process(Path(sys.argv[2]), sys.argv[3])
    else:
        main([part for part in sys.argv[1:] if part != "cuda"] or ["decode", "encode", "sample", "load"])
