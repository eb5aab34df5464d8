"""The mask of one instance: a small grid of probabilities, and the rectangle of the image that it covers.

Mask R-CNN predicts 28 x 28 probabilities inside each box; other model families predict other grids. The grid is only
pasted where pixels are needed, inside the mask's own rectangle: a dense (N, H, W) array of 100 masks for a photo of
12 megapixels would be 1.2 GB.

Pasting interpolates bilinearly at pixel centres, with zeros outside the grid, as detectron2's `paste_masks_in_image`
does (detectron2/layers/mask_ops.py, `grid_sample(align_corners=False)`). Bilinear interpolation is separable: first
between the grid's columns, then between its rows. Only the rows that a region touches are used, so a fine grid
costs no more per pixel than a coarse one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from segment.packed import PackedGrid

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels; the pixel in column i covers [i, i + 1)."""
Region = tuple[int, int, int, int]
"""(left, top, right, bottom) in whole pixels, right and bottom exclusive, as in Pillow."""

THRESHOLD = 0.5
"""Minimum probability of a pixel that belongs to the instance (detectron2's default threshold)."""
STRIP_PIXELS = 1 << 18
"""Number of pixels pasted at once: 1 MiB of float32."""
DISTANCE_PIXELS = 24_000
"""Number of pixels whose distances are computed at once: 96 KB of float32. The many steps of this need many arrays, and
malloc maps larger ones anew each time (process.py), which takes longer than the arithmetic."""
PRODUCT_CELLS = 64
"""Largest number of rows or columns that are interpolated as a matrix product."""


