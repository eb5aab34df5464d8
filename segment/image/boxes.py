"""The boxes of an AVIF or HEIC, read in place (ISO/IEC 14496-12, 4.2 and 8.11)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from segment.errors import CorruptImage

SIGNATURE = b"ftyp"
"""Bytes 4 to 8."""
MAX_BOXES = 5000
MAX_BOX_BYTES = 64 << 10
"""Limit for the description of the items. A photo in 200 tiles has 12 kB. libavif takes 50 times as
much memory, and time that grows with the square of the number of items."""
MAX_ITEM_BYTES = 1 << 20
"""Limit for the Exif data, XMP and colour profiles together, of which the library makes up to four
copies. A photo of a phone has some 10 kB. Depth maps are pictures, which are not counted."""
_PICTURES = frozenset(
    (b"av01", b"hvc1", b"grid", b"iden", b"iovl", b"tmap", b"sato", b"jpeg", b"j2k1", b"avc1", b"unci")
)
"""Types of items that are pictures. Their bytes are not copied when a header is read."""


def check(data: bytes) -> None:
    """Raise CorruptImage for too many items or samples, or too large metadata."""
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
    for _ in range(MAX_BOXES):
        if start + 16 > end:
            return
        size, kind, large = struct.unpack_from(">I4sQ", data, start)
        head, size = (16, large) if size == 1 else (8, size or end - start)
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size
    raise CorruptImage("The header of this image has too many parts. Save the image again.")
