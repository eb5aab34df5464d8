"""Run lengths compared with pycocotools' encoding of the dense mask."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segment import mask as module
from segment.mask import THRESHOLD, Mask
from segment.output import rle
from tests.strategies import empty, frames, masks, solid


def check(mask: Mask, size: tuple[int, int]) -> None:
    dense = (mask.paste((0, 0, *size)) >= THRESHOLD).astype(np.uint8)
    expected = coco.encode(np.asfortranarray(dense))
    runs = rle.runs(mask, size)
    packed = rle.compress(runs, size)
    assert packed == {"size": expected["size"], "counts": expected["counts"].decode()}
    assert rle.area(runs) == dense.sum() == coco.area(expected)
    json.dumps(packed)


@given(masks(), frames, st.sampled_from([1, 50, 1 << 18]))
@settings(max_examples=150, deadline=None)
def test_runs_are_those_of_pycocotools(mask: Mask, size: tuple[int, int], pixels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_PIXELS", pixels)
        check(mask, size)


@pytest.mark.parametrize(
    "mask",
    [
        solid(0, 0, 20, 10),  # the whole frame: one run across all columns
        solid(-5, -5, 30, 30),
        solid(0, 0, 1, 1),  # includes the first pixel
        solid(19, 9, 20, 10),  # includes the last pixel
        solid(3, 0, 6, 10),  # whole columns, joined into one run
        solid(3, 2, 6, 10),
        solid(5, 5, 5, 5),
        solid(50, 50, 60, 60),
        empty(0, 0, 20, 10),
    ],
)
def test_runs_at_the_edges(mask: Mask) -> None:
    check(mask, (20, 10))


def test_a_large_mask_takes_little_memory() -> None:
    mask = solid(-200, -200, 4200, 3200)
    tracemalloc.start()
    runs = rle.runs(mask, (4000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rle.area(runs) == 12_000_000
    assert peak < 16 << 20
