"""The door between ComfyUI's pictures and masks and t2l's pixels.

IMAGE is (N, H, W, 3 or 4), MASK (N, H, W) or (H, W), both in [0, 1]; pixels are (N, C, H, W). Shapes that other node
packs hand on are read where they have one meaning, and named where they have none. Our masks are 1 where the foreground
shows; documents.py has the door of LAYERS documents.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import comfy.utils
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.compositing.bleed import extend_colours
from ..t2l.compositing.stack import TOP
from ..t2l.layers import Layers
from .inputs import kind_of
from .limits import MAX_SIDE, check_pictures

AUTOENCODER = io.Custom("T2L_AUTOENCODER")
LAYERS = io.Custom("LAYERS")
POLARITY = "1 = the foreground shows, 0 = the background does (Load Image gives the opposite: 1 = transparent)"

NUMBERS = {torch.bool} | {  # kinds of number that torch can read
    getattr(torch, name)
    for name in [
        *("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64"),
        *("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"),
    ]
    if hasattr(torch, name)
}

LAYER_INPUT = io.String.Input(
    "layer",
    default=TOP,
    optional=True,
    tooltip="The foreground: top = the highest visible layer, or the name of one. All others are the background.",
)
BEHIND_INPUTS = [
    io.Image.Input("background", tooltip="Another size is scaled to cover the foreground's and cropped in the middle."),
    io.Mask.Input("mask", tooltip=f"{POLARITY}. Stretched to the foreground's size."),
]
PART_OUTPUTS = [
    io.Image.Output(display_name="foreground", tooltip="The chosen layer, at the size of the canvas."),
    io.Image.Output(display_name="background", tooltip="All other visible layers, stacked."),
    io.Mask.Output(display_name="mask", tooltip=POLARITY),
    io.Image.Output(display_name="composite", tooltip="The layers stacked: what a viewer sees."),
]
CUTOUT_OUTPUT = io.Image.Output(
    display_name="cutout",
    tooltip="The chosen layer with transparency, ready for Save Image as PNG; alpha is the mask.",
)


def list_output(kind: Any, name: str, tooltip: str) -> Any:
    """An output of a node with is_input_list: a list, with one entry for each that came in."""
    return kind.Output(display_name=name, is_output_list=True, tooltip=tooltip)


def number_input(
    name: str, default: float, low: float, high: float, step: float, tooltip: str, optional: bool = False
) -> Any:
    """A widget for a number from `low` to `high`."""
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, optional=optional)


def choice_input(name: str, choices: Any, tooltip: str, optional: bool = False) -> Any:
    """A widget for one of some words, a list or a Literal; the first is the default."""
    return io.Combo.Input(name, options=list(get_args(choices) or choices), tooltip=tooltip, optional=optional)


def side_input(name: str, tooltip: str) -> Any:
    """A side of a canvas in pixels; 0 leaves it to the node."""
    return io.Int.Input(name, default=0, min=0, max=MAX_SIDE, tooltip=tooltip)


def schema(**keywords: Any) -> io.Schema:
    """io.Schema of the keywords that this ComfyUI has: the older ones refuse what came later."""
    names = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in keywords.items() if name in names})


def image_to_pixels(image: Any, source: str) -> Tensor:
    """IMAGE -> (N, 3, H, W) in [0, 1]; alpha is left out, grey is repeated. `source` names the input in errors.

    (H, W, 1, 3 or 4) and (H, W) are one picture. Raises ValueError for everything else.
    """
    return _picture(image, source)[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)


def image_to_alpha(image: Any, source: str) -> Tensor:
    """An IMAGE's alpha -> (N, 1, H, W), 1 = shows; 1 everywhere without one. Takes what image_to_pixels takes."""
    picture = _picture(image, source)
    alpha = picture[..., 3:] if picture.shape[-1] == 4 else torch.ones_like(picture[..., :1])
    return alpha.movedim(-1, 1)


def _picture(image: Any, source: str) -> Tensor:
    """IMAGE of any shape that is one -> (N, H, W, 1, 3 or 4) in [0, 1]."""
    needs = "an IMAGE of shape (N, H, W, 3)"
    picture = check_tensor(image, needs, source)
    picture = picture[..., None] if picture.ndim == 2 else picture
    picture = picture[None] if picture.ndim == 3 else picture
    if picture.ndim != 4 or picture.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{source} needs {needs}, got {shape_of(image)}; connect a picture of 1, 3 or 4 channels")
    check_pictures((picture.shape[1], picture.shape[2]), len(picture), source)
    return _values(picture, source)


def mask_to_pixels(mask: Any, size: tuple[int, int], source: str) -> Tensor:
    """MASK of any size -> (N, 1, height, width) in [0, 1], resized to `size` when needed.

    (H, W) is one mask; of four axes the last or the second one may have length 1. (H, W, 1) is one mask as well, unless
    read as (N, H, W) it has just the size of the pictures. Raises ValueError for everything else.
    """
    needs = "a MASK of shape (N, H, W)"
    readings = _readings(check_tensor(mask, needs, source))
    if not readings:
        raise ValueError(f"{source} needs {needs}, got {shape_of(mask)}; Convert Image to Mask makes one of a picture")
    chosen = next((x for x in readings if x.shape[-2:] == size), readings[0])
    for area in ((chosen.shape[1], chosen.shape[2]), size):
        check_pictures(area, len(chosen), source)
    pixels = _values(chosen, source)[:, None]
    return pixels if pixels.shape[-2:] == size else resize(pixels, size, crop="disabled")


