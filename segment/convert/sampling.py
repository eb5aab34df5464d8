"""Points in boxes, and bilinear sampling of feature maps at them (detectron2/projects/point_rend/point_features.py).

Tuples of two values are ordered (x, y). Positions in a box are relative to it, from 0 to 1; positions on a feature map
are in pixels of the image. Sampling interpolates between the centres of cells, with zeros outside the map, as
grid_sample(align_corners=False) does.

The features of a point are a weighted sum of four rows of a table with one row per position of the map. GridSample
takes three times as long, as does RoIAlign on maps passed into a loop. The table is int8 in an int8 file (quantise.py).
A coarse grid, such as 7 x 7, is sampled by a product with a matrix of bilinear weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segment.convert.graph import FLOAT, INT64, Graph
from segment.convert.weights import Array

TABLE = ".table"
"""Suffix of the names of table nodes."""
CORNERS = 4
"""Number of cells between whose centres a point is."""


@dataclass(frozen=True)
class Region:
    """`boxes` (N, 4) with their `low` coordinate and `size` along each axis, (N, 1), in pixels of the image."""

    boxes: str
    low: tuple[str, str]
    size: tuple[str, str]

    @classmethod
    def of(cls, g: Graph, boxes: str) -> Region:
        """The region of `boxes` (N, 4) XYXY."""
        left, top, right, bottom = g.ops("Split", boxes, g.ints(1, 1, 1, 1), outputs=4, axis=1)
        return cls(boxes, (left, top), (g.op("Sub", right, left), g.op("Sub", bottom, top)))


@dataclass(frozen=True)
class Points:
    """`count` points in each box. `at`: coordinates along each axis relative to the box, (N, count) from 0 to 1.

    `fixed`: the coordinates as arrays (1, count) if they are the same in every box.
    """

    at: tuple[str, str]
    count: int
    fixed: tuple[Array, Array] | None = None

    @classmethod
    def on_grid(cls, g: Graph, side: int) -> Points:
        """The centres of a grid of side x side cells, row by row."""
        centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
        y, x = (axis.reshape(1, -1) for axis in np.meshgrid(centres, centres, indexing="ij"))
        return cls((g.constant(x), g.constant(y)), side**2, (x, y))

    @classmethod
    def chosen(cls, g: Graph, index: str, side: int, count: int) -> Points:
        """The centres of the cells with the row-major indices `index` (N, count) int64 in a grid of side x side."""
        # In float32, which represents all these numbers exactly, because OpenVINO fuses no operators on integers.
        cell = g.op("Add", g.cast(index, FLOAT), g.scalar(0.5))
        row = g.op("Floor", g.op("Mul", cell, g.scalar(1 / side)))
        column = g.op("Sub", cell, g.op("Mul", row, g.scalar(side)))
        x = g.op("Mul", column, g.scalar(1 / side))
        y = g.op("Mul", g.op("Add", row, g.scalar(0.5)), g.scalar(1 / side))
        return cls((x, y), count)


@dataclass(frozen=True)
class FeatureMap:
    """A feature map `x` (1, C, H, W) with its stride in pixels. `size`: W and H, each float32 (1,)."""

    x: str
    size: tuple[str, str]
    stride: int

    @classmethod
    def of(cls, g: Graph, x: str, level: int) -> FeatureMap:
        """The map `x` (1, C, H, W) of a level, which has the stride 2^level."""
        return cls(x, (g.cast(g.dim(x, 3), FLOAT), g.cast(g.dim(x, 2), FLOAT)), 2**level)


def _fading(g: Graph, feature: FeatureMap, axis: int, at: str) -> str:
    """The weights of positions `at` in pixels along an axis, which decrease from 1 to 0 at the edges of the map.

    RoIAlign repeats the edge of the map, whereas grid_sample interpolates between the edge and zero.
    """
    cell = g.op("Sub", g.op("Mul", at, g.scalar(1 / feature.stride)), g.scalar(0.5))
    nearest = g.minimum(g.op("Add", cell, g.scalar(1)), g.op("Sub", feature.size[axis], cell))
    return g.op("Clip", nearest, g.scalar(0), g.scalar(1))


def _align(g: Graph, feature: FeatureMap, boxes: str, side: int) -> str:
    """Boxes (M, 4) in pixels -> (M, C, side, side): one sample per bin, at its centre. The map's edge is repeated."""
    return g.op(
        "RoiAlign",
        feature.x,
        boxes,
        _images(g, boxes),
        coordinate_transformation_mode="half_pixel",
        output_height=side,
        output_width=side,
        sampling_ratio=1,
        spatial_scale=1 / feature.stride,
        mode="avg",
    )


def _images(g: Graph, boxes: str) -> str:
    """The image index of each box, always 0: boxes (M, 4) -> (M,) int64.

    The zeros are computed from the boxes, because ConstantOfShape would need the value of M. The runtime reuses the
    memory of tensors of unknown size only between operators whose output size does not depend on values.
    """
    return g.cast(g.op("Less", g.column(boxes, 0), g.scalar(-3e38)), INT64)


