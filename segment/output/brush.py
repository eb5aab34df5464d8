"""Encode masks as the run lengths of Label Studio's brush regions.

Label Studio stores a brush region as the RGBA pixels of the whole photo, row by row, compressed with thi.ng's rle-pack
(https://github.com/thi-ng/umbrella; label_studio_sdk/converter/brush.py reads and writes it). All four channels of a
pixel are 255 inside the mask and 0 outside. The encoding is a stream of bits:

    number of values (32 bits), bits per value - 1 (5), four sizes of a length in bits, each - 1 (4 x 4), blocks ...

A block consists of a flag (1: one value, repeated), the index of its length's size (2 bits), the length - 1 in that
many bits, and the value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segment.output.rle import Runs

CHANNELS = 4
LENGTH_BITS = np.array([3, 4, 8, 16])
"""The sizes in which a length can be written, in bits."""
VALUE_BITS = 8
LONGEST = 1 << 16
"""Maximum number of values of a block; longer runs are divided into several blocks."""


def encode(runs: Runs, size: tuple[int, int]) -> bytes:
    """Encode a mask's runs, row by row, in an image of `size` (width, height).

    The bytes are the numbers of a region's `rle`.
    """
    lengths, values = _blocks(runs, size[0] * size[1])
    kinds = np.searchsorted(1 << LENGTH_BITS, lengths)
    bits = LENGTH_BITS[kinds]
    codes = ((((4 | kinds) << bits) | (lengths - 1)) << VALUE_BITS) | values
    return np.packbits(np.concatenate([_header(size), _bits(codes, 3 + bits + VALUE_BITS)])).tobytes()


def _blocks(runs: Runs, pixels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Length and value of each block: alternately outside and inside the mask, with long runs divided."""
    lengths = CHANNELS * np.diff(np.concatenate([[0], runs.ravel(), [pixels]]))
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
    """Concatenate the lowest `lengths` bits of all codes, most significant bit first: (sum of lengths,) of 0 or 1."""
    places = np.arange(lengths.max() - 1, -1, -1)
    return (codes[:, None] >> places & 1).astype(np.uint8)[places < lengths[:, None]]
