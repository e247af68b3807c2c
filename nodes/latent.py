"""Layers into latents and back, whole or in tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.layers import Layers
from ..t2l.model.window import Window, followed
from .documents import to_documents
from .hints import hint, hint_at_size
from .inputs import kind_of, validated
from .limits import check_pictures
from .pairing import paired
from .types import (
    AUTOENCODER,
    BEHIND_INPUTS,
    LAYERS,
    POLARITY,
    describe_unreadable,
    layers_to_cutout,
    layers_to_sockets,
    list_output,
    pixels_to_image,
    schema,
    shape_of,
    to_layers,
)

LARGEST = 1e4  # in latents: those of pictures stay below 100, and a network makes NaN of huge ones
if TYPE_CHECKING:
    from ..t2l.model.autoencoder import Decoded
    from .autoencoder import ManagedAutoencoder

KEPT = "t2l_kept"  # in a LATENT and in conditioning: the layer that Keep Layer keeps (CarriedLayer)
SIZE = "t2l_size"  # in a LATENT: where the pictures lie on the latent grid, which rounds their size up; None = unknown
AUTOENCODER_INPUT = AUTOENCODER.Input(
    "autoencoder", tooltip="From Load Text2Layer Checkpoint or Load Layered Autoencoder."
)
LAYER_INPUTS = [
    AUTOENCODER_INPUT,
    io.Image.Input("foreground", tooltip="Its colours under the mask are kept; its size is the size of the result."),
    *BEHIND_INPUTS,
]
LATENT_INPUTS = [AUTOENCODER_INPUT, io.Latent.Input("latent", tooltip="From KSampler or Encode Layers.")]
LATENT_OUTPUT = list_output(
    io.Latent, "latent", "All layers in one: for KSampler (denoise below 1 keeps some of them) or Decode Layers."
)
FIT_LAYERS = (
    "pixels. To encode and decode is right at any size, but a KSampler between tears the layers: put Fit Layers before "
    "this node, and Upscale Layers behind Decode Layers"
)
NEW_SIZE = (
    "pixels, and paints several things, or torn ones, far from that; set Empty Latent Image to {trained}, and enlarge "
    "with Upscale Layers"
)
TILE_INPUTS = [
    io.Int.Input("tile_size", default=512, min=64, max=4096, step=32, tooltip="Pixels along a side of a tile."),
    io.Int.Input("overlap", default=64, min=0, max=2048, step=32, tooltip="Pixels that neighbouring tiles share."),
]
LAYER_OUTPUTS = [
    io.Image.Output(display_name="foreground", tooltip="Whole picture; it has a colour also where the mask is 0."),
    io.Image.Output(display_name="background", tooltip="Whole picture, also behind the foreground."),
    io.Mask.Output(display_name="mask", tooltip=POLARITY),
    io.Image.Output(
        display_name="composite", tooltip="The layers stacked: mask x foreground + (1 - mask) x background."
    ),
    list_output(LAYERS, "layers", "The same as a layer document, one for each picture."),
    io.Image.Output(display_name="auxiliary", tooltip="What the autoencoder predicts the composite to be."),
    io.Image.Output(
        display_name="cutout",
        tooltip="The foreground with transparency, ready for Save Image as PNG; alpha is the mask.",
    ),
]


class EncodeLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_EncodeLayers",
            display_name="Encode Layers",
            category="text2layer/latent",
            search_aliases=["vae encode layers", "layer to latent", "alpha encode", "matte", "transparent"],
            description="Takes a foreground, a background and their mask into one latent.",
            is_input_list=True,
            inputs=LAYER_INPUTS,
            outputs=[LATENT_OUTPUT],
        )

    @classmethod
    @validated
    @paired
    def execute(cls, autoencoder: Any, foreground: Any, background: Any, mask: Any) -> io.NodeOutput:
        return encode("Encode Layers", autoencoder, to_layers(foreground, background, mask))


class EncodeLayersTiled(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_EncodeLayersTiled",
            display_name="Encode Layers (Tiled)",
            category="text2layer/latent",
            search_aliases=["vae encode layers tiled", "layer to latent", "alpha encode", "matte", "transparent"],
            description="Encode Layers for large pictures: one tile at a time, in little memory.",
            is_input_list=True,
            inputs=[*LAYER_INPUTS, *TILE_INPUTS],
            outputs=[LATENT_OUTPUT],
        )

    @classmethod
    @validated
    @paired
    def execute(
        cls, autoencoder: Any, foreground: Any, background: Any, mask: Any, tile_size: int, overlap: int
    ) -> io.NodeOutput:
        layers = to_layers(foreground, background, mask)
        return encode("Encode Layers (Tiled)", autoencoder, layers, check_tiling(tile_size, overlap))


class DecodeLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_DecodeLayers",
            display_name="Decode Layers",
            category="text2layer/latent",
            search_aliases=["vae decode layers", "latent to layer", "cutout", "alpha", "matte", "transparent"],
            description="Turns a latent into foreground, background, mask and composite.",
            inputs=LATENT_INPUTS,
            outputs=LAYER_OUTPUTS,
        )

    @classmethod
    @validated
    def execute(cls, autoencoder: Any, latent: Any) -> io.NodeOutput:
        return decode("Decode Layers", autoencoder, latent)


class DecodeLayersTiled(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_DecodeLayersTiled",
            display_name="Decode Layers (Tiled)",
            category="text2layer/latent",
            search_aliases=["vae decode layers tiled", "latent to layer", "cutout", "alpha", "matte"],
            description="Decode Layers for large pictures: one tile at a time, in little memory.",
            inputs=[*LATENT_INPUTS, *TILE_INPUTS],
            outputs=LAYER_OUTPUTS,
        )

    @classmethod
    @validated
    def execute(cls, autoencoder: Any, latent: Any, tile_size: int, overlap: int) -> io.NodeOutput:
        return decode("Decode Layers (Tiled)", autoencoder, latent, check_tiling(tile_size, overlap))


def encode(node: str, autoencoder: Any, layers: Layers, tiling: tuple[int, int] | None = None) -> io.NodeOutput:
    """LATENT that remembers the size of its pictures. tiling: tile size and overlap in pixels; None: whole."""
    managed = check_autoencoder(autoencoder)
    hint_at_size(node, managed, layers.size, FIT_LAYERS)
    samples = managed.encode_tiled(layers, *tiling) if tiling else managed.encode(layers)
    return io.NodeOutput(FollowedLatent({"samples": samples, SIZE: Window.of(layers.size, managed.downscale)}))


def decode(node: str, autoencoder: Any, latent: Any, tiling: tuple[int, int] | None = None) -> io.NodeOutput:
    """What LAYER_OUTPUTS announces. tiling: as `encode` takes it."""
    managed = check_autoencoder(autoencoder)
    samples = samples_of(latent, managed)
    hint_at_latent(node, managed, latent)
    whole = managed.decode_tiled(samples, *tiling) if tiling else managed.decode(samples)
    decoded = cropped(whole, latent, managed)
    layers = with_kept(node, decoded.layers, latent)
    return io.NodeOutput(
        *layers_to_sockets(layers),
        pixels_to_image(layers.composite()),
        to_documents(layers),
        pixels_to_image(decoded.auxiliary),
        layers_to_cutout(layers),
    )


def with_kept(node: str, layers: Layers, latent: dict[str, Any]) -> Layers:
    """Decoded layers with the one that Keep Layer keeps in its place, as far as they lie where it does."""
    kept = kept_in(latent)
    if kept is None:
        return layers
    if not kept.told:
        hint(
            f"{node}: no model was told of the kept {kept.kind}, so the other layer is not painted to it; connect "
            "positive and negative of Keep Layer to KSampler, and the model of Load Text2Layer Checkpoint"
        )
    if kept.fits(layers, latent.get(SIZE)):
        return kept.put_back_into(layers)
    hint(
        f"{node}: the latent was turned, cropped, enlarged or divided since Keep Layer, so the kept {kept.kind} comes "
        "out as the autoencoder paints it; decode first, and change the layers after that"
    )
    return layers


def kept_in(values: dict[str, Any]) -> Any:
    """The layer that is kept (CarriedLayer), in a LATENT or in what comes beside a prompt; None without one."""
    kept = values.get(KEPT)
    return kept if hasattr(kept, "put_back_into") else None


def check_autoencoder(autoencoder: Any) -> ManagedAutoencoder:
    """What is on the socket, when it is a layered autoencoder."""
    if not hasattr(autoencoder, "decode_tiled") or not hasattr(autoencoder, "downscale"):
        raise ValueError(
            f"autoencoder needs a layered autoencoder, got {kind_of(autoencoder)}; connect the "
            "autoencoder output of Load Text2Layer Checkpoint or Load Layered Autoencoder"
        )
    return autoencoder


def check_tiling(tile_size: int, overlap: int) -> tuple[int, int]:
    """Tile size and overlap. Raises ValueError for tiles that would not move on."""
    if overlap > tile_size // 4:
        raise ValueError(f"overlap must be at most a quarter of tile_size ({tile_size // 4}), got {overlap}; lower it")
    return tile_size, overlap


class FollowedLatent(dict[str, Any]):
    """A LATENT that knows where its pictures lie after a node has flipped, turned, cropped or enlarged the samples.

    Core's nodes copy a LATENT and put other samples in; both are seen here, and the note in it follows.
    """

    def copy(self) -> FollowedLatent:
        return FollowedLatent(self)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "samples" and isinstance(self.get(SIZE), Window) and "samples" in self:
            super().__setitem__(SIZE, followed(self[SIZE], self["samples"], value))
        super().__setitem__(key, value)


def samples_of(latent: Any, managed: ManagedAutoencoder) -> Tensor:
    """The samples of a LATENT. Raises ValueError for latents of another kind of model."""
    samples = latent.get("samples") if isinstance(latent, dict) else latent
    is_plain = isinstance(samples, Tensor) and not describe_unreadable(samples) and isinstance(latent, dict)
    if not is_plain or samples.ndim != 4 or samples.shape[1] != managed.latent_channels or samples.numel() == 0:
        raise ValueError(
            f"latent needs samples of shape (N, {managed.latent_channels}, h, w), as {managed.name} makes them, got "
            f"{shape_of(samples)}; connect the latent of a KSampler with this checkpoint's model, or of Encode Layers"
        )
    height, width = (length * managed.downscale for length in samples.shape[-2:])
    check_pictures((height, width), len(samples), "latent")
    if not (samples.float().abs() <= LARGEST).all():
        raise ValueError("latent holds NaN, infinite or huge values; lower cfg or change the sampler before it")
    return samples


def hint_at_latent(node: str, managed: ManagedAutoencoder, latent: dict[str, Any]) -> None:
    """Hint at a size that the checkpoint was not trained on, unless Encode Layers has said so of these layers."""
    grid, window = tuple(latent["samples"].shape[-2:]), latent.get(SIZE)
    if not isinstance(window, Window) or window.grid != grid:
        hint_at_size(node, managed, (grid[0] * managed.downscale, grid[1] * managed.downscale), NEW_SIZE)


def cropped(decoded: Decoded, latent: dict[str, Any], managed: ManagedAutoencoder) -> Decoded:
    """The pictures without the padding of their grid, as far as the latent says where they lie."""
    window = latent.get(SIZE)
    if not isinstance(window, Window) or window.grid != tuple(latent["samples"].shape[-2:]):
        return decoded
    layers = Layers.from_stacked(window.of_decoded(decoded.layers.stacked, managed.downscale))
    return replace(decoded, layers=layers, auxiliary=window.of_decoded(decoded.auxiliary, managed.downscale))
