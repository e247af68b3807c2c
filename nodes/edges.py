"""Layers made clean, compared with the picture they should make, enlarged, and the best of several chosen."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..t2l.compositing.compare import before_and_after
from ..t2l.compositing.edges import EdgeConfig, clean_layer
from ..t2l.compositing.recompose import agreement, correct_stack, difference_picture
from ..t2l.compositing.resample import Method
from ..t2l.compositing.stack import TOP, Stack
from ..t2l.compositing.upscale import Enlarge, enlarged_size, upscale
from ..t2l.evaluation.ranking import rank_candidates
from .documents import document_to_stack, stack_to_document, stack_to_layers
from .inputs import kind_of, node_errors, until_cancelled, validated
from .limits import MAX_SIDE, check_resized
from .types import (
    LAYER_INPUT,
    LAYERS,
    POLARITY,
    choice_input,
    image_to_pixels,
    list_output,
    mask_to_pixels,
    number_input,
    pixels_to_image,
    schema,
    side_input,
)

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32  # pixels of a tile before an upscale model, as core takes them
BYTES_PER_PIXEL = 384 * 3  # core's estimate of an upscale model's memory, per pixel of a tile and byte of its dtype
LAYERS_INPUT = LAYERS.Input("layers", tooltip="From Decode, Join or Load Layers.")


class CleanEdges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_CleanEdges",
            display_name="Clean Edges",
            category="text2layer/edges",
            search_aliases=["defringe", "decontaminate", "halo", "matte", "cutout", "alpha", "sticker", "feather"],
            has_intermediate_output=True,
            description="Frees the foreground's edge of the old background's colours, and moves or softens the edge.",
            is_input_list=True,
            inputs=[
                LAYERS_INPUT,
                io.Int.Input(
                    "refine",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Pixels within which the mask follows the edges of the picture. 0 = not at all.",
                ),
                io.Boolean.Input(
                    "decontaminate",
                    default=True,
                    tooltip="Takes the background's colours out of soft edges and extends the foreground beyond them.",
                ),
                number_input("shrink", 0, -256, 256, 0.25, "Pixels the mask is drawn in; below 0 it grows."),
                number_input("feather", 0, 0, 256, 0.25, "Softens the mask's edge: blur in pixels."),
                io.Image.Input(
                    "composite",
                    optional=True,
                    tooltip="The picture that the foreground is cut from. Without it the foreground is taken as a copy "
                    "of it.",
                ),
                LAYER_INPUT,
            ],
            outputs=[
                list_output(LAYERS, "layers", "One document for each that came in."),
                list_output(io.Image, "cutout", "The foreground with transparency, ready for Save Image as PNG."),
            ],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, composite: Any = None, layer: Any = (TOP,), **settings: Any) -> io.NodeOutput:
        stacks = stacks_of(layers)
        pictures = [None] * len(stacks) if composite is None else pictures_of(composite, stacks)
        config = EdgeConfig(**{name: values[0] for name, values in settings.items()})
        pairs = until_cancelled(zip(stacks, pictures, strict=True))
        with node_errors("layer"):
            cleaned = [clean_layer(stack, config, picture, layer[0]) for stack, picture in pairs]
        before, after = ([cutout(stack, layer[0]) for stack in kind] for kind in (stacks, cleaned))
        shown = [before_and_after(*(x[0].movedim(-1, 0) for x in pair)) for pair in zip(before, after, strict=True)]
        return io.NodeOutput([stack_to_document(stack) for stack in cleaned], after, ui=preview(shown, cls))


class RecomposeCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_RecomposeCheck",
            display_name="Recompose Check",
            category="text2layer/layers",
            search_aliases=["check layers", "flatten layer", "compare layers", "difference", "alpha"],
            description="Says how far the stacked layers are from a picture, and makes them agree if you wish.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                LAYERS_INPUT,
                io.Image.Input(
                    "composite",
                    tooltip="The picture the layers should make: auxiliary from Decode Layers, a photograph, a file "
                    "read back.",
                ),
                io.Boolean.Input(
                    "correct",
                    default=False,
                    tooltip="Changes foreground and background by as little as it takes; the mask stays.",
                ),
                number_input("gain", 8, 1, 255, 1, "The difference picture is so many times brighter."),
            ],
            outputs=[
                list_output(LAYERS, "layers", "As they came, or corrected; one for each that came in."),
                list_output(io.Image, "difference", "Black where the layers make the picture."),
                list_output(io.Float, "mean", "Mean difference as it came in, 255 = black to white."),
                list_output(io.Float, "max", "Largest difference as it came in, 255 = black to white."),
                io.String.Output(
                    display_name="figures", tooltip="A line for each document, also after the correction."
                ),
            ],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, composite: Any, correct: Any, gain: Any) -> io.NodeOutput:
        stacks = stacks_of(layers)
        pictures = pictures_of(composite, stacks)
        pairs = list(zip(stacks, pictures, strict=True))
        agreeing = [correct_stack(*pair) for pair in until_cancelled(pairs)] if correct[0] else []  # refused at once
        composites = [stack.composite() for stack in until_cancelled(stacks)]
        seen = list(zip(composites, pictures, strict=True))
        before = [agreement(*pair) for pair in seen]
        differences = [pixels_to_image(difference_picture(*pair, gain[0])[None]) for pair in seen]
        lines = [str(figures) for figures in before]
        if agreeing:
            stacks = agreeing
            after = [agreement(stack.composite(), picture) for stack, picture in zip(stacks, pictures, strict=True)]
            lines = [f"{line}; corrected: {figures}" for line, figures in zip(lines, after, strict=True)]
        text = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
        documents = [stack_to_document(stack) for stack in stacks]
        means, largest = [figures.mean for figures in before], [figures.max for figures in before]
        return io.NodeOutput(documents, differences, means, largest, text, ui=ui.PreviewText(text))


class UpscaleLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_UpscaleLayers",
            display_name="Upscale Layers",
            category="text2layer/layers",
            search_aliases=["resize layer", "enlarge layers", "scale psd", "upscale transparent", "alpha"],
            has_intermediate_output=True,
            description="Enlarges every layer with its mask and its place, without a fringe.",
            inputs=[
                LAYERS_INPUT,
                number_input("factor", 2, 0.05, 16, 0.05, "Of the canvas, where width and height are 0."),
                side_input("width", "Pixels of the canvas. 0 = by the height, or by the factor."),
                side_input("height", "Pixels of the canvas. 0 = by the width, or by the factor."),
                choice_input("method", Method, "How pixels are resampled; after an upscale model, to the exact size."),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="From Load Upscale Model. Colours and mask go through it one after the other.",
                ),
            ],
            outputs=[LAYERS.Output(display_name="layers", tooltip="The same layers on the new canvas.")],
        )

    @classmethod
    @validated
    def execute(
        cls, layers: Any, factor: float, width: int, height: int, method: Any, upscale_model: Any = None
    ) -> io.NodeOutput:
        stack = document_to_stack(layers)
        before = stack.height, stack.width
        size = enlarged_size(before, factor, width, height)
        if max(size) > MAX_SIDE:  # before the layers are looked at
            raise ValueError(
                f"factor, width and height must give at most {MAX_SIDE} pixels a side, got {size[1]} x {size[0]}"
            )
        check_resized(stack, before, size, "factor, width and height: layers")
        larger = upscale(stack, *size, method, None if upscale_model is None else enlarger(upscale_model))
        shown = before_and_after(*(torch.cat(x.flattened()) for x in (stack, larger)))
        return io.NodeOutput(stack_to_document(larger), ui=preview([shown], cls))


class BestLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_BestLayers",
            display_name="Best of Layers",
            category="text2layer/layers",
            search_aliases=["pick best", "rank layers", "choose cutout", "best of batch"],
            description="Ranks several layer documents and keeps the best.",
            is_input_list=True,
            inputs=[
                LAYERS.Input("layers", tooltip="Several documents, such as those of a batch from Decode Layers."),
                io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many come out, the best first."),
                io.Image.Input(
                    "composite",
                    optional=True,
                    tooltip="The pictures the layers should make, such as auxiliary: the nearer, the better.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=f"A second opinion on the masks: the more they overlap, the better. {POLARITY}.",
                ),
                LAYER_INPUT,
            ],
            outputs=[
                list_output(LAYERS, "layers", "The best documents, the best first."),
                list_output(io.Image, "composite", "The layers stacked, the best first."),
                io.String.Output(display_name="figures", tooltip="A line for each document, the best first."),
            ],
        )

    @classmethod
    @validated
    def execute(
        cls, layers: Any, keep: Any, composite: Any = None, mask: Any = None, layer: Any = (TOP,)
    ) -> io.NodeOutput:
        stacks = stacks_of(layers)
        errors = None
        if composite is not None:
            pairs = until_cancelled(zip(stacks, pictures_of(composite, stacks), strict=True))
            errors = [agreement(stack.composite(), picture).mean for stack, picture in pairs]
        candidates = [stack_to_layers(stack, layer[0]) for stack in until_cancelled(stacks)]
        opinions = None if mask is None else masks_of(mask, [candidate.size for candidate in candidates])
        order, lines = rank_candidates(candidates, opinions, errors)
        chosen = [stacks[i] for i in order[: keep[0]]]
        composites = [pixels_to_image(stack.composite()[None]) for stack in until_cancelled(chosen)]
        return io.NodeOutput([stack_to_document(stack) for stack in chosen], composites, "\n".join(lines))


def preview(pictures: list[Tensor], cls: type[io.ComfyNode]) -> ui.PreviewImage:
    """Pictures (3, H, W), each of its size, for the node to show."""
    return ui.PreviewImage([picture.movedim(0, -1) for picture in pictures], cls=cls)


def stacks_of(documents: list[Any]) -> list[Stack]:
    """The documents of a list input."""
    return [document_to_stack(document) for document in until_cancelled(documents)]


def pictures_of(images: list[Any], stacks: list[Stack]) -> list[Tensor]:
    """The pictures of the list input composite, (3, H, W), one for each stack and as large."""
    pictures = [picture.clamp(0, 1) for image in images for picture in image_to_pixels(image, "composite")]
    pictures = for_each(pictures, len(stacks), "composite")
    for stack, picture in zip(stacks, pictures, strict=True):
        height, width = picture.shape[-2:]
        if (height, width) != (stack.height, stack.width):
            raise ValueError(
                f"composite must be as large as the layers, {stack.width} x {stack.height}, got {width} x {height}; "
                "put Upscale Image between"
            )
    return pictures


def masks_of(masks: list[Any], sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The masks of the list input mask, (1, 1, H, W), one for each size (height, width)."""
    found = [one for several in masks for one in mask_to_pixels(several, sizes[0], "mask")]
    pairs = zip(for_each(found, len(sizes), "mask"), sizes, strict=True)
    return [mask_to_pixels(one, size, "mask") for one, size in pairs]


