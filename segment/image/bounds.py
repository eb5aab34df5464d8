"""Bounds for the header of an image file, which Pillow parses before the memory of a request is planned.

Pillow reads each segment separately, decompresses every colour profile of a PNG, from 1 KiB to up to 1 MiB, and makes a
Python object of every number in the tags of a TIFF. A hostile file of a few megabytes could cost many seconds or
hundreds of megabytes there. Photos of cameras and programs stay far below these bounds.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator

from PIL import BmpImagePlugin

from segment.errors import CorruptImage

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
EXIF = b"Exif\0\0"
"""First bytes of Exif data in a JPEG."""
_TIFF = {b"II": "<", b"MM": ">"}
"""First bytes of a TIFF -> byte order, as in `struct`."""
_TIFF_BYTES = (1, 2, 6, 7)
"""Types of tags that contain bytes: BYTE, ASCII, SBYTE, UNDEFINED."""
MAX_HEADER_READS = 5000
"""Limit for read calls while parsing a header. A photo needs a few hundred; a hostile file can cause millions."""
MAX_PNG_CHUNKS, MAX_PNG_ANCILLARY = 100_000, 1000
"""Limits for the number of all chunks of a PNG, and of chunks other than pixel data."""
MAX_TIFF_VALUES = 100_000
"""Limit for the numbers in all tags of a TIFF. Each strip has two, and takes up to 320 bytes in Pillow."""
MAX_BOX_BYTES = 64 << 10
"""Limit for the description of the items of an AVIF or HEIC. A photo in 200 tiles has 12 kB. libavif takes 50 times as
much memory, and time that grows with the square of the number of items."""
MAX_EXIF_BYTES = 1 << 20
"""Limit for the Exif segments of a JPEG, which Pillow joins one by one, in time that grows with the square of their
number. One segment has 64 kB, and Exif data usually fit into one."""
MAX_FILL_BYTES = 256 << 10
"""A JPEG may have any number of fill bytes (0xff) before a marker. Up to their end, libjpeg begins again with each
piece of the file that Pillow reads. A segment has at most 64 kB, so no segment is as long."""
MAX_RUN_LENGTH_PIXELS = 16_000_000
"""Limit for a run-length encoded BMP. Pillow decodes it in Python, up to 100 ns per pixel."""


class BoundedFile(io.BytesIO):
    """An image file that limits the work of parsing its header. Raises CorruptImage for a file beyond a bound."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = self.bytes_read = self.exif_bytes = 0
        if data.startswith(_PNG):
            _check_png(data)
        elif data.startswith(_JPEG):
            _check_jpeg(data)
        elif data[:2] in _TIFF:
            check_tiff(data)
        elif data[4:8] == b"ftyp":
            _check_boxes(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes. Raises CorruptImage after too many reads."""
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise CorruptImage("The header of this image has too many parts. Save the image again.")
        found = super().read(size)
        self.bytes_read += len(found)
        if found.startswith(EXIF):
            self.exif_bytes += len(found)
            if self.exif_bytes > MAX_EXIF_BYTES:
                raise CorruptImage("The Exif data of this image are larger than 1 MiB. Save the image again.")
        return found


def _check_jpeg(data: bytes) -> None:
    """Raise CorruptImage for a JPEG with too many fill bytes in a row (ITU-T T.81, B.1.1.2).

    Only whole blocks of the file are compared: a search would take quadratic time in a file of shorter runs.
    """
    fill = b"\xff" * MAX_FILL_BYTES
    if any(data.startswith(fill, at) for at in range(0, len(data), MAX_FILL_BYTES)):
        raise CorruptImage(f"This JPEG has {MAX_FILL_BYTES >> 10} KiB of fill bytes in a row. Save it again.")


def _check_png(data: bytes) -> None:
    """Raise CorruptImage for a PNG with too many chunks (www.w3.org/TR/png-3, 5.3 and 11.3)."""
    at, ancillary, profiles = len(_PNG), 0, 0
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        at += length + 12
        ancillary += kind not in (b"IDAT", b"fdAT")
        profiles += kind == b"iCCP"
        if profiles > 1 or ancillary > MAX_PNG_ANCILLARY:
            break
    raise CorruptImage("This PNG has too many chunks or more than one colour profile. Save the image again.")


def check_tiff(data: bytes) -> None:
    """Raise CorruptImage for a TIFF whose tags have too many numbers (TIFF 6.0, section 2; BigTIFF: libtiff.org)."""
    order, big = _TIFF[data[:2]], data[2] == 43
    start, length, entry = ("8xQ", "Q", "HHQ8x") if big else ("4xL", "H", "HHL4x")
    (at,) = struct.unpack_from(order + start, data)
    (entries,) = struct.unpack_from(order + length, data, at)
    size, first = struct.calcsize(order + entry), at + struct.calcsize(order + length)
    whole = min(entries, MAX_HEADER_READS, (len(data) - first) // size)
    directory = struct.iter_unpack(order + entry, data[first : first + whole * size])
    numbers = sum(count for _, kind, count in directory if kind not in _TIFF_BYTES)
    if numbers > MAX_TIFF_VALUES:
        raise CorruptImage(
            f"The tags of this TIFF have {numbers:,} values, more than {MAX_TIFF_VALUES:,}. Save it again, with fewer "
            "strips or tiles."
        )


def _check_boxes(data: bytes) -> None:
    """Raise CorruptImage for an AVIF or HEIC with too many items or samples (ISO/IEC 14496-12, 4.2 and 8.11)."""
    described = 0
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind in (b"meta", b"moov"):
            described += end - start
        if kind == b"meta":  # of which pixels and colour profiles
            for inner, first, last in _boxes(data, start + 4, end):
                described -= last - first if inner == b"idat" else _profile_bytes(data, first, last, inner)
    if described > MAX_BOX_BYTES:
        raise CorruptImage("The header of this image describes too many parts. Save the image again.")


def _profile_bytes(data: bytes, start: int, end: int, kind: bytes) -> int:
    """Size of the colour profiles (colr) in a box of item properties (iprp, ipco)."""
    if kind not in (b"iprp", b"ipco"):
        return end - start if kind == b"colr" else 0
    return sum(_profile_bytes(data, first, last, inner) for inner, first, last in _boxes(data, start, end))


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of each box in data[start:end]. Raises CorruptImage if there are too many."""
    for _ in range(MAX_HEADER_READS):
        if start + 16 > end:
            return
        size, kind, large = struct.unpack_from(">I4sQ", data, start)
        head, size = (16, large) if size == 1 else (8, size or end - start)
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size
    raise CorruptImage("The header of this image has too many parts. Save the image again.")


def check_bmp(image: BmpImagePlugin.BmpImageFile) -> None:
    if image.tile and image.tile[0].codec_name == "bmp_rle" and math.prod(image.size) > MAX_RUN_LENGTH_PIXELS:
        raise CorruptImage("This BMP is run-length encoded and has more than 16 megapixels. Save it as PNG.")
