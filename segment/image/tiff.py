"""The header of a TIFF, read in place (TIFF 6.0, section 2; BigTIFF: libtiff.org)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from segment.errors import CorruptImage
from segment.image.orientation import ORDERS, UPRIGHT
from segment.image.pieces import Essential

MAX_TAGS = 1000
"""Limit for the tags. A photo has about 30."""
MAX_TAG_BYTES = 1 << 10
"""Limit for a tag that Pillow sees, except those of _LONG_TAGS."""
MAX_VALUES = 100_000
"""Limit for the numbers in all tags. Each strip has two."""
MAX_STRIPS = 10_000
"""Limit for the strips or tiles without compression. Each takes up to 320 bytes in Pillow."""
_BYTE_TYPES, _INTEGER_TYPES = (1, 2, 6, 7), (3, 4)
"""Types of tags that contain bytes (BYTE, ASCII, SBYTE, UNDEFINED) and integers (SHORT, LONG)."""
_COMPRESSION, _STRIPS, _TILES = 259, 273, 324
_LONG_TAGS = {273: 1 << 20, 279: 1 << 20, 324: 1 << 20, 325: 1 << 20, 320: 1 << 13, 347: 1 << 16}
"""Places and sizes of strips and tiles, the palette, tables of JPEG -> limit in bytes."""
_DIRECTORY_TAGS = frozenset((330, 34665, 34853, 40965))
"""Directories of previews, Exif, GPS and compatibility. Pillow would read them too."""
_SHORT = 3
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag -> bytes per value."""


def check(data: bytes) -> None:
    """Raise CorruptImage if the tags have too many numbers or strips."""
    numbers = strips = 0
    compressed = False
    for _, tag, kind, count, value in _tags(data):
        numbers += count if kind not in _BYTE_TYPES else 0
        strips += count if tag in (_STRIPS, _TILES) else 0
        compressed = compressed or (tag == _COMPRESSION and kind in _INTEGER_TYPES and value != 1)
    if numbers > MAX_VALUES:
        raise CorruptImage(
            f"The tags of this TIFF have {numbers:,} values, more than {MAX_VALUES:,}. Save it again, with fewer "
            "strips or tiles."
        )
    if strips > MAX_STRIPS and not compressed:
        raise CorruptImage(
            f"This TIFF has {strips:,} strips or tiles without compression, more than {MAX_STRIPS:,}. Save it "
            "again, with fewer of them."
        )


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


def essential(data: bytes) -> Essential:
    """All but long tags and further directories. Pillow turns the picture upright itself."""
    hidden, hidden_bytes = set[int](), 0
    for at, tag, kind, count, _ in _tags(data):
        taken = count * _TAG_BYTES.get(kind, 0)
        if tag in _DIRECTORY_TAGS or taken > _LONG_TAGS.get(tag, MAX_TAG_BYTES):
            hidden.add(at)
            hidden_bytes += min(taken, len(data))
    entry = 20 if _is_big(data) else 12
    return Essential(_Tagged(data, frozenset(hidden), entry), UPRIGHT, hidden_bytes=hidden_bytes)


def _tags(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(place of the entry, tag, type, count, value) of each tag.

    The value is that of one integer. Raises CorruptImage, struct.error.
    """
    order, big = ORDERS[data[:2]], _is_big(data)
    (start,) = struct.unpack_from(order + ("8xQ" if big else "4xL"), data)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if entries > MAX_TAGS:
        raise CorruptImage(f"This TIFF has {entries:,} tags, more than {MAX_TAGS:,}. Save the image again.")
    entry = struct.Struct(order + ("HHQ" if big else "HHL"))
    room = 8 if big else 4
    for at in range(start + (8 if big else 2), len(data) - entry.size - room + 1, entry.size + room)[:entries]:
        tag, kind, count = entry.unpack_from(data, at)
        (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "L"), data, at + entry.size)
        yield at, tag, kind, count, value


def _is_big(data: bytes) -> bool:
    """Whether it is a BigTIFF, in the byte order that Pillow reads."""
    return data[2] == 43