def _readings(mask: Tensor) -> list[Tensor]:
    """What a mask may mean as (N, H, W), the likeliest first."""
    if mask.ndim == 2:
        return [mask[None]]
    if mask.ndim == 3:
        return [mask.movedim(-1, 0), mask] if mask.shape[-1] == 1 else [mask]
    return [mask.squeeze(axis) for axis in (-1, 1) if mask.ndim == 4 and mask.shape[axis] == 1]


def check_tensor(value: Any, needs: str, source: str) -> Tensor:
    """A tensor whose numbers can be read, of any shape; nothing of it is looked at. Raises ValueError for all else."""
    if not isinstance(value, Tensor) or describe_unreadable(value) or value.numel() == 0:
        raise ValueError(f"{source} needs {needs}, got {shape_of(value)}; connect one that holds pixels")
    return value


def describe_unreadable(tensor: Tensor) -> list[str]:
    """What keeps the numbers of a tensor from being read, in words."""
    if tensor.is_nested:
        return ["nested"]
    strange = [str(tensor.device)] * tensor.is_meta + [str(tensor.layout)] * (tensor.layout != torch.strided)
    strange += [str(tensor.dtype)] * (tensor.dtype not in NUMBERS)
    return [word.removeprefix("torch.") for word in strange]


def _values(value: Tensor, source: str) -> Tensor:
    """A tensor of any number type as floats in [0, 1]: whole numbers count to 255 where one of them is above 1."""
    values = check_finite(value.float(), source)
    whole = not value.is_floating_point() and bool((values > 1).any())
    return (values / 255 if whole else values).clamp(0, 1)


def pixels_to_image(pixels: Tensor) -> Tensor:
    """(N, C, H, W) -> IMAGE."""
    return pixels.movedim(1, -1).contiguous()


def pixels_to_mask(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) -> MASK."""
    return pixels[:, 0].contiguous()


def layers_to_sockets(layers: Layers) -> tuple[Tensor, Tensor, Tensor]:
    """Layers -> IMAGE of the foreground, IMAGE of the background, MASK."""
    return pixels_to_image(layers.foreground), pixels_to_image(layers.background), pixels_to_mask(layers.mask)


def layers_to_cutout(layers: Layers) -> Tensor:
    """The foreground with the mask as its alpha -> IMAGE, (N, H, W, 4); its colours go on where the alpha is 0."""
    return pixels_to_image(torch.cat([extend_colours(layers.foreground, layers.mask), layers.mask], dim=1))


def to_layers(foreground: Any, background: Any, mask: Any) -> Layers:
    """Three sockets -> Layers of the foreground's size."""
    return Layers(*read_together(foreground=foreground, background=background, mask=mask).values())


def read_together(**sockets: Any) -> dict[str, Tensor]:
    """Pictures and a mask of several sockets as pixels, equally many, of the first's size and device; None is left out.

    Other pictures are scaled to cover that size and cropped in the middle, a mask is stretched; one serves a whole
    batch of the others.
    """
    found: dict[str, Tensor] = {}
    size, first = (0, 0), ""
    for name, value in sockets.items():
        if value is None:
            continue
        if name == "mask":
            found[name] = mask_to_pixels(value, size, name)
            continue
        pixels = image_to_pixels(value, name)
        if not found:
            size, first = (pixels.shape[-2], pixels.shape[-1]), name
        check_pictures(size, len(pixels), name)
        found[name] = pixels if pixels.shape[-2:] == size else resize(pixels, size, crop="center")
    count = max(map(len, found.values()))
    check_pictures(size, count, first)
    if wrong := {name: len(x) for name, x in found.items() if len(x) not in (1, count)}:
        raise ValueError(f"batches must hold {count} pictures, as the largest does, or one, got {wrong}")
    device = next(iter(found.values())).device
    return {name: x.to(device).expand(count, -1, -1, -1) for name, x in found.items()}


def resize(pixels: Tensor, size: tuple[int, int], crop: str) -> Tensor:
    """(N, C, H, W) at height x width, by ComfyUI's own resampling; crop is "center" or "disabled".

    A picture of which the crop would leave less than two pixels along a side is stretched: core's rounding leaves none.
    """
    height, width = pixels.shape[-2:]
    left = min(height, width * size[0] / size[1]), min(width, height * size[1] / size[0])
    crop = crop if min(left) >= 2 else "disabled"
    return comfy.utils.common_upscale(pixels, size[1], size[0], "bilinear", crop)


def check_finite(pixels: Tensor, source: str) -> Tensor:
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{source} holds NaN or infinite values; repair the picture before this node")
    return pixels


def shape_of(value: Any) -> str:
    """What came, in words: the shape of a tensor, and what is strange about it."""
    if not isinstance(value, Tensor):
        return kind_of(value)
    strange = describe_unreadable(value)
    shape = "tensors of several shapes" if value.is_nested else f"{tuple(value.shape)}"
    return shape + (f" ({', '.join(strange)})" if strange else "")
