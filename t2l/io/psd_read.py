"""Photoshop's PSD and PSB read as a `Stack`, through psd-tools."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import FILE_BYTES, GROUP_DEPTH, LAYERS, check_regular
from ..compositing.blend import BlendMode, linear_to_srgb
from ..compositing.stack import Layer, Stack, pieces
from .layer_name import decode_names
from .layer_nodes import Account, Clipped, Group, Knockout, LayerFile, Mask, Node, Special, Whole
from .layer_tree import plain_layers
from .psd import MODES, check_installed

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


def open_psd(path: str | Path, whole: Whole | None = None) -> LayerFile:
    """A PSD or PSB of 8, 16 or 32 bits in RGB or grey as a stack; other colour modes with a palette as one layer.

    Groups are opened or merged (whole: as open_layer_file takes it), clipped layers merged into their base. What a
    stack cannot hold is named in the notes. 32-bit colours are linear light and come out sRGB-encoded. Raises
    FileNotFoundError, and ValueError with a sentence for a damaged or too large file, for CMYK, Lab and multichannel.
    """
    check_installed()
    from psd_tools import PSDImage
    from psd_tools.compression import PSDDecompressionWarning

    path = Path(path)
    FILE_BYTES.check(check_regular(path, "the layer file"), f"{path.name} has")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", PSDDecompressionWarning)
        try:
            reading = _Reading(PSDImage.open(file), path.name)
            return reading.layer_file(whole)
        except BROKEN as error:
            if isinstance(error, _Refused):
                raise ValueError(f"{path.name} {error}") from error
            if type(error) is ValueError and str(error).startswith(path.name):  # a sentence already
                raise
            raise ValueError(f"{path.name} cannot be read as a PSD: {_reason(error)}") from error
        except PSDDecompressionWarning as error:
            raise ValueError(f"{path.name} is damaged: some of its pixels are missing") from error


def _reason(error: Exception) -> str:
    """What went wrong in words for people; psd-tools' own are in the exception's cause."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "its pixels are cut off" if "length mismatch" in str(error) else "it is damaged, or no PSD"


class _Refused(ValueError):
    """A sentence about a file, without its name."""


