"""Box arithmetic in a graph. Boxes are (N, 4) float32 XYXY in pixels of the network's image.

The encoding of a box against an anchor: Girshick et al., "R-CNN", 2014, appendix C;
detectron2/modeling/box_regression.py (Box2BoxTransform).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segment.convert.graph import FLOAT, Graph

LONGEST = math.log(1000.0 / 16)
"""Box2BoxTransform's clamp: a box grows by a factor of at most 62.5."""
_ABOVE_ZERO = float(np.finfo(np.float32).tiny)
"""The next IoU threshold above 0. float32 values below are taken for 0."""


@dataclass(frozen=True)
class Frame:
    """The size of the image before padding: `width`, `height` (1,) float32, and `corners` (4,): W, H, W, H."""

    width: str
    height: str
    corners: str


def decode(g: Graph, boxes: str, deltas: str, weights: tuple[float, ...]) -> str:
    """Apply deltas (N, 4) dx, dy, dw, dh to boxes (N, 4)."""
    low, high = _halves(g, boxes)  # (N, 2) x0, y0 and x1, y1
    size = g.op("Sub", high, low)
    centre = g.op("Add", low, g.op("Mul", size, g.scalar(0.5)))
    deltas = g.op("Div", deltas, g.constant(weights, np.float32))
    shift, growth = _halves(g, deltas)
    growth = g.op("Min", growth, g.scalar(LONGEST))
    centre = g.op("Add", centre, g.op("Mul", shift, size))
    half = g.op("Mul", g.op("Mul", g.op("Exp", growth), size), g.scalar(0.5))
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=1)


def clip(g: Graph, boxes: str, frame: Frame) -> str:
    """Clip boxes (..., 4) to the image."""
    return g.op("Max", g.op("Min", boxes, frame.corners), g.scalar(0.0))


def area(g: Graph, boxes: str) -> str:
    """(N, 4) -> (N,)."""
    low, high = _halves(g, boxes)
    return g.op("ReduceProd", g.op("Sub", high, low), axes=[1], keepdims=0)


def larger_than(g: Graph, boxes: str, size: float) -> str:
    """(N, 4) -> (N,) bool: whether width and height are greater than `size` pixels."""
    low, high = _halves(g, boxes)
    smaller_side = g.op("ReduceMin", g.op("Sub", high, low), axes=[1], keepdims=0)
    return g.op("Greater", smaller_side, g.scalar(size))


def suppress(g: Graph, boxes: str, scores: str, overlap: float, most: str, min_score: str) -> str:
    """Non-maximum suppression of boxes (B, N, 4) by scores (B, K, N): the indices to keep, (M, 3) int64 of B, K and N.

    Only scores above `min_score` (1,) are kept, and at most `most` (1,) of each class if `overlap` is below 1.

    detectron2 keeps boxes whose IoU is `overlap` itself, and OpenVINO suppresses them. This matters for 0, which is the
    IoU of all boxes that do not overlap, and for 1, the IoU of equal boxes, with which nothing is suppressed.
    """
    if overlap >= 1:
        return g.op("Transpose", g.op("NonZero", g.op("Greater", scores, min_score)), perm=[1, 0])
    limit = g.constant([max(overlap, _ABOVE_ZERO)], np.float32)
    return g.op("NonMaxSuppression", boxes, scores, most, limit, min_score)


def anchors(g: Graph, index: str, columns: str, cells: np.ndarray, stride: int, offset: float) -> str:
    """The anchors (K, 4) with these indices (K,) in the order (row, column, cell).

    `columns`: the level's width in cells, int64 (1,). `cells`: (A, 4) float32, the anchors around the origin. They are
    computed from the index, because a tensor of all anchors would be large (40,000 anchors for 400 x 400 pixels).
    """
    per_place = g.ints(len(cells))
    place = g.op("Div", index, per_place)
    cell = g.op("Sub", index, g.op("Mul", place, per_place))
    row = g.op("Div", place, columns)
    column = g.op("Sub", place, g.op("Mul", row, columns))
    at = g.op("Concat", *(g.op("Unsqueeze", v, g.ints(1)) for v in (column, row, column, row)), axis=1)
    centre = g.op("Mul", g.cast(at, FLOAT), g.scalar(stride))
    if offset:
        centre = g.op("Add", centre, g.scalar(offset * stride))
    return g.op("Add", centre, g.gather(g.constant(cells, np.float32), cell))


def cell_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> np.ndarray:
    """(A, 4) float32 anchors around the origin (detectron2/modeling/anchor_generator.py)."""
    cells = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            cells.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(cells, np.float32)


def _halves(g: Graph, x: str) -> tuple[str, str]:
    """(N, 4) -> columns 0-1 and columns 2-3."""
    return g.slice(x, g.ints(0), g.ints(2), axis=1), g.slice(x, g.ints(2), g.ints(4), axis=1)
