"""Brush run lengths against Label Studio's own codec."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment import mask as module
from segment.mask import THRESHOLD, Mask
from segment.output import brush
from tests.strategies import empty, frames, masks, ring, solid


def dense(mask: Mask, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width, 4): what Label Studio draws."""
    inside = (mask.paste((0, 0, *size)) >= THRESHOLD).astype(np.uint8) * 255
    return np.repeat(inside[:, :, None], 4, axis=2)


def decode(packed: bytes) -> NDArray[np.uint8]:
    """rle-pack's decoder, written from its description."""
    text = "".join(f"{byte:08b}" for byte in packed)
    at = 0

    def read(bits: int) -> int:
        nonlocal at
        at += bits
        return int(text[at - bits : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(text) - at < 8, "nothing follows the last block"
    return np.array(values, np.uint8)


@given(masks(), frames, st.sampled_from([1, 50, 1 << 18]))
@settings(max_examples=60, deadline=None)
def test_every_pixel_comes_back(mask: Mask, size: tuple[int, int], pixels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_PIXELS", pixels)
        assert np.array_equal(decode(brush.encode(mask, size)), dense(mask, size).ravel())


EDGES = [solid(0, 0, 300, 200), solid(-5, -5, 500, 500), solid(299, 199, 300, 200), ring(10, 20, 250, 180)]
EDGES += [empty(0, 0, 20, 10), solid(50, 50, 50, 50), solid(400, 400, 410, 410), solid(0, 0, 1, 1)]


@pytest.mark.parametrize("mask", EDGES)
def test_runs_longer_than_a_block(mask: Mask) -> None:
    assert np.array_equal(decode(brush.encode(mask, (300, 200))), dense(mask, (300, 200)).ravel())


@given(masks(), frames)
@settings(max_examples=100, deadline=None)
def test_label_studio_reads_and_writes_the_same(mask: Mask, size: tuple[int, int]) -> None:
    label_studio: Any = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed; see test_package.py"
    )
    packed = brush.encode(mask, size)
    assert np.array_equal(label_studio.decode_rle(packed), dense(mask, size).ravel())
    theirs = label_studio.encode_rle(dense(mask, size).ravel())
    assert theirs[: len(packed)] == list(packed)
    assert theirs[len(packed) :] in ([], [0])  # they add a byte when the bits fill the last one


def test_a_large_mask_takes_little_memory() -> None:
    mask = solid(-200, -200, 4200, 3200)
    tracemalloc.start()
    packed = brush.encode(mask, (4000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(packed) < 4000
    assert peak < 16 << 20
