"""The header of a JPEG, read in place (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from segment.errors import CorruptImage
from segment.image import orientation
from segment.image.orientation import EXIF
from segment.image.pieces import Essential, Pieces

SIGNATURE = b"\xff\xd8"
MAX_SEGMENTS = 5000
"""Limit for the segments before the pixels. A photo with a depth map of 12 MB has about 200."""
MAX_TABLE_BYTES = 256 << 10
"""Limit for the tables before the pixels. They usually have 0.6 kB."""
MAX_EXIF_BYTES = 1 << 20
"""Limit for the Exif segments. One segment has 64 kB, and Exif data usually fit into one."""
MAX_FILL_BYTES = 256 << 10
"""A JPEG may have any number of fill bytes (0xff) before a marker. Up to their end, libjpeg begins again with each
piece of the file that Pillow reads. A segment has at most 64 kB, so no segment is as long."""
_MARKER = re.compile(rb"[^\xff]*+\xff++([^\xff])", re.DOTALL)
"""A marker, after bytes without a meaning and fill bytes."""
_TABLES = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xE0)))
_COLOUR_SPACES = {0xE0: b"JFIF", 0xEE: b"Adobe"}
"""Application segments that tell the colour space: second byte of the marker -> beginning of the content."""
_STANDALONE = frozenset((0x00, 0xC8, *range(0xD0, 0xD9), *range(0xF0, 0xFE)))
"""Second bytes of markers without a segment that Pillow ignores."""
_APP1, _COM, _EOI, _SOS = 0xE1, 0xFE, 0xD9, 0xDA
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def check(data: bytes) -> None:
    """Raise CorruptImage for too many fill bytes in a row (B.1.1.2).

    Only whole blocks of the file are compared: a search would take quadratic time in a file of shorter runs.
    """
    fill = b"\xff" * MAX_FILL_BYTES
    if any(data.startswith(fill, at) for at in range(0, len(data), MAX_FILL_BYTES)):
        raise CorruptImage(f"This JPEG has {MAX_FILL_BYTES >> 10} KiB of fill bytes in a row. Save it again.")


def essential(data: bytes) -> Essential:
    """What libjpeg needs: tables, frame, colour space, and everything from the first scan on. Raises CorruptImage."""
    pieces, tables, exif, scan = [(0, len(SIGNATURE))], 0, 0, 0
    turned: int | None = None
    turned_by_xmp: int | None = None
    spaces = dict(_COLOUR_SPACES)
    for kind, start, end in _segments(data):
        content = start + 4
        if kind == _SOS:
            scan = start
            pieces.append((start, len(data)))
        elif kind == _APP1 and data.startswith(EXIF, content):
            exif += end - start
            turned = turned or orientation.in_exif(data, content, end)
        elif kind == _APP1 and data.startswith(_XMP, content):
            turned_by_xmp = turned_by_xmp or orientation.in_xmp(data, content, end)
        elif kind in _TABLES or (kind in spaces and data.startswith(spaces.pop(kind), content)):
            tables += end - start
            pieces.append((start, end))
        if exif > MAX_EXIF_BYTES:
            raise CorruptImage("The Exif data of this image are larger than 1 MiB. Save the image again.")
        if tables > MAX_TABLE_BYTES:
            raise CorruptImage("The tables of this JPEG are larger than 256 KiB. Save the image again.")
    return Essential(Pieces(data, pieces), turned or turned_by_xmp or orientation.UPRIGHT, scan)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(second byte of the marker, start, end) of each segment up to the first start of scan."""
    at = len(SIGNATURE)
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.match(data, at)
        if found is None:
            return
        kind, at = found[1][0], found.end()
        if kind in _STANDALONE:
            continue
        if kind == _EOI or kind < 0xC0 or at + 2 > len(data):
            return
        start, at = at - 2, at + max(2, int.from_bytes(data[at : at + 2]))
        yield kind, start, at
        if kind == _SOS:
            return
    raise CorruptImage("The header of this JPEG has too many parts. Save the image again.")
