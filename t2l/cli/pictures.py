"""The commands that draw pictures and take layer files apart."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import kept
from .options import (
    Command,
    add_device,
    add_models,
    add_out,
    check_out,
    default_checkpoint,
    note,
    number,
    open_saliency,
    size,
    whole,
)

if TYPE_CHECKING:
    from ..generate import GenerateConfig
    from ..layers import Layers
    from ..model.text2layer import Text2Layer

SHOWS = 0.1  # a mask that nowhere shows more is empty
LONGEST_PROMPT = 1000  # characters; the text encoder reads 77 tokens, about 300 characters


def add_commands(command: Command) -> None:
    """Put this file's commands and their options into the command line."""
    add = command(generate, "generate")
    add("prompts", nargs="+", metavar="PROMPT", help='what to draw, e.g. "a red teapot on a wooden table"')
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder to write to (default: %(default)s)")
    add("--seed", type=whole("seed", 0, 2**63 - 1), metavar="N", help="same seed, same pictures (default: 0)")
    add(
        "--steps",
        "--num-steps",
        dest="num_steps",
        type=whole("steps", 1, 1000),
        metavar="N",
        help="sampling steps (default: 50)",
    )
    add(
        "--guidance",
        "--guidance-scale",
        dest="guidance_scale",
        type=number("guidance", 0, 100),
        metavar="X",
        help="pull of the prompt, 1 = none (default: 3)",
    )
    add("--size", type=size, metavar="N|WxH", help="pixels, from 64 up (default: what it was trained on)")
    add("--count", type=whole("count", 1, 64), default=1, metavar="N", help="pictures per prompt (default: 1)")
    add("--sampler", metavar="NAME", help="sde, dpm, or the paper's ddim (default: sde)")
    add("--checkpoint", type=Path, metavar="FILE", help="default: the one in models/")
    add("--strict-words", action="store_true", help="refuse words that the checkpoint was never trained on")
    add("--any-words", action="store_true", help=argparse.SUPPRESS)  # each unknown word is read as no word at all
    kept.add_options(add)
    add("--format", choices=("png", "psd", "ora"), default="png", help="layers as PNG files, or one file a picture")
    add_device(add)

    add = command(convert, "convert")
    add("source", type=Path, metavar="IN", help="a .psd, .psb or .ora file, or any picture as one layer")
    add("out", type=Path, metavar="OUT", help="a .psd or .ora file, or a folder for PNG files")
    add("--bits", type=int, choices=(8, 16), default=8, help="per channel of a .psd (default: %(default)s)")
    mask_as = {"choices": ("layer mask", "transparency"), "default": "layer mask", "dest": "mask_as"}
    add("--mask-as", **mask_as, help="how a .psd holds the masks (default: %(default)s)")

    add = command(split, "split")
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="photographs, drawings, any flat pictures")
    add_out(add, "folder to write to")
    add("--format", choices=("psd", "ora", "png"), default="psd", help="of the layers (default: %(default)s)")
    add("--mask", type=Path, metavar="FILE", help="white = foreground; default: the subject that stands out")
    add("--background", type=Path, metavar="FILE", help="what lies behind; default: painted in")
    add_models(add)
    add_device(add)

    add = command(recompose, "recompose")
    add("layers", type=Path, metavar="LAYERS", help="a .psd or .ora file; of a PNG, its one layer over white")
    add("picture", type=Path, metavar="PICTURE", help="the picture that the layers should make, as large as they")


