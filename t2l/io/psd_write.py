"""A `Stack` as Photoshop's PSD, through psd-tools. Values are exact at the depth of the file: v / 255, or v / 65535."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from torch import Tensor

from ..compositing.stack import Layer, Stack
from .atomic import atomic_path
from .layer_nodes import Depth, MaskAs
from .psd import MODES, check_installed

MAX_SIDE = 30_000  # pixels of a PSD; PSB is not written


def save_psd(
    stack: Stack,
    path: str | Path,
    depth: Depth = 8,
    mask_as: MaskAs = "layer mask",
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a PSD, whole or not at all: every layer of the stack, and the composite as the picture other programs show.

    PSD has no modes of grain: both are written as linear light of other colours, which look the same. Krita's soft
    light becomes Photoshop's, as Krita itself writes it; that differs in the shadows. mask_as: "layer mask" keeps the
    colours that the mask hides and lets the mask be painted on; "transparency" makes the mask the layer's own
    transparency. texts: written into the file's XMP. Opacities are rounded to whole 255ths. Raises ValueError for a
    canvas or layer that the format cannot hold, OSError with a sentence when it cannot be written.
    """
    check_installed()
    from psd_tools.constants import ColorMode, Compression, Tag
    from psd_tools.psd import PSD
    from psd_tools.psd.header import FileHeader
    from psd_tools.psd.image_data import ImageData
    from psd_tools.psd.layer_and_mask import GlobalLayerMaskInfo, LayerAndMaskInformation, LayerInfo
    from psd_tools.psd.tagged_blocks import TaggedBlocks

    _check_size(stack)
    merged = _merged_planes(stack, depth)
    stack = replace(stack, layers=tuple(_to_photoshop_modes(layer) for layer in stack.layers))
    header = FileHeader(
        channels=len(merged), height=stack.height, width=stack.width, depth=depth, color_mode=ColorMode.RGB
    )
    info = _layer_info(stack, depth, mask_as, has_alpha=len(merged) == 4)
    blocks = TaggedBlocks()
    if depth == 16:  # Photoshop keeps the layers of deep files here, and leaves the ordinary place empty
        blocks.set_data(Tag.LAYER_16, info.layer_count, info.layer_records, info.channel_image_data)
    layers = LayerAndMaskInformation(
        layer_info=LayerInfo() if depth == 16 else info,
        global_layer_mask_info=GlobalLayerMaskInfo(),  # empty; without it a reader takes the next block for its length
        tagged_blocks=blocks,
    )
    image_data = ImageData(compression=Compression.RLE)
    image_data.set_data(merged, header)
    psd = PSD(
        header=header,
        image_resources=_resources(texts or {}),
        layer_and_mask_information=layers,
        image_data=image_data,
    )
    with atomic_path(path) as partial, partial.open("wb") as file:
        psd.write(file)


def _check_size(stack: Stack) -> None:
    for name, (height, width) in [
        ("the canvas", (stack.height, stack.width)),
        *((x.name, x.size) for x in stack.layers),
    ]:
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"a PSD is at most {MAX_SIDE:,} pixels along a side, got {width:,} x {height:,} ({name})")


def _to_photoshop_modes(layer: Layer) -> Layer:
    """Grain merge b + s - 1/2 and grain extract b - s + 1/2 as linear light b + 2 s - 1."""
    if layer.blend_mode == "soft light krita":
        return replace(layer, blend_mode="soft light")
    if layer.blend_mode == "grain merge":
        return replace(layer, blend_mode="linear light", image=layer.image / 2 + 0.25)
    if layer.blend_mode == "grain extract":
        return replace(layer, blend_mode="linear light", image=0.75 - layer.image / 2)
    return layer


def _merged_planes(stack: Stack, depth: Depth) -> list[bytes]:
    """Three channels of the composite, and where it is transparent a fourth; over white, as Photoshop stores it."""
    colour, alpha = stack.flattened()
    over_white = torch.lerp(torch.ones_like(colour), colour, alpha)
    opaque = bool((alpha == 1).all())
    return [_plane(x, depth) for x in (over_white if opaque else torch.cat([over_white, alpha]))]


