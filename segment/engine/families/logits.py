"""Masks from a grid of logits, as predicted by YOLO-seg and RF-DETR-seg, cropped to an instance.

These families interpolate logits, not probabilities, and threshold them at 0, while a Mask is interpolated later and
thresholded at 0.5. Therefore the grid contains 0.5 + logit / 4, the tangent of the sigmoid at 0: it crosses 0.5 exactly
where the interpolated logits cross 0. With the sigmoid, the edge would move by up to a quarter of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Box


@dataclass(frozen=True)
class Window:
    """A rectangle of cells of a grid, right and bottom exclusive.

    It may extend one cell beyond the grid, where the outermost cells are repeated, as in PyTorch's bilinear
    interpolation (`interpolate(align_corners=False)`).
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, box: NDArray[np.float32], cell: tuple[float, float]) -> Window:
        """The cells that `box` (XYXY) overlaps, and one more on each side. `cell`: (width, height) of a cell."""
        x0, y0, x1, y1 = (box / np.array(cell * 2)).tolist()
        return cls(math.floor(x0) - 1, math.floor(y0) - 1, math.ceil(x1) + 1, math.ceil(y1) + 1)

    def cut(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of these cells of `grid` (rows, columns), as (bottom - top, right - left)."""
        rows, columns = self.slices(grid.shape)
        return self.repeat(grid[rows, columns], grid.shape)

    def slices(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Slices of the rows and columns that are inside a grid of this shape (..., rows, columns)."""
        return slice(max(self.top, 0), min(self.bottom, shape[-2])), slice(
            max(self.left, 0), min(self.right, shape[-1])
        )

    def repeat(self, cells: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Extend the cells inside a grid of this shape to the whole window by repeating the outermost ones."""
        rows, columns = self.slices(shape)
        beyond = (
            (rows.start - self.top, self.bottom - rows.stop),
            (columns.start - self.left, self.right - columns.stop),
        )
        return np.pad(cells, beyond, mode="edge")

    def place(self, cell: tuple[float, float]) -> NDArray[np.float32]:
        """The rectangle (4,) XYXY that the window covers. `cell`: (width, height) of a cell."""
        return np.array([self.left, self.top, self.right, self.bottom], np.float32) * np.array(cell * 2, np.float32)


def to_grid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert logits to the grid of a Mask."""
    grid: NDArray[np.float32] = logits * np.float32(0.25) + np.float32(THRESHOLD)
    return grid


def as_box(corners: NDArray[np.float32]) -> Box:
    """Convert (4,) XYXY to a Box."""
    x0, y0, x1, y1 = corners.tolist()
    return x0, y0, x1, y1
