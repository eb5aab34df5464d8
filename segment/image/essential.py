"""The parts of a JPEG, PNG or TIFF that are needed to decode it, as a file for Pillow.

Pillow keeps the metadata of a file, up to five copies of each byte, before the memory of a request is planned. Photos
may contain megabytes of them, such as depth maps and Photoshop resources. Pillow does not see these here: what it sees
besides pixels is small, whatever the file contains. No part of the file is copied before it is read.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from segment.errors import CorruptImage
from segment.image import orientation
from segment.image.orientation import EXIF, ORDERS
from segment.image.pillow import File

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
MAX_SEGMENTS = 5000
"""Limit for the segments before the pixels of a JPEG. A photo with a depth map of 12 MB has about 200."""
MAX_TABLE_BYTES = 256 << 10
"""Limit for the tables before the pixels of a JPEG. They usually have 0.6 kB."""
MAX_EXIF_BYTES = 1 << 20
"""Limit for the Exif segments of a JPEG. One segment has 64 kB, and Exif data usually fit into one."""
MAX_PNG_CHUNKS = 100_000
MAX_PNG_BYTES = 1 << 10
"""Limit for a chunk of a PNG that Pillow sees before the pixels. A palette has at most 768 bytes."""
MAX_RAW_EXIF = 1 << 18
"""Limit for Exif data in the text of a PNG, in characters."""
MAX_TIFF_TAGS = 1000
"""Limit for the tags of a TIFF. A photo has about 30."""
MAX_TAG_BYTES = 1 << 10
"""Limit for a tag of a TIFF that Pillow sees, except those of _LONG_TAGS."""
_MARKER = re.compile(rb"[^\xff]*+\xff++([^\xff])", re.DOTALL)
"""A JPEG's marker, after bytes without a meaning and fill bytes."""
_TABLES = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xE0)))
_COLOUR_SPACES = {0xE0: b"JFIF", 0xEE: b"Adobe"}
"""Application segments that tell the colour space: second byte of the marker -> beginning of the content."""
_STANDALONE = frozenset((0x00, 0xC8, *range(0xD0, 0xD9), *range(0xF0, 0xFE)))
"""Second bytes of markers without a segment that Pillow ignores."""
_APP1, _COM, _EOI, _SOS = 0xE1, 0xFE, 0xD9, 0xDA
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_KINDS = (b"IHDR", b"PLTE", b"tRNS")
_PNG_XMP = b"XML:com.adobe.xmp\0\0"
"""Beginning of a PNG's text that is XMP, not compressed."""
_RAW_EXIF = b"Raw profile type exif\0"
"""Keyword of a PNG's text with Exif data as hexadecimal digits, as ImageMagick wrote it before PNG had a chunk for
them."""
_LONG_TAGS = {273: 1 << 20, 279: 1 << 20, 324: 1 << 20, 325: 1 << 20, 320: 1 << 13, 347: 1 << 16}
"""Places and sizes of strips and tiles, the palette, tables of JPEG -> limit in bytes."""
_DIRECTORY_TAGS = frozenset((330, 34665, 34853, 40965))
"""Directories of previews, Exif, GPS and compatibility. Pillow would read them too."""
_SHORT = 3
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag -> bytes per value (TIFF 6.0, section 2; BigTIFF)."""


@dataclass(frozen=True)
class Essential:
    """A file for Pillow, and what is in the parts that it leaves out.

    `orientation`: EXIF orientation, 1-8, or None if Pillow has to find it. `first_scan`: where the first scan of a JPEG
    begins. `hidden_bytes`: size of a TIFF's tags that Pillow does not see; libtiff copies them.
    """

    file: File
    orientation: int | None = None
    first_scan: int = 0
    hidden_bytes: int = 0


def essential(data: bytes) -> Essential:
    """The essential parts of the image file `data`; all of it for other formats. Raises CorruptImage, struct.error."""
    if data.startswith(JPEG):
        return _jpeg(data)
    if data.startswith(PNG):
        return _png(data)
    if data[:2] in ORDERS:
        return _tiff(data)
    return Essential(io.BytesIO(data))


class _Pieces:
    """Pieces of `data` as one file. `pieces`: (start, end) of each, in ascending order."""

    def __init__(self, data: bytes, pieces: list[tuple[int, int]]) -> None:
        self._data = data
        self._pieces = [(start, min(end, len(data))) for start, end in pieces if start < min(end, len(data))]
        self._starts = [0, *accumulate(end - start for start, end in self._pieces)]
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Change the position."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, or all."""
        until = self._starts[-1] if size < 0 else min(self._at + size, self._starts[-1])
        parts = []
        while self._at < until:
            index = bisect_right(self._starts, self._at) - 1
            start, end = self._pieces[index]
            first = start + self._at - self._starts[index]
            parts.append(self._data[first : min(end, first + until - self._at)])
            self._at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _jpeg(data: bytes) -> Essential:
    """What libjpeg needs: tables, frame, colour space, and everything from the first scan on (ITU-T T.81, annex B)."""
    pieces, tables, exif, scan = [(0, len(JPEG))], 0, 0, 0
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
    return Essential(_Pieces(data, pieces), turned or turned_by_xmp or orientation.UPRIGHT, scan)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(second byte of the marker, start, end) of each segment up to the first start of scan."""
    at = len(JPEG)
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


def _png(data: bytes) -> Essential:
    """Size, palette and transparency, and the pixels (www.w3.org/TR/png-3, 5.3 and 11)."""
    pieces = [(0, len(PNG))]
    pixels: list[tuple[int, int]] = []
    turned: dict[str, int | None] = {}  # by where it was found; only the first of each is read
    missing = set(_PNG_KINDS)
    for kind, start, end in chunks(data):
        content, last = start + 8, end - 4
        if kind == b"IDAT":
            pixels = [(pixels[0][0] if pixels else start, end)]
        elif pixels:
            break
        elif kind in missing and last - content <= MAX_PNG_BYTES:
            missing.remove(kind)
            pieces.append((start, end))
        elif kind == b"eXIf" and "exif" not in turned:
            turned["exif"] = orientation.in_exif(data, content, last)
        elif kind in (b"tEXt", b"zTXt") and data.startswith(_RAW_EXIF, content) and "text" not in turned:
            turned["text"] = _raw_exif(data, content + len(_RAW_EXIF), last, kind == b"zTXt")
        elif kind == b"iTXt" and data.startswith(_PNG_XMP, content) and "xmp" not in turned:
            turned["xmp"] = orientation.in_xmp(data, content, last)
    found = (turned.get(place) for place in ("exif", "text", "xmp"))
    return Essential(_Pieces(data, [*pieces, *pixels]), next(filter(None, found), orientation.UPRIGHT))


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk of a PNG."""
    at = len(PNG)
    for _ in range(MAX_PNG_CHUNKS):
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


