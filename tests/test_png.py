"""PNG files are read back with Pillow, and their chunks are checked."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from segment.output.png import SIGNATURE, encode

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4]))


def read_back(data: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        yield kind, body
        at += 12 + length


@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape)))
def test_bytes(pixels: NDArray[np.uint8]) -> None:
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    assert np.array_equal(read_back(encode(Image.fromarray(pixels))), pixels)


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda shape: arrays.arrays(np.uint16, shape)))
def test_sixteen_bits(pixels: NDArray[np.uint16]) -> None:
    assert np.array_equal(read_back(encode(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize("height", [1, 5, 1000, 3001])
def test_strips(height: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, 2000, 3), np.uint8)
    data = encode(Image.fromarray(pixels))
    assert np.array_equal(read_back(data), pixels)
    assert len(data) < pixels.nbytes * 1.001 + 1000  # noise cannot be compressed
    kinds = [kind for kind, _ in chunks(data)]
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert set(kinds[1:-1]) == {b"IDAT"}


def test_memory_does_not_grow_with_the_picture() -> None:
    image = Image.new("RGB", (4000, 4000))
    tracemalloc.start()
    encode(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
