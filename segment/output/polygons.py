"""Masks as COCO polygons that keep their holes.

COCO's polygon lists have no word for a hole: each list of x, y, x, y, ... is filled and all are united. So a hole is
cut in from the outside, by a bridge of no width that is walked there and back. Any reader that fills the polygon gets
the hole: pycocotools, Pillow, an SVG path.

The outline is where the probability is one half (marching squares, contourpy). It is traced on the mask's own scale,
a few samples per grid cell, never on more samples than there are pixels: the grid has nothing finer to tell.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Mask

SAMPLES = 4
"""Samples per grid cell and axis."""

Ring = NDArray[np.float64]
"""(P, 2) x, y; not closed: the first point is not repeated."""


def polygons(mask: Mask, size: tuple[int, int]) -> list[list[float]]:
    """The mask's polygons in a frame of `size` (width, height): each [x, y, x, y, ...] in pixels, to 2 decimals."""
    x0, y0 = max(mask.bounds[0], 0.0), max(mask.bounds[1], 0.0)
    x1, y1 = min(mask.bounds[2], float(size[0])), min(mask.bounds[3], float(size[1]))
    if x0 >= x1 or y0 >= y1:
        return []
    columns = _samples(x1 - x0, mask.place[2] - mask.place[0], mask.grid.shape[1])
    rows = _samples(y1 - y0, mask.place[3] - mask.place[1], mask.grid.shape[0])
    cell = np.array([(x1 - x0) / columns, (y1 - y0) / rows])
    field = mask.moved(-x0, -y0).scaled(1 / cell[0], 1 / cell[1]).paste((0, 0, columns, rows))
    outlines = contour_generator(z=np.pad(field, 1), fill_type=FillType.OuterOffset).filled(THRESHOLD, math.inf)
    result = []
    for points, offsets in zip(*outlines, strict=True):
        rings = [points[start : stop - 1] for start, stop in itertools.pairwise(offsets)]
        ring = (_bridged(rings) - 0.5) * cell + (x0, y0)  # sample i of the padded field lies at i - 1/2
        ring = np.clip(ring, (x0, y0), (x1, y1)).round(2)
        ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
        if len(ring) >= 3:
            result.append([float(value) for value in ring.ravel()])
    return result


def _samples(length: float, whole: float, cells: int) -> int:
    """How many samples along `length` pixels of a mask that is `whole` pixels and `cells` grid cells long."""
    return max(1, min(math.ceil(length), math.ceil(SAMPLES * cells * length / whole)))


def _bridged(rings: list[Ring]) -> Ring:
    """An outer ring and its holes as one ring: each hole is reached from the nearest point so far, and left again."""
    outer, *holes = rings
    for hole in holes:
        distances = ((outer[:, None] - hole[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        way = np.concatenate([hole[there:], hole[: there + 1]])
        outer = np.concatenate([outer[: here + 1], way, outer[here:]])
    return outer
