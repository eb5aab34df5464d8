"""Deformable convolutions: each tap of a 3x3 kernel reads the map at a place of its own, which another layer predicts.

Dai et al., "Deformable Convolutional Networks", 2017; with a factor for each tap: Zhu et al., "Deformable ConvNets v2",
2018; detectron2/modeling/backbone/resnet.py (DeformBottleneckBlock), torchvision.ops.deform_conv2d.

The map is sampled first: each output place gets a tile of 3 x 3 samples, side by side in a map three times as high and
wide, over which an ordinary convolution of stride 3 runs. Sampling is bilinear, with zeros around the map. It reads a
table that has all channels of a place in one row: four rows, weighted and added, for each sample.
"""

from __future__ import annotations

import numpy as np

from segment.convert import layers
from segment.convert.config import ResNet
from segment.convert.graph import FLOAT, INT32, Graph
from segment.convert.weights import Weights

KERNEL = 3
MAP = ".map"
"""The map that is sampled comes from a node with its layer's name and this at the end."""
BEFORE, AFTER = 1, 2
"""Zeros around the map. A place up to one pixel outside lies between its edge and a zero."""


def convolution(
    g: Graph, w: Weights, config: ResNet, x: str, name: str, width: int, *, stride: int, dilation: int
) -> str:
    """x (1, width, H, W) -> (1, width, H', W'): a deformable 3x3 convolution, its norm and ReLU."""
    taps = KERNEL**2 * config.offset_groups
    count = (3 if config.modulated else 2) * taps
    offsets = layers.convolution(
        g, w, x, name + "_offset", width, count, kernel=KERNEL, stride=stride, dilation=dilation
    )
    size = g.slice(g.op("Shape", offsets), g.ints(2), g.ints(4))  # H', W'
    factors = ""
    if config.modulated:
        offsets, factors = g.ops("Split", offsets, g.ints(2 * taps, taps), outputs=2, axis=1)
        factors = _by_place(g, g.op("Sigmoid", factors), size, config.offset_groups)
    offsets = _by_place(g, offsets, size, config.offset_groups, 2)
    padded = g.op("Pad", x, g.ints(0, 0, BEFORE, BEFORE, 0, 0, AFTER, AFTER), name=name + MAP)
    samples = _sample(g, padded, offsets, factors, config.offset_groups, stride, dilation)
    samples = g.op(
        "Reshape", samples, g.op("Concat", g.ints(1), g.op("Mul", size, g.ints(KERNEL)), g.ints(width), axis=0)
    )
    samples = g.op("Transpose", samples, perm=[0, 3, 1, 2])
    weight, bias = w.conv(name, width, width // config.groups, KERNEL, config.norm)
    y = g.conv(samples, weight, bias, name=name, strides=[KERNEL] * 2, group=config.groups)
    return layers.normalised(g, w, y, f"{name}.norm", width, config.norm, relu=True)


def _by_place(g: Graph, x: str, size: str, groups: int, values: int = 1) -> str:
    """x (1, groups * 9 * values, H', W') -> (values, H', 3, W', 3, groups): what each sample has."""
    shape = g.op("Concat", g.ints(groups, KERNEL, KERNEL, values), size, axis=0)
    return g.op("Transpose", g.op("Reshape", x, shape), perm=[3, 4, 1, 5, 2, 0])


def _sample(g: Graph, padded: str, offsets: str, factors: str, groups: int, stride: int, dilation: int) -> str:
    """padded (1, C, H + 3, W + 3) -> (H' * 3 * W' * 3 * groups, C / groups): a group's channels at each place.

    `offsets` (2, H', 3, W', 3, groups): pixels down and right from where a convolution would read. `factors`
    (1, H', 3, W', 3, groups): what each sample is multiplied with, unless empty.
    """
    table = g.op("Transpose", padded, perm=[0, 2, 3, 1])
    table = g.op("Reshape", table, g.op("Concat", g.ints(-1), g.op("Div", g.dim(padded, 1), g.ints(groups)), axis=0))
    top, above, below = _neighbours(g, padded, offsets, 0, stride, dilation)
    left, before, after = _neighbours(g, padded, offsets, 1, stride, dilation)
    if factors:
        above, below = g.op("Mul", above, factors), g.op("Mul", below, factors)
    row, column = g.cast(g.dim(padded, 3), INT32), g.constant([groups], np.int32)
    row = g.op("Mul", row, column)  # how many rows of the table are between a place and the one below
    first = g.op("Add", g.op("Mul", top, row), g.op("Mul", left, column))
    first = g.reshape(g.op("Add", first, g.constant(np.arange(groups), np.int32)), -1)
    below_first = g.op("Add", first, row)
    corners = (
        (first, above, before),
        (g.op("Add", first, column), above, after),
        (below_first, below, before),
        (g.op("Add", below_first, column), below, after),
    )
    parts = [
        g.op("Mul", g.gather(table, index), g.reshape(g.op("Mul", vertical, horizontal), -1, 1))
        for index, vertical, horizontal in corners
    ]
    return g.op("Add", g.op("Add", parts[0], parts[1]), g.op("Add", parts[2], parts[3]))


def _neighbours(g: Graph, padded: str, offsets: str, axis: int, stride: int, dilation: int) -> tuple[str, str, str]:
    """The two places along an axis (0 down, 1 right) of the padded map that each sample lies between.

    Returns (1, H', 3, W', 3, groups) each: the first as int32, the weight of the first and of the second as float32.
    """
    length = g.op("Sub", g.cast(g.dim(padded, 2 + axis), FLOAT), g.scalar(BEFORE + AFTER))
    count = g.op("Gather", g.op("Shape", offsets), g.constant(np.int64(1 + 2 * axis)))
    number = g.op("Range", g.constant(np.int64(0)), count, g.constant(np.int64(1)))
    shape = (-1, 1, 1, 1, 1) if axis == 0 else (-1, 1, 1)
    taps = dilation * (np.arange(KERNEL) - KERNEL // 2)
    read = g.op("Mul", g.reshape(number, *shape), g.ints(stride))
    read = g.op("Add", read, g.constant(taps.reshape(KERNEL, *shape[2:]), np.int64))
    place = g.op("Add", g.gather(offsets, g.ints(axis)), g.cast(read, FLOAT))
    place = g.op("Max", g.op("Min", place, length), g.scalar(-1.0))
    first = g.op("Floor", place)
    beyond = g.op("Sub", place, first)
    index = g.op("Add", g.cast(first, INT32), g.constant([BEFORE], np.int32))
    return index, g.op("Sub", g.scalar(1.0), beyond), beyond
