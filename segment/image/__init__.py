"""Decode an image file to upright RGB pixels, and compute in advance the memory that decoding needs.

The header is read without decoding any pixels, so that the caller can check the size first. A JPEG is decoded at 1/2,
1/4 or 1/8 of its size where that suffices, which saves memory and time (libjpeg's scaled inverse DCT, Pillow's "draft"
mode).

All conversions to upright RGB happen here: EXIF orientation is applied; transparent pixels are blended with white;
greyscale, palette, CMYK and 16-bit images are converted; the first frame of an animation is used. Colour profiles are
not applied, as in detectron2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment.errors import CorruptImage, UnsupportedImage
from segment.image import sandbox
from segment.image.essential import essential
from segment.image.header import Header, read_header
from segment.image.pillow import opened, refusing, reuse_memory
from segment.image.rgb import upright_rgb

__all__ = [
    "PIXEL_BYTES",
    "Header",
    "Photo",
    "decode",
    "decode_here",
    "read_header",
    "readable",
    "resize",
    "resize_bytes",
    "reuse_memory",
    "to_rgb",
]

Photo = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""The name or the content of an image file, a Pillow image, or an (H, W, 3) array in RGB."""
PIXEL_BYTES = 4
"""Per pixel of an RGB image in Pillow."""
REDUCING_GAP = 3.0
"""Minimum ratio of the sides of the reduced image to those of the result, see Pillow's Image.resize."""


def decode(data: bytes, header: Header, target: tuple[int, int]) -> Image.Image:
    """Decode to an upright RGB image of header.decoded_size(target), (width, height) in pixels.

    Raises CorruptImage if the file is truncated or does not match its header, TooLarge if memory runs out.
    """
    if not header.sandboxed:
        return decode_here(data, header, target)
    with refusing(data):
        size = header.decoded_size(target)
        pixels = sandbox.decode(data, target, size, header.decoder_limit(target))
        return Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)


def decode_here(data: bytes, header: Header, target: tuple[int, int]) -> Image.Image:
    """decode(), but in this process in any case."""
    with refusing(data), opened(essential(data).file) as image:
        if header.format == "JPEG":
            width, height = target
            image.draft(None, (height, width) if header.orientation >= 5 else (width, height))
        image.load()
        # _new() makes a plain image of the same pixels, without a reference to the decoder.
        result = image._new(image.im) if header.as_stored else upright_rgb(image, header.orientation)  # noqa: SLF001
    if result.size != header.decoded_size(target):
        raise CorruptImage(f"The size of this {header.name} differs from the size in its header.")
    return result


def readable(photo: Photo) -> tuple[tuple[int, int], Callable[[tuple[int, int]], Image.Image]]:
    """The (width, height) of a photo, and a function that reads it as RGB.

    The function is given the size that is needed, and decodes a JPEG file at a reduced size if that suffices. A Pillow
    image in RGB is returned as it is, others are converted as files are. This function and that one raise
    UnsupportedImage or CorruptImage if a file cannot be decoded, an array has another shape or type or a Pillow image
    has no pixels, and OSError if a file cannot be opened.
    """
    if isinstance(photo, str) and photo.startswith(("http://", "https://")):
        raise UnsupportedImage(f"{photo} is a URL; only the service fetches URLs. Download it and give its content.")
    if isinstance(photo, (str, Path)):
        photo = Path(photo).read_bytes()
    if isinstance(photo, bytes):
        header = read_header(photo)
        return header.size, partial(decode, photo, header)
    rgb = _converted(photo)
    return rgb.size, lambda _: rgb


def to_rgb(photo: Photo) -> Image.Image:
    """Read a photo as RGB in its full size. Raises what `readable` raises."""
    size, read = readable(photo)
    return read(size)


def _converted(photo: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(photo, Image.Image):
        if not (photo.width and photo.height):
            raise UnsupportedImage(f"The image is {photo.width} x {photo.height} pixels; it must have at least one.")
        return photo if photo.mode == "RGB" and not photo.has_transparency_data else upright_rgb(photo, orientation=1)
    if not isinstance(photo, np.ndarray):
        raise UnsupportedImage(
            f"A photo must be a file name, bytes, a Pillow image or a NumPy array, not {type(photo).__name__}."
        )
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise UnsupportedImage(
            f"The array is {photo.shape} {photo.dtype}; it must be (height, width, 3) uint8, in the order RGB."
        )
    return Image.fromarray(photo)


def resize(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Resize `image`, or its pixels in `box` (left, top, right, bottom), to `size` (width, height), antialiased.

    Bilinear, as in detectron2's ResizeTransform. An image more than three times too large is first reduced by an
    integer factor, which is faster at the same quality (Pillow's `reducing_gap`).
    """
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=REDUCING_GAP)


def resize_bytes(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Peak memory in bytes of resize() from `size` to `target`, both (width, height), without the two images."""
    reduced = [math.ceil(n / max(1, int(n / to / REDUCING_GAP))) for n, to in zip(size, target, strict=True)]
    reduction = 0 if reduced == list(size) else PIXEL_BYTES * math.prod(reduced)
    return reduction + PIXEL_BYTES * target[0] * reduced[1]  # Pillow resizes rows first, then columns
