"""Layers made clean, compared with the picture they should make, enlarged, and the best of several chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..t2l.compositing.edges import EdgeConfig, clean_layer
from ..t2l.compositing.recompose import Agreement, agreement, difference_picture, made_to_agree
from ..t2l.compositing.resample import Method
from ..t2l.compositing.stack import TOP, Stack
from ..t2l.compositing.upscale import Enlarge, upscaled
from ..t2l.layers import Layers
from .documents import document_to_stack, stack_to_document, stack_to_layers
from .inputs import kind_of, validated
from .limits import MAX_SIDE, check_resized
from .types import LAYER_INPUT, LAYERS, POLARITY, image_to_pixels, known, mask_to_pixels, pixels_to_image

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32  # pixels of a tile before an upscale model, as core takes them
BYTES_PER_PIXEL = 384 * 3  # core's estimate of an upscale model's memory, per pixel of a tile and byte of its dtype
LAYERS_INPUT = LAYERS.Input("layers", tooltip="From Decode, Join or Load Layers.")
LAYERS_OUTPUT = LAYERS.Output(display_name="layers", is_output_list=True, tooltip="One document for each that came in.")


class CleanEdges(io.ComfyNode):
    """Clean Edges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="T2L_CleanEdges",
            display_name="Clean Edges",
            category="text2layer/edges",
            **known(
                search_aliases=["defringe", "decontaminate", "halo", "matte", "cutout", "alpha", "sticker", "feather"],
                has_intermediate_output=True,
            ),
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
                io.Float.Input(
                    "shrink",
                    default=0,
                    min=-256,
                    max=256,
                    step=0.25,
                    tooltip="Pixels the mask is drawn in; below 0 it grows.",
                ),
                io.Float.Input(
                    "feather", default=0, min=0, max=256, step=0.25, tooltip="Softens the mask's edge: blur in pixels."
                ),
                io.Image.Input(
                    "composite",
                    optional=True,
                    tooltip="The picture that the foreground is cut from. Without it the foreground is taken as a copy of it.",
                ),
                LAYER_INPUT,
            ],
            outputs=[
                LAYERS_OUTPUT,
                io.Image.Output(
                    display_name="cutout",
                    is_output_list=True,
                    tooltip="The foreground with transparency, ready for Save Image as PNG.",
                ),
            ],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, composite: Any = None, layer: Any = (TOP,), **settings: Any) -> io.NodeOutput:
        node = "Clean Edges"
        stacks = stacks_of(layers, node)
        pictures = [None] * len(stacks) if composite is None else pictures_of(composite, stacks, node)
        config = checked(node, EdgeConfig, **{name: values[0] for name, values in settings.items()})
        cleaned = [
            checked(f"{node}: layer", clean_layer, stack, config, picture, layer[0])
            for stack, picture in zip(stacks, pictures, strict=True)
        ]
        before, after = ([cutout(stack, layer[0], node) for stack in kind] for kind in (stacks, cleaned))
        shown = [compared(*(x[0].movedim(-1, 0) for x in pair)) for pair in zip(before, after, strict=True)]
        return io.NodeOutput([stack_to_document(stack) for stack in cleaned], after, ui=preview(shown, cls))


