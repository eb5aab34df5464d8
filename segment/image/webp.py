"""The header of a WebP, read in place. Pillow opens a WebP with two further copies of the file in memory.

RFC 9649: chunks (2.3), lossy frames (2.5, RFC 6386, 9.1), lossless frames (2.6, 3.4), the extended format (2.7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from segment.errors import CorruptImage
from segment.image import orientation

MAX_CHUNKS = 5000
"""Limit for the chunks of a WebP. A still photo has at most seven."""
_FIRST = (b"VP8 ", b"VP8L", b"VP8X")
_ANIMATION, _ALPHA = 0x02, 0x10
"""Flags of the extended format."""


@dataclass(frozen=True)
class WebP:
    """`size`: (width, height) in pixels, before the orientation (1-8) is applied. `transparent`: has transparency."""

    size: tuple[int, int]
    transparent: bool
    orientation: int


def is_webp(data: bytes) -> bool:
    """Whether the file begins like a WebP."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and data[12:16] in _FIRST


def read(data: bytes) -> WebP:
    """Read the header of a WebP. Raises CorruptImage, struct.error or ValueError if there is none."""
    if data[12:16] != b"VP8X":
        return WebP(*_frame(data, 12), orientation.UPRIGHT)
    flags, across, down = data[20], _uint24(data, 24) + 1, _uint24(data, 27) + 1
    transparent = bool(flags & _ALPHA)
    turned: dict[bytes, int | None] = {}  # by the type of the chunk; only the first of each is read
    for kind, start, end in _chunks(data):
        if kind == b"ALPH":
            transparent = True
        elif kind == b"VP8L" and not flags & _ANIMATION:
            transparent = transparent or _frame(data, start - 8)[1]
        elif kind == b"EXIF" and kind not in turned:
            turned[kind] = orientation.in_exif(data, start, end)
        elif kind == b"XMP " and kind not in turned:
            turned[kind] = orientation.in_xmp(data, start, end)
    upright = turned.get(b"EXIF") or turned.get(b"XMP ") or orientation.UPRIGHT
    return WebP((across, down), transparent, upright)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of each chunk."""
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 8 + length + length % 2
    raise CorruptImage("The header of this WebP has too many parts. Save the image again.")


def _frame(data: bytes, at: int) -> tuple[tuple[int, int], bool]:
    """The (width, height) of the frame in the chunk at `at`, and whether it has transparency."""
    if data[at : at + 4] == b"VP8L":
        if data[at + 8] != 0x2F:
            raise ValueError
        (bits,) = struct.unpack_from("<I", data, at + 9)
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), bool(bits >> 28 & 1)
    if data[at + 11 : at + 14] != b"\x9d\x01\x2a":
        raise ValueError
    width, height = struct.unpack_from("<HH", data, at + 14)
    return (width & 0x3FFF, height & 0x3FFF), False


def _uint24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")
