"""Tests of pack(): the size of packed mask grids, and the equality of pasted pixels with the unpacked grid's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Mask
from segment.packed import MOST_BYTES, pack
from training import shapes


def blob(seed: int, side: int = 224) -> NDArray[np.float32]:
    """Probabilities (side, side) of a smooth random shape with a soft edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle, waves = np.arctan2(y, x), rng.integers(2, 6)
    radius = 0.35 * (1 + 0.25 * np.sin(waves * angle + rng.uniform(0, 6)))
    distance = (radius - np.hypot(x, y)) * side
    soft: NDArray[np.float32] = (1 / (1 + np.exp(-distance / rng.uniform(0.5, 4)))).astype(np.float32)
    return soft


def as_steps(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.minimum(np.floor(probabilities * 256), 255).astype(np.uint8)


@given(st.integers(0, 1000), st.floats(5, 900), st.floats(5, 900), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_a_packed_mask_has_the_same_pixels(seed: int, width: float, height: float, left: float) -> None:
    """Pixels may differ only along the edge, where the probability is within 1/16 of the threshold.

    Their number is limited relative to the area, or to the edge's length for masks that are a few pixels high.
    """
    grid = blob(seed)
    place = (left, 3.0, left + width, 3.0 + height)
    exact, packed = (Mask(each, place, place) for each in (grid, pack(as_steps(grid))))
    region = exact.region((1000, 1000))
    wanted, found = exact.paste(region), packed.paste(region)
    differ = (wanted >= THRESHOLD) != (found >= THRESHOLD)
    assert np.abs(wanted[differ] - THRESHOLD).max(initial=0) < 1 / 16
    inside = np.pad(wanted >= THRESHOLD, 1)
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge = (inside[1:-1, 1:-1] & ~surrounded).sum()
    assert differ.sum() <= max(5, 0.02 * inside.sum(), 0.05 * edge)


def test_packing_a_packed_grid_changes_nothing() -> None:
    for seed in range(10):
        steps = as_steps(blob(seed))
        assert np.array_equal(np.asarray(pack(steps)) >= THRESHOLD, steps >= 128)


def test_shapes_take_about_as_much_as_28_x_28_floats() -> None:
    sizes = []
    for seed in range(20):
        for mask in shapes.scene(seed, (224, 224))[1]:
            sizes.append(len(pack(np.where(mask, 250, 5).astype(np.uint8)).data))
        sizes.append(len(pack(as_steps(blob(seed))).data))
    assert max(sizes) < 28 * 28 * 4


@pytest.mark.parametrize("shape", [(224, 224), (448, 448), (225, 301), (28, 28), (1, 1), (1, 400)])
def test_noise_is_bounded(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    packed = pack(noise)
    assert len(packed.data) <= MOST_BYTES
    assert np.asarray(packed).shape == packed.shape
    assert np.asarray(packed).dtype == np.float32


def test_fine_grid_keeps_its_cells() -> None:
    """Random values cannot be compressed and must be reduced in precision, but no cell may cross the threshold."""
    steps = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    assert np.array_equal(np.asarray(pack(steps)) >= THRESHOLD, steps >= 128)


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_binary_grid_stays_binary(value: int) -> None:
    packed = pack(np.full((224, 224), value, np.uint8))
    assert len(packed.data) < 1024
    assert (np.asarray(packed) >= THRESHOLD).all() == (value >= 128)
