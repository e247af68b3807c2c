"""Fit Layers: a document at the size that a checkpoint paints well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io

from ..t2l.compositing.fit import Fit, fit_stack, fitted_size
from ..t2l.compositing.resample import Method
from .documents import document_to_stack, stack_to_document
from .inputs import validated
from .latent import AUTOENCODER_INPUT, check_autoencoder
from .limits import MAX_SIDE, check_resized
from .types import LAYERS, choice_input, schema

if TYPE_CHECKING:
    from .autoencoder import ManagedAutoencoder

SMALLEST = 64  # pixels a side that `size` may ask for


class FitLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_FitLayers",
            display_name="Fit Layers",
            category="text2layer/layers",
            search_aliases=["resize layers", "fit psd", "model size", "scale layers", "photograph"],
            description="Brings a layer document to the size that the checkpoint was trained on; Upscale Layers brings "
            "it back.",
            inputs=[
                LAYERS.Input("layers", tooltip="From Load, Join or Decode Layers; any size, any number of layers."),
                AUTOENCODER_INPUT,
                choice_input(
                    "fit",
                    Fit,
                    "keep aspect: as many pixels as in training, nothing cut; crop: the square in the middle; stretch: "
                    "all in a square.",
                ),
                choice_input("method", Method, "How pixels are resampled. nearest keeps the pixels of pixel art."),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    optional=True,
                    tooltip="Pixels along a side of a square. 0 = what the checkpoint was trained on.",
                ),
            ],
            outputs=[
                LAYERS.Output(
                    display_name="layers", tooltip="The same layers on the smaller or larger canvas, for Split Layers."
                ),
                io.Int.Output(display_name="width", tooltip="Of the canvas before: for width of Upscale Layers."),
                io.Int.Output(display_name="height", tooltip="Of the canvas before: for height of Upscale Layers."),
            ],
        )

    @classmethod
    @validated
    def execute(cls, layers: Any, autoencoder: Any, fit: Any, method: Any, size: int = 0) -> io.NodeOutput:
        managed = check_autoencoder(autoencoder)
        wanted, stack = wanted_size(size, managed), document_to_stack(layers)
        before = (stack.height, stack.width) if fit != "crop" else (min(stack.height, stack.width),) * 2
        check_resized(stack, before, fitted_size(before, wanted, managed.downscale, fit), "layers")
        fitting, cut = fit_stack(stack, wanted, managed.downscale, fit, method)
        return io.NodeOutput(stack_to_document(fitting), cut.width, cut.height)


def wanted_size(size: int, managed: ManagedAutoencoder) -> int:
    """Pixels along a side. Raises ValueError for too small a side, and where neither input nor file names one."""
    wanted = size or managed.trained_size
    if wanted is None:
        raise ValueError(
            f"size must be set, because {managed.name} does not say which size it was trained on; 512 is Stable "
            "Diffusion 1.x's"
        )
    if not SMALLEST <= wanted <= MAX_SIDE:
        raise ValueError(f"size must be 0 or from {SMALLEST} to {MAX_SIDE}, got {size}; 0 is the checkpoint's own")
    return wanted