@dataclass(frozen=True)
class Table:
    """A feature map as `rows` (H * W, channels). `width`: W; `last`: W - 1 and H - 1; each float32 (1,)."""

    rows: str
    width: str
    last: tuple[str, str]
    stride: int

    @classmethod
    def of(cls, g: Graph, feature: FeatureMap, channels: int, name: str) -> Table:
        """The table of a map with `channels` channels. quantise.py finds it by the name of its node, `name` + TABLE."""
        # OpenVINO transposes three dimensions in a third of the time of four.
        columns = g.op("Transpose", g.reshape(feature.x, 1, channels, -1), perm=[0, 2, 1])
        rows = g.op("Reshape", columns, g.ints(-1, channels), name=name + TABLE)
        width, height = (g.op("Sub", size, g.scalar(1)) for size in feature.size)
        return cls(rows, feature.size[0], (width, height), feature.stride)


def sampled(g: Graph, table: Table, region: Region, points: Points) -> str:
    """The features (N * P, channels) of points: a weighted sum of the four rows around each point.

    One operator gathers all four rows. OpenVINO computes the sum, and what follows it, with another one if rows and
    weights come from operators that it does not fuse, here Split.
    """
    (x, x_weight), (y, y_weight) = (_around(g, table, axis, region, points) for axis in (0, 1))
    index = g.op("Add", g.op("Mul", g.reshape(y, 2, 1, -1), table.width), x)  # (2, 2, N * P)
    weight = g.reshape(g.op("Mul", g.reshape(y_weight, 2, 1, -1), x_weight), -1, 1)
    corners = g.ops("Split", g.gather(table.rows, g.cast(g.reshape(index, -1), INT64)), outputs=CORNERS, axis=0)
    weights = g.ops("Split", weight, outputs=CORNERS, axis=0)
    total = ""
    for row, own in zip(corners, weights, strict=True):
        part = g.op("Mul", row, own)
        total = g.op("Add", total, part) if total else part
    return total


def _around(g: Graph, table: Table, axis: int, region: Region, points: Points) -> tuple[str, str]:
    """The cells before and after each point along an axis, and their weights, each (2, N * P).

    Cells outside the map are clipped to it, with weight zero.
    """
    at = g.op("Add", region.low[axis], g.op("Mul", points.at[axis], region.size[axis]))  # (N, P) in pixels
    at = g.reshape(g.op("Sub", g.op("Mul", at, g.scalar(1 / table.stride)), g.scalar(0.5)), 1, -1)
    before = g.op("Floor", at)
    cell = g.op("Add", before, g.constant([[0], [1]], np.float32))
    weight = g.op("Abs", g.op("Sub", g.constant([[1], [0]], np.float32), g.op("Sub", at, before)))
    moved = g.op("Max", g.minimum(cell, table.last[axis]), g.scalar(0))
    return moved, g.op("Mul", weight, g.cast(g.op("Equal", moved, cell), FLOAT))


def cropped(g: Graph, feature: FeatureMap, region: Region, side: int) -> str:
    """The features (N, C, side, side) at the centres of side x side cells of each box."""
    centres = g.constant(((np.arange(side) + 0.5) / side).reshape(1, side), np.float32)
    across, down = (
        _fading(g, feature, axis, g.op("Add", region.low[axis], g.op("Mul", centres, region.size[axis])))
        for axis in (0, 1)
    )  # (N, side)
    weights = g.op("Mul", g.reshape(across, -1, 1, 1, side), g.reshape(down, -1, 1, side, 1))
    return g.op("Mul", _align(g, feature, region.boxes, side), weights)


def bilinear_weights(g: Graph, side: int, points: Points) -> str:
    """The bilinear weights of the cells of a grid over the whole box at each point, (N, P, side * side)."""
    cells = np.arange(side, dtype=np.float32)
    if points.fixed:
        across, down = (
            np.maximum(0, 1 - np.abs(at[..., None] * side - np.float32(0.5) - cells)) for at in points.fixed
        )
        return g.constant((down[..., :, None] * across[..., None, :]).reshape(1, -1, side**2), np.float32)
    hats = []
    for axis, own in enumerate((np.tile(cells, side), np.repeat(cells, side))):  # the column and the row of each cell
        place = g.op("Mul", g.op("Unsqueeze", points.at[axis], g.ints(2)), g.scalar(side))
        distance = g.op("Abs", g.op("Sub", g.op("Sub", place, g.scalar(0.5)), g.constant(own)))
        hats.append(g.op("Relu", g.op("Sub", g.scalar(1), distance)))  # (N, P, side * side)
    return g.op("Mul", hats[1], hats[0])


def upsampled(g: Graph, logits: str, side: int) -> str:
    """logits (N, side * side) -> (N, 4 * side * side): bilinear interpolation; the edges are repeated.

    Two matrix products take a quarter of the time of Resize.
    """
    at = np.maximum((np.arange(2 * side) + 0.5) / 2 - 0.5, 0)
    low = np.floor(at).astype(int)
    matrix = np.zeros((2 * side, side), np.float32)
    matrix[np.arange(2 * side), low] += 1 - (at - low)
    matrix[np.arange(2 * side), np.minimum(low + 1, side - 1)] += at - low
    x = g.op("MatMul", g.reshape(logits, -1, side, side), g.constant(np.ascontiguousarray(matrix.T)))
    return g.reshape(g.op("MatMul", g.constant(matrix), x), -1, 4 * side**2)
