"""The header of a PNG, read in place (www.w3.org/TR/png-3, 5.3 and 11)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from segment.errors import CorruptImage
from segment.image import orientation
from segment.image.pieces import Essential, Pieces

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
MAX_ANCILLARY = 1000
"""Limit for the chunks other than pixel data."""
MAX_CHUNK_BYTES = 1 << 10
"""Limit for a chunk that Pillow sees before the pixels. A palette has at most 768 bytes."""
MAX_RAW_EXIF = 1 << 18
"""Limit for Exif data in a text, in characters."""
_KINDS = (b"IHDR", b"PLTE", b"tRNS")
_XMP = b"XML:com.adobe.xmp\0\0"
"""Beginning of a text that is XMP, not compressed."""
_RAW_EXIF = b"Raw profile type exif\0"
"""Keyword of a text with Exif data as hexadecimal digits, as ImageMagick wrote it before PNG had a chunk for
them."""


def check(data: bytes) -> None:
    """Raise CorruptImage for too many chunks."""
    ancillary = profiles = 0
    for count, (kind, _, _) in enumerate(_chunks(data), 1):
        ancillary += kind not in (b"IDAT", b"fdAT")
        profiles += kind == b"iCCP"
        if profiles > 1 or ancillary > MAX_ANCILLARY or count == MAX_CHUNKS:
            raise CorruptImage("This PNG has too many chunks or more than one colour profile. Save the image again.")


def essential(data: bytes) -> Essential:
    """Size, palette and transparency, and the pixels."""
    pieces = [(0, len(SIGNATURE))]
    pixels: list[tuple[int, int]] = []
    turned: dict[str, int | None] = {}  # by where it was found; only the first of each is read
    missing = set(_KINDS)
    for kind, start, end in _chunks(data):
        content, last = start + 8, end - 4
        if kind == b"IDAT":
            pixels = [(pixels[0][0] if pixels else start, end)]
        elif pixels:
            break
        elif kind in missing and last - content <= MAX_CHUNK_BYTES:
            missing.remove(kind)
            pieces.append((start, end))
        elif kind == b"eXIf" and "exif" not in turned:
            turned["exif"] = orientation.in_exif(data, content, last)
        elif kind in (b"tEXt", b"zTXt") and data.startswith(_RAW_EXIF, content) and "text" not in turned:
            turned["text"] = _raw_exif(data, content + len(_RAW_EXIF), last, kind == b"zTXt")
        elif kind == b"iTXt" and data.startswith(_XMP, content) and "xmp" not in turned:
            turned["xmp"] = orientation.in_xmp(data, content, last)
    found = (turned.get(place) for place in ("exif", "text", "xmp"))
    return Essential(Pieces(data, [*pieces, *pixels]), next(filter(None, found), orientation.UPRIGHT))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk."""
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + length + 12
        at += length + 12


def _raw_exif(data: bytes, start: int, end: int, packed: bool) -> int | None:
    """The orientation in the text data[start:end]: three lines, then hexadecimal digits. `packed`: compressed."""
    if end - start > MAX_RAW_EXIF:
        return None
    text = data[start:end]
    try:
        if packed:  # the first byte is the method
            text = zlib.decompressobj().decompress(text[1:], MAX_RAW_EXIF)
        return orientation.in_exif(bytes.fromhex(text.split(b"\n", 3)[3].decode("ascii")))
    except (zlib.error, ValueError, IndexError):
        return None