class RecomposeCheck(io.ComfyNode):
    """Recompose Check."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="T2L_RecomposeCheck",
            display_name="Recompose Check",
            category="text2layer/layers",
            **known(search_aliases=["check layers", "flatten layer", "compare layers", "difference", "alpha"]),
            description="Says how far the stacked layers are from a picture, and makes them agree if you wish.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                LAYERS_INPUT,
                io.Image.Input(
                    "composite",
                    tooltip="The picture the layers should make: auxiliary from Decode Layers, a photograph, a file read back.",
                ),
                io.Boolean.Input(
                    "correct",
                    default=False,
                    tooltip="Changes foreground and background by as little as it takes; the mask stays.",
                ),
                io.Float.Input(
                    "gain",
                    default=8,
                    min=1,
                    max=255,
                    step=1,
                    tooltip="The difference picture is so many times brighter.",
                ),
            ],
            outputs=[
                LAYERS.Output(
                    display_name="layers",
                    is_output_list=True,
                    tooltip="As they came, or corrected; one for each that came in.",
                ),
                io.Image.Output(
                    display_name="difference", is_output_list=True, tooltip="Black where the layers make the picture."
                ),
                io.Float.Output(
                    display_name="mean",
                    is_output_list=True,
                    tooltip="Mean difference as it came in, 255 = black to white.",
                ),
                io.Float.Output(
                    display_name="max",
                    is_output_list=True,
                    tooltip="Largest difference as it came in, 255 = black to white.",
                ),
                io.String.Output(
                    display_name="figures", tooltip="A line for each document, also after the correction."
                ),
            ],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, composite: Any, correct: Any, gain: Any) -> io.NodeOutput:
        node = "Recompose Check"
        stacks = stacks_of(layers, node)
        pictures = pictures_of(composite, stacks, node)
        pairs = list(zip(stacks, pictures, strict=True))
        agreeing = [checked(node, corrected, *pair) for pair in pairs] if correct[0] else []  # refused before the work
        composites = [checked(node, stack.composite) for stack in stacks]
        before = [agreement(seen, picture) for seen, picture in zip(composites, pictures, strict=True)]
        differences = [
            pixels_to_image(difference_picture(seen, picture, gain[0])[None])
            for seen, picture in zip(composites, pictures, strict=True)
        ]
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
    """Upscale Layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="T2L_UpscaleLayers",
            display_name="Upscale Layers",
            category="text2layer/layers",
            **known(
                search_aliases=["resize layer", "enlarge layers", "scale psd", "upscale transparent", "alpha"],
                has_intermediate_output=True,
            ),
            description="Enlarges every layer with its mask and its place, without a fringe.",
            inputs=[
                LAYERS_INPUT,
                io.Float.Input(
                    "factor",
                    default=2,
                    min=0.05,
                    max=16,
                    step=0.05,
                    tooltip="Of the canvas, where width and height are 0.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="Pixels of the canvas. 0 = by the height, or by the factor.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="Pixels of the canvas. 0 = by the width, or by the factor.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(get_args(Method)),
                    tooltip="How pixels are resampled; after an upscale model, to the exact size.",
                ),
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
        node = "Upscale Layers"
        stack = document_to_stack(layers, f"{node}: layers")
        size = target_size(stack, factor, width, height, node)
        check_resized(stack, (stack.height, stack.width), size, f"{node}: factor, width and height: layers")
        enlarge = None if upscale_model is None else enlarger(upscale_model, node)
        larger = checked(node, upscaled, stack, *size, method, enlarge)
        shown = compared(*(torch.cat(x.flattened()) for x in (stack, larger)))
        return io.NodeOutput(stack_to_document(larger), ui=preview([shown], cls))


class BestLayers(io.ComfyNode):
    """Best of Layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="T2L_BestLayers",
            display_name="Best of Layers",
            category="text2layer/layers",
            **known(search_aliases=["pick best", "rank layers", "choose cutout", "best of batch"]),
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
                LAYERS.Output(
                    display_name="layers", is_output_list=True, tooltip="The best documents, the best first."
                ),
                io.Image.Output(
                    display_name="composite", is_output_list=True, tooltip="The layers stacked, the best first."
                ),
                io.String.Output(display_name="figures", tooltip="A line for each document, the best first."),
            ],
        )

    @classmethod
    @validated
    def execute(
        cls, layers: Any, keep: Any, composite: Any = None, mask: Any = None, layer: Any = (TOP,)
    ) -> io.NodeOutput:
        node = "Best of Layers"
        stacks = stacks_of(layers, node)
        errors = [] if composite is None else [recompose_errors(stacks, composite, node)]
        opinions = mask_figures(stacks, mask, layer[0], node)
        from ..t2l.evaluation.ranking import best_first

        order = best_first(*errors, [-opinion for opinion in opinions])
        names = [*(["recompose error"] if errors else []), "edge contrast" if mask is None else "mask IOU"]
        figures = list(zip(names, [*errors, opinions], strict=True))
        lines = [f"{i + 1}: " + ", ".join(f"{name} {values[i]:.3f}" for name, values in figures) for i in order]
        chosen = [stacks[i] for i in order[: keep[0]]]
        return io.NodeOutput(
            [stack_to_document(stack) for stack in chosen],
            [pixels_to_image(checked(node, stack.composite)[None]) for stack in chosen],
            "\n".join(lines),
        )


def checked(node: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a function of t2l returns; what it refuses, with the node's name before it. Cancel in ComfyUI stops it before."""
    mm.throw_exception_if_processing_interrupted()
    try:
        return call(*arguments, **named)
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def compared(before: Tensor, after: Tensor) -> Tensor:
    """Two pictures (4, h, w) beside one another, (3, H, W)."""
    from ..t2l.compositing.compare import before_and_after

    return before_and_after(before, after)


def preview(pictures: list[Tensor], cls: type[io.ComfyNode]) -> ui.PreviewImage:
    """Pictures (3, H, W), each of its size, for the node to show."""
    return ui.PreviewImage([picture.movedim(0, -1) for picture in pictures], cls=cls)


def stacks_of(documents: list[Any], node: str) -> list[Stack]:
    """The documents of a list input."""
    stacks = []
    for document in documents:
        mm.throw_exception_if_processing_interrupted()
        stacks.append(document_to_stack(document, f"{node}: layers"))
    return stacks


def pictures_of(images: list[Any], stacks: list[Stack], node: str) -> list[Tensor]:
    """The pictures of a list input, (3, H, W), one for each stack and as large."""
    source = f"{node}: composite"
    pictures = [picture.clamp(0, 1) for image in images for picture in image_to_pixels(image, source)]
    pictures = for_each(pictures, len(stacks), source)
    for stack, picture in zip(stacks, pictures, strict=True):
        height, width = picture.shape[-2:]
        if (height, width) != (stack.height, stack.width):
            raise ValueError(
                f"{source} must be as large as the layers, {stack.width} x {stack.height}, got {width} x {height}; put "
                "Upscale Image between"
            )
    return pictures


def for_each(items: list[Tensor], count: int, source: str) -> list[Tensor]:
    """One item for each of `count` documents; a single one serves all."""
    if len(items) not in (1, count):
        raise ValueError(
            f"{source} must hold one picture, or one for each of the {count} documents of layers, got {len(items)}"
        )
    return items * count if len(items) == 1 else items


def corrected(stack: Stack, picture: Tensor) -> Stack:
    """Two layers that make the picture. Raises ValueError for a stack where others would have to change."""
    stack = stack.drawn
    whole = [layer.size == (stack.height, stack.width) and plain(layer) for layer in stack.layers]
    if whole != [True, True] or not bool((stack.layers[0].mask == 1).all()):
        raise ValueError(
            f"correct needs an opaque layer and one over it, both as large as the canvas, visible and of normal "
            f"blend mode, got {len(stack.layers)} layers; switch it off, or put Split Layers and Join Layers before"
        )
    layers = made_to_agree(stack.to_layers(), picture[None])
    return Stack.from_layers(layers, names=[layer.name for layer in stack.layers])


def plain(layer: Any) -> bool:
    """True for a layer that lies on the canvas as it is."""
    return (layer.x, layer.y, layer.opacity, layer.blend_mode, layer.visible) == (0, 0, 1, "normal", True)


def cutout(stack: Stack, layer: str, node: str) -> Tensor:
    """One layer as an IMAGE with transparency, (1, H, W, 4)."""
    layers = checked_layers(stack, layer, node)
    return pixels_to_image(torch.cat([layers.foreground, layers.mask], dim=1))


def checked_layers(stack: Stack, layer: str, node: str) -> Layers:
    """One layer against the others; Cancel in ComfyUI stops it before."""
    mm.throw_exception_if_processing_interrupted()
    return stack_to_layers(stack, layer, node)


def target_size(stack: Stack, factor: float, width: int, height: int, node: str) -> tuple[int, int]:
    """Height and width of the new canvas. Raises ValueError for one that ComfyUI could not show."""
    scale_x = width / stack.width if width else height / stack.height if height else factor
    scale_y = height / stack.height if height else scale_x
    size = max(1, round(stack.height * scale_y)), max(1, round(stack.width * scale_x))
    if max(size) > MAX_SIDE:  # before the layers are looked at
        raise ValueError(
            f"{node}: factor, width and height must give at most {MAX_SIDE} pixels a side, got {size[1]} x {size[0]}"
        )
    return size


def enlarger(upscale_model: Any, node: str) -> Enlarge:
    """An UPSCALE_MODEL as a function of pictures, in tiles that are halved while memory runs out, as core does."""
    if not hasattr(upscale_model, "scale") or not hasattr(upscale_model, "model"):
        raise ValueError(
            f"{node}: upscale_model needs an upscale model, got {kind_of(upscale_model)}; connect Load Upscale Model"
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
    """(N, 3, h, w) through an upscale model. Raises core's OOM exception when the smallest tiles are too large as well."""
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


def recompose_errors(stacks: list[Stack], composite: list[Any], node: str) -> list[float]:
    """Mean difference of each stack from the picture it should make, in 1/255."""
    pictures = pictures_of(composite, stacks, node)
    composites = [checked(node, stack.composite) for stack in stacks]
    figures: list[Agreement] = [agreement(seen, p) for seen, p in zip(composites, pictures, strict=True)]
    return [figure.mean for figure in figures]


def mask_figures(stacks: list[Stack], mask: list[Any] | None, layer: str, node: str) -> list[float]:
    """How much each mask agrees with the second opinion, or without one, with the edges of its own composite."""
    from ..t2l.evaluation.metrics import mask_iou
    from ..t2l.evaluation.ranking import edge_contrast

    layers = [checked_layers(stack, layer, node) for stack in stacks]
    if mask is None:
        return [edge_contrast(x.mask, x.composite()).item() for x in layers]
    source = f"{node}: mask"
    size = layers[0].size
    opinions = for_each([one for masks in mask for one in mask_to_pixels(masks, size, source)], len(stacks), source)
    resized = [mask_to_pixels(one, x.size, source) for one, x in zip(opinions, layers, strict=True)]
    return [mask_iou(x.mask, one).item() for x, one in zip(layers, resized, strict=True)]