class _Tagged(io.BytesIO):
    """A TIFF. `hidden`: where the entries of tags begin that are read as tags of an unknown type."""

    def __init__(self, data: bytes, hidden: frozenset[int], entry: int) -> None:
        super().__init__(data)
        self._hidden, self._entry = hidden, entry

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, or all."""
        hides = size == self._entry and self.tell() in self._hidden
        found = super().read(size)
        return found[:2] + bytes(2) + found[4:] if hides else found


def _tiff(data: bytes) -> Essential:
    """All but long tags and further directories. Pillow turns the picture upright itself."""
    hidden, hidden_bytes = set[int](), 0
    for at, tag, kind, count, _ in tags(data):
        taken = count * _TAG_BYTES.get(kind, 0)
        if tag in _DIRECTORY_TAGS or taken > _LONG_TAGS.get(tag, MAX_TAG_BYTES):
            hidden.add(at)
            hidden_bytes += min(taken, len(data))
    entry = 20 if _is_big(data) else 12
    return Essential(_Tagged(data, frozenset(hidden), entry), orientation.UPRIGHT, hidden_bytes=hidden_bytes)


def tags(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(place of the entry, tag, type, count, value) of each tag of a TIFF (TIFF 6.0, section 2; BigTIFF: libtiff.org).

    The value is that of one integer. Raises CorruptImage, struct.error.
    """
    order, big = ORDERS[data[:2]], _is_big(data)
    (start,) = struct.unpack_from(order + ("8xQ" if big else "4xL"), data)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if entries > MAX_TIFF_TAGS:
        raise CorruptImage(f"This TIFF has {entries:,} tags, more than {MAX_TIFF_TAGS:,}. Save the image again.")
    entry = struct.Struct(order + ("HHQ" if big else "HHL"))
    room = 8 if big else 4
    for at in range(start + (8 if big else 2), len(data) - entry.size - room + 1, entry.size + room)[:entries]:
        tag, kind, count = entry.unpack_from(data, at)
        (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "L"), data, at + entry.size)
        yield at, tag, kind, count, value


def _is_big(data: bytes) -> bool:
    """Whether a TIFF is a BigTIFF, in the byte order that Pillow reads."""
    return data[2] == 43
