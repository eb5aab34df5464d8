"""Encode masks as COCO polygons, with holes.

COCO's polygon lists cannot express holes: each list of x, y, x, y, ... is filled, and the mask is the union. Therefore
a hole is connected to the outer ring by a bridge of zero width, which is passed in both directions. Any program that
fills the polygon (pycocotools, Pillow, SVG) leaves the hole empty.

The outline is the line at probability one half (marching squares, contourpy). It is traced on a few samples per cell of
the mask's grid, as the grid contains no finer detail, and never on more samples than pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from segment.mask import THRESHOLD, Box, Mask

SAMPLES = 4
"""Samples per grid cell and axis."""
MAX_POINTS = 4000
"""Maximum number of points of all polygons of a mask. A mask with more is noise, and is traced on fewer samples."""
EDIT_TOLERANCE = 0.005
"""Tolerance of simplified outlines, relative to the mask's longer side. A disc gets about 25 points."""
PAIRS = 1 << 16
"""Maximum number of pairs of points that are compared to find the shortest bridge to a hole."""

Ring = NDArray[np.float64]
"""(P, 2) x, y of a polygon; the first point is not repeated at the end."""


def polygons(mask: Mask, size: tuple[int, int]) -> list[list[float]]:
    """The mask's polygons in an image of `size` (width, height): each [x, y, x, y, ...] in pixels, with 2 decimals."""
    x0, y0 = max(mask.bounds[0], 0.0), max(mask.bounds[1], 0.0)
    x1, y1 = min(mask.bounds[2], float(size[0])), min(mask.bounds[3], float(size[1]))
    if x0 >= x1 or y0 >= y1:
        return []
    columns = _samples(x1 - x0, mask.place[2] - mask.place[0], mask.grid.shape[1])
    rows = _samples(y1 - y0, mask.place[3] - mask.place[1], mask.grid.shape[0])
    while (result := _traced(mask, (x0, y0, x1, y1), columns, rows)) is None:
        columns, rows = max(1, columns // 2), max(1, rows // 2)
    return result


def _traced(mask: Mask, frame: Box, columns: int, rows: int) -> list[list[float]] | None:
    """The polygons within `frame`, traced on columns x rows samples; None if they have more than MAX_POINTS points."""
    x0, y0, x1, y1 = frame
    cell = np.array([(x1 - x0) / columns, (y1 - y0) / rows])
    field = mask.moved(-x0, -y0).scaled(1 / cell[0], 1 / cell[1]).paste((0, 0, columns, rows))
    outlines = contour_generator(z=np.pad(field, 1), fill_type=FillType.OuterOffset).filled(THRESHOLD, math.inf)
    if sum(len(points) for points in outlines[0] if points is not None) > MAX_POINTS:
        return None
    result = []
    for points, offsets in zip(*outlines, strict=True):
        rings = [points[start : stop - 1] for start, stop in itertools.pairwise(offsets)]
        ring = (_bridged(rings) - 0.5) * cell + (x0, y0)  # sample i of the padded field is at i - 1/2
        ring = np.clip(ring, (x0, y0), (x1, y1)).round(2)
        ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
        if len(ring) >= 3:
            result.append([float(value) for value in ring.ravel()])
    return result


def _samples(length: float, whole: float, cells: int) -> int:
    """The number of samples on `length` pixels of a mask whose grid has `cells` cells on `whole` pixels."""
    return max(1, min(math.ceil(length), math.ceil(SAMPLES * cells * length / whole)))


def _bridged(rings: list[Ring]) -> Ring:
    """Connect an outer ring with its holes to one ring, by bridges between the closest points."""
    outer, *holes = rings
    for hole in holes:
        step = math.ceil(len(outer) * len(hole) / PAIRS)
        near = hole[::step]
        distances = ((outer[:, None] - near[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        there *= step
        way = np.concatenate([hole[there:], hole[: there + 1]])
        outer = np.concatenate([outer[: here + 1], way, outer[here:]])
    return outer


def simplified(polygon: Sequence[float], tolerance: float) -> list[float]:
    """Simplify the polygon [x, y, x, y, ...]: its outline moves by at most `tolerance` pixels.

    Uses the algorithm of Douglas and Peucker (Cartographica 10, 1973), on the two parts of the ring between its first
    point and the point farthest from it.
    """
    ring = np.asarray(polygon, np.float64).reshape(-1, 2)
    closed = np.concatenate([ring, ring[:1]])
    farthest = int(((closed - closed[0]) ** 2).sum(axis=1).argmax())
    kept = {0, farthest}
    spans = [(0, farthest), (farthest, len(ring))]
    while spans:
        start, stop = spans.pop()
        if stop - start < 2:
            continue
        distances = _distances(closed[start + 1 : stop], closed[start], closed[stop])
        split = start + 1 + int(distances.argmax())
        if distances[split - start - 1] > tolerance:
            kept.add(split)
            spans += [(start, split), (split, stop)]
    return [float(value) for value in ring[sorted(kept)].ravel()]


def _distances(points: Ring, start: NDArray[np.float64], stop: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance of each of `points` (P, 2) from the line segment between `start` and `stop`: (P,)."""
    along = stop - start
    share = np.clip((points - start) @ along / max(float(along @ along), 1e-12), 0, 1)
    result: NDArray[np.float64] = np.linalg.norm(points - start - share[:, None] * along, axis=1)
    return result


def outlines(mask: Mask, size: tuple[int, int]) -> list[list[float]]:
    """The mask's polygons with few points, so that people can edit them; the largest first.

    Outlines move by at most EDIT_TOLERANCE of the mask's longer side, or half a pixel if that is more.
    """
    x0, y0, x1, y1 = mask.bounds
    tolerance = max(0.5, EDIT_TOLERANCE * max(x1 - x0, y1 - y0))
    simple = [simplified(polygon, tolerance) for polygon in polygons(mask, size)]
    return sorted((polygon for polygon in simple if len(polygon) >= 6), key=_area, reverse=True)


def _area(polygon: Sequence[float]) -> float:
    """The polygon's area in square pixels (shoelace formula)."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
