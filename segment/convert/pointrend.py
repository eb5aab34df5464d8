"""Masks rendered point by point: PointRend and Implicit PointRend.

Kirillov et al., "PointRend: Image Segmentation as Rendering", 2020; Cheng et al., "Pointly-Supervised Instance
Segmentation", 2022 (Implicit PointRend); detectron2/projects/point_rend (mask_head.py, point_head.py,
point_features.py).

A mask begins as a small grid over its box. The grid is doubled, and where it is least certain a small network of fully
connected layers decides each point anew, from the finest feature map at that place and from what a coarse head says of
the whole box; and so on. Edges are computed at 224 x 224, and little else is.

The same results for less work and memory:

- Only the predicted class is rendered: which points are uncertain depends on no other.
- Sampling is linear, and so is the first layer. It is applied to the feature map once, and its output is sampled.
- A point's features are a weighted sum of four rows of a table of the map's places. GridSample takes three times as
  long for it. A coarse grid of 7 x 7 is sampled by a product with a matrix of bilinear weights.
- The result is bytes, a quarter of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment.convert.config import ConvFCHead, PointRend
from segment.convert.graph import FLOAT, INT64, UINT8, Graph
from segment.convert.heads import Found, pick
from segment.convert.weights import Array, Weights

HEAD = "roi_heads.mask_head"
_EARLIER_NAMES = (
    ("roi_heads.mask_point_head.", f"{HEAD}.point_head."),
    ("roi_heads.mask_coarse_head.coarse_mask_fc", f"{HEAD}.coarse_head.fc"),
    ("roi_heads.mask_coarse_head.", f"{HEAD}.coarse_head."),
    (f"{HEAD}.coarse_head.coarse_mask_fc", f"{HEAD}.coarse_head.fc"),
)
"""Prefixes that checkpoints of 2020 have, and those of today (roi_heads.py, _load_from_state_dict)."""
FREQUENCIES = 128
"""Of the sines and cosines that stand for a point's place in Implicit PointRend."""


