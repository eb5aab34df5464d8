"""Masks from logits on a grid: what YOLO-seg and RF-DETR-seg answer, cut down to where an instance is.

The families interpolate logits, not probabilities, and call positive what is above 0. A Mask is interpolated later, at
the size wanted, and called positive from 0.5 on. So a grid here holds 0.5 + logit / 4, the sigmoid's tangent at 0,
unbounded: it crosses 0.5 exactly where the interpolated logits cross 0. The sigmoid itself would move that edge towards
the cell that is less sure, up to a quarter of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Box


@dataclass(frozen=True)
class Window:
    """Whole cells of a grid: columns left to right, rows top to bottom, right and bottom excluded.

    It may reach one cell beyond the grid; there the outermost cells are repeated, as bilinear interpolation in PyTorch
    does (`interpolate(align_corners=False)`).
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, box: NDArray[np.float32], cell: tuple[float, float]) -> Window:
        """The cells of (width, height) `cell` that `box` (XYXY) touches, and one more each side, to interpolate."""
        x0, y0, x1, y1 = (box / np.array(cell * 2)).tolist()
        return cls(math.floor(x0) - 1, math.floor(y0) - 1, math.ceil(x1) + 1, math.ceil(y1) + 1)

    def cut(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        """These cells (bottom - top, right - left) of `grid` (rows, columns); a copy."""
        rows, columns = self.slices(grid.shape)
        return self.repeat(grid[rows, columns], grid.shape)

    def slices(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Rows and columns of those cells that are on a grid of this shape (..., rows, columns)."""
        return slice(max(self.top, 0), min(self.bottom, shape[-2])), slice(
            max(self.left, 0), min(self.right, shape[-1])
        )

    def repeat(self, cells: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """All these cells, from those on a grid of this shape: the outermost are repeated beyond it."""
        rows, columns = self.slices(shape)
        beyond = (
            (rows.start - self.top, self.bottom - rows.stop),
            (columns.start - self.left, self.right - columns.stop),
        )
        return np.pad(cells, beyond, mode="edge")

    def place(self, cell: tuple[float, float]) -> NDArray[np.float32]:
        """The rectangle (4,) XYXY that these cells cover, when a cell is `cell` (width, height) large."""
        return np.array([self.left, self.top, self.right, self.bottom], np.float32) * np.array(cell * 2, np.float32)


def to_grid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits as the grid of a Mask."""
    grid: NDArray[np.float32] = logits * np.float32(0.25) + np.float32(THRESHOLD)
    return grid


def as_box(corners: NDArray[np.float32]) -> Box:
    """(4,) XYXY as a Mask's rectangle."""
    x0, y0, x1, y1 = corners.tolist()
    return x0, y0, x1, y1
