"""Encode detections as images: the overlay, a map of instance ids, and transparent cut-outs.

The output is deterministic. No metadata of the photo is copied, because it may contain private data such as a location.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from segment.detections import Detections
from segment.errors import TooLarge
from segment.formats import JPEG_BYTES, File, OverlayFormat, file
from segment.mask import THRESHOLD, Mask, Region
from segment.output import png

_WEBP: Mapping[str, Any] = {"quality": 85, "method": 0}
"""Method 1 takes a quarter longer and saves 6 % of the bytes, method 4 takes four times as long and saves a fifth, with
the same quality (`python -m benchmarks.encoders`)."""
_JPEG_QUALITIES = (90, 75, 60, 40, 20)
"""Qualities of a JPEG that are tried until its size is within the limit. Even random pixels fit at 60."""
_JPEG_HEADER_BYTES = 1 << 16
"""Added to the limit, for the headers and tiny pictures."""


def picture(image: Image.Image, format: OverlayFormat) -> File:
    """Encode `image`, a photo with its detections drawn on it."""
    if format == "png":
        return file(format, png.encode(image))
    if format == "jpeg":
        return file(format, _jpeg(image))
    buffer = io.BytesIO()
    image.save(buffer, format, **_WEBP)
    return file(format, buffer.getvalue())


class _Full(Exception):
    pass


class _LimitedFile(io.BytesIO):
    """A file in memory. Raises _Full instead of exceeding `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, data: Any) -> int:
        """Append `data`."""
        if self.tell() + len(data) > self.limit:
            raise _Full
        return super().write(data)


def _jpeg(image: Image.Image) -> bytes:
    """Encode with quality 90 (3 ms, 0.3 MB), or less if the file would exceed JPEG_BYTES per pixel, as noise does.

    The size of a JPEG is not known in advance, so the limit is what lets the plan reserve memory for it.
    """
    limit = _JPEG_HEADER_BYTES + int(JPEG_BYTES * image.width * image.height)
    for quality in _JPEG_QUALITIES:
        with suppress(_Full), _LimitedFile(limit) as buffer:
            image.save(buffer, "jpeg", quality=quality)
            return buffer.getvalue()
    raise TooLarge("The overlay cannot be compressed as JPEG. Ask for png or webp.")


def ids(detections: Detections) -> File:
    """ids.png, greyscale: 0 is the background, i + 1 is instance i. 8 bits, or 16 for more than 255 instances.

    Where masks overlap, the instance with the higher score is on top.
    """
    width, height = detections.size
    pixels = np.zeros((height, width), np.uint8 if len(detections) <= 255 else np.uint16)
    for index in np.argsort(detections.scores, kind="stable"):
        for (left, top, right, bottom), probabilities in detections.masks[index].strips(detections.size):
            pixels[top:bottom, left:right][probabilities >= THRESHOLD] = index + 1
    return file("ids", png.encode(Image.fromarray(pixels)))


def cutouts(photo: Image.Image, detections: Detections, labels: Sequence[str]) -> File:
    """cutouts.zip: each instance as a transparent PNG, cropped to its mask, such as 01_person_0.98.png.

    `photo`: RGB, of detections.size. The numbers are the instances' ids. Instances without pixels have no file.
    """
    buffer = io.BytesIO()
    digits = max(2, len(str(len(detections))))
    with zipfile.ZipFile(buffer, "w") as archive:  # not compressed, as PNG files are
        for index, mask in enumerate(detections.masks):
            cut = _cutout(photo, mask)
            if cut is None:
                continue
            label = _plain(labels[int(detections.classes[index])])
            name = f"{index + 1:0{digits}}_{label}_{detections.scores[index]:.2f}.png"
            # A ZipInfo has a fixed date by default, so the output is deterministic.
            with archive.open(zipfile.ZipInfo(name), "w") as entry:
                entry.write(png.encode(cut))
    return file("cutouts", buffer.getvalue())


def _cutout(photo: Image.Image, mask: Mask) -> Image.Image | None:
    """The photo inside the mask, as RGBA; None if the mask has no pixels."""
    left, top, right, bottom = mask.region(photo.size)
    alpha = Image.new("L", (right - left, bottom - top))
    for strip, distance in mask.distances(photo.size):
        opacity = np.clip(distance + 0.5, 0, 1)
        alpha.paste(Image.fromarray((opacity * 255).astype(np.uint8)), (0, strip[1] - top))
    box: Region | None = alpha.getbbox()
    if box is None:
        return None
    cut = photo.crop((left + box[0], top + box[1], left + box[2], top + box[3]))
    cut.putalpha(alpha.crop(box))
    return cut


def _plain(label: str) -> str:
    """`label` as part of a file name: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-._")[:40] or "instance"
