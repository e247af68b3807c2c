"""Any number of pictures, each with its mask, name and place, stacked into one layer document."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.compositing.blend import BlendMode
from ..t2l.compositing.stack import Layer, Stack
from .documents import MAX_FRAMES, stack_to_document
from .edges import for_each, preview, stacks_of
from .inputs import until_cancelled, validated
from .limits import MAX_SIDE, check_canvas, shown_sizes
from .types import (
    LAYERS,
    POLARITY,
    choice_input,
    image_to_alpha,
    image_to_pixels,
    list_output,
    mask_to_pixels,
    number_input,
    pixels_to_image,
    schema,
    side_input,
)

Picture = tuple[Tensor, Tensor]  # colours (3, H, W) and mask (1, H, W), 1 = shows
SOCKETS = ("", "_2", "_3", "_4")  # behind image and mask, from the bottom up
PICTURES = [
    io.Image.Input(
        "image",
        tooltip="The lowest pictures. Each picture of a batch or list is a layer, the first lowest; transparency "
        "counts.",
    ),
    io.Mask.Input(
        "mask",
        optional=True,
        tooltip=f"One for all pictures of image, or one for each. {POLARITY}. Stretched to the picture.",
    ),
    io.Image.Input("image_2", optional=True, tooltip="Over the pictures of image."),
    io.Mask.Input("mask_2", optional=True, tooltip="Of image_2, as mask is of image."),
    io.Image.Input("image_3", optional=True, tooltip="Over the pictures of image_2."),
    io.Mask.Input("mask_3", optional=True, tooltip="Of image_3, as mask is of image."),
    io.Image.Input("image_4", optional=True, tooltip="Over the pictures of image_3. Even more: chain through layers."),
    io.Mask.Input("mask_4", optional=True, tooltip="Of image_4, as mask is of image."),
]
LINES = [
    io.String.Input(
        "names",
        default="",
        multiline=True,
        placeholder="names: one line for each layer, the lowest first",
        tooltip="One line for each layer, the lowest first.",
    ),
    io.String.Input(
        "offsets",
        default="",
        multiline=True,
        placeholder="offsets: one line for each layer, such as 40, -10",
        tooltip="One line for each layer, the lowest first: pixels to the right and down, such as 40, -10.",
    ),
]


class ImagesToLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_ImagesToLayers",
            display_name="Images to Layers",
            category="text2layer/layers",
            search_aliases=["stack images", "layers from images", "psd", "alpha", "cutout", "sticker"],
            has_intermediate_output=True,
            description="Stacks any number of pictures, with masks, names and places, into one layer document.",
            is_input_list=True,
            inputs=[
                *PICTURES,
                LAYERS.Input(
                    "layers", optional=True, tooltip="A document to stack on, such as that of another Images to Layers."
                ),
                *LINES,
                io.Int.Input(
                    "x", default=0, min=-MAX_SIDE, max=MAX_SIDE, tooltip="Moves all these pictures to the right."
                ),
                io.Int.Input("y", default=0, min=-MAX_SIDE, max=MAX_SIDE, tooltip="Moves all these pictures down."),
                number_input("opacity", 1, 0, 1, 0.01, "Of these layers. 0 = unseen."),
                choice_input("blend_mode", BlendMode, "Of these layers."),
                io.Boolean.Input("visible", default=True, tooltip="Off = hidden, as with the eye in Photoshop."),
                io.Boolean.Input(
                    "invert_masks",
                    default=False,
                    tooltip="On for the masks of Load Image, which are 1 where the picture is transparent.",
                ),
                side_input("width", "Pixels of the canvas. 0 = as the document in layers, or as the widest picture."),
                side_input("height", "Pixels of the canvas. 0 = as the document in layers, or as the tallest picture."),
            ],
            outputs=[
                list_output(LAYERS, "layers", "One document; one for each that came in."),
                list_output(io.Image, "composite", "The layers stacked: what a viewer sees."),
            ],
        )

    @classmethod
    @validated
    def execute(cls, invert_masks: Any, width: Any, height: Any, layers: Any = None, **inputs: Any) -> io.NodeOutput:
        below: list[Any] = [None] if layers is None else stacks_of(layers)
        sockets = [pictures_of(inputs, suffix, invert_masks[0]) for suffix in SOCKETS]
        stacks = []
        for i, stack in enumerate(below):
            pictures = [picture for socket in sockets for picture in pictures_for(socket, i, len(below))]
            stacks.append(stack_pictures(stack, pictures, (height[0], width[0]), inputs))
        pictures = [stack.composite() for stack in until_cancelled(stacks)]
        composites = [pixels_to_image(picture[None]) for picture in pictures]
        return io.NodeOutput([stack_to_document(stack) for stack in stacks], composites, ui=preview(pictures, cls))


def pictures_of(inputs: dict[str, Any], suffix: str, invert: bool) -> list[Picture]:
    """The pictures of one socket, each with what its alpha and its mask leave of it."""
    images, masks = (inputs.get(f"{kind}{suffix}") or [] for kind in ("image", "mask"))
    source = f"mask{suffix}"
    if masks and not images:
        raise ValueError(f"{source} needs a picture, got none; connect image{suffix}, or take the mask off")
    pictures = [picture for image in images for picture in with_alpha(image, f"image{suffix}")]
    if not masks:
        return pictures
    shows = masks_of(masks, [(alpha.shape[-2], alpha.shape[-1]) for _, alpha in pictures], source)
    return [
        (colours, alpha * (1 - mask if invert else mask).to(alpha))
        for (colours, alpha), mask in zip(pictures, shows, strict=True)
    ]


def masks_of(masks: list[Any], sizes: list[tuple[int, int]], source: str) -> list[Tensor]:
    """A mask (1, H, W) for each picture, at its size (height, width); a single one serves all."""
    at = {size: [x.clamp(0, 1) for mask in masks for x in mask_to_pixels(mask, size, source)] for size in set(sizes)}
    count = len(at[sizes[0]])
    if count not in (1, len(sizes)):
        raise ValueError(f"{source} must hold one mask, or one for each of the {len(sizes)} pictures, got {count}")
    return [at[size][0 if count == 1 else i] for i, size in enumerate(sizes)]


def with_alpha(image: Any, source: str) -> list[Picture]:
    """The pictures of an IMAGE with their alpha."""
    colours = image_to_pixels(image, source).clamp(0, 1)
    return list(zip(colours, image_to_alpha(image, source), strict=True))


def pictures_for(pictures: list[Picture], index: int, count: int) -> list[Picture]:
    """All pictures of a socket for a single document; each of several takes its own, or the one there is."""
    if count == 1 or not pictures:
        return pictures
    return [for_each(pictures, count, "image")[index]]


def stack_pictures(
    below: Stack | None, pictures: list[Picture], size: tuple[int, int], inputs: dict[str, Any]
) -> Stack:
    """The pictures as layers over a stack. size: (height, width) of the canvas, 0 = the stack's or the pictures'."""
    lower = below.layers if below else ()
    if len(lower) + len(pictures) > MAX_FRAMES:
        raise ValueError(
            f"a document holds at most {MAX_FRAMES} layers, got {len(lower) + len(pictures)}; merge some of them, or "
            "make two documents"
        )
    height = size[0] or (below.height if below else max(mask.shape[-2] for _, mask in pictures))
    width = size[1] or (below.width if below else max(mask.shape[-1] for _, mask in pictures))
    check_canvas((height, width), [], "width and height:")
    names = "\n".join(inputs["names"]).splitlines()
    places = offsets_of("\n".join(inputs["offsets"]), len(pictures))
    layers = []
    for i, picture in enumerate(pictures):
        name = (names[i].strip() if i < len(names) else "") or f"layer {len(lower) + i + 1}"
        layers.append(layer_of(picture, name, places[i], {key: entry_for(inputs[key], i) for key in LOOK}))
    check_canvas((height, width), shown_sizes((*lower, *layers)), "image")
    return Stack(height, width, (*lower, *layers), source=below.source if below else None)


LOOK = ("x", "y", "opacity", "blend_mode", "visible")  # inputs that a list can give to each layer


def entry_for(values: list[Any], index: int) -> Any:
    """A layer's own value of a list; the last one serves the rest, as everywhere in ComfyUI."""
    return values[min(index, len(values) - 1)]


def layer_of(picture: Picture, name: str, offset: tuple[int, int], look: dict[str, Any]) -> Layer:
    """A picture as a layer. Raises ValueError for what a layer cannot be."""
    x, y = round(look["x"]) + offset[0], round(look["y"]) + offset[1]
    rest = {key: look[key] for key in ("opacity", "blend_mode", "visible")}
    return Layer(image=picture[0], mask=picture[1], name=name, x=x, y=y, **rest)


def offsets_of(text: str, count: int) -> list[tuple[int, int]]:
    """x and y of `count` layers from lines such as "40, -10"; an empty or missing line is 0, 0."""
    lines = [line.strip() for line in text.splitlines()[:count]]
    offsets = []
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(r"\(?\s*([+-]?\d{1,6})[\s,;]+([+-]?\d{1,6})\s*\)?", line or "0, 0")
        if found is None:
            raise ValueError(
                f"offsets: line {number} must hold two whole numbers, to the right and down, such as 40, -10, got "
                f"{line[:40]!r}"
            )
        offsets.append((int(found[1]), int(found[2])))
    return offsets + [(0, 0)] * (count - len(lines))
