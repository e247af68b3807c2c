"""Layers joined, taken apart, and laid over other backgrounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.compositing.blend import BlendMode, ColourSpace
from ..t2l.compositing.comfyui_compositor import composite_as_comfyui
from ..t2l.compositing.placement import Placement, compose
from ..t2l.compositing.shadow import Shadow
from ..t2l.compositing.stack import TOP, Stack
from .documents import composited, document_to_stack, stack_to_layers, to_documents
from .inputs import until_cancelled, validated
from .limits import MAX_SIDE, check_pictures
from .pairing import paired
from .types import (
    BEHIND_INPUTS,
    CUTOUT_OUTPUT,
    LAYER_INPUT,
    LAYERS,
    PART_OUTPUTS,
    POLARITY,
    choice_input,
    image_to_pixels,
    layers_to_cutout,
    layers_to_sockets,
    list_output,
    number_input,
    pixels_to_image,
    pixels_to_mask,
    read_together,
    schema,
    to_layers,
)

COMPOSITING = ["srgb", "comfyui"]
PIECE = 1 << 23  # pixels that are composited at once
OPAQUE = 1e-3  # core's: alpha so near to 1 is no transparency
PLACEMENT = [
    number_input("x", 0, -MAX_SIDE, MAX_SIDE, 1, "Pixels to the right."),
    number_input("y", 0, -MAX_SIDE, MAX_SIDE, 1, "Pixels down."),
    number_input("scale", 1, 0.01, 16, 0.01, "About the foreground's middle."),
    number_input("rotation", 0, -360, 360, 0.5, "Degrees clockwise, about the middle."),
    io.Boolean.Input("flip_horizontal", default=False, tooltip="Mirror left and right."),
    io.Boolean.Input("flip_vertical", default=False, tooltip="Mirror top and bottom."),
    number_input("opacity", 1, 0, 1, 0.01, "0 = the background alone."),
    choice_input("blend_mode", BlendMode, "As in Photoshop, Krita and GIMP."),
    number_input("feather", 0, 0, 256, 0.5, "Softens the mask's edge: blur in pixels."),
    choice_input(
        "colour_space",
        ColourSpace,
        "srgb blends as Photoshop does, linear blends light, comfyui does what Create Layered Image does.",
    ),
]
SHADOW = [
    number_input(
        "shadow",
        0,
        0,
        1,
        0.05,
        "A soft shadow where the thing stands on the ground. 0 = none, 0.6 = as on a cloudy day.",
        optional=True,
    ),
    number_input(
        "shadow_softness",
        1,
        0.1,
        10,
        0.1,
        "Below 1 a smaller and harder shadow, above 1 a wider and softer one.",
        optional=True,
    ),
]


class JoinLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_JoinLayers",
            display_name="Join Layers",
            category="text2layer/layers",
            search_aliases=["merge layers", "make psd layers", "layer document", "alpha", "matte"],
            description="Makes a layer document of a foreground, a background and a mask.",
            is_input_list=True,
            inputs=[
                io.Image.Input("foreground", tooltip="Its size is the size of the document."),
                *BEHIND_INPUTS,
            ],
            outputs=[list_output(LAYERS, "layers", "One document for each picture.")],
        )

    @classmethod
    @validated
    @paired
    def execute(cls, foreground: Any, background: Any, mask: Any) -> io.NodeOutput:
        return io.NodeOutput(to_documents(to_layers(foreground, background, mask)))


class SplitLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_SplitLayers",
            display_name="Split Layers",
            category="text2layer/layers",
            search_aliases=["separate layers", "extract layer", "psd layers", "alpha", "matte"],
            description="Takes a layer document apart into a foreground, a background, their mask and the composite.",
            inputs=[
                LAYERS.Input("layers", tooltip="From Join, Decode or Load Layers."),
                LAYER_INPUT,
                choice_input(
                    "compositing",
                    COMPOSITING,
                    "How the composite is made: srgb as Photoshop, comfyui as Create Layered Image, in its light.",
                    optional=True,
                ),
            ],
            outputs=[*PART_OUTPUTS, CUTOUT_OUTPUT],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, layer: str = TOP, compositing: str = "srgb") -> io.NodeOutput:
        stack = document_to_stack(layers)
        parts = stack_to_layers(stack, layer)
        return io.NodeOutput(
            *layers_to_sockets(parts),
            core_composite(stack) if compositing == "comfyui" else composited(stack),
            layers_to_cutout(parts),
        )


def core_composite(stack: Stack) -> Tensor:
    """The IMAGE of core's Create Layered Image: with an alpha channel where the layers leave something transparent."""
    colour, alpha = composite_as_comfyui(stack)
    opaque = bool((alpha >= 1 - OPAQUE).all())
    return pixels_to_image((colour if opaque else torch.cat([colour, alpha]))[None])


class CompositeLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_CompositeLayers",
            display_name="Composite Layers",
            category="text2layer/layers",
            search_aliases=["paste", "overlay", "replace background", "move layer", "porter-duff", "drop shadow"],
            description="Lays the foreground over any background: moved, scaled, turned, mirrored, blended.",
            is_input_list=True,
            inputs=[
                io.Image.Input("foreground", tooltip="The picture to lay over the background."),
                io.Image.Input("background", tooltip="Any size: the result has this size."),
                io.Mask.Input("mask", tooltip=f"{POLARITY}. Stretched to the foreground's size."),
                *PLACEMENT,
                *SHADOW,
            ],
            outputs=[
                list_output(io.Image, "composite", "The picture, at the background's size."),
                list_output(io.Mask, "mask", f"The mask where the foreground lies now. {POLARITY}."),
            ],
        )

    @classmethod
    @validated
    @paired
    def execute(
        cls,
        foreground: Any,
        background: Any,
        mask: Any,
        shadow: float = 0.0,
        shadow_softness: float = 1.0,
        **placement: Any,
    ) -> io.NodeOutput:
        where, cast = Placement(**placement), Shadow(strength=shadow, softness=shadow_softness)
        front = read_together(foreground=foreground, mask=mask)
        behind = image_to_pixels(background, "background")
        counts = len(front["mask"]), len(behind)
        check_pictures((behind.shape[-2], behind.shape[-1]), max(counts), "background")
        if counts[0] != counts[1] and 1 not in counts:
            raise ValueError(
                f"foreground and background must hold equally many pictures, or one of them one, got {counts[0]} and "
                f"{counts[1]}"
            )
        pieces = [compose(*batches, where, cast) for batches in in_pieces(*front.values(), behind)]
        composite, seen = pieces[0] if len(pieces) == 1 else (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return io.NodeOutput(pixels_to_image(composite), pixels_to_mask(seen))


def in_pieces(*batches: Tensor) -> Iterator[list[Tensor]]:
    """Batches, some of which may be single, in pieces of PIECE pixels of the last; Cancel stops in between."""
    step = max(1, PIECE // (batches[-1].shape[-2] * batches[-1].shape[-1]))
    for start in until_cancelled(range(0, max(map(len, batches)), step)):
        yield [batch if len(batch) == 1 else batch[start : start + step] for batch in batches]
