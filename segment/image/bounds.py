"""Bounds for the header of an image file, which Pillow parses before the memory of a request is planned.

Pillow reads each segment separately, decompresses every colour profile of a PNG, from 1 KiB to up to 1 MiB, and makes a
Python object of every number in the tags of a TIFF. A hostile file of a few megabytes could cost many seconds or
hundreds of megabytes there. Photos of cameras and programs stay far below these bounds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from PIL import BmpImagePlugin

from segment.errors import CorruptImage
from segment.image.essential import JPEG, MAX_PNG_CHUNKS, PNG, chunks, tags
from segment.image.orientation import ORDERS
from segment.image.pillow import File

_BMP = b"BM"
MAX_BMP_HEADER = 1 << 10
"""Limit for the header of a BMP, which Pillow reads before it compares its size with the known ones, up to 124."""
_TIFF_BYTES, _TIFF_INTEGERS = (1, 2, 6, 7), (3, 4)
"""Types of tags that contain bytes (BYTE, ASCII, SBYTE, UNDEFINED) and integers (SHORT, LONG)."""
_COMPRESSION, _STRIPS, _TILES = 259, 273, 324
MAX_HEADER_READS = 5000
"""Limit for read calls while parsing a header. A photo needs a few hundred; a hostile file can cause millions."""
MAX_PNG_ANCILLARY = 1000
"""Limit for the chunks of a PNG other than pixel data. MAX_PNG_CHUNKS limits all."""
MAX_TIFF_VALUES = 100_000
"""Limit for the numbers in all tags of a TIFF. Each strip has two."""
MAX_TIFF_STRIPS = 10_000
"""Limit for the strips or tiles of a TIFF without compression. Each takes up to 320 bytes in Pillow."""
MAX_BOX_BYTES = 64 << 10
"""Limit for the description of the items of an AVIF or HEIC. A photo in 200 tiles has 12 kB. libavif takes 50 times as
much memory, and time that grows with the square of the number of items."""
MAX_ITEM_BYTES = 1 << 20
"""Limit for the Exif data, XMP and colour profiles of an AVIF or HEIC together, of which the library makes up to four
copies. A photo of a phone has some 10 kB. Depth maps are pictures, which are not counted."""
_PICTURES = frozenset(
    (b"av01", b"hvc1", b"grid", b"iden", b"iovl", b"tmap", b"sato", b"jpeg", b"j2k1", b"avc1", b"unci")
)
"""Types of items that are pictures. Their bytes are not copied when a header is read."""
MAX_FILL_BYTES = 256 << 10
"""A JPEG may have any number of fill bytes (0xff) before a marker. Up to their end, libjpeg begins again with each
piece of the file that Pillow reads. A segment has at most 64 kB, so no segment is as long."""
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
    if data.startswith(PNG):
        _check_png(data)
    elif data.startswith(JPEG):
        _check_jpeg(data)
    elif data[:2] in ORDERS:
        check_tiff(data)
    elif data[4:8] == b"ftyp":
        _check_boxes(data)
    elif data.startswith(_BMP) and int.from_bytes(data[14:18], "little") > MAX_BMP_HEADER:
        raise CorruptImage("The header of this BMP is larger than 1 KiB. Save the image again.")


def _check_jpeg(data: bytes) -> None:
    """Raise CorruptImage for a JPEG with too many fill bytes in a row (ITU-T T.81, B.1.1.2).

    Only whole blocks of the file are compared: a search would take quadratic time in a file of shorter runs.
    """
    fill = b"\xff" * MAX_FILL_BYTES
    if any(data.startswith(fill, at) for at in range(0, len(data), MAX_FILL_BYTES)):
        raise CorruptImage(f"This JPEG has {MAX_FILL_BYTES >> 10} KiB of fill bytes in a row. Save it again.")


def _check_png(data: bytes) -> None:
    """Raise CorruptImage for a PNG with too many chunks (www.w3.org/TR/png-3, 5.3 and 11.3)."""
    ancillary = profiles = 0
    for count, (kind, _, _) in enumerate(chunks(data), 1):
        ancillary += kind not in (b"IDAT", b"fdAT")
        profiles += kind == b"iCCP"
        if profiles > 1 or ancillary > MAX_PNG_ANCILLARY or count == MAX_PNG_CHUNKS:
            raise CorruptImage("This PNG has too many chunks or more than one colour profile. Save the image again.")


def check_tiff(data: bytes) -> None:
    """Raise CorruptImage for a TIFF whose tags have too many numbers or strips."""
    numbers = strips = 0
    compressed = False
    for _, tag, kind, count, value in tags(data):
        numbers += count if kind not in _TIFF_BYTES else 0
        strips += count if tag in (_STRIPS, _TILES) else 0
        compressed = compressed or (tag == _COMPRESSION and kind in _TIFF_INTEGERS and value != 1)
    if numbers > MAX_TIFF_VALUES:
        raise CorruptImage(
            f"The tags of this TIFF have {numbers:,} values, more than {MAX_TIFF_VALUES:,}. Save it again, with fewer "
            "strips or tiles."
        )
    if strips > MAX_TIFF_STRIPS and not compressed:
        raise CorruptImage(
            f"This TIFF has {strips:,} strips or tiles without compression, more than {MAX_TIFF_STRIPS:,}. Save it "
            "again, with fewer of them."
        )


def _check_boxes(data: bytes) -> None:
    """Raise CorruptImage for an AVIF or HEIC with too many items or samples, or too large metadata.

    ISO/IEC 14496-12, 4.2 and 8.11.
    """
    described, metas = 0, list[tuple[int, int, int]]()
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind in (b"meta", b"moov"):
            described += end - start
        if kind == b"meta":
            inside = _boxes(data, start + 4, end)
            other = sum(_other_bytes(data, first, last, inner) for inner, first, last in inside)
            described -= other
            metas.append((start + 4, end, other))
    if described > MAX_BOX_BYTES:
        raise CorruptImage("The header of this image describes too many parts. Save the image again.")
    if sum(other + _item_bytes(data, start, end) for start, end, other in metas) > MAX_ITEM_BYTES:
        raise CorruptImage(
            "The metadata of this image (Exif, XMP, colour profile) are larger than 1 MiB. Save it again without them."
        )


def _other_bytes(data: bytes, start: int, end: int, kind: bytes) -> int:
    """Size of the pixels (idat) and colour profiles in a box of a meta box."""
    return end - start if kind == b"idat" else _profile_bytes(data, start, end, kind)


def _item_bytes(data: bytes, start: int, end: int) -> int:
    """Size of the items of a meta box that are not pictures."""
    kinds, sizes = dict[int, bytes](), list[tuple[int, int]]()
    for kind, first, last in _boxes(data, start, end):
        if kind == b"iinf":
            kinds |= _item_kinds(data, first, last)
        elif kind == b"iloc":
            sizes += _item_sizes(data, first, last)
    return sum(size for item, size in sizes if kinds.get(item, b"") not in _PICTURES)


def _item_kinds(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Item id -> type of each item in an iinf box (8.11.6)."""
    found = {}
    for kind, first, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe":
            width = 4 if data[first] >= 3 else 2
            place = first + 4
            found[int.from_bytes(data[place : place + width])] = data[place + width + 2 : place + width + 6]
    return found


def _item_sizes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(item id, size) of each extent in an iloc box (8.11.3). An extent without a size goes to the end of the file."""
    version, at = data[start], start + 4
    offset, length, base, index = data[at] >> 4, data[at] & 15, data[at + 1] >> 4, data[at + 1] & 15
    wide = 4 if version == 2 else 2
    count, at = int.from_bytes(data[at + 2 : at + 2 + wide]), at + 2 + wide
    for _ in range(count):
        if at >= end:
            return
        item, at = int.from_bytes(data[at : at + wide]), at + wide + (4 if version else 2) + base
        extents, at = int.from_bytes(data[at : at + 2]), at + 2
        before = offset + (index if version else 0)
        for _ in range(extents if before + length else min(extents, 1)):
            at += before
            if at >= end:
                return
            yield item, int.from_bytes(data[at : at + length]) or len(data)
            at += length


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
