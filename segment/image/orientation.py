"""The EXIF orientation of a photo, read in place: metadata may be as large as the file.

The orientation is in the first directory of the Exif data (CIPA DC-008, 4.6.2), which is laid out like a TIFF. Photos
without one may have it in their XMP. Damaged metadata are ignored, as in browsers.
"""

from __future__ import annotations

import re
import struct

UPRIGHT = 1
EXIF = b"Exif\0\0"
"""First bytes of Exif data in a JPEG, and in other files of some programs."""
ORDERS = {b"II": "<", b"MM": ">"}
"""First bytes of a TIFF -> byte order, as in `struct`."""
_TAG, _SHORT, _LONG = 0x0112, 3, 4
MAX_ENTRIES = 1000
"""Limit for the entries of a directory that are read. Exif data have about a hundred."""
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def in_exif(data: bytes, start: int = 0, end: int | None = None) -> int | None:
    """The orientation, 1-8, in the Exif data data[start:end]; None if they have none."""
    end = len(data) if end is None else min(end, len(data))
    while data.startswith(EXIF, start, end):
        start += len(EXIF)
    order = ORDERS.get(data[start : min(start + 2, end)])
    if order is None or start + 8 > end:
        return None
    first = start + struct.unpack_from(order + "L", data, start + 4)[0]
    if first + 2 > end:
        return None
    (count,) = struct.unpack_from(order + "H", data, first)
    for at in range(first + 2, min(first + 2 + 12 * min(count, MAX_ENTRIES), end - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHL", data, at)
        if tag == _TAG:
            if length != 1 or kind not in (_SHORT, _LONG):
                return UPRIGHT
            return valid(struct.unpack_from(order + ("H" if kind == _SHORT else "L"), data, at + 8)[0])
    return None


def in_xmp(data: bytes, start: int, end: int) -> int | None:
    """The orientation, 1-8, in the XMP data[start:end]; None if they have none."""
    found = _IN_XMP.search(data, start, end)
    return valid(int(found[1])) if found else None


def valid(value: object) -> int:
    """`value` if it is an orientation, otherwise UPRIGHT."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
