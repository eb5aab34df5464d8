"""Bounds for the header of an image file, which Pillow parses before the memory of a request is planned.

Pillow reads each segment separately, decompresses every colour profile of a PNG, from 1 KiB to up to 1 MiB, and makes a
Python object of every number in the tags of a TIFF. A hostile file of a few megabytes could cost many seconds or
hundreds of megabytes there. Photos of cameras and programs stay far below these bounds.
"""

from __future__ import annotations

import math

from PIL import BmpImagePlugin

from segment.errors import CorruptImage
from segment.image import boxes, jpeg, png, tiff
from segment.image.orientation import ORDERS
from segment.image.pillow import File

_BMP = b"BM"
MAX_BMP_HEADER = 1 << 10
"""Limit for the header of a BMP, which Pillow reads before it compares its size with the known ones, up to 124."""
MAX_HEADER_READS = 5000
"""Limit for read calls while parsing a header. A photo needs a few hundred; a hostile file can cause millions."""
MAX_RUN_LENGTH_PIXELS = 16_000_000
"""Limit for a run-length encoded BMP. Pillow decodes it in Python, up to 100 ns per pixel."""


class BoundedFile:
    """A file that limits how often it is read. `bytes_read`: how much was read."""

    def __init__(self, file: File) -> None:
        self.reads = self.bytes_read = 0
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes. Raises CorruptImage after too many reads."""
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise CorruptImage("The header of this image has too many parts. Save the image again.")
        found = self._file.read(size)
        self.bytes_read += len(found)
        return found


def check(data: bytes) -> None:
    """Raise CorruptImage for an image file beyond a bound."""
    if data.startswith(png.SIGNATURE):
        png.check(data)
    elif data.startswith(jpeg.SIGNATURE):
        jpeg.check(data)
    elif data[:2] in ORDERS:
        tiff.check(data)
    elif data[4:8] == boxes.SIGNATURE:
        boxes.check(data)
    elif data.startswith(_BMP) and int.from_bytes(data[14:18], "little") > MAX_BMP_HEADER:
        raise CorruptImage("The header of this BMP is larger than 1 KiB. Save the image again.")


def check_bmp(image: BmpImagePlugin.BmpImageFile) -> None:
    if image.tile and image.tile[0].codec_name == "bmp_rle" and math.prod(image.size) > MAX_RUN_LENGTH_PIXELS:
        raise CorruptImage("This BMP is run-length encoded and has more than 16 megapixels. Save it as PNG.")
