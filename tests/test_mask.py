"""Mask: paste against torch's grid_sample formula, and regions, strips, scaling and edge distances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment import mask as module
from segment.mask import THRESHOLD, Mask, edge_distance
from tests.strategies import frames, masks, solid


def grid_sample(mask: Mask, size: tuple[int, int]) -> NDArray[np.float64]:
    """torch's grid_sample(align_corners=False, padding_mode="zeros"), pixel by pixel from its documentation."""
    width, height = size
    rows, columns = mask.grid.shape
    grid = mask.probabilities
    x0, y0, x1, y1 = mask.place

    def cell(row: int, column: int) -> float:
        return float(grid[row, column]) if 0 <= row < rows and 0 <= column < columns else 0.0

    out = np.zeros((height, width))
    for j in range(height):
        for i in range(width):
            gx = (i + 0.5 - x0) / max(x1 - x0, 1e-6) * 2 - 1
            gy = (j + 0.5 - y0) / max(y1 - y0, 1e-6) * 2 - 1
            x, y = ((gx + 1) * columns - 1) / 2, ((gy + 1) * rows - 1) / 2
            left, top = math.floor(x), math.floor(y)
            u, v = x - left, y - top
            out[j, i] = (1 - v) * ((1 - u) * cell(top, left) + u * cell(top, left + 1)) + v * (
                (1 - u) * cell(top + 1, left) + u * cell(top + 1, left + 1)
            )
    return out


def inside(mask: Mask, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie within the mask's bounds."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    x0, y0, x1, y1 = mask.bounds
    return ((y0 <= y) & (y <= y1))[:, None] & ((x0 <= x) & (x <= x1))[None]


@given(masks().filter(lambda m: m.place[2] - m.place[0] > 1 and m.place[3] - m.place[1] > 1), st.just((31, 23)))
@settings(max_examples=40, deadline=None)
def test_paste_is_grid_sample(mask: Mask, size: tuple[int, int]) -> None:
    expected = grid_sample(mask, size) * inside(mask, size)
    assert np.abs(mask.paste((0, 0, *size)) - expected).max() < 1e-3


@given(masks(), frames)
@settings(deadline=None)
def test_the_region_holds_all_of_the_mask(mask: Mask, size: tuple[int, int]) -> None:
    left, top, right, bottom = mask.region(size)
    assert 0 <= left <= right <= size[0]
    assert 0 <= top <= bottom <= size[1]
    whole = mask.paste((0, 0, *size))
    whole[top:bottom, left:right] = 0
    assert not whole.any()


@given(masks(), frames, st.sampled_from([1, 37, 400, 1 << 18]))
@settings(deadline=None)
def test_strips_and_columns_are_the_mask_in_order(mask: Mask, size: tuple[int, int], pixels: int) -> None:
    whole = mask.paste((0, 0, *size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_PIXELS", pixels)
        for strips, axis in ((mask.strips(size), 1), (mask.columns(size), 0)):
            left, top, right, bottom = mask.region(size)
            rest, reached = whole.copy(), (left, top)[axis]
            for (x0, y0, x1, y1), probabilities in strips:
                assert (x0, y0)[axis] == reached
                reached = (x1, y1)[axis]
                assert probabilities.size <= max(pixels, (bottom - top, right - left)[axis])
                assert np.allclose(probabilities, whole[y0:y1, x0:x1], atol=1e-6)
                rest[y0:y1, x0:x1] = 0
            assert not rest.any()


@given(masks(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_is_invertible(mask: Mask, sx: float, sy: float) -> None:
    back = mask.scaled(sx, sy).scaled(1 / sx, 1 / sy)
    assert np.allclose(back.place, mask.place, rtol=1e-6, atol=1e-6)
    assert back.grid is mask.grid


def test_scaling_scales_the_pixels() -> None:
    mask = Mask(np.eye(4, dtype=np.float32), (1, 1, 9, 9), (1, 1, 9, 9))
    small, large = mask.paste((0, 0, 10, 10)), mask.scaled(8, 8).paste((0, 0, 80, 80))
    assert np.abs(large.reshape(10, 8, 10, 8).mean(axis=(1, 3)) - small).max() < 0.13


def test_moving_moves_the_pixels() -> None:
    mask = Mask(np.eye(4, dtype=np.float32), (1, 1, 9, 9), (1, 1, 9, 9))
    assert np.allclose(mask.moved(3, 2).paste((3, 2, 13, 12)), mask.paste((0, 0, 10, 10)))


def test_bounds_cut_a_grid_that_reaches_further() -> None:
    mask = replace(solid(-50, -50, 150, 150), bounds=(10.0, 20.0, 30.0, 25.0))
    pasted = mask.paste((0, 0, 100, 100)) >= THRESHOLD
    assert pasted[20:25, 10:30].all()
    assert pasted.sum() == 5 * 20
    assert mask.region((100, 100)) == (10, 20, 30, 25)


@pytest.mark.parametrize("place", [(5, 5, 5, 5), (5, 5, 2, 9), (200, 5, 300, 9), (-9, -9, -2, -2)])
def test_a_degenerate_box_has_no_pixel(place: tuple[float, float, float, float]) -> None:
    mask = solid(*place)
    assert sum((strip >= THRESHOLD).sum() for _, strip in mask.strips((50, 50))) == 0
    assert sum((strip >= THRESHOLD).sum() for _, strip in mask.columns((50, 50))) == 0


@given(st.floats(0.5, 20), st.floats(-30, 30), st.floats(0, 2 * math.pi))
@example(steepness=0.5, offset=0, angle=0)
@settings(deadline=None)
def test_edge_distance_is_independent_of_the_slope(steepness: float, offset: float, angle: float) -> None:
    y, x = np.mgrid[:40, :50].astype(np.float32)
    distance = (x - 25) * math.cos(angle) + (y - 20) * math.sin(angle) + offset
    found = edge_distance((0.5 + distance / (40 * steepness)).astype(np.float32))
    assert np.abs(found - distance).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_edge_distance_of_the_smallest_regions(shape: tuple[int, int]) -> None:
    assert (edge_distance(np.full(shape, 0.9, np.float32)) > 1).all()
    assert (edge_distance(np.full(shape, 0.1, np.float32)) < -1).all()