def for_each(items: list[Any], count: int, source: str) -> list[Any]:
    """One item for each of `count` documents; a single one serves all."""
    if len(items) not in (1, count):
        raise ValueError(
            f"{source} must hold one picture, or one for each of the {count} documents of layers, got {len(items)}"
        )
    return items * count if len(items) == 1 else items


def cutout(stack: Stack, layer: str) -> Tensor:
    """One layer as an IMAGE with transparency, (1, H, W, 4)."""
    layers = stack_to_layers(stack, layer)
    return pixels_to_image(torch.cat([layers.foreground, layers.mask], dim=1))


def enlarger(upscale_model: Any) -> Enlarge:
    """An UPSCALE_MODEL as a function of pictures, in tiles that are halved while memory runs out, as core does."""
    if not hasattr(upscale_model, "scale") or not hasattr(upscale_model, "model"):
        raise ValueError(
            f"upscale_model needs an upscale model, got {kind_of(upscale_model)}; connect Load Upscale Model"
        )
    device = mm.get_torch_device()

    def enlarge(pixels: Tensor) -> Tensor:
        needed = mm.module_size(upscale_model.model) + pixels.nelement() * pixels.element_size()
        needed += TILE**2 * BYTES_PER_PIXEL * pixels.element_size() * max(upscale_model.scale, 1.0)
        mm.free_memory(needed, device)
        upscale_model.to(device)
        try:
            return in_tiles(upscale_model, pixels.to(device)).to(pixels)
        finally:
            upscale_model.to("cpu")

    return enlarge


def in_tiles(upscale_model: Any, pixels: Tensor) -> Tensor:
    """(N, 3, h, w) through an upscale model. Raises core's OOM exception if the smallest tiles are too large too."""
    tile = TILE
    while True:
        try:
            steps = len(pixels) * comfy.utils.get_tiled_scale_steps(
                pixels.shape[3], pixels.shape[2], tile, tile, OVERLAP
            )
            bar = comfy.utils.ProgressBar(steps)
            return comfy.utils.tiled_scale(
                pixels, lambda part: _enlarged(upscale_model, part), tile, tile, OVERLAP, upscale_model.scale, pbar=bar
            )
        except mm.OOM_EXCEPTION:
            if tile <= SMALLEST_TILE:
                raise
        tile //= 2
        mm.soft_empty_cache()  # outside the except block, which holds on to what was allocated


def _enlarged(upscale_model: Any, part: Tensor) -> Tensor:
    mm.throw_exception_if_processing_interrupted()
    return upscale_model(part)
