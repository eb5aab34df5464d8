"""Output formats: one row per format, with everything the rest of the package needs to know about it.

Adding a format means adding a row here and the code that encodes it in `segment/output/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["png", "jpeg", "webp", "json", "ids", "cutouts"]
OverlayFormat = Literal["png", "jpeg", "webp"]
"""The formats that show the photo with the detections drawn on it."""


@dataclass(frozen=True)
class FormatInfo:
    """Facts about one output format.

    `file_name`: name of the result file. `media_type`: its MIME type. `encoder_bytes`: memory in bytes per pixel that
    drawing and encoding need beside the picture itself, including the encoded result. `shows_photo`: whether the result
    contains the photo's pixels, so that the photo has to be decoded at the size of the result. `max_side`: the largest
    width and height in pixels that the encoder supports.
    """

    file_name: str
    media_type: str
    encoder_bytes: float
    shows_photo: bool
    max_side: int = 2**31 - 1


JPEG_BYTES = 0.75
"""Maximum size of an overlay as JPEG, in bytes per pixel. Only pictures like noise would take more."""
BUFFER_GROWTH = 9 / 8
"""Memory of a growing buffer, relative to its content (Python's io.BytesIO)."""

FORMATS: Mapping[Format, FormatInfo] = {
    "png": FormatInfo("overlay.png", "image/png", 4, True),
    "jpeg": FormatInfo("overlay.jpg", "image/jpeg", JPEG_BYTES * BUFFER_GROWTH, True, 65_500),
    "webp": FormatInfo("overlay.webp", "image/webp", 9, True, 16_383),
    "json": FormatInfo("detections.json", "application/json", 0, False),
    "ids": FormatInfo("ids.png", "image/png", 4, False),
    "cutouts": FormatInfo("cutouts.zip", "application/zip", 9, True),
}
OVERLAY_FORMATS: tuple[OverlayFormat, ...] = ("png", "jpeg", "webp")


@dataclass(frozen=True)
class File:
    """An encoded result: file name with extension, MIME type, content."""

    name: str
    content_type: str
    body: bytes


def file(format: Format, body: bytes) -> File:
    """A result file in `format`, with the file name and media type of FORMATS."""
    info = FORMATS[format]
    return File(info.file_name, info.media_type, body)
