"""Photoshop's PSD and PSB: a `Stack` written, and files of other people read, both through psd-tools.

Layers keep their colours under the mask. Values are exact at the depth of the file: v / 255, or v / 65535.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from torch import Tensor

from ..blend import BlendMode
from ..placement import linear_to_srgb
from ..stack import Layer, Stack
from .atomic import atomic_path
from .layer_tree import (
    MAX_DEPTH,
    MAX_FILE,
    MAX_LAYERS,
    Account,
    Clipped,
    Depth,
    Group,
    LayerFile,
    Mask,
    MaskAs,
    Node,
    plain_layers,
)

MAX_SIDE = 30_000  # pixels of a PSD; PSB is not written

MODES: dict[str, BlendMode] = {  # by the names of psd_tools.constants.BlendMode
    "NORMAL": "normal",
    "MULTIPLY": "multiply",
    "SCREEN": "screen",
    "OVERLAY": "overlay",
    "DARKEN": "darken",
    "LIGHTEN": "lighten",
    "LINEAR_DODGE": "add",
    "SOFT_LIGHT": "soft light",
    "HARD_LIGHT": "hard light",
    "COLOR_DODGE": "color dodge",
    "COLOR_BURN": "color burn",
    "LINEAR_BURN": "linear burn",
    "VIVID_LIGHT": "vivid light",
    "LINEAR_LIGHT": "linear light",
    "PIN_LIGHT": "pin light",
    "HARD_MIX": "hard mix",
    "DIFFERENCE": "difference",
    "EXCLUSION": "exclusion",
    "SUBTRACT": "subtract",
    "DIVIDE": "divide",
    "DARKER_COLOR": "darker color",
    "LIGHTER_COLOR": "lighter color",
    "HUE": "hue",
    "SATURATION": "saturation",
    "COLOR": "color",
    "LUMINOSITY": "luminosity",
}
# What psd-tools raises on a damaged file: it has no exception of its own.
BROKEN = (
    ValueError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)


# ---- writing


def save_psd(
    stack: Stack,
    path: str | Path,
    depth: Depth = 8,
    mask_as: MaskAs = "layer mask",
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a PSD, whole or not at all: every layer of the stack, and the composite as the picture other programs show.

    mask_as: "layer mask" keeps the colours that the mask hides and lets the mask be painted on; "transparency" makes the
    mask the layer's own transparency. texts: written into the file's XMP. Opacities are rounded to whole 255ths.
    Raises ValueError for a canvas or layer that the format cannot hold, OSError with a sentence when it cannot be written.
    """
    _check_installed()
    from psd_tools.constants import ColorMode, Compression, Tag
    from psd_tools.psd import PSD
    from psd_tools.psd.header import FileHeader
    from psd_tools.psd.image_data import ImageData
    from psd_tools.psd.layer_and_mask import GlobalLayerMaskInfo, LayerAndMaskInformation, LayerInfo
    from psd_tools.psd.tagged_blocks import TaggedBlocks

    for name, (height, width) in [
        ("the canvas", (stack.height, stack.width)),
        *((x.name, x.size) for x in stack.layers),
    ]:
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"a PSD is at most {MAX_SIDE:,} pixels along a side, got {width:,} x {height:,} ({name})")
    merged = _merged_planes(stack, depth)
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
    """A layer's record and its channels."""
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
    """The file's resources: sRGB, and texts as properties of an XMP packet, which Photoshop keeps when it saves again."""
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


# ---- reading


def _check_installed() -> None:
    if find_spec("psd_tools") is None:
        sentence = "Photoshop files need the package psd-tools: run `pip install psd-tools` with this Python"
        raise ModuleNotFoundError(sentence, name="psd_tools")


def open_psd(path: str | Path) -> LayerFile:
    """A PSD or PSB of 8, 16 or 32 bits in RGB or grey as a stack; other colour modes with a palette as one layer.

    Groups are opened or merged, clipped layers merged into their base. What a stack cannot hold is named in the notes.
    32-bit colours are linear light and come out sRGB-encoded. Raises FileNotFoundError, and ValueError with a sentence for a
    damaged or too large file and for colours that cannot be shown (CMYK, Lab, multichannel).
    """
    _check_installed()
    from psd_tools import PSDImage
    from psd_tools.compression import PSDDecompressionWarning

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the layer file {path} does not exist")
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path} is too large: {path.stat().st_size >> 20} MB, at most {MAX_FILE >> 20} MB are read")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", PSDDecompressionWarning)
        try:
            reading = _Reading(PSDImage.open(file), path.name)
            return reading.layer_file()
        except BROKEN as error:
            if isinstance(error, _Refused):
                raise ValueError(f"{path.name} {error}") from error
            raise ValueError(f"{path.name} cannot be read as a PSD: {error or type(error).__name__}") from error
        except PSDDecompressionWarning as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error


class _Refused(ValueError):
    """A sentence about a file, without its name."""


