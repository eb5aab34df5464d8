"""Masks as Label Studio's brush run lengths.

Label Studio stores a brush region as the RGBA pixels of the whole photo, row after row, packed by thi.ng's rle-pack
(https://github.com/thi-ng/umbrella; label_studio_sdk/converter/brush.py reads and writes it). All four values of a
pixel are 255 inside the mask and 0 outside. The packed form is a stream of bits: the number of values (32 bits), the
bits of a value minus 1 (5), four sizes of a length, each minus 1 (4 x 4), then blocks. A block is a flag (1: one value
repeated), the index of its length's size (2 bits), the length minus 1, and the value.

Only the pixels inside a mask's own rectangle are made, a strip at a time; the empty rest of the photo is arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Mask

CHANNELS = 4
LENGTH_BITS = np.array([3, 4, 8, 16])
"""The sizes of a length, in bits."""
VALUE_BITS = 8
LONGEST = 1 << 16
"""Values in one block at most; longer runs are several blocks."""


def encode(mask: Mask, size: tuple[int, int]) -> bytes:
    """The mask in a frame of `size` (width, height), as the numbers 0 to 255 of a region's `rle`."""
    lengths, values = _blocks(_edges(mask, size), size[0] * size[1])
    kinds = np.searchsorted(1 << LENGTH_BITS, lengths)
    bits = LENGTH_BITS[kinds]
    codes = ((((4 | kinds) << bits) | (lengths - 1)) << VALUE_BITS) | values
    return np.packbits(np.concatenate([_header(size), _bits(codes, 3 + bits + VALUE_BITS)])).tobytes()


def _edges(mask: Mask, size: tuple[int, int]) -> NDArray[np.int64]:
    """(2 x R,): where each run of the mask's pixels starts and where it ends (excluded), counted row after row."""
    found = [np.zeros(0, np.int64)]
    for (left, top, _, _), probabilities in mask.strips(size):
        inside = np.pad(probabilities >= THRESHOLD, ((0, 0), (1, 1)))  # every run with both its ends
        row, column = np.nonzero(inside[:, 1:] != inside[:, :-1])
        found.append((top + row) * size[0] + left + column)
    edges = np.concatenate(found)
    joined = np.flatnonzero(edges[1:] == edges[:-1])  # a run to the end of a row and one from the start of the next
    return np.delete(edges, np.concatenate([joined, joined + 1]))


def _blocks(edges: NDArray[np.int64], pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Length and value of each block: outside and inside by turns, long runs divided."""
    lengths = CHANNELS * np.diff(np.concatenate([[0], edges, [pixels]]))
    values = np.where(np.arange(len(lengths)) % 2, 255, 0)
    values, lengths = values[lengths > 0], lengths[lengths > 0]
    pieces = -(-lengths // LONGEST)
    ends = np.cumsum(pieces) - 1
    divided = np.full(pieces.sum(), LONGEST)
    divided[ends] = lengths - (pieces - 1) * LONGEST
    return divided, np.repeat(values, pieces)


def _header(size: tuple[int, int]) -> NDArray[np.uint8]:
    fields = [(CHANNELS * size[0] * size[1], 32), (VALUE_BITS - 1, 5), *((int(bits) - 1, 4) for bits in LENGTH_BITS)]
    return np.array([int(bit) for value, bits in fields for bit in f"{value:0{bits}b}"], np.uint8)


def _bits(codes: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest `lengths` bits of each code, highest bit first, one after the other."""
    places = np.arange(lengths.max() - 1, -1, -1)
    return (codes[:, None] >> places & 1).astype(np.uint8)[places < lengths[:, None]]
