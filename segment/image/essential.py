"""The parts of an image file that Pillow gets: those of JPEG, PNG and TIFF that decoding needs."""

from __future__ import annotations

import io

from segment.image import jpeg, png, tiff
from segment.image.orientation import ORDERS
from segment.image.pieces import Essential


def essential(data: bytes) -> Essential:
    """The essential parts of the image file `data`; all of it for other formats. Raises CorruptImage, struct.error."""
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.essential(data)
    if data.startswith(png.SIGNATURE):
        return png.essential(data)
    if data[:2] in ORDERS:
        return tiff.essential(data)
    return Essential(io.BytesIO(data))