class _Reading:
    """One file on its way into a stack."""

    def __init__(self, psd: Any, name: str) -> None:
        self.psd, self.account, self.layers = psd, Account(name), 0
        self.notes = self.account.notes

    def layer_file(self) -> LayerFile:
        mode = self.psd.color_mode.name
        if mode not in ("RGB", "GRAYSCALE", "INDEXED", "BITMAP", "DUOTONE"):
            raise _Refused(f"is in {mode} colours, which are not shown here; save a copy of it in RGB")
        Account(self.account.name).claim(self.psd.height, self.psd.width)  # the canvas, for what is made of it later
        self._note_profile()
        nodes = self._nodes(self.psd, 0) if mode in ("RGB", "GRAYSCALE") else ()
        layers = plain_layers(nodes, self.psd.height, self.psd.width, self.account)
        if not layers:
            layers = [self._merged_picture(mode)]
            if len(self.psd):
                self.notes.append(
                    "none of its layers holds pixels: the picture that other programs show is read instead"
                )
        return LayerFile(Stack(self.psd.height, self.psd.width, tuple(layers)), tuple(dict.fromkeys(self.notes)))

    def _nodes(self, parent: Iterable[Any], depth: int) -> tuple[Node, ...]:
        """The layers of the file or of a group, from the bottom up, with those that are clipped gathered."""
        if depth > MAX_DEPTH:
            raise _Refused(f"has groups in more than {MAX_DEPTH} levels; merge some in your editor")
        rows: list[tuple[Layer | Group, list[Layer | Group]]] = []
        base_is_missing = False
        for layer in parent:
            self.layers += 1
            if self.layers > MAX_LAYERS:
                raise _Refused(f"has more than {MAX_LAYERS:,} layers; merge some in your editor")
            node: Layer | Group | None = self._group(layer, depth) if layer.is_group() else self._layer(layer)
            is_clipped = bool(layer._record.clipping)
            if not is_clipped:
                base_is_missing = node is None
            if node is None:
                continue
            if is_clipped and base_is_missing:
                self.notes.append(f"{node.name!r} is clipped to what is left out, and shown without that")
            if is_clipped and rows and not base_is_missing:
                rows[-1][1].append(node)
            else:
                rows.append((node, []))
        return tuple(Clipped(base=base, above=tuple(above)) if above else base for base, above in rows)

    def _group(self, group: Any, depth: int) -> Group:
        self._note_extras(group)
        mode = group.blend_mode.name
        return Group(
            children=self._nodes(group, depth + 1),
            name=group.name,
            opacity=self._opacity(group),
            blend_mode=self._blend_mode(group),
            visible=group.visible,
            pass_through=mode == "PASS_THROUGH",
            mask=self._mask(group),
        )

    def _layer(self, layer: Any) -> Layer | None:
        height, width = layer._record.height, layer._record.width
        channels = dict(self._channels(layer))
        colours = [i for i in (0, 1, 2) if i in channels]
        if height == 0 or width == 0 or not colours:
            self._note_without_pixels(layer)
            return None
        self.account.claim(height, width)
        self._note_extras(layer)
        image = torch.empty(3, height, width)
        for i in range(3):
            image[i] = self._values(channels[i if i in colours else colours[0]], (height, width))
        mask = torch.ones(1, height, width)
        if -1 in channels:
            mask[0] = self._values(channels[-1], (height, width))
        if (user_mask := self._mask(layer)) is not None:
            mask = mask * user_mask.window(layer._record.left, layer._record.top, height, width)
        return Layer(
            image=linear_to_srgb(image.clamp(0, 1)) if self.psd.depth == 32 else image,
            mask=mask.clamp(0, 1),
            name=layer.name,
            x=layer._record.left,
            y=layer._record.top,
            opacity=self._opacity(layer),
            blend_mode=self._blend_mode(layer),
            visible=layer.visible,
        )

    def _channels(self, layer: Any) -> Iterator[tuple[int, Any]]:
        """Channel numbers and data of those that hold any: 0, 1, 2 colours, -1 transparency, -2 and -3 masks."""
        for info, data in zip(layer._record.channel_info, layer._channels, strict=False):
            if len(data.data):
                yield int(info.id), data

    def _values(self, channel: Any, size: tuple[int, int]) -> Tensor:
        """One channel as floats (H, W), at most a few copies of it in memory."""
        data = channel.get_data(size[1], size[0], self.psd.depth, self.psd.version)
        if self.psd.depth == 32:
            values = torch.from_numpy(np.frombuffer(data, ">f4").astype(np.float32)).nan_to_num(0, 1, 0)
        else:
            whole = np.frombuffer(data, ">u2" if self.psd.depth == 16 else np.uint8)
            values = torch.from_numpy(whole.astype(np.float32)) / (2**self.psd.depth - 1)
        return values.view(size)

    def _mask(self, layer: Any) -> Mask | None:
        """The layer mask, with its density; None without one that is in use."""
        mask = layer.mask
        if mask is None or mask.disabled:
            return None
        channels, real = dict(self._channels(layer)), mask.has_real()
        values, outside = torch.empty(0, 0), mask.background_color / 255
        channel = channels.get(-3 if real else -2)
        if channel is not None and mask.width > 0 and mask.height > 0:
            self.account.claim(mask.height, mask.width, channels=1)
            values = self._values(channel, (mask.height, mask.width)).clamp(0, 1)
        parameters = mask.parameters
        if parameters is not None and (parameters.user_mask_feather or parameters.vector_mask_feather):
            self.notes.append(f"the feather of the mask of {layer.name!r} is not shown")
        density = None if parameters is None else parameters.user_mask_density
        if density not in (None, 255) and not real:
            values, outside = 1 - (1 - values) * (density / 255), 1 - (1 - outside) * (density / 255)
        return Mask(values, mask.left, mask.top, outside)

    def _merged_picture(self, mode: str) -> Layer:
        """The picture that the file shows to programs without layers, as the only layer."""
        if not self.psd.has_preview():
            raise _Refused(" ".join(["holds no layer with pixels and no merged picture.", *self.notes]))
        height, width = self.psd.height, self.psd.width
        self.account.claim(height, width)
        if mode in ("RGB", "GRAYSCALE"):
            colour, shape = (torch.from_numpy(self.psd.numpy(x)).movedim(-1, 0) for x in ("color", "shape"))
            image = colour.expand(3, -1, -1).clamp(0, 1)
            image = linear_to_srgb(image) if self.psd.depth == 32 else image
        else:
            picture = np.array(self.psd.topil().convert("RGB"))
            image, shape = torch.from_numpy(picture).movedim(-1, 0).float() / 255, torch.ones(1, height, width)
        return Layer(image=image.contiguous(), mask=shape.clamp(0, 1).contiguous(), name="background")

    def _opacity(self, layer: Any) -> float:
        from psd_tools.constants import Tag

        fill = layer.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
        if fill != 255 and layer.blend_mode.name in _OWN_FILL:
            self.notes.append(f"the fill opacity of {layer.name!r} is taken as its opacity, which differs in its mode")
        return layer.opacity / 255 * (fill / 255)

    def _blend_mode(self, layer: Any) -> BlendMode:
        key = layer.blend_mode.name
        if key not in MODES and key != "PASS_THROUGH":
            self.notes.append(f"the blend mode {key.lower()} of {layer.name!r} is shown as normal")
        return MODES.get(key, "normal")

    def _note_without_pixels(self, layer: Any) -> None:
        """An empty pixel layer is nothing to speak of; anything else draws something that is not here."""
        from psd_tools.constants import Tag

        if layer.kind != "pixel" or Tag.BRIGHTNESS_AND_CONTRAST in layer.tagged_blocks:
            self.notes.append(f"the layer {layer.name!r} ({layer.kind}) holds no pixels and is left out")

    def _note_extras(self, layer: Any) -> None:
        """What changes the look of a layer and is not read."""
        if layer.kind == "type":  # Photoshop mixes the edges of text in a gamma of its own
            self.notes.append(f"the text {layer.name!r} is read as the pixels that the editor stored; edges may differ")
        if layer.kind == "artboard":
            self.notes.append(f"the artboard {layer.name!r} is read as a group: its background and edges are not shown")
        if _has_effects(layer):
            self.notes.append(f"the effects of {layer.name!r} are not shown")
        if layer.has_vector_mask() and not (layer.mask is not None and layer.mask.has_real()):
            self.notes.append(f"the vector mask of {layer.name!r} is not shown")
        ranges = layer._record.blending_ranges
        used = [*(ranges.composite_ranges or ()), *(x for pair in ranges.channel_ranges or () for x in pair)]
        if any(tuple(pair) not in ((0, 65535), (0, 0)) for pair in used):
            self.notes.append(f"the blend-if ranges of {layer.name!r} are not shown")

    def _note_profile(self) -> None:
        """Colours are taken as sRGB."""
        from psd_tools.constants import Resource

        profile = self.psd.image_resources.get_data(Resource.ICC_PROFILE)
        name = _profile_name(profile) if profile else "sRGB"
        if "srgb" not in name.lower():
            self.notes.append(f"the colour profile {name!r} is not applied; colours are taken as sRGB")


# Photoshop computes the fill of these eight modes in another way than the opacity.
_OWN_FILL = {
    "COLOR_BURN",
    "LINEAR_BURN",
    "COLOR_DODGE",
    "LINEAR_DODGE",
    "VIVID_LIGHT",
    "LINEAR_LIGHT",
    "HARD_MIX",
    "DIFFERENCE",
}


def _has_effects(layer: Any) -> bool:
    """Whether the editor draws shadows, glows, strokes; also where psd-tools does not list what old versions wrote."""
    from psd_tools.constants import Tag

    effects = layer.tagged_blocks.get_data(Tag.OBJECT_BASED_EFFECTS_LAYER_INFO) or {}
    drawn = [x for x in effects.values() if hasattr(x, "get") and x.get(b"present", True) and x.get(b"enab")]
    return layer.has_effects() or bool(drawn and effects.get(b"masterFXSwitch", True))


def _profile_name(profile: bytes) -> str:
    import io

    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return str(ImageCms.getProfileDescription(opened)).strip()
    except (OSError, ImageCms.PyCMSError):
        return "unknown"
