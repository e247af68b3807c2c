"""Picture files as people have them, brought to one kind: upright, sRGB, 8 bits a channel.

What would come out wrong is refused in a sentence that begins with the file's name.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from ..budget import PICTURE_PIXELS, Limit

try:
    from PIL.AvifImagePlugin import SUPPORTED as HAS_AVIF  # pillow 11.3 and newer, where it was built with it
except ImportError:
    HAS_AVIF = False

ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", *((".avif",) if HAS_AVIF else ()))
# None that starts another program, whatever the name says.
FORMATS = ("PNG", "WEBP", "JPEG", "TIFF", "BMP", "GIF", *(("AVIF",) if HAS_AVIF else ()))
# What pillow raises on a damaged file: it has no exception of its own.
BROKEN = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)
# A mode of pillow -> the one with the same colours and no alpha.
WITHOUT_ALPHA = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "YCbCr": "RGB"}


def read_colours(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """A picture's colours as RGB, and its alpha as L; None where nothing is transparent.

    An embedded colour profile is applied. Raises ValueError for a file that cannot be read, is animated or too large.
    """
    with _name_errors(path):
        return decode_colours(path)


def decode_colours(
    source: Path | io.IOBase, before: Callable[[Image.Image], None] | None = None
) -> tuple[Image.Image, Image.Image | None]:
    """As `read_colours`, also of what is in memory. before: as `decoded` takes it. Raises Unreadable."""
    with _open_upright(source, before) as image:
        return _to_srgb(image), _alpha_of(image)


def read_mask(path: Path) -> Image.Image:
    """A mask as L: the picture's grey times its alpha, plain numbers, so no profile is applied. Raises as above.

    Where only the alpha says something (a cut-out in colours, or all that shows is black), it is the mask.
    """
    with _name_errors(path), _open_upright(path) as image:
        grey, alpha = _to_eight_bits(image).convert("L"), _alpha_of(image)
        if alpha is None:
            return grey
        is_black = ImageChops.multiply(grey, alpha).getextrema()[1] == 0
        return alpha if is_black or _is_coloured(image, alpha) else ImageChops.multiply(grey, alpha)


def _is_coloured(image: Image.Image, alpha: Image.Image) -> bool:
    """Whether what shows of a picture has colours, beyond the noise of a lossy file."""
    if image.mode in ("L", "LA", "1"):
        return False
    red, green, blue = (
        ImageChops.multiply(band, alpha.point([0] * 128 + [255] * 128))
        for band in image.convert("RGBA").convert("RGB").split()
    )
    apart = [np.asarray(ImageChops.difference(one, other)) for one, other in ((red, green), (green, blue))]
    return any(values.max() > 16 for values in apart)


class Unreadable(ValueError):
    """Why a picture cannot be used: the end of a sentence that begins with its name."""


@contextmanager
def decoded(
    source: Path | io.IOBase,
    formats: tuple[str, ...] = FORMATS,
    limit: Limit = PICTURE_PIXELS,
    still: bool = False,
    before: Callable[[Image.Image], None] | None = None,
) -> Iterator[Image.Image]:
    """A decoded picture of one of the formats, of no more pixels than the limit; what fails becomes Unreadable.

    still: whether one that is animated or has several pages is refused; else its first is taken. before: sees the file
    before it is decoded, and may refuse it.
    """
    file_or_path: Any = source  # pillow's own type is narrower than what it takes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes that are below our limit
            with Image.open(file_or_path, formats=formats) as file:
                if (pixels := file.width * file.height) > limit.most:
                    raise Unreadable(f"has {pixels:,} pixels; {limit.remedy}")
                if still and getattr(file, "is_animated", False) and file.format != "MPO":  # MPO: a camera's preview
                    raise Unreadable("is animated or has several pages; save the one that is meant")
                if before is not None:
                    before(file)
                file.load()
                yield file
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        pixels = int(next(iter(re.findall(r"\d+", str(error))), 0))
        raise Unreadable(f"has {pixels:,} pixels; {limit.remedy}") from error
    except UnidentifiedImageError as error:
        raise Unreadable("is no picture that can be read, whatever its name says") from error
    except BROKEN as error:
        raise Unreadable(f"cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong in a decoder, in words for people; pillow's own are in the exception's cause."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError) or "truncated" in str(error):
        return "it is cut off"
    if "too large" in str(error).lower():
        return "something in it unpacks to too much"
    return "it is damaged, or of a rare kind; save it again as an ordinary PNG"


@contextmanager
def _open_upright(
    source: Path | io.IOBase, before: Callable[[Image.Image], None] | None = None
) -> Iterator[Image.Image]:
    """The decoded picture, turned as its EXIF orientation says."""
    try:
        with decoded(source, still=True, before=before) as file:
            yield ImageOps.exif_transpose(file)
    except ImageCms.PyCMSError as error:
        raise Unreadable("has a colour profile that cannot be used; convert it to sRGB") from error


@contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """What is wrong with a picture, as a sentence that begins with its name."""
    try:
        yield
    except Unreadable as error:
        raise ValueError(f"{path.name} {error}") from error


def _alpha_of(image: Image.Image) -> Image.Image | None:
    if image.mode not in ("LA", "PA", "RGBA") and ("transparency" not in image.info or image.mode.startswith("I")):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema() != (255, 255) else None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as L, by rounding; pillow's own conversion would cut everything above 255 off."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise Unreadable("has neither 8 nor 16 bits a channel; save it with one of them")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image) -> Image.Image:
    """The colours as RGB, by the embedded profile where there is one."""
    embedded = image.info.get("icc_profile")
    image = _to_eight_bits(image)
    image = image.convert(WITHOUT_ALPHA.get(image.mode, image.mode))
    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif embedded:
        profile = _profile(embedded)
    else:
        return image.convert("RGB")
    if image.mode == "L" and profile.profile.xcolor_space.strip() == "RGB":
        image = image.convert("RGB")
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if image.mode == "RGB" and _changes_nothing(transform):
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only a transform in place gives none"
    return converted


def _profile(data: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(data))
    except OSError as error:
        raise ImageCms.PyCMSError(str(error)) from error


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it is sRGB's own profile, by what it does: names do not tell, there is a linear sRGB too."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return bool((np.abs(np.asarray(converted).astype(int) - colours) <= 1).all())