Grid = NDArray[np.float32] | PackedGrid
"""(h, w) float32, or a compressed grid that `numpy.asarray` converts to it."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The mask of one instance.

    `grid`: (h, w) float32 probabilities, or values that cross THRESHOLD at the same places. `place`: the rectangle in
    pixels of the image that the grid covers; it may extend beyond the image. `bounds`: rectangle in pixels outside of
    which the mask is zero.
    """

    grid: Grid = field(repr=False)
    place: Box
    bounds: Box

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """`grid` as an array. A compressed grid is decompressed at each access."""
        return np.asarray(self.grid, np.float32)

    def scaled(self, sx: float, sy: float) -> Mask:
        """The same mask in an image `sx` times as wide and `sy` times as high."""
        return replace(self, place=scale(self.place, sx, sy), bounds=scale(self.bounds, sx, sy))

    def moved(self, dx: float, dy: float) -> Mask:
        """The same mask, moved right by `dx` and down by `dy` pixels."""
        return replace(self, place=_moved(self.place, dx, dy), bounds=_moved(self.bounds, dx, dy))

    def region(self, size: tuple[int, int]) -> Region:
        """The region of an image of `size` (width, height) in which the mask can be above zero."""
        x0, y0, x1, y1 = self.bounds
        width, height = size
        left, top = min(max(math.floor(x0), 0), width), min(max(math.floor(y0), 0), height)
        return left, top, max(min(math.ceil(x1), width), left), max(min(math.ceil(y1), height), top)

    def paste(self, region: Region) -> NDArray[np.float32]:
        """The probabilities of the pixels of `region`: (bottom - top, right - left) float32."""
        left, top, right, bottom = region
        if left == right or top == bottom:
            return np.zeros((bottom - top, right - left), np.float32)
        x0, y0, x1, y1 = self.place
        height, width = self.grid.shape
        columns, rows = _positions(left, right, x0, x1, width), _positions(top, bottom, y0, y1, height)
        first, last = max(int(rows[0]), 0), int(rows[-1]) + 2
        seen = _interpolated(self.probabilities[first:last].T, columns).T
        pasted = _interpolated(seen, rows - np.float32(first))
        before, after = _within(left, right, self.bounds[0], self.bounds[2])
        pasted[:, :before] = pasted[:, after:] = 0
        before, after = _within(top, bottom, self.bounds[1], self.bounds[3])
        pasted[:before] = pasted[after:] = 0
        return pasted

    def strips(self, size: tuple[int, int]) -> Iterator[tuple[Region, NDArray[np.float32]]]:
        """The mask's pixels in an image of `size` (width, height), in horizontal strips from top to bottom."""
        for strip in self._rows(size, STRIP_PIXELS):
            yield strip, self.paste(strip)

    def distances(self, size: tuple[int, int]) -> Iterator[tuple[Region, NDArray[np.float32]]]:
        """The distances of the mask's pixels from its edge (see edge_distance), in strips like `strips`.

        Neighbouring rows are used too, so the distances do not depend on how the mask is divided into strips.
        """
        whole, mask = self.region(size), replace(self, grid=self.probabilities)
        for strip in self._rows(size, DISTANCE_PIXELS):
            left, top, right, bottom = strip
            above, below = max(top - 1, whole[1]), min(bottom + 1, whole[3])
            distance = edge_distance(mask.paste((left, above, right, below)))
            yield strip, distance[top - above : bottom - above]

    def columns(self, size: tuple[int, int]) -> Iterator[tuple[Region, NDArray[np.float32]]]:
        """As `strips`, but in vertical strips from left to right, the order of COCO's column-major run lengths."""
        left, top, right, bottom = self.region(size)
        if top == bottom:
            return
        step = max(1, STRIP_PIXELS // (bottom - top))
        for start in range(left, right, step):
            strip = start, top, min(start + step, right), bottom
            yield strip, self.paste(strip)

    def _rows(self, size: tuple[int, int], pixels: int) -> Iterator[Region]:
        """Divide the mask's region in an image of `size` into horizontal strips of about `pixels` pixels each."""
        left, top, right, bottom = self.region(size)
        if left == right:
            return
        step = max(1, pixels // (right - left))
        for start in range(top, bottom, step):
            yield left, start, right, min(start + step, bottom)


def edge_distance(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance in pixels of each pixel's centre from the mask's edge, positive inside; accurate near the edge.

    This is the first-order estimate (probability - 0.5) / slope, so that uncertain edges are drawn as sharp as certain
    ones. `probabilities`: (h, w) of a region.
    """
    squares = _slope(probabilities.T).T
    squares *= squares
    down = _slope(probabilities)
    down *= down
    squares += down
    slope = np.sqrt(squares, out=squares)
    slope += np.float32(1e-6)
    distance: NDArray[np.float32] = np.subtract(probabilities, np.float32(THRESHOLD), out=down)
    distance /= slope
    return distance


def _slope(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The derivative along the first axis: central differences, one-sided at the ends."""
    slope = np.empty_like(values)
    if len(values) > 1:
        np.subtract(values[2:], values[:-2], out=slope[1:-1])
        slope[1:-1] *= np.float32(0.5)
        slope[0], slope[-1] = values[1] - values[0], values[-1] - values[-2]
    else:
        slope[:] = 0
    return slope


def scale(box: Box, sx: float, sy: float) -> Box:
    """`box` in an image `sx` times as wide and `sy` times as high."""
    x0, y0, x1, y1 = box
    return x0 * sx, y0 * sy, x1 * sx, y1 * sy


def _moved(box: Box, dx: float, dy: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 + dx, y0 + dy, x1 + dx, y1 + dy


def _positions(start: int, stop: int, low: float, high: float, cells: int) -> NDArray[np.float32]:
    """The positions of pixel centres in a grid whose `cells` divide [low, high] evenly; 0 is the first cell's centre.

    Positions are limited to one cell beyond the first and the last cell, where the mask is zero.
    """
    positions = np.arange(start + 0.5, stop, dtype=np.float32)  # the centres of the pixels
    positions -= np.float32(low)
    positions *= np.float32(cells / max(high - low, 1e-6))
    positions -= np.float32(0.5)
    np.maximum(positions, np.float32(-1), out=positions)
    return np.minimum(positions, np.float32(cells), out=positions)


def _interpolated(grid: NDArray[np.float32], at: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate `grid` (n, m) linearly at the row positions `at` (k,): (k, m). Rows outside the grid are zero.

    For few rows, a matrix product with the weights is fastest. For many rows, most of that matrix would be zero.
    """
    if len(grid) <= PRODUCT_CELLS:
        weights = at[:, None] - np.arange(len(grid), dtype=np.float32)
        np.abs(weights, out=weights)
        np.subtract(1, weights, out=weights)
        np.maximum(weights, 0, out=weights)
        product: NDArray[np.float32] = np.matmul(weights, grid)
        return product
    inner, grid = grid, np.zeros((len(grid) + 2, *grid.shape[1:]), np.float32)  # faster than numpy.pad
    grid[1:-1] = inner
    before = np.minimum((at + np.float32(1)).astype(np.intp), len(grid) - 2)
    part = (at + np.float32(1) - before.astype(np.float32))[:, None]
    mixed: NDArray[np.float32] = grid[before]
    mixed *= 1 - part
    after = grid[before + 1]
    after *= part
    mixed += after
    return mixed


def _within(start: int, stop: int, low: float, high: float) -> tuple[int, int]:
    """The first and one past the last of the pixels from `start` to `stop` - 1 whose centres are in [low, high]."""
    first = min(max(math.ceil(low - 0.5) - start, 0), stop - start)
    return first, max(min(math.floor(high - 0.5) + 1 - start, stop - start), first)
