"""Compress a mask's grid to 1 to 8 KB.

PointRend predicts 224 x 224 probabilities per instance, which are 200 KB in float32. Only the cells along the edge
matter: a pixel belongs to the instance if the bilinear interpolation of four cells is at least one half, so the exact
value of a cell is irrelevant if all its neighbours are on the same side of one half. Such cells are set to 0 or 255,
cells along the edge are reduced to four bits, and the grid is compressed with DEFLATE (RFC 1951). At any photo size the
mask has the same pixels, except where the probability is within 1/16 of one half.

A mask with many holes and specks has too many cells along its edge for this. Its grid is stored with one bit per cell,
and only if this does not compress to the maximum either, the grid is reduced.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_BYTES = 8192
"""Maximum size of a compressed grid. Noise in 224 x 224 cells of one bit each takes 6.3 KB."""
SMALLEST = 28
"""Grids of at most this many cells per side are not reduced."""
_DEFLATE = (1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
"""Level, method, window bits, memory level, strategy: a third of the time of zlib's defaults, and 10 % more bytes."""


@dataclass(frozen=True)
class PackedGrid:
    """A compressed grid of probabilities. `numpy.asarray` decompresses it to (h, w) float32. `shape`: (h, w).

    `bits`: whether one bit per cell is stored, which becomes a probability of 0 or 1.
    """

    shape: tuple[int, int]
    data: bytes
    bits: bool = False

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        cells = np.frombuffer(zlib.decompress(self.data), np.uint8)
        if self.bits:
            cells = np.unpackbits(cells, count=self.shape[0] * self.shape[1])
        scale = np.float32(1 if self.bits else 1 / 256)
        probabilities: NDArray[Any] = cells.reshape(self.shape) * scale
        return probabilities.astype(dtype or np.float32, copy=False)


def pack(steps: NDArray[np.uint8]) -> PackedGrid:
    """Compress `steps`, (h, w): probabilities p as floor(256 p), so that cells of the mask are 128 or more."""
    height, width = steps.shape
    data = _deflate(_edges(steps))
    if len(data) <= MOST_BYTES or max(height, width) <= SMALLEST:
        return PackedGrid((height, width), data)
    data = _deflate(np.packbits(steps >> 7))
    if len(data) <= MOST_BYTES:
        return PackedGrid((height, width), data, bits=True)
    return pack(_halved(steps))


def _deflate(cells: NDArray[np.uint8]) -> bytes:
    packer = zlib.compressobj(*_DEFLATE)
    return packer.compress(cells.tobytes()) + packer.flush()


def _edges(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Round the cells along the edge to the centre of one of 16 steps; set all others to 0 or 255.

    Outside the grid, the mask is 0, as in Mask.paste.
    """
    height, width = steps.shape
    solid = np.zeros((height + 2, width + 2), np.uint8)
    np.multiply(steps >> 7, 255, out=solid[1:-1, 1:-1])
    rows = solid[:-2] | solid[1:-1] | solid[2:]
    some = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]  # 255 if any of the 3 x 3 cells around is in the mask
    rows = solid[:-2] & solid[1:-1] & solid[2:]
    every = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]  # 255 if all of them are
    result: NDArray[np.uint8] = (((steps & np.uint8(0xF0)) | np.uint8(8)) & some) | every
    return result


def _halved(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The means of 2 x 2 cells. The last row or column of an odd number is repeated."""
    height, width = steps.shape
    even = np.pad(steps, ((0, height % 2), (0, width % 2)), mode="edge").astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) // 4).astype(np.uint8)
