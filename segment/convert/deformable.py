"""Deformable convolutions: each tap of a 3x3 kernel reads the map at its own offset, which another layer predicts.

Dai et al., "Deformable Convolutional Networks", 2017; with a factor for each tap: Zhu et al., "Deformable ConvNets v2",
2018; detectron2/modeling/backbone/resnet.py (DeformBottleneckBlock), torchvision.ops.deform_conv2d.

The rows of the kernel are processed one after the other. For each row, three samples per output position are written
side by side into a map that is three times as wide, to which an ordinary convolution with stride 3 is applied.
Processing all rows at once is not faster and takes three times the memory. Sampling is bilinear, with zeros around the
map. The map is stored as a table with one row of channels per position; each sample is a weighted sum of four rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from segment.convert import layers
from segment.convert.architecture import ResNet
from segment.convert.graph import FLOAT, INT32, Graph
from segment.convert.layers import Conv
from segment.convert.weights import Weights

KERNEL = 3
MAP = ".map"
"""Suffix of the node that computes the sampled map; the rest of its name is that of the layer."""
BEFORE, AFTER = 1, 2
"""Zeros around the map. A position up to one pixel outside is interpolated between the edge and a zero."""


def convolution(g: Graph, w: Weights, config: ResNet, x: str, name: str, layer: Conv) -> str:
    """x (1, into, H, W) -> (1, out, H', W'): a deformable 3x3 convolution, its norm and ReLU."""
    taps = KERNEL**2 * config.offset_groups
    count = (3 if config.modulated else 2) * taps
    offset = Conv(layer.into, count, kernel=KERNEL, stride=layer.stride, dilation=layer.dilation)
    offsets = layers.convolution(g, w, x, name + "_offset", offset)
    size = g.slice(g.op("Shape", offsets), g.ints(2), g.ints(4))  # H', W'
    factors = [""] * KERNEL
    if config.modulated:
        offsets, logits = g.ops("Split", offsets, g.ints(2 * taps, taps), outputs=2, axis=1)
        factors = _by_row(g, g.op("Sigmoid", logits), size, config.offset_groups)
    rows = _by_row(g, offsets, size, config.offset_groups, 2)
    padded = g.op("Pad", x, g.ints(0, 0, BEFORE, BEFORE, 0, 0, AFTER, AFTER), name=name + MAP)
    shape = g.op("Concat", g.ints(1), g.op("Mul", size, g.ints(1, KERNEL)), g.ints(layer.into), axis=0)
    weight, bias = w.conv(name, layer.out, layer.into // layer.groups, KERNEL, layer.norm, bias=False)
    y = ""
    for row in range(KERNEL):
        samples = _sample(g, padded, rows[row], factors[row], config.offset_groups, layer, row)
        samples = g.op("Transpose", g.op("Reshape", samples, shape), perm=[0, 3, 1, 2])  # (1, into, H', 3 W')
        part = g.conv(
            samples,
            weight[:, :, row : row + 1],
            bias if row == 0 else None,
            name=f"{name}.row{row}",
            strides=[1, KERNEL],
            group=layer.groups,
        )
        y = g.op("Add", y, part) if y else part
    return layers.normalised(g, w, y, f"{name}.norm", layer.out, layer.norm, layer.relu)


def _by_row(g: Graph, x: str, size: str, groups: int, values: int = 1) -> list[str]:
    """x (1, groups * 9 * values, H', W') -> (values, H', W', 3, groups) for each row of the kernel."""
    shape = g.op("Concat", g.ints(groups, KERNEL, KERNEL, values), size, axis=0)
    x = g.op("Transpose", g.op("Reshape", x, shape), perm=[1, 3, 4, 5, 2, 0])
    return [g.column(x, row, axis=0) for row in range(KERNEL)]


def _sample(g: Graph, padded: str, offsets: str, factors: str, groups: int, layer: Conv, row: int) -> str:
    """Sample padded (1, C, H + 3, W + 3) -> (H' * W' * 3 * groups, C / groups): the channels of a group per sample.

    `offsets` (2, H', W', 3, groups): pixels down and to the right, relative to the positions that `row` of the kernel
    of an ordinary convolution reads. `factors` (1, H', W', 3, groups): factors of the samples; empty for none.
    """
    table = g.op("Transpose", padded, perm=[0, 2, 3, 1])
    table = g.op("Reshape", table, g.op("Concat", g.ints(-1), g.op("Div", g.dim(padded, 1), g.ints(groups)), axis=0))
    top, above, below = _neighbours(g, padded, offsets, 0, layer, (row,))
    left, before, after = _neighbours(g, padded, offsets, 1, layer, range(KERNEL))
    if factors:
        above, below = g.op("Mul", above, factors), g.op("Mul", below, factors)
    right = g.constant([groups], np.int32)  # number of rows of the table per position
    down = g.op("Mul", g.cast(g.dim(padded, 3), INT32), right)
    first = g.op("Add", g.op("Mul", top, down), g.op("Mul", left, right))
    first = g.reshape(g.op("Add", first, g.constant(np.arange(groups), np.int32)), -1)
    below_first = g.op("Add", first, down)
    corners = (
        (first, above, before),
        (g.op("Add", first, right), above, after),
        (below_first, below, before),
        (g.op("Add", below_first, right), below, after),
    )
    parts = [
        g.op("Mul", g.gather(table, index), g.reshape(g.op("Mul", vertical, horizontal), -1, 1))
        for index, vertical, horizontal in corners
    ]
    return functools.reduce(lambda total, part: g.op("Add", total, part), parts)


def _neighbours(
    g: Graph, padded: str, offsets: str, axis: int, layer: Conv, taps: Sequence[int]
) -> tuple[str, str, str]:
    """The two positions along an axis (0 down, 1 right) of the padded map between which each sample is interpolated.

    `taps`: the samples' positions in the kernel along that axis. Returns three tensors (1, H', W', 3, groups): the
    first position (int32), and the weights of the first and of the second position (float32).
    """
    length = g.op("Sub", g.cast(g.dim(padded, 2 + axis), FLOAT), g.scalar(BEFORE + AFTER))
    count = g.op("Gather", g.op("Shape", offsets), g.constant(np.int64(1 + axis)))
    number = g.op("Range", g.constant(np.int64(0)), count, g.constant(np.int64(1)))
    read = g.op("Mul", g.reshape(number, *((-1, 1, 1, 1) if axis == 0 else (-1, 1, 1))), g.ints(layer.stride))
    from_centre = layer.dilation * (np.array(taps, np.int64) - KERNEL // 2)
    read = g.op("Add", read, g.constant(from_centre[:, None]))
    place = g.op("Add", g.gather(offsets, g.ints(axis)), g.cast(read, FLOAT))
    place = g.op("Max", g.op("Min", place, length), g.scalar(-1.0))
    first = g.op("Floor", place)
    beyond = g.op("Sub", place, first)
    index = g.op("Add", g.cast(first, INT32), g.constant([BEFORE], np.int32))
    return index, g.op("Sub", g.scalar(1.0), beyond), beyond
