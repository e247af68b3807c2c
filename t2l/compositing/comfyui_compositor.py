"""A stack composited as ComfyUI core's Create Layered Image composites a document, to the letter.

Core (comfy_extras/nodes_compositor.py of 0.31 and newer) takes every layer as a bitmap of 8 bits, resizes it with
Pillow's Lanczos, turns it with Pillow's bicubic, and lays it on a canvas in linear light.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .comfyui_blend import blend_over, to_light, to_srgb
from .resample import paste
from .stack import Layer, Stack


def composite_as_comfyui(stack: Stack) -> tuple[Tensor, Tensor]:
    """The visible layers merged by core's rules: sRGB colour (3, H, W) and alpha (1, H, W), both in [0, 1].

    A layer of another blend mode than normal shows only where something lies below it.
    """
    like = stack.layers[0].image
    colour, alpha = like.new_zeros(3, stack.height, stack.width), like.new_zeros(1, stack.height, stack.width)
    for layer in stack.layers:
        if layer.visible:
            _lay(layer, colour, alpha)
    return to_srgb(colour.clamp(0, 1)), alpha.clamp(0, 1)


def _lay(layer: Layer, colour: Tensor, alpha: Tensor) -> None:
    """One layer onto a canvas of linear light, in place."""
    left, top, width, height = placed_bounds(layer)
    bitmap = _bitmap(layer).to(colour)
    corner = (height - bitmap.shape[-2]) // 2, (width - bitmap.shape[-1]) // 2
    image, mask = paste(bitmap[:3], bitmap[3:], corner, (height, width))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, alpha.shape[-1]), min(top + height, alpha.shape[-2])
    if x0 >= x1 or y0 >= y1:
        return
    part = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    here = (slice(None), slice(y0, y1), slice(x0, x1))
    weight = mask[part] * layer.opacity
    colour[here], alpha[here] = blend_over(colour[here], alpha[here], to_light(image[part]), weight, layer.blend_mode)


def _bitmap(layer: Layer) -> Tensor:
    """A layer's pixels mirrored, resized and turned as core does it: (4, h, w) in [0, 1]."""
    values = (torch.cat([layer.image, layer.mask]).float() * 255).round().clamp(0, 255)
    image = Image.fromarray(values.to("cpu", torch.uint8).movedim(0, -1).contiguous().numpy())
    if layer.flip_horizontal:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if layer.flip_vertical:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    height, width = layer.shown_size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if layer.rotation:
        image = image.rotate(
            -math.degrees(layer.rotation), resample=Image.Resampling.BICUBIC, expand=True, fillcolor=(0, 0, 0, 0)
        )
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def placed_bounds(layer: Layer) -> tuple[int, int, int, int]:
    """The whole pixels that core gives a turned layer: left, top, width, height."""
    height, width = layer.shown_size
    centre_x, centre_y = layer.x + width / 2, layer.y + height / 2
    cos, sin = math.cos(layer.rotation), math.sin(layer.rotation)
    corners = [(a * width / 2, b * height / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    xs = [centre_x + x * cos - y * sin for x, y in corners]
    ys = [centre_y + x * sin + y * cos for x, y in corners]
    left, top = math.floor(min(xs)), math.floor(min(ys))
    return left, top, max(1, math.ceil(max(xs)) - left), max(1, math.ceil(max(ys)) - top)