def renamed(tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """The tensors of a checkpoint of any age by today's names."""

    def today(name: str) -> str:
        found = ((old, new) for old, new in _EARLIER_NAMES if name.startswith(old))
        old, new = next(found, ("", ""))
        return new + name.removeprefix(old)

    return {today(name): value for name, value in tensors.items()}


def masks(g: Graph, w: Weights, head: PointRend, channels: int, maps: dict[int, str], found: Found) -> str:
    """Masks (N, side, side) uint8 of the instances found: a probability p as floor(256 p), at most 255.

    `channels`: of each of `maps`, the feature maps by level.
    """
    tables = {level: _table(g, maps[level], level, channels) for level in {*head.coarse.levels, *head.levels}}
    region = _region(g, found.boxes)
    grid = _Points.on_grid(head.first_side)
    predict: _Standard | _Implicit
    if head.implicit:
        predict = _Implicit(g, w, head, channels, tables, region, found.classes)
    else:
        predict = _Standard(g, w, head, channels, tables, region, found.classes)
    side, logits = head.first_side, predict(grid)  # (N, side * side)
    for _ in range(head.steps):
        logits, side = _doubled(g, logits, side), 2 * side
        count = g.ints(min(head.points, side**2))
        _, index = g.ops("TopK", g.op("Abs", logits), count, outputs=2, axis=1, largest=0, sorted=0)
        points = _Points.chosen(g, index, side, min(head.points, side**2))
        logits = g.op("ScatterElements", logits, index, predict(points), axis=1)
    steps = g.minimum(g.op("Floor", g.op("Mul", g.op("Sigmoid", logits), g.scalar(256))), g.scalar(255))
    return g.reshape(g.cast(steps, UINT8), -1, side, side)


# Places


@dataclass(frozen=True)
class _Region:
    """Boxes (N, 4) as their corners `low` and their `size`, both (N, 1, 2) x and y in pixels of the image."""

    low: str
    size: str


def _region(g: Graph, boxes: str) -> _Region:
    low = g.op("Unsqueeze", g.slice(boxes, g.ints(0), g.ints(2), axis=1), g.ints(1))
    high = g.op("Unsqueeze", g.slice(boxes, g.ints(2), g.ints(4), axis=1), g.ints(1))
    return _Region(low, g.op("Sub", high, low))


@dataclass(frozen=True)
class _Points:
    """`count` points in each box. `at`: (N, count, 2) x and y from 0 to 1, a tensor's name, or an array with N = 1."""

    at: str | Array
    count: int

    @classmethod
    def on_grid(cls, side: int) -> _Points:
        """The centres of a grid of side x side cells, row by row."""
        centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
        y, x = np.meshgrid(centres, centres, indexing="ij")
        return cls(np.stack([x, y], axis=2).reshape(1, -1, 2), side**2)

    @classmethod
    def chosen(cls, g: Graph, index: str, side: int, count: int) -> _Points:
        """The centres of the cells `index` (N, count) int64 of a grid of side x side, which are counted row by row."""
        row = g.op("Div", index, g.ints(side))
        column = g.op("Sub", index, g.op("Mul", row, g.ints(side)))
        cell = g.op("Concat", *(g.op("Unsqueeze", each, g.ints(2)) for each in (column, row)), axis=2)
        return cls(g.op("Mul", g.op("Add", g.cast(cell, FLOAT), g.scalar(0.5)), g.scalar(1 / side)), count)

    def name(self, g: Graph) -> str:
        return self.at if isinstance(self.at, str) else g.constant(self.at)


# Sampling: bilinear between cells' centres, zero outside, as grid_sample(align_corners=False)


@dataclass(frozen=True)
class _Table:
    """A feature map as `rows` (H * W, channels). `width` float32 scalar; `last` float32 (2,): W - 1 and H - 1."""

    rows: str
    width: str
    last: str
    stride: int

    def of(self, rows: str) -> _Table:
        """A table of the same places with other rows."""
        return _Table(rows, self.width, self.last, self.stride)


def _table(g: Graph, x: str, level: int, channels: int) -> _Table:
    rows = g.reshape(g.op("Transpose", x, perm=[0, 2, 3, 1]), -1, channels)
    width, height = (g.cast(g.dim(x, axis), FLOAT) for axis in (3, 2))
    last = g.op("Sub", g.op("Concat", width, height, axis=0), g.scalar(1))
    return _Table(rows, width, last, 2**level)


class _Corners:
    """The four places around each point of a map, and how much each counts."""

    def __init__(self, g: Graph, table: _Table, region: _Region, points: _Points) -> None:
        at = g.op("Add", region.low, g.op("Mul", points.name(g), region.size))  # (N, P, 2) in pixels
        at = g.reshape(g.op("Sub", g.op("Mul", at, g.scalar(1 / table.stride)), g.scalar(0.5)), -1, 2)
        near = g.op("Floor", at)
        part = g.op("Sub", at, near)
        far = g.op("Add", near, g.scalar(1))
        (near_x, near_y), near_weight = self._inside(g, table, near, g.op("Sub", g.scalar(1), part))
        (far_x, far_y), far_weight = self._inside(g, table, far, part)
        xs, ys = ((near_x, near_weight[0]), (far_x, far_weight[0])), ((near_y, near_weight[1]), (far_y, far_weight[1]))
        self.corners: list[tuple[str, str]] = []  # row of the table (N * P,) int64, weight (N * P, 1)
        for y, y_weight in ys:
            first = g.op("Mul", y, table.width)
            for x, x_weight in xs:
                row = g.cast(g.reshape(g.op("Add", first, x), -1), INT64)
                self.corners.append((row, g.op("Mul", x_weight, y_weight)))

    @staticmethod
    def _inside(g: Graph, table: _Table, place: str, weight: str) -> tuple[list[str], list[str]]:
        """Places (M, 2) moved into the map, and weights (M, 2), zero for those that were outside; as x and y (M, 1)."""
        moved = g.op("Max", g.minimum(place, table.last), g.scalar(0))
        weight = g.op("Mul", weight, g.cast(g.op("Equal", moved, place), FLOAT))
        halves = g.ints(1, 1)
        return (
            g.ops("Split", moved, halves, outputs=2, axis=1),
            g.ops("Split", weight, halves, outputs=2, axis=1),
        )

    def sample(self, g: Graph, rows: str) -> str:
        """rows (H * W, C) of a table of this map -> (N * P, C)."""
        total = ""
        for row, weight in self.corners:
            part = g.op("Mul", g.gather(rows, row), weight)
            total = g.op("Add", total, part) if total else part
        return total


def _sampled(
    g: Graph, tables: Mapping[int, _Table], levels: Sequence[int], region: _Region, points: _Points
) -> list[str]:
    """The features (N * P, channels) of points on each of `levels`."""
    return [_Corners(g, tables[level], region, points).sample(g, tables[level].rows) for level in levels]


def _grid_weights(g: Graph, side: int, points: _Points) -> str:
    """(N, P, side * side): how much each cell of a grid over the whole box counts at each point."""
    if not isinstance(points.at, str):
        hats = [
            np.maximum(0, 1 - np.abs(points.at[..., axis, None] * side - np.float32(0.5) - np.arange(side)))
            for axis in (0, 1)
        ]
        return g.constant((hats[1][..., :, None] * hats[0][..., None, :]).reshape(1, -1, side**2), np.float32)
    at = g.op("Sub", g.op("Mul", points.at, g.scalar(side)), g.scalar(0.5))
    columns = []
    for axis in (0, 1):
        distance = g.op(
            "Abs",
            g.op("Sub", g.slice(at, g.ints(axis), g.ints(axis + 1), axis=2), g.constant(np.arange(side), np.float32)),
        )
        columns.append(g.op("Relu", g.op("Sub", g.scalar(1), distance)))  # (N, P, side)
    weights = g.op("Mul", g.op("Unsqueeze", columns[1], g.ints(3)), g.op("Unsqueeze", columns[0], g.ints(2)))
    return g.reshape(weights, -1, points.count, side**2)


def _doubled(g: Graph, logits: str, side: int) -> str:
    """logits (N, side * side) -> (N, 4 * side * side): bilinear, the edges repeated.

    Two products with the matrix of weights take a quarter of the time of Resize.
    """
    at = np.maximum((np.arange(2 * side) + 0.5) / 2 - 0.5, 0)
    low = np.floor(at).astype(int)
    matrix = np.zeros((2 * side, side), np.float32)
    matrix[np.arange(2 * side), low] += 1 - (at - low)
    matrix[np.arange(2 * side), np.minimum(low + 1, side - 1)] += at - low
    x = g.op("MatMul", g.reshape(logits, -1, side, side), g.constant(np.ascontiguousarray(matrix.T)))
    return g.reshape(g.op("MatMul", g.constant(matrix), x), -1, 4 * side**2)


# Heads


def _conv_fc_head(
    g: Graph,
    w: Weights,
    head: ConvFCHead,
    channels: int,
    tables: Mapping[int, _Table],
    region: _Region,
    name: str,
    prediction: tuple[int, int],
) -> str:
    """What a box as a whole says: (N, rows * columns) for a `prediction` of (columns, rows), turned.

    Upstream's 2 x 2 convolution of stride 2 is a layer on four points at a time, which are sampled next to each other.
    """
    half, into = head.resolution // 2, channels * len(head.levels)
    at = _Points.on_grid(head.resolution).at
    assert not isinstance(at, str)
    fours = at.reshape(half, 2, half, 2, 2).transpose(0, 2, 1, 3, 4).reshape(1, -1, 2)
    x = _joined(g, _sampled(g, tables, head.levels, region, _Points(np.ascontiguousarray(fours), head.resolution**2)))
    if into > head.conv_channels:
        weight = w.take(f"{name}.reduce_channel_dim_conv.weight", head.conv_channels, into, 1, 1)
        bias = w.take(f"{name}.reduce_channel_dim_conv.bias", head.conv_channels)
        x = g.op("Relu", g.linear(x, weight[:, :, 0, 0], bias, name=f"{name}.reduce_channel_dim_conv"))
    out = head.conv_channels
    weight = w.take(f"{name}.reduce_spatial_dim_conv.weight", out, out, 2, 2).transpose(0, 2, 3, 1).reshape(out, -1)
    bias = w.take(f"{name}.reduce_spatial_dim_conv.bias", out)
    x = g.reshape(x, -1, 4 * out)
    x = g.op("Relu", g.linear(x, np.ascontiguousarray(weight), bias, name=f"{name}.reduce_spatial_dim_conv"))
    x, into = g.reshape(x, -1, half**2 * out), half**2 * out
    for number in range(1, head.fcs + 1):
        weight = w.take(f"{name}.fc{number}.weight", head.fc_channels, into)
        if number == 1:  # upstream has the channels first
            weight = weight.reshape(-1, out, half**2).transpose(0, 2, 1).reshape(-1, into)
        bias = w.take(f"{name}.fc{number}.bias", head.fc_channels)
        x = g.op("Relu", g.linear(x, np.ascontiguousarray(weight), bias, name=f"{name}.fc{number}"))
        into = head.fc_channels
    columns, rows = prediction
    weight = w.take(f"{name}.prediction.weight", columns * rows, into).reshape(columns, rows, into).transpose(1, 0, 2)
    bias = w.take(f"{name}.prediction.bias", columns * rows).reshape(columns, rows).T
    return g.linear(
        x, np.ascontiguousarray(weight).reshape(-1, into), np.ascontiguousarray(bias).ravel(), name=f"{name}.prediction"
    )


class _Standard:
    """PointRend's point head: the same layers for every instance, which also see the coarse head's logits."""

    def __init__(
        self,
        g: Graph,
        w: Weights,
        head: PointRend,
        channels: int,
        tables: Mapping[int, _Table],
        region: _Region,
        label: str,
    ) -> None:
        self._g, self._head, self._region = g, head, region
        cells = head.coarse_side**2
        coarse = _conv_fc_head(
            g, w, head.coarse, channels, tables, region, f"{HEAD}.coarse_head", (head.classes, cells)
        )
        self._coarse = g.reshape(coarse, -1, cells, head.classes)  # (N, cells, K)
        self._layers: list[tuple[str, Array, Array]] = []
        name, into = f"{HEAD}.point_head", channels * len(head.levels) + head.classes
        for number in range(1, head.fcs + 1):
            weight = w.take(f"{name}.fc{number}.weight", head.fc_channels, into, 1)[:, :, 0]
            self._layers.append((f"{name}.fc{number}", weight, w.take(f"{name}.fc{number}.bias", head.fc_channels)))
            into = head.fc_channels + (head.classes if head.coarse_each_layer else 0)
        first, weight, bias = self._layers[0]
        pieces = np.split(weight, [channels * (i + 1) for i in range(len(head.levels))], axis=1)
        self._tables = []
        for level, piece in zip(head.levels, pieces, strict=False):
            rows = g.linear(
                tables[level].rows, np.ascontiguousarray(piece), np.zeros_like(bias), name=f"{first}.p{level}"
            )
            self._tables.append(tables[level].of(rows))
        self._layers[0] = first, np.ascontiguousarray(pieces[-1]), bias
        outputs = 1 if head.agnostic else head.classes
        weight = w.take(f"{name}.predictor.weight", outputs, into, 1)
        bias = w.take(f"{name}.predictor.bias", outputs)
        self._column = _of_class(g, weight, label, f"{name}.predictor.weight")  # (N, into, 1)
        self._shift = _of_class(g, bias[:, None], label, f"{name}.predictor.bias")  # (N, 1)

    def __call__(self, points: _Points) -> str:
        """Logits (N, P) of points."""
        g, head = self._g, self._head
        coarse = g.op("MatMul", _grid_weights(g, head.coarse_side, points), self._coarse)
        coarse = g.reshape(coarse, -1, head.classes)  # (N * P, K)
        name, weight, bias = self._layers[0]
        x = g.linear(coarse, weight, bias, name=name)
        for table in self._tables:
            x = g.op("Add", x, _Corners(g, table, self._region, points).sample(g, table.rows))
        x = g.op("Relu", x)
        for name, weight, bias in self._layers[1:]:
            x = g.op("Relu", g.linear(self._seen(x, coarse), weight, bias, name=name))
        x, width = self._seen(x, coarse), head.fc_channels + (head.classes if head.coarse_each_layer else 0)
        logits = g.op("MatMul", g.reshape(x, -1, points.count, width), self._column)
        return g.op("Add", g.reshape(logits, -1, points.count), self._shift)

    def _seen(self, x: str, coarse: str) -> str:
        return self._g.op("Concat", x, coarse, axis=1) if self._head.coarse_each_layer else x


class _Implicit:
    """Implicit PointRend's point head: each instance has its own layers, whose weights a head on its box predicts."""

    def __init__(
        self,
        g: Graph,
        w: Weights,
        head: PointRend,
        channels: int,
        tables: Mapping[int, _Table],
        region: _Region,
        label: str,
    ) -> None:
        self._g, self._head, self._channels, self._tables, self._region = g, head, channels, tables, region
        self._frequencies = np.zeros((2, FREQUENCIES), np.float32)
        if head.positions:
            self._frequencies = w.take(f"{HEAD}.point_head.positional_encoding_gaussian_matrix", 2, FREQUENCIES)
        shapes = _shapes(head, channels)
        lengths = [out * into for out, into in shapes] + [out for out, _ in shapes]
        name = f"{HEAD}.parameter_head"
        parameters = _conv_fc_head(g, w, head.coarse, channels, tables, region, name, (sum(lengths), 1))
        parts = g.ops("Split", parameters, g.ints(*lengths), outputs=len(lengths), axis=1)
        weights = [g.reshape(part, -1, *shape) for part, shape in zip(parts, shapes, strict=False)]
        shifts = [g.op("Unsqueeze", part, g.ints(1)) for part in parts[len(shapes) :]]  # (N, 1, out)
        if not head.agnostic:
            weights[-1] = g.op("Unsqueeze", pick(g, weights[-1], label), g.ints(1))
            shifts[-1] = g.op("Unsqueeze", pick(g, parts[-1], label), g.ints(1, 2))
        matrices = [g.op("Transpose", weight, perm=[0, 2, 1]) for weight in weights]  # (N, in, out)
        widths = ([2 * FREQUENCIES] if head.positions else []) + [channels] * len(head.levels) * head.image_features
        self._first = g.ops("Split", matrices[0], g.ints(*widths), outputs=len(widths), axis=1)
        self._layers = list(zip(["", *matrices[1:]], shifts, strict=True))

    def __call__(self, points: _Points) -> str:
        """Logits (N, P) of points."""
        g, head = self._g, self._head
        seen = [self._position(points)] if head.positions else []
        if head.image_features:
            features = _sampled(g, self._tables, head.levels, self._region, points)
            seen += [g.reshape(x, -1, points.count, self._channels) for x in features]
        x = ""
        for part, matrix in zip(seen, self._first, strict=True):
            product = g.op("MatMul", part, matrix)
            x = g.op("Add", x, product) if x else product
        for matrix, shift in self._layers:
            x = g.op("Add", g.op("MatMul", g.op("Relu", x), matrix) if matrix else x, shift)
        return g.reshape(x, -1, points.count)

    def _position(self, points: _Points) -> str:
        """(N, P, 2 * FREQUENCIES): sines and cosines of points' places; N is 1 where they are the same in each box."""
        g, matrix = self._g, 2 * math.pi * self._frequencies
        if not isinstance(points.at, str):
            angle = (2 * points.at - 1) @ matrix
            return g.constant(np.concatenate([np.sin(angle), np.cos(angle)], axis=2), np.float32)
        place = g.op("Sub", g.op("Mul", points.at, g.scalar(2)), g.scalar(1))
        turned = g.op("MatMul", place, g.constant(matrix, np.float32))
        return g.op("Concat", g.op("Sin", turned), g.op("Cos", turned), axis=2)


def parameters(head: PointRend, channels: int) -> int:
    """How many parameters of an instance's own layers Implicit PointRend predicts."""
    return sum(out * (into + 1) for out, into in _shapes(head, channels))


def _shapes(head: PointRend, channels: int) -> list[tuple[int, int]]:
    """(out, in) of each of an instance's own layers."""
    into = (2 * FREQUENCIES if head.positions else 0) + (channels * len(head.levels) if head.image_features else 0)
    sizes = [into, *[head.fc_channels] * head.fcs, 1 if head.agnostic else head.classes]
    return list(zip(sizes[1:], sizes, strict=False))


def _joined(g: Graph, parts: Sequence[str]) -> str:
    return g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]


def _of_class(g: Graph, values: Array, label: str, name: str) -> str:
    """values (K, ...) -> those of each instance's class, (N, ...); (1, ...) where one stands for all."""
    constant = g.constant(np.ascontiguousarray(values), name=name)
    return constant if len(values) == 1 else g.gather(constant, label)
