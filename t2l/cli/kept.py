"""The layer that `t2l generate` keeps: a photograph as the background, or a cut-out as the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .options import note

if TYPE_CHECKING:
    from torch import Tensor

    from ..generate import KeptLayer


def add_options(add: Callable[..., None]) -> None:
    """Put the options into the command's."""
    add("--keep-background", type=Path, metavar="FILE", help="a picture: the prompts paint only what stands before it")
    add("--keep-foreground", type=Path, metavar="FILE", help="a cut-out: the prompts paint only what lies behind it")
    add("--keep-mask", type=Path, metavar="FILE", help="white = the foreground (default: its own transparency)")


def read_kept(args: argparse.Namespace, trained_size: int, multiple: int) -> KeptLayer | None:
    """The kept layer at the size that is drawn: --size, or near what the model was trained on, in the picture's shape.

    multiple: pixels along a latent. None where no layer is kept. Raises ValueError for both layers, a mask without a
    foreground, one that shows nothing or covers all, and a picture that cannot be read.
    """
    if args.keep_background and args.keep_foreground:
        raise ValueError(
            "--keep-background and --keep-foreground leave nothing to paint; give one of them (in ComfyUI, Composite "
            "Layers joins two layers as they are)"
        )
    if args.keep_mask and not args.keep_foreground:
        raise ValueError("--keep-mask says where a kept foreground is; give --keep-foreground too")
    path = args.keep_background or args.keep_foreground
    if path is None:
        return None
    import torch

    from ..compositing.fit import near_size
    from ..generate import KeptLayer
    from ..io.image import to_pixels
    from ..io.picture_file import read_colours, read_mask
    from ..keep import check_kept_mask
    from ..layers import Layers

    image, alpha = read_colours(path)
    colours = to_pixels(image)
    size = args.size or near_size((image.height, image.width), trained_size, multiple)
    if args.keep_background:
        pixels = fit_pixels(colours, size)
        return KeptLayer(Layers(pixels, pixels, torch.zeros_like(pixels[:, :1])), "background")
    mask_file = None if args.keep_mask is None else read_mask(args.keep_mask)
    if mask_file is not None and mask_file.size != image.size:
        raise ValueError(
            f"{args.keep_mask} must be as large as {path}, {image.width} x {image.height}, got {mask_file.width} x "
            f"{mask_file.height}"
        )
    found = mask_file or alpha
    mask = torch.ones_like(colours[:, :1]) if found is None else to_pixels(found)
    check_kept_mask(mask, f"{args.keep_mask or path}")
    colours, mask = fit_cutout(colours, mask, size)
    return KeptLayer(Layers(colours, torch.zeros_like(colours), mask), "foreground")


def fit_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (1, C, H, W) at size (height, width): cut in the middle to its shape, then resized."""
    from ..data.buckets import center_crop_stacked

    height, width = pixels.shape[-2:]
    if abs(height * size[1] - width * size[0]) > max(size) * max(height, width) // 100:
        note(f"the kept picture of {width} x {height} is cut in the middle to the shape of {size[1]} x {size[0]}")
    return center_crop_stacked(pixels, size)


def fit_cutout(colours: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same of a cut-out; its colours go on where nothing shows, so that none that was hidden comes into an edge."""
    import torch

    from ..compositing.bleed import extend_colours

    resized = fit_pixels(torch.cat([extend_colours(colours, mask), mask], dim=1), size)
    return resized[:, :3], resized[:, 3:]
