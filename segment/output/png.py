"""Write PNG files (https://www.w3.org/TR/png-3/), several times as fast as Pillow.

Pillow tries all five filters on each row, which takes longer than the compression. Here each row is stored as its
difference from the row above (filter "Up"), and ISA-L compresses it. `python -m benchmarks.encoders` compares time and
size.

Rows are filtered and compressed in strips, so memory does not grow with the picture.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = {"L": (8, 0), "I;16": (16, 0), "RGB": (8, 2), "RGBA": (8, 6)}
"""Pillow's modes, and the bit depth and colour type of the PNG."""
UP = 2
LEVEL = 1
STRIP_BYTES = 1 << 16
"""Size of the strips. malloc maps arrays of 256 KiB anew each time (process.py), which takes longer than filtering."""


def encode(image: Image.Image) -> bytes:
    """The PNG file of `image`, whose mode is one of FORMATS."""
    depth, colour = FORMATS[image.mode]
    file = io.BytesIO()
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", *image.size, depth, colour, 0, 0, 0))
    _write_pixels(file, image)
    _write_chunk(file, b"IEND", b"")
    return file.getvalue()


def _write_pixels(file: io.BytesIO, image: Image.Image) -> None:
    width, height = image.size
    compressor = isal_zlib.compressobj(LEVEL)
    above = np.zeros_like(_rows(image.crop((0, 0, width, 1)))[0])
    step = max(1, STRIP_BYTES // len(above))
    for top in range(0, height, step):
        rows = _rows(image.crop((0, top, width, min(top + step, height))))
        if data := compressor.compress(_filtered(rows, above)):
            _write_chunk(file, b"IDAT", data)
        above = rows[-1]
    _write_chunk(file, b"IDAT", compressor.flush())


def _rows(image: Image.Image) -> NDArray[np.uint8]:
    """The bytes of each row; 16-bit values are big-endian."""
    pixels = np.asarray(image)
    if pixels.itemsize == 2:
        pixels = pixels.astype(">u2")
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(image.height, -1)


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each row as the number of the filter and the differences from the row above modulo 256.

    `above`: the row above the first one.
    """
    filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = UP
    np.subtract(rows[0], above, out=filtered[0, 1:])
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _write_chunk(file: io.BytesIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)))
    file.write(kind)
    file.write(data)
    file.write(struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind))))
