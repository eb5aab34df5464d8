"""Masks rendered point by point: PointRend and Implicit PointRend.

Kirillov et al., "PointRend: Image Segmentation as Rendering", 2020; Cheng et al., "Pointly-Supervised Instance
Segmentation", 2022 (Implicit PointRend); detectron2/projects/point_rend (mask_head.py, point_head.py,
point_features.py).

A mask starts as a small grid over its box. In each step the resolution of the grid is doubled, and the most uncertain
points are computed again by a small network of fully connected layers, from the finest feature map at the point and the
prediction of a coarse head for the whole box. Edges are therefore computed at 224 x 224, the rest at lower resolutions.

This implementation gives the same results with less work and memory:

- Only the predicted class is rendered. Other classes do not influence which points are uncertain.
- Sampling and the first layer are both linear, so the layer is applied to the feature map once and its output sampled.
- Points are sampled from tables, and the coarse grid by a product of matrices (sampling.py).
- Instances are rendered CHUNK at a time, in a loop of fixed shapes (chunks.py), so the memory does not grow with their
  number.
- Masks are returned as uint8 instead of float32, with a quarter of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segment.convert import chunks
from segment.convert.architecture import PointRend
from segment.convert.chunks import Rows
from segment.convert.graph import INT64, UINT8, Graph
from segment.convert.heads import Found, pick
from segment.convert.layers import Conv, convolution
from segment.convert.sampling import FeatureMap, Points, Region, Table, bilinear_weights, cropped, sampled, upsampled
from segment.convert.weights import Array, Weights

HEAD = "roi_heads.mask_head"
_EARLIER_NAMES = (
    ("roi_heads.mask_point_head.", f"{HEAD}.point_head."),
    ("roi_heads.mask_coarse_head.coarse_mask_fc", f"{HEAD}.coarse_head.fc"),
    ("roi_heads.mask_coarse_head.", f"{HEAD}.coarse_head."),
    (f"{HEAD}.coarse_head.coarse_mask_fc", f"{HEAD}.coarse_head.fc"),
)
"""Prefixes of tensor names in checkpoints of 2020, and the current ones (roi_heads.py, _load_from_state_dict)."""
PART = "mask_points"
"""Name of the part of the graph that runs on a few instances at a time."""
CHUNK, CHUNK_INT8 = 2, 4
"""Number of instances rendered at a time in a float32 and in an int8 file. The last chunk is padded. The loop holds
more than twice as much for an instance in float32. All threads synchronise after each operator, which costs more time
in an int8 file, whose operators are shorter."""
FREQUENCIES = 128
"""Number of frequencies of the positional encoding of Implicit PointRend."""


def renamed(tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """The tensors of a checkpoint, with earlier names replaced by the current ones."""

    def today(name: str) -> str:
        found = ((old, new) for old, new in _EARLIER_NAMES if name.startswith(old))
        old, new = next(found, ("", ""))
        return new + name.removeprefix(old)

    return {today(name): value for name, value in tensors.items()}


def masks(g: Graph, w: Weights, head: PointRend, channels: int, maps: dict[int, str], found: Found) -> str:
    """Masks (N, side, side) uint8 of the instances found: probabilities p as floor(256 p), at most 255.

    `maps`: feature maps by level, with `channels` channels each.
    """
    boxes, label = chunks.padded(g, PART, CHUNK, Rows(found.boxes, (4,)), Rows(found.classes, (), INT64))
    features = {level: FeatureMap.of(g, maps[level], level) for level in {*head.coarse.levels, *head.levels}}
    kind = _Implicit if head.implicit else _Standard
    predictor, width = kind(g, w, head, channels, features), kind.width(head, channels)
    x, size = _conv_fc_head(g, w, head, channels, features, Region.of(g, boxes)), head.coarse.fc_channels
    if not head.implicit:  # the parameters of Implicit PointRend take 1.1 MB per instance, so a chunk predicts its own
        x, size = _coarse_prediction(g, w, head, x, width), width
    boxes, label, x = chunks.begin(g, PART, CHUNK, Rows(boxes, (4,)), Rows(label, (), INT64), Rows(x, (size,)))
    coarse = _coarse_prediction(g, w, head, x, width) if head.implicit else x
    predictor.set_instances(Region.of(g, boxes), label, coarse)
    side, logits = head.first_side, predictor(Points.on_grid(g, head.first_side))  # (N, side * side)
    for _ in range(head.steps):
        logits, side = upsampled(g, logits, side), 2 * side
        count = min(head.points, side**2)
        _, index = g.ops("TopK", g.op("Abs", logits), g.ints(count), outputs=2, axis=1, largest=0, sorted=0)
        logits = g.op("ScatterElements", logits, index, predictor(Points.chosen(g, index, side, count)), axis=1)
    steps = g.minimum(g.op("Floor", g.op("Mul", g.op("Sigmoid", logits), g.scalar(256))), g.scalar(255))
    x = chunks.end(g, PART, g.cast(g.reshape(steps, -1, side, side), UINT8))
    return g.op("Identity", chunks.unpadded(g, PART, x))


def _conv_fc_head(
    g: Graph,
    w: Weights,
    whole: PointRend,
    channels: int,
    features: Mapping[int, FeatureMap],
    region: Region,
) -> str:
    """The outputs of the coarse head's layers before the last one for each box, (N, fc_channels)."""
    head, name = whole.coarse, _coarse_name(whole)
    x = _joined(g, [cropped(g, features[level], region, head.resolution) for level in head.levels])
    into, out = channels * len(head.levels), head.conv_channels
    if into > out:
        x = convolution(g, w, x, f"{name}.reduce_channel_dim_conv", Conv(into, out, relu=True))
    weight, bias = w.conv(f"{name}.reduce_spatial_dim_conv", out, out, 2)
    x = g.op("Relu", g.conv(x, weight, bias, name=f"{name}.reduce_spatial_dim_conv", strides=[2, 2]))
    into = out * (head.resolution // 2) ** 2
    x = g.reshape(x, -1, into)
    for number in range(1, head.fcs + 1):
        weight = w.take(f"{name}.fc{number}.weight", head.fc_channels, into)
        bias = w.take(f"{name}.fc{number}.bias", head.fc_channels)
        x = g.op("Relu", g.linear(x, weight, bias, name=f"{name}.fc{number}"))
        into = head.fc_channels
    return x


def _coarse_name(head: PointRend) -> str:
    """Prefix of the coarse head's tensor names in the checkpoint."""
    return f"{HEAD}.{'parameter_head' if head.implicit else 'coarse_head'}"


def _coarse_prediction(g: Graph, w: Weights, head: PointRend, x: str, width: int) -> str:
    """The coarse head's last layer: x (N, fc_channels) -> (N, width).

    Classes vary fastest; in the checkpoint, slowest.
    """
    name, into = _coarse_name(head), head.coarse.fc_channels
    columns = 1 if head.implicit else head.classes
    rows = width // columns
    weight = w.take(f"{name}.prediction.weight", width, into).reshape(columns, rows, into).transpose(1, 0, 2)
    bias = np.ascontiguousarray(w.take(f"{name}.prediction.bias", width).reshape(columns, rows).T).ravel()
    return g.linear(x, np.ascontiguousarray(weight).reshape(-1, into), bias, name=f"{name}.prediction")


class _Standard:
    """PointRend's point head: the same layers for every instance, with the coarse head's logits among their inputs."""

    @staticmethod
    def width(head: PointRend, channels: int) -> int:
        """Number of outputs of the coarse head per box."""
        return int(head.coarse_side**2 * head.classes)

    def __init__(
        self, g: Graph, w: Weights, head: PointRend, channels: int, features: Mapping[int, FeatureMap]
    ) -> None:
        self._g, self._head = g, head
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
            kernel = np.ascontiguousarray(piece)[:, :, None, None]
            x = g.conv(features[level].x, kernel, None, name=f"{first}.p{level}")
            self._tables.append(Table.of(g, replace(features[level], x=x), head.fc_channels, f"{first}.p{level}"))
        self._layers[0] = first, np.ascontiguousarray(pieces[-1]), bias
        self._predictor = w.take(f"{name}.predictor.weight", head.outputs, into, 1)
        self._bias = w.take(f"{name}.predictor.bias", head.outputs)[:, None, None]

    def set_instances(self, region: Region, label: str, coarse: str) -> None:
        """Set the boxes to render, their classes (N,), and the coarse head's outputs for them (N, width)."""
        g, head, name = self._g, self._head, f"{HEAD}.point_head.predictor"
        self._region = region
        self._coarse = g.reshape(coarse, -1, head.coarse_side**2, head.classes)  # (N, cells, K)
        own, of_coarse = self._predictor[:, : head.fc_channels], self._predictor[:, head.fc_channels :]
        self._column = _of_class(g, own, label, f"{name}.weight")  # (N, fc_channels, 1)
        self._shift = _of_class(g, self._bias, label, f"{name}.bias")  # (N, 1, 1)
        if head.coarse_each_layer:  # the coarse grid's contribution to the last layer, (N, cells, 1)
            column = _of_class(g, of_coarse, label, f"{name}.coarse_weight")
            self._last = g.op("MatMul", self._coarse, column)

    def __call__(self, points: Points) -> str:
        """Logits (N, P) of points."""
        g, head = self._g, self._head
        places = bilinear_weights(g, head.coarse_side, points)  # (N, P, cells)
        coarse = g.reshape(g.op("MatMul", places, self._coarse), -1, head.classes)  # (N * P, K)
        name, weight, bias = self._layers[0]
        x = g.linear(coarse, weight, bias, name=name)
        for table in self._tables:
            x = g.op("Add", x, sampled(g, table, self._region, points))
        x = g.op("Relu", x)
        for name, weight, bias in self._layers[1:]:
            x = g.op("Concat", x, coarse, axis=1) if head.coarse_each_layer else x
            x = g.op("Relu", g.linear(x, weight, bias, name=name))
        logits = g.op("MatMul", g.reshape(x, -1, points.count, head.fc_channels), self._column)
        if head.coarse_each_layer:
            logits = g.op("Add", logits, g.op("MatMul", places, self._last))
        return g.reshape(g.op("Add", logits, self._shift), -1, points.count)


class _Implicit:
    """Implicit PointRend's point head: each instance has its own layers, whose weights are predicted from its box."""

    @staticmethod
    def width(head: PointRend, channels: int) -> int:
        """Number of parameters of an instance's layers."""
        return parameters(head, channels)

    def __init__(
        self, g: Graph, w: Weights, head: PointRend, channels: int, features: Mapping[int, FeatureMap]
    ) -> None:
        self._g, self._head, self._channels = g, head, channels
        self._tables = [
            Table.of(g, features[level], channels, f"{HEAD}.point_head.p{level}")
            for level in head.levels
            if head.image_features
        ]
        self._frequencies = np.zeros((2, FREQUENCIES), np.float32)
        if head.positions:
            self._frequencies = w.take(f"{HEAD}.point_head.positional_encoding_gaussian_matrix", 2, FREQUENCIES)

    def set_instances(self, region: Region, label: str, coarse: str) -> None:
        """Set the boxes to render, their classes (N,), and their parameters (N, width)."""
        g, head, self._region = self._g, self._head, region
        shapes = _shapes(head, self._channels)
        lengths = [out * into for out, into in shapes] + [out for out, _ in shapes]
        parts = g.ops("Split", coarse, g.ints(*lengths), outputs=len(lengths), axis=1)
        weights = [g.reshape(part, -1, *shape) for part, shape in zip(parts, shapes, strict=False)]
        shifts = parts[len(shapes) :]  # (N, out)
        if head.outputs > 1:
            weights[-1] = g.op("Unsqueeze", pick(g, weights[-1], label), g.ints(1))
            shifts[-1] = g.op("Unsqueeze", pick(g, shifts[-1], label), g.ints(1))
        matrices = [g.op("Transpose", weight, perm=[0, 2, 1]) for weight in weights]  # (N, in, out)
        widths = ([2 * FREQUENCIES] if head.positions else []) + [self._channels] * len(
            head.levels
        ) * head.image_features
        self._first = g.ops("Split", matrices[0], g.ints(*widths), outputs=len(widths), axis=1)
        self._layers = [
            (matrix, g.op("Unsqueeze", shift, g.ints(1)))  # (N, 1, out)
            for matrix, shift in zip(["", *matrices[1:]], shifts, strict=True)
        ]

    def __call__(self, points: Points) -> str:
        """Logits (N, P) of points."""
        g, head = self._g, self._head
        seen = [self._position(points)] if head.positions else []
        for table in self._tables:
            row = sampled(g, table, self._region, points)
            seen.append(g.reshape(row, -1, points.count, self._channels))
        x = ""
        for part, matrix in zip(seen, self._first, strict=True):
            product = g.op("MatMul", part, matrix)
            x = g.op("Add", x, product) if x else product
        for matrix, shift in self._layers:
            x = g.op("Add", g.op("MatMul", g.op("Relu", x), matrix) if matrix else x, shift)
        return g.reshape(x, -1, points.count)

    def _position(self, points: Points) -> str:
        """Sines and cosines of positions, (N, P, 2 * FREQUENCIES). N is 1 if they are the same in every box."""
        g, matrix = self._g, 2 * math.pi * self._frequencies
        if points.fixed:
            x, y = (2 * at[..., None] - 1 for at in points.fixed)
            angle = x * matrix[0] + y * matrix[1]
            return g.constant(np.concatenate([np.sin(angle), np.cos(angle)], axis=2), np.float32)
        angles = []
        for at, frequencies in zip(points.at, matrix, strict=True):
            place = g.op("Sub", g.op("Mul", g.op("Unsqueeze", at, g.ints(2)), g.scalar(2)), g.scalar(1))
            angles.append(g.op("Mul", place, g.constant(frequencies, np.float32)))
        turned = g.op("Add", *angles)
        return g.op("Concat", g.op("Sin", turned), g.op("Cos", turned), axis=2)


def parameters(head: PointRend, channels: int) -> int:
    """Number of parameters that Implicit PointRend predicts for the layers of an instance."""
    return sum(out * (into + 1) for out, into in _shapes(head, channels))


def _shapes(head: PointRend, channels: int) -> list[tuple[int, int]]:
    """(out, in) of each layer of an instance."""
    into = (2 * FREQUENCIES if head.positions else 0) + (channels * len(head.levels) if head.image_features else 0)
    sizes = [into, *[head.fc_channels] * head.fcs, head.outputs]
    return list(zip(sizes[1:], sizes, strict=False))


def _joined(g: Graph, parts: Sequence[str]) -> str:
    return g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]


def _of_class(g: Graph, values: Array, label: str, name: str) -> str:
    """values (K, ...) -> the values of each instance's class, (N, ...), or (1, ...) if K is 1."""
    constant = g.constant(np.ascontiguousarray(values), name=name)
    return constant if len(values) == 1 else g.gather(constant, label)
