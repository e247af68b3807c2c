"""Keep Layer: one layer stays as it is, a KSampler paints the other one to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.utils
import node_helpers
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.keep import Kept, check_kept_mask, keep_condition, layers_to_encode, mask_on_grid, put_back
from ..t2l.layers import Layers
from ..t2l.model.window import Window
from .hints import hint, hint_at_size
from .inputs import kind_of, validated
from .latent import AUTOENCODER_INPUT, FIT_LAYERS, KEPT, SIZE, FollowedLatent, check_autoencoder, kept_in
from .pairing import paired
from .types import POLARITY, image_to_alpha, list_output, read_together, schema

if TYPE_CHECKING:
    from .autoencoder import ManagedAutoencoder

ONE_OF_BOTH = (
    "connect foreground (with its mask) to keep it and have another background painted, or background to have another "
    "foreground painted"
)


@dataclass(eq=False, repr=False)
class CarriedLayer:
    """What conditioning and LATENT carry of a layer that is kept: n pictures."""

    kind: Kept
    layers: Layers  # of which one layer is kept; the other plays no part
    latents: Tensor  # (n, C, h, w), of `layers_to_encode`
    managed: ManagedAutoencoder
    told: bool = False  # whether a model of ours has met it among its conditions

    def __deepcopy__(self, memo: dict) -> CarriedLayer:
        """Itself: other packs copy conditioning in depth, and the autoencoder would come along."""
        return self

    @property
    def window(self) -> Window:
        """Where the pictures lie on the grid of latents."""
        return Window.of(self.layers.size, self.managed.downscale)

    def condition(self, latent_format: Any, noise: Tensor) -> Tensor:
        """What a UNet with channels for it sees, beside noise (N, C, h, w): (N, C + 3, h, w)."""
        latents = latent_format.process_in(self.latents).to(noise)
        mask = mask_on_grid(self.layers.mask, self.window.grid).to(noise)
        return comfy.utils.repeat_to_batch_size(keep_condition(latents, mask, self.kind), len(noise))

    def put_back(self, latents: Tensor, runs: int) -> Tensor:
        """Latents (N, C, h, w) with the layer in its place, decoded and encoded again.

        runs: how often the batch is in N, once for every prompt.
        """
        self.check_samples(latents)
        managed, (height, width) = self.managed.quietly(), self.layers.size
        painted = Layers.from_stacked(managed.decode(latents).layers.stacked[..., :height, :width])
        return managed.encode(self.put_back_into(painted, runs)).to(latents)

    def put_back_into(self, painted: Layers, runs: int = 1) -> Layers:
        """Painted layers with this one in its place, untouched."""
        own = comfy.utils.repeat_to_batch_size(self.layers.stacked, len(painted) // runs).repeat(runs, 1, 1, 1)
        return put_back(painted, Layers.from_stacked(own.to(painted.stacked)), self.kind)

    def fits(self, painted: Layers, window: Any) -> bool:
        """Whether decoded pictures lie where the kept layer does."""
        return window == self.window and painted.size == self.layers.size and len(painted) % len(self.layers) == 0

    def cropped(self, area: Sequence[int]) -> CarriedLayer:
        """The part in an area of the grid: height, width, top and left in latents."""
        latents = self.latents[_rectangle(area)]
        pixels = self.layers.stacked[_rectangle([length * self.managed.downscale for length in area])]
        return replace(self, layers=Layers.from_stacked(pixels), latents=latents)

    def check_samples(self, latents: Tensor) -> None:
        """Raises ValueError for latents of another size or number."""
        if len(latents) % len(self.layers):
            raise ValueError(
                f"Keep Layer: the latent that is sampled holds {len(latents)} pictures, the kept layer "
                f"{len(self.layers)}; connect the latent of Keep Layer, and choose pictures before it or after Decode "
                "Layers"
            )
        if tuple(latents.shape[-2:]) != self.window.grid:
            sizes = [
                [length * self.managed.downscale for length in grid] for grid in (latents.shape[-2:], self.window.grid)
            ]
            (height, width), (own_height, own_width) = sizes
            raise ValueError(
                f"Keep Layer: the latent that is sampled is of {width} x {height} pixels, the kept layer of "
                f"{own_width} x {own_height}; connect the latent of Keep Layer, and enlarge after Decode Layers"
            )


def _rectangle(area: Sequence[int]) -> tuple[Any, ...]:
    height, width, top, left = area
    return ..., slice(top, top + height), slice(left, left + width)


class KeepLayer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_KeepLayer",
            display_name="Keep Layer",
            category="text2layer/latent",
            search_aliases=["inpaint", "new background", "replace background", "swap foreground", "redo layer"],
            description="Keeps a foreground or a background as it is; the prompt paints the other layer to it.",
            is_input_list=True,
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt of the whole picture: thing and place."),
                io.Conditioning.Input("negative", tooltip="From another CLIP Text Encode; an empty prompt is good."),
                AUTOENCODER_INPUT,
                io.Image.Input(
                    "foreground",
                    optional=True,
                    tooltip="To be kept, where it stands. Move it with Composite Layers before. Without a mask its own "
                    "transparency counts.",
                ),
                io.Mask.Input("mask", optional=True, tooltip=f"Of the foreground. {POLARITY}."),
                io.Image.Input("background", optional=True, tooltip="To be kept instead of a foreground."),
            ],
            outputs=[
                list_output(io.Conditioning, "positive", "For positive of KSampler."),
                list_output(io.Conditioning, "negative", "For negative of KSampler."),
                list_output(
                    io.Latent,
                    "latent",
                    "For latent_image of KSampler, denoise 1. Decode Layers puts the kept layer back into what comes "
                    "out, exactly.",
                ),
            ],
        )

    @classmethod
    @validated
    @paired
    def execute(
        cls,
        positive: Any,
        negative: Any,
        autoencoder: Any,
        foreground: Any = None,
        mask: Any = None,
        background: Any = None,
    ) -> io.NodeOutput:
        managed = check_autoencoder(autoencoder)
        prompts = [check_conditioning(x, name) for x, name in ((positive, "positive"), (negative, "negative"))]
        kind, layers = read_kept(foreground, mask, background)
        hint_at_size("Keep Layer", managed, layers.size, FIT_LAYERS)
        kept = CarriedLayer(kind, layers, managed.encode(layers_to_encode(layers, kind)), managed)
        told = ([node_helpers.conditioning_set_values(prompt, {KEPT: kept})] for prompt in prompts)
        latent = FollowedLatent({"samples": torch.zeros_like(kept.latents), SIZE: kept.window, KEPT: kept})
        return io.NodeOutput(*told, latent)


def check_conditioning(value: Any, source: str) -> Any:
    """A CONDITIONING that keeps no layer yet. Raises ValueError for anything else."""
    entries = value if isinstance(value, list) and value else [None]
    if not all(isinstance(x, (list, tuple)) and len(x) == 2 and isinstance(x[1], dict) for x in entries):
        raise ValueError(f"{source} needs a CONDITIONING, got {kind_of(value)}; connect CLIP Text Encode")
    if kept := next(filter(None, (kept_in(x[1]) for x in entries)), None):
        raise ValueError(
            f"{source} keeps a {kept.kind} already, by another Keep Layer, and only one layer can be kept; connect "
            "CLIP Text Encode. Composite Layers joins two layers as they are"
        )
    return value


def read_kept(foreground: Any, mask: Any, background: Any) -> tuple[Kept, Layers]:
    """Which layer is kept, and layers that hold it. Raises ValueError for none, for both and for a useless mask."""
    if foreground is not None and background is not None:
        raise ValueError(
            f"foreground and background are both connected, so that nothing is left to paint; {ONE_OF_BOTH}. Composite "
            "Layers joins two layers as they are"
        )
    if foreground is None and background is None:
        raise ValueError(f"a layer is needed, got neither foreground nor background; {ONE_OF_BOTH}")
    if background is not None:
        if mask is not None:
            hint(
                "Keep Layer: mask is of a kept foreground, and plays no part beside background; what is painted brings "
                "a mask of its own"
            )
        pixels = read_together(background=background)["background"]
        return "background", Layers(pixels, pixels, torch.zeros_like(pixels[:, :1]))
    found = read_together(foreground=foreground, mask=mask)
    pixels = found["foreground"]
    shown = found["mask"] if mask is not None else image_to_alpha(foreground, "foreground")
    check_kept_mask(shown, "mask", "put Invert Mask before it")
    return "foreground", Layers(pixels, torch.zeros_like(pixels), shown.to(pixels))