def _plane(values: Tensor, depth: Depth) -> bytes:
    """One channel (H, W) in [0, 1] as big-endian whole numbers."""
    largest = 2**depth - 1
    whole = (values.detach().float().clamp(0, 1) * largest).round().cpu().numpy()
    return whole.astype(">u2" if depth == 16 else np.uint8).tobytes()


def _layer_info(stack: Stack, depth: Depth, mask_as: MaskAs, has_alpha: bool) -> Any:
    from psd_tools.psd.layer_and_mask import ChannelImageData, LayerInfo, LayerRecords

    pairs = [_layer_record(layer, i, depth, mask_as) for i, layer in enumerate(stack.layers, 1)]
    return LayerInfo(
        layer_count=-len(pairs) if has_alpha else len(pairs),  # negative: the merged picture has a transparency channel
        layer_records=LayerRecords([record for record, _ in pairs]),
        channel_image_data=ChannelImageData([channels for _, channels in pairs]),
    )


def _layer_record(layer: Layer, number: int, depth: Depth, mask_as: MaskAs) -> tuple[Any, Any]:
    from psd_tools.constants import BlendMode as Key
    from psd_tools.constants import ChannelID, Compression, Tag
    from psd_tools.psd.layer_and_mask import (
        ChannelData,
        ChannelDataList,
        ChannelInfo,
        LayerFlags,
        LayerRecord,
        MaskData,
    )

    height, width = layer.size
    box: Any = {"top": layer.y, "left": layer.x, "bottom": layer.y + height, "right": layer.x + width}
    masked = mask_as == "layer mask" and not bool((layer.mask == 1).all())
    shape = torch.ones_like(layer.mask) if masked else layer.mask
    planes = [(ChannelID.TRANSPARENCY_MASK, shape[0])]
    planes += [(ChannelID(i), channel) for i, channel in enumerate(layer.image)]
    planes += [(ChannelID.USER_LAYER_MASK, layer.mask[0])] if masked else []
    channels: list[Any] = [ChannelData(compression=Compression.RLE) for _ in planes]
    for channel, (_, values) in zip(channels, planes, strict=True):
        channel.set_data(_plane(values, depth), width, height, depth)
    name = "".join(c for c in layer.name if c.isprintable())[:255]
    record = LayerRecord(
        **box,
        channel_info=[
            ChannelInfo(id=id_, length=len(x.data) + 2) for (id_, _), x in zip(planes, channels, strict=True)
        ],
        blend_mode=Key[next(key for key, mode in MODES.items() if mode == layer.blend_mode)],
        opacity=round(layer.opacity * 255),
        flags=LayerFlags(visible=layer.visible),
        mask_data=MaskData(**box, background_color=0) if masked else None,
        name=name.encode("ascii", "replace").decode()[:63],  # the Unicode name below is the one that editors show
    )
    record.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, name)
    record.tagged_blocks.set_data(Tag.LAYER_ID, number)
    return record, ChannelDataList(channels)


def _resources(texts: Mapping[str, str]) -> Any:
    """The file's resources: sRGB, and texts as properties of an XMP packet, which Photoshop keeps when it saves."""
    from psd_tools.constants import Resource
    from psd_tools.psd.image_resources import ImageResource, ImageResources

    resources, blobs = ImageResources.new(), {Resource.ICC_PROFILE: _srgb_profile()}
    if texts:
        blobs[Resource.XMP_METADATA] = xmp_packet(texts).encode()
    for key, data in blobs.items():
        resources[key] = ImageResource(key=key, data=data)
    return resources


def _srgb_profile() -> bytes:
    """An ICC profile; Krita takes 16 bits without one for linear light."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)  # its date: the same layers make the same file
    return bytes(profile)


def xmp_packet(texts: Mapping[str, str]) -> str:
    """Texts as an XMP packet, each a property of the namespace comfyui."""
    properties = "".join(f"<comfyui:{name}>{escape(text)}</comfyui:{name}>" for name, text in texts.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:comfyui="https://www.comfy.org/ns/1.0/">'
        f'{properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
