"""Hypothesis strategies for image sizes and masks, and functions that make masks and detections."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from segment.detections import Detections
from segment.mask import Mask

frames = st.tuples(st.integers(1, 90), st.integers(1, 90))
"""(width, height) in pixels."""


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """A mask inside the frame, across its edge or outside it; it may fill its box or be empty."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    grid = rng.uniform(low, high, (draw(st.integers(1, 9)), draw(st.integers(1, 9)))).astype(np.float32)
    x0, y0 = draw(st.floats(-40, 100, width=32)), draw(st.floats(-40, 100, width=32))
    place = x0, y0, x0 + draw(st.floats(0, 120, width=32)), y0 + draw(st.floats(0, 120, width=32))
    return Mask(grid, place, place)


def detections(masks: list[Mask], size: tuple[int, int], classes: list[int] | None = None) -> Detections:
    """Detections of these masks, with the scores 0.99, 0.98, ..."""
    count = len(masks)
    boxes = np.array([mask.bounds for mask in masks], np.float32).reshape(count, 4)
    scores = (0.99 - 0.01 * np.arange(count)).astype(np.float32)
    return Detections(boxes, scores, np.array(classes or [0] * count, np.int64), tuple(masks), size)


def solid(x0: float, y0: float, x1: float, y1: float) -> Mask:
    """A mask that fills its box."""
    return Mask(np.ones((28, 28), np.float32), (x0, y0, x1, y1), (x0, y0, x1, y1))


def ring(x0: float, y0: float, x1: float, y1: float, holes: int = 1) -> Mask:
    """A mask that fills its box except for square holes side by side."""
    grid = np.ones((28, 28), np.float32)
    for hole in range(holes):
        left = round(28 * (hole + 0.25) / holes)
        grid[9:19, left : left + round(14 / holes)] = 0
    return Mask(grid, (x0, y0, x1, y1), (x0, y0, x1, y1))


def empty(x0: float, y0: float, x1: float, y1: float) -> Mask:
    """A mask without a pixel."""
    return Mask(np.zeros((28, 28), np.float32), (x0, y0, x1, y1), (x0, y0, x1, y1))
