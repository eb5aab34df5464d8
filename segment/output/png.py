"""Encode a picture as PNG (https://www.w3.org/TR/png-3/) in less than half of Pillow's time.

Pillow tries all five filters on every row. For photos with drawings, always using the filter "Up", the difference from
the row above, makes files that are 0 to 10 % larger. zlib's run-length strategy is used: after filtering, a photo
contains hardly any longer matches.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2
"""Filter type (https://www.w3.org/TR/png-3/#9Filter-types)."""
STRIP_BYTES = 1 << 18
"""Size of the strips that are filtered and compressed at a time."""


def encode(image: Image.Image) -> bytes:
    """`image`, RGB, as a PNG file."""
    file = io.BytesIO()
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", [struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)])  # 8 bits, RGB
    _write_chunk(file, b"IDAT", _compressed(image))
    _write_chunk(file, b"IEND", [])
    return file.getvalue()


def _compressed(image: Image.Image) -> Iterator[bytes]:
    """The filtered rows, compressed, in pieces."""
    width, height = image.size
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    above = np.zeros((1, 3 * width), np.uint8)
    step = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, step):
        rows = np.asarray(image.crop((0, top, width, min(top + step, height)))).reshape(-1, 3 * width)
        lines = np.empty((len(rows), 1 + 3 * width), np.uint8)
        lines[:, 0] = UP
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=lines[:, 1:])
        yield deflate.compress(lines.data)
        above = rows[-1:]
    yield deflate.flush()


def _write_chunk(file: BinaryIO, kind: bytes, pieces: Iterable[bytes]) -> None:
    """Append a chunk, whose length is filled in at the end."""
    start, length, checksum = file.tell(), 0, zlib.crc32(kind)
    file.write(struct.pack(">I", 0) + kind)
    for piece in pieces:
        file.write(piece)
        length, checksum = length + len(piece), zlib.crc32(piece, checksum)
    file.write(struct.pack(">I", checksum))
    file.seek(start)
    file.write(struct.pack(">I", length))
    file.seek(0, io.SEEK_END)