def generate(args: argparse.Namespace) -> None:
    """Prompts -> a folder of pictures: layers, mask, composite, cut-out, contact sheet; or layered files for
    editors."""
    prompts = [prompt for prompt in map(_checked_prompt, args.prompts) for _ in range(args.count)]
    height, width = args.size or (256, 256)
    check_out(args.out, needed=40 * height * width * len(prompts))
    checkpoint = args.checkpoint or default_checkpoint()

    from ..generate import generate as text_to_layers
    from ..io.image import PARTS, contact_sheet, save_png
    from ..model.device import DTYPES, pick_device
    from ..model.text2layer import Text2Layer

    device = pick_device(args.device)
    model = Text2Layer.load(checkpoint).to(device, DTYPES[args.dtype])
    config = _generate_config(args, model.trained_size)
    keep = kept.read_kept(args, model.trained_size, model.autoencoder.config.downscale)
    if keep is not None:
        height, width = keep.layers.size
        config = replace(config, height=height, width=width)
    known = _in_known_words(model, args.prompts, args.strict_words, args.any_words)
    has_layers = model.autoencoder.config.has_layers
    if not has_layers and args.format != "png":
        raise ValueError("this checkpoint paints whole pictures, it has no layers; leave out --format")
    if not has_layers and keep is not None:
        raise ValueError("this checkpoint paints whole pictures, it has no layers to keep; leave out --keep-*")
    drawn_prompts = [prompt for prompt in known for _ in range(args.count)]
    drawn = text_to_layers(model, drawn_prompts, config, partial(_show_progress, "drawing, step"), keep)
    parts = PARTS if has_layers else ("composite",)
    for i, stem in enumerate(_stems(args.prompts)):
        for path in _save(drawn.layers[i * args.count : (i + 1) * args.count], args.out, stem, args.format, parts):
            print(path)
    sheet = args.out / "contact_sheet.png"
    save_png(contact_sheet(drawn.layers, prompts, has_layers), sheet)
    print(sheet)


def convert(args: argparse.Namespace) -> None:
    """Layers of a .psd, .psb or .ora file -> another such file, or a folder of PNG files."""
    from ..io.image import clean_stem
    from ..io.layer_file import open_layer_file, save_layer_file, save_png_set

    if args.source.resolve() == args.out.resolve():
        raise ValueError(f"{args.out} would be overwritten by what is made of it; give another name")
    opened = open_layer_file(args.source)
    for sentence in opened.notes:
        note(sentence)
    if args.out.suffix:
        save_layer_file(opened.stack, args.out, args.bits, args.mask_as)
        print(args.out)
        return
    check_out(args.out)
    for path in save_png_set(opened.stack, args.out, clean_stem(args.source.stem)):
        print(path)


def split(args: argparse.Namespace) -> None:
    """Flat pictures -> layers: the subject of each with clean edges, and a background painted in behind it."""
    check_out(args.out)
    if len(args.pictures) > 1 and (args.mask or args.background):
        raise ValueError("--mask and --background are of one picture; take one at a time, or leave them out")

    from ..compositing.stack import Stack
    from ..io.layer_file import save_layer_file, save_png_set

    take_apart, failed = _splitter(args), 0
    for path, stem in zip(args.pictures, _stems([path.stem for path in args.pictures]), strict=True):
        try:
            stack = Stack.from_layers(take_apart(path))
            if args.format == "png":
                written = save_png_set(stack, args.out, stem)[-1]
            else:
                written = args.out / f"{stem}.{args.format}"
                save_layer_file(stack, written)
        except (ValueError, FileNotFoundError) as error:
            failed += 1
            note(f"{path}: {error}")
            continue
        print(written)
    if failed:
        raise ValueError(f"{failed} of {len(args.pictures)} pictures could not be taken apart; the notes above say why")


def _splitter(args: argparse.Namespace) -> Callable[[Path], Layers]:
    """What takes a picture apart as the options say; networks are opened once, and only those that are needed."""
    import torch
    import torch.nn.functional as F

    from ..compositing.split import split as run
    from ..io.image import to_pixels
    from ..io.picture_file import read_colours, read_mask
    from ..model.device import pick_device
    from ..model.inpainting import inpainter

    device = pick_device(args.device)
    inpaint = inpainter(args.inpainting, device, args.dtype)
    if args.mask is None:
        salient = open_saliency(args.saliency, args.preset, device)

    def take_apart(path: Path) -> Layers:
        picture = to_pixels(read_colours(path)[0])
        size = picture.shape[-2:]
        mask = salient(picture) if args.mask is None else to_pixels(read_mask(args.mask))
        mask = F.interpolate(mask, size, mode="bilinear", antialias=True).clamp(0, 1)
        if mask.max() <= SHOWS:
            note(f"{path}: nothing stands out, all of it is background; give --mask")
        behind = None if args.background is None else to_pixels(read_colours(args.background)[0])
        if behind is not None and behind.shape[-2:] != size:
            raise ValueError(
                f"{args.background} must be as large as the picture, {size[1]} x {size[0]}, got "
                f"{behind.shape[-1]} x {behind.shape[-2]}"
            )
        with torch.inference_mode():
            return run(picture, mask, behind, inpaint)

    return take_apart


