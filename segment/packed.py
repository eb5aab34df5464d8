"""A mask's grid in some 2 KB, however fine it is.

PointRend answers 224 x 224 probabilities, 200 KB in float32, of which only the edge says anything. A pixel belongs to
the instance where the bilinear interpolation of four cells reaches one half: a cell whose neighbours are all on the
side of one half that it is on may have any value there. Such cells become the least or the greatest value, the cells
along the edge keep four bits, and DEFLATE (RFC 1951) with run lengths makes 1 to 3 KB of the whole. At every size of
photo the mask has the same pixels, except where its probability is within a sixteenth of one half.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_BYTES = 4096
"""What a grid may take. One that does not compress so far, such as noise, is halved until it does."""
SMALLEST = 28
"""Grids up to this side are not halved."""
_DEFLATE = (1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
"""Level, method, window, memory, strategy. A third of the time of zlib's default, for a tenth more bytes."""


@dataclass(frozen=True)
class PackedGrid:
    """A compressed grid of probabilities; `numpy.asarray` makes it (h, w) float32 again."""

    shape: tuple[int, int]
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        steps = np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.shape)
        probabilities: NDArray[Any] = steps * np.float32(1 / 256)
        return probabilities.astype(dtype or np.float32, copy=False)


def pack(steps: NDArray[np.uint8]) -> PackedGrid:
    """A grid (h, w) of probabilities p given as floor(256 p), so that 128 and more is the mask."""
    while True:
        height, width = steps.shape
        packer = zlib.compressobj(*_DEFLATE)
        data = packer.compress(_edges(steps).tobytes()) + packer.flush()
        if len(data) <= MOST_BYTES or max(height, width) <= SMALLEST:
            return PackedGrid((height, width), data)
        steps = _halved(steps)


def _edges(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Four bits, in the middle of each step, of the cells along the edge; all others 0 or 255.

    Outside of the grid is 0, as where a mask is pasted.
    """
    height, width = steps.shape
    solid = np.zeros((height + 2, width + 2), np.uint8)
    np.multiply(steps >> 7, 255, out=solid[1:-1, 1:-1])
    rows = solid[:-2] | solid[1:-1] | solid[2:]
    some = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]  # of the 3 x 3 cells around
    rows = solid[:-2] & solid[1:-1] & solid[2:]
    every = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    result: NDArray[np.uint8] = (((steps & np.uint8(0xF0)) | np.uint8(8)) & some) | every
    return result


def _halved(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The means of 2 x 2 cells; a last row or column without a partner counts twice."""
    height, width = steps.shape
    even = np.pad(steps, ((0, height % 2), (0, width % 2)), mode="edge").astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) // 4).astype(np.uint8)