class _Reading:
    """One file on its way into a stack."""

    def __init__(self, psd: Any, name: str) -> None:
        from psd_tools.constants import Resource, Tag

        self.tags, self.resources = Tag, Resource
        self.psd, self.account, self.layers = psd, Account(name), 0
        self.notes = self.account.notes
        self._names = self._decoded_names()

    def layer_file(self, whole: Whole | None) -> LayerFile:
        mode = self.psd.color_mode.name
        if mode not in ("RGB", "GRAYSCALE", "INDEXED", "BITMAP", "DUOTONE"):
            raise _Refused(f"is in {mode} colours, which are not shown here; save a copy of it in RGB")
        self.account.check_picture(self.psd.height, self.psd.width)  # the canvas, for what is made of it later
        self._note_profile()
        nodes = self._nodes(self.psd, 0) if mode in ("RGB", "GRAYSCALE") else ()
        has_background = bool(nodes) and self._is_background(self.psd[0])
        layers = plain_layers(nodes, self.psd.height, self.psd.width, self.account, has_background, whole)
        stack = Stack(self.psd.height, self.psd.width, tuple(layers or [self._merged_picture(mode)]))
        if layers:
            self._note_blank_picture(stack)
        elif len(self.psd):
            self.notes.append("none of its layers holds pixels: the picture that other programs show is read instead")
        return LayerFile(stack, tuple(dict.fromkeys(self.notes)), self.account.held)

    def _note_blank_picture(self, stack: Stack) -> None:
        """Some programs leave the picture that others show empty; who says whether it does is taken at its word."""
        if self.resources.VERSION_INFO in self.psd.image_resources:
            return
        try:
            planes, largest = self._merged_planes()
        except BROKEN:
            return  # it is not needed
        colours = planes[: 1 if self._is_grey() else 3]
        if not colours.size or colours.min() != colours.max():
            return
        self.account.claim(self.psd.height, self.psd.width)
        if (stack.composite().sub_(float(colours.flat[0]) / largest)).abs_().max() > 2 / 255:
            self.notes.append("the picture that the file shows to other programs is blank; its layers are shown")

    def _merged_planes(self) -> tuple[Any, float]:
        """The channels shown to programs without layers, (C, H, W) as they are stored, and what stands for 1."""
        data = self.psd._record.image_data.get_data(self.psd._record.header, False)
        kind, largest = {8: ("u1", 255.0), 16: (">u2", 65535.0), 32: (">f4", 1.0)}[self.psd.depth]
        return np.frombuffer(data, kind).reshape(-1, self.psd.height, self.psd.width), largest

    def _decoded_names(self) -> dict[int, str]:
        """The names of layers that have none in Unicode, by the layer's id(): old and Japanese software's."""
        plain = [x for x in self.psd.descendants() if self.tags.UNICODE_LAYER_NAME not in x.tagged_blocks]
        names = decode_names(
            [x._record.name.encode("mac_roman") for x in plain]
        )  # psd-tools reads the bytes as Mac Roman
        if names.guess:
            self.notes.append(
                f"the names of layers are stored without Unicode and read as {names.guess}, which is a guess"
            )
        return {id(x): text for x, text in zip(plain, names.texts, strict=True)}

    def _name(self, layer: Any) -> str:
        return self._names.get(id(layer), layer.name)

    def _is_background(self, layer: Any) -> bool:
        """Whether the lowest layer is one that no hole goes through: it fills the canvas, without transparency."""
        box = layer._record.top, layer._record.left, layer._record.bottom, layer._record.right
        fills = box == (0, 0, self.psd.height, self.psd.width)
        channels = {int(x.id) for x in layer._record.channel_info}
        return fills and not layer.is_group() and 0 in channels and -1 not in channels

    def _nodes(self, parent: Iterable[Any], depth: int) -> tuple[Node, ...]:
        """The layers of the file or of a group, from the bottom up, with those that are clipped gathered."""
        if depth > GROUP_DEPTH.most:
            raise _Refused(
                f"has groups in more than {GROUP_DEPTH.most} levels; merge some in your editor, or set "
                f"{GROUP_DEPTH.variable}"
            )
        rows: list[tuple[Any, Layer | Group, list[Layer | Group | Special]]] = []
        base_is_missing = False
        for layer in parent:
            self.layers += 1
            if self.layers > LAYERS.most:
                raise _Refused(
                    f"has more than {LAYERS.most:,} layers; merge some in your editor, or set {LAYERS.variable}"
                )
            node: Layer | Group | None = self._group(layer, depth) if layer.is_group() else self._layer(layer)
            is_clipped = bool(layer._record.clipping)
            if not is_clipped:
                base_is_missing = node is None
            if node is None:
                continue
            if is_clipped and base_is_missing:
                self.notes.append(f"{node.name!r} is clipped to what is left out, and shown without that")
            if is_clipped and rows and not base_is_missing:
                rows[-1][2].append(self._with_options(layer, node))
            else:
                rows.append((layer, node, []))
        return tuple(self._with_options(layer, self._clipped(layer, base, above)) for layer, base, above in rows)

    def _clipped(
        self, layer: Any, base: Layer | Group, above: Sequence[Layer | Group | Special]
    ) -> Layer | Group | Clipped:
        if not above:
            return base
        as_group = bool(_setting(layer, self.tags.BLEND_CLIPPING_ELEMENTS, 1))
        if not as_group and layer.opacity < 255:
            self.notes.append(f"the opacity of {base.name!r} fades the layers clipped to it too; the editor may differ")
        return Clipped(base=base, above=tuple(above), as_group=as_group, opacity=layer.opacity / 255)

    def _with_options(self, layer: Any, node: Layer | Group | Clipped) -> Any:
        """A node with those of Photoshop's advanced blending options that a stack's layers do not have."""
        knockout = _KNOCKOUTS.get(_setting(layer, self.tags.KNOCKOUT_SETTING, 0), "none")
        restricted = set(_setting(layer, self.tags.CHANNEL_BLENDING_RESTRICTIONS_SETTING, None) or ())
        red, green, blue = (i not in restricted for i in ((0, 0, 0) if self._is_grey() else (0, 1, 2)))
        if knockout == "none" and red and green and blue:
            return node
        if isinstance(node, Clipped) and not node.as_group:
            self.notes.append(
                f"the layers clipped to {self._name(layer)!r} are blended as a group; the editor may differ"
            )
        if knockout != "none":
            self._note_knockout(layer, knockout, all((red, green, blue)))
        fill = _setting(layer, self.tags.BLEND_FILL_OPACITY, 255) / 255 if knockout != "none" else 1.0
        return Special(node=node, knockout=knockout, fill=fill, channels=(red, green, blue))

    def _is_grey(self) -> bool:
        return bool(self.psd.color_mode.name == "GRAYSCALE")

    def _note_knockout(self, layer: Any, knockout: Knockout, in_all_channels: bool) -> None:
        """What of a knockout is not shown."""
        name = self._name(layer)
        if not in_all_channels:
            self.notes.append(f"the channels that {name!r} leaves alone are not shown: it knocks out in all of them")
        if layer._record.clipping and knockout == "deep":
            self.notes.append(f"{name!r} knocks out down to the layer that it is clipped to, and not deeper")
        if layer.is_group() and layer.blend_mode.name == "PASS_THROUGH":
            self.notes.append(f"the group {name!r} knocks out as one layer; the editor may differ")
        if layer.opacity < 255:
            self.notes.append(f"the opacity of {name!r} fades its knockout too; the editor may differ")
        if not _setting(layer, self.tags.TRANSPARENCY_SHAPES_LAYER, 1):
            self.notes.append(f"{name!r} knocks out in its own shape, and not beyond its transparency")

    def _group(self, group: Any, depth: int) -> Group:
        self._note_extras(group)
        mode = group.blend_mode.name
        return Group(
            children=self._nodes(group, depth + 1),
            name=self._name(group),
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
        image, mask = torch.empty(3, height, width), torch.ones(1, height, width)
        for i in colours:
            self._decode(channels[i], image[i])
            if self.psd.depth == 32:
                image[i] = linear_to_srgb(image[i].clamp_(0, 1))
        for missing in {0, 1, 2}.difference(colours):
            image[missing] = image[colours[0]]
        if -1 in channels:
            self._decode(channels[-1], mask[0])
        if (user_mask := self._mask(layer)) is not None:
            mask *= user_mask.window(layer._record.left, layer._record.top, height, width)
            self.account.release(1, user_mask.values.numel(), channels=1)
        return Layer(
            image=image,
            mask=mask.clamp_(0, 1),
            name=self._name(layer),
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

    def _decode(self, channel: Any, into: Tensor) -> None:
        """One channel as floats into (H, W). It is read once: what the file held of it is let go."""
        height, width = into.shape
        data = channel.get_data(width, height, self.psd.depth, self.psd.version)
        if self.psd.depth == 32:
            into.numpy()[:] = np.frombuffer(data, ">f4").reshape(height, width)
            into.nan_to_num_(0, 1, 0)
        else:
            into.numpy()[:] = np.frombuffer(data, ">u2" if self.psd.depth == 16 else np.uint8).reshape(height, width)
            into /= 2**self.psd.depth - 1
        channel.data = b""

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
            values = torch.empty(mask.height, mask.width)
            self._decode(channel, values)
            values.clamp_(0, 1)
        parameters = mask.parameters
        if parameters is not None and (parameters.user_mask_feather or parameters.vector_mask_feather):
            self.notes.append(f"the feather of the mask of {self._name(layer)!r} is not shown")
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
        image, mask = torch.empty(3, height, width), torch.ones(1, height, width)
        if mode in ("RGB", "GRAYSCALE"):
            self._decode_merged(image, mask)
        else:
            image.copy_(torch.from_numpy(np.array(self.psd.topil().convert("RGB"))).movedim(-1, 0)).div_(255)
        return Layer(image=image, mask=mask, name="background")

    def _decode_merged(self, image: Tensor, mask: Tensor) -> None:
        """The merged picture in RGB or grey: straight colours into (3, H, W), transparency into (1, H, W).

        The file holds it over white, c = m F + (1 - m), wherever it has transparency.
        """
        planes, largest = self._merged_planes()
        colours, shape = ((0, 0, 0) if self._is_grey() else (0, 1, 2)), self._transparent_channel(len(planes))
        for piece in pieces(*image.shape[1:]):
            values = torch.from_numpy(planes[piece].astype(np.float32)).div_(largest)
            colour = values[list(colours)]
            if shape is not None:
                alpha = values[shape : shape + 1]
                colour = torch.where(alpha > 0, (colour + alpha - 1) / alpha, colour)
                mask[piece] = alpha.clamp(0, 1)
            colour = colour.clamp(0, 1)
            image[piece] = linear_to_srgb(colour) if self.psd.depth == 32 else colour

    def _transparent_channel(self, count: int) -> int | None:
        """Which channel of the merged picture is its transparency; None where it has none."""
        from psd_tools.api.utils import get_transparency_index, has_transparency

        if not has_transparency(self.psd):
            return None
        index = get_transparency_index(self.psd)
        return index if 0 <= index < count else count - 1

    def _opacity(self, layer: Any) -> float:
        """Opacity times fill; the fill of a layer that knocks out is another thing."""
        fill, mode = _setting(layer, self.tags.BLEND_FILL_OPACITY, 255), layer.blend_mode.name
        if fill != 255 and mode in _OWN_FILL:
            self.notes.append(
                f"the fill opacity of {self._name(layer)!r} is taken as its opacity, which differs in its mode"
            )
        if not _setting(layer, self.tags.TRANSPARENCY_SHAPES_LAYER, 1) and mode in _OWN_FILL:
            self.notes.append(
                f"the transparency of {self._name(layer)!r} is taken as its shape, which differs in its mode"
            )
        knocks_out = _KNOCKOUTS.get(_setting(layer, self.tags.KNOCKOUT_SETTING, 0), "none") != "none"
        return float(layer.opacity / 255 * (1 if knocks_out else fill / 255))

    def _blend_mode(self, layer: Any) -> BlendMode:
        key = layer.blend_mode.name
        if key not in MODES and key != "PASS_THROUGH":
            self.notes.append(f"the blend mode {key.lower()} of {self._name(layer)!r} is shown as normal")
        return MODES.get(key, "normal")

    def _note_without_pixels(self, layer: Any) -> None:
        """An empty pixel layer is nothing to speak of; anything else draws something that is not here."""
        if layer.kind != "pixel" or self.tags.BRIGHTNESS_AND_CONTRAST in layer.tagged_blocks:
            self.notes.append(f"the layer {self._name(layer)!r} ({layer.kind}) holds no pixels and is left out")

    def _note_extras(self, layer: Any) -> None:
        """What changes the look of a layer and is not read."""
        if layer.kind == "type":  # Photoshop mixes the edges of text in a gamma of its own
            self.notes.append(
                f"the text {self._name(layer)!r} is read as the pixels that the editor stored; edges may differ"
            )
        if layer.kind == "artboard":
            self.notes.append(
                f"the artboard {self._name(layer)!r} is read as a group: its background and edges are not shown"
            )
        if _has_effects(layer, self.tags.OBJECT_BASED_EFFECTS_LAYER_INFO):
            self.notes.append(f"the effects of {self._name(layer)!r} are not shown")
        if layer.has_vector_mask() and not (layer.mask is not None and layer.mask.has_real()):
            self.notes.append(f"the vector mask of {self._name(layer)!r} is not shown")
        ranges = layer._record.blending_ranges
        used = [*(ranges.composite_ranges or ()), *(x for pair in ranges.channel_ranges or () for x in pair)]
        if any(tuple(pair) not in ((0, 65535), (0, 0)) for pair in used):
            self.notes.append(f"the blend-if ranges of {self._name(layer)!r} are not shown")

    def _note_profile(self) -> None:
        """Colours are taken as sRGB."""
        profile = self.psd.image_resources.get_data(self.resources.ICC_PROFILE)
        name = _profile_name(profile) if profile else "sRGB"
        if "srgb" not in name.lower():
            self.notes.append(f"the colour profile {name!r} is not applied; colours are taken as sRGB")


_KNOCKOUTS: dict[int, Knockout] = {0: "none", 1: "shallow", 2: "deep"}
# Photoshop computes the fill of these modes, and of groups that let modes through, in another way than the opacity.
_OWN_FILL = {
    "COLOR_BURN",
    "LINEAR_BURN",
    "COLOR_DODGE",
    "LINEAR_DODGE",
    "VIVID_LIGHT",
    "LINEAR_LIGHT",
    "HARD_MIX",
    "DIFFERENCE",
    "PASS_THROUGH",
}


def _setting(layer: Any, tag: Any, default: Any) -> Any:
    """The value of a block, whatever psd-tools wraps it in."""
    value = layer.tagged_blocks.get_data(tag, default)
    return getattr(value, "value", value)


def _has_effects(layer: Any, tag: Any) -> bool:
    """Whether the editor draws shadows, glows, strokes; also where psd-tools does not list what old versions wrote."""
    effects = layer.tagged_blocks.get_data(tag) or {}
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