def recompose(args: argparse.Namespace) -> None:
    """How far the stacked layers of a .psd or .ora file are from the picture they should make, in 1/255."""
    from ..compositing.recompose import agreement
    from ..io.image import read_image
    from ..io.layer_file import open_layer_file

    opened, picture = open_layer_file(args.layers), read_image(args.picture)[0]
    for sentence in opened.notes:
        note(sentence)
    print(agreement(opened.stack.composite(), picture))


def _checked_prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError('the prompt is empty; say what to draw, e.g. "a red teapot on a wooden table"')
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are taken")
    return prompt


def _in_known_words(model: Text2Layer, prompts: Sequence[str], strict: bool, any_words: bool) -> list[str]:
    """Prompts without words that the checkpoint was never trained on, and a note of what these are read as.

    strict: such words are refused. any_words: they are only mentioned.
    """
    from ..model.rewrite import rewrite
    from ..model.vocabulary import Vocabulary

    vocabulary = Vocabulary(model.text_encoder.config.token_ids)
    never = "this checkpoint was never trained on"
    known = list(prompts)
    if strict or any_words:
        if unseen := vocabulary.unseen("\n".join(prompts)):
            sentence = f"{never} {vocabulary.named(unseen)}"
            if strict:
                raise ValueError(f"{sentence}; say it in other words, or leave out --strict-words")
            note(sentence)
    else:
        rewritten = {prompt: rewrite([prompt], vocabulary) for prompt in prompts}
        for prompt, one in rewritten.items():
            if sentence := one.sentence():
                note(f"{never} {sentence}" if len(rewritten) == 1 else f"{prompt[:60]!r}: {never} {sentence}")
        known = [rewritten[prompt].texts[0] for prompt in prompts]
    _mention_what_is_not_read(known)
    return known


def _mention_what_is_not_read(prompts: Sequence[str]) -> None:
    from ..model.tokenizer import END_ID, MAX_TOKENS, Tokenizer

    tokenizer = Tokenizer()
    for prompt in prompts:
        spoken = sum(int((ids != END_ID).sum()) - 1 for ids in tokenizer(prompt.split()))  # without start and end
        if spoken + 2 > MAX_TOKENS:
            note(f"the text encoder reads {MAX_TOKENS} tokens, the end of this prompt is not seen: {prompt[:60]!r}...")


def _generate_config(args: argparse.Namespace, trained_size: int) -> GenerateConfig:
    """Options that were not given keep the defaults of GenerateConfig."""
    from ..generate import GenerateConfig

    given = {name: getattr(args, name) for name in ("seed", "num_steps", "guidance_scale", "sampler")}
    height, width = args.size or (trained_size, trained_size)
    return GenerateConfig(height=height, width=width, **{k: v for k, v in given.items() if v is not None})


def _save(layers: Layers, folder: Path, stem: str, format: str, parts: Sequence[str]) -> list[Path]:
    """A prompt's pictures as PNG files, or each as a layered file."""
    from ..compositing.stack import Stack
    from ..io.image import save_layers
    from ..io.layer_file import save_layer_file

    if format == "png":
        return save_layers(layers, folder, stem, parts)
    names = [stem if len(layers) == 1 else f"{stem}_{i + 1:02d}" for i in range(len(layers))]
    paths = [folder / f"{name}.{format}" for name in names]
    for i, path in enumerate(paths):
        save_layer_file(Stack.from_layers(layers[i : i + 1]), path)
    return paths


def _stems(prompts: Sequence[str]) -> list[str]:
    """The beginnings of the file names: the prompt's own words, numbered where two would be the same."""
    from ..io.image import clean_stem

    stems = [clean_stem(prompt) for prompt in prompts]
    return [stem if stems.count(stem) == 1 else f"{stem}-{i + 1}" for i, stem in enumerate(stems)]


def _show_progress(doing: str, done: int, total: int) -> None:
    print(f"\r{doing}: {done} of {total}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
