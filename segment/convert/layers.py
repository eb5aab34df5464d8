"""Layers of backbones and heads. Tensor names in the checkpoint are detectron2's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segment.convert.architecture import BATCH_NORMS
from segment.convert.graph import Graph
from segment.convert.weights import Array, Weights
from segment.errors import ConversionError

GROUPS, GN_EPSILON = 32, 1e-5
"""detectron2's GroupNorm (detectron2/layers/batch_norm.py, get_norm)."""
LN_EPSILON = 1e-6
"""detectron2's LayerNorm over the channels of each place (the same file)."""


@dataclass(frozen=True)
class Conv:
    """detectron2's Conv2d (detectron2/layers/wrappers.py): a convolution with its norm and activation.

    `into`, `out`: numbers of channels. The padding keeps the size at stride 1. `bias`: whether the convolution has a
    bias if it has no norm.
    """

    into: int
    out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    norm: str = ""
    bias: bool = True
    relu: bool = False


def convolution(g: Graph, w: Weights, x: str, name: str, layer: Conv, norm_name: str = "") -> str:
    """x (N, into, H, W) -> (N, out, H / stride, W / stride), rounded up.

    `name`, `norm_name`: names of the layer and of its norm in the checkpoint; by default, the norm is `{name}.norm`.
    """
    norm_name = norm_name or f"{name}.norm"
    weight, shift = w.conv(name, layer.out, layer.into // layer.groups, layer.kernel, layer.norm, norm_name, layer.bias)
    if layer.norm == "LN":
        weight = centred(weight)
    x = g.conv(
        x,
        weight,
        shift,
        name=name,
        pads=[layer.kernel // 2 * layer.dilation] * 4,
        strides=[layer.stride] * 2,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    return normalised(g, w, x, norm_name, layer.out, layer.norm, layer.relu)


def normalised(g: Graph, w: Weights, x: str, norm_name: str, channels: int, norm: str, relu: bool) -> str:
    """The norm after a convolution, unless it is folded into the weights, and the activation."""
    if norm == "LN":
        x = layer_norm(g, w, x, norm_name, channels)
    elif norm and norm not in BATCH_NORMS:
        x = _group_norm(g, w, x, norm_name, channels)
    return g.op("Relu", x) if relu else x


def gelu(g: Graph, x: str) -> str:
    """GELU (Hendrycks and Gimpel, 2016): x times the standard normal distribution function at x."""
    below = g.op("Add", g.op("Erf", g.op("Div", x, g.scalar(2**0.5))), g.scalar(1.0))
    return g.op("Mul", g.op("Mul", x, below), g.scalar(0.5))


def centred(weight: Array) -> Array:
    """Change the weight (out, ...) of a linear layer so that its outputs sum to zero.

    A layer norm begins by subtracting the mean over the channels. The mean of a linear layer's outputs is also linear,
    so it can be subtracted from the weights instead.
    """
    return np.asarray(weight - weight.mean(axis=0, dtype=np.float64), np.float32)


def layer_norm(g: Graph, w: Weights, x: str, name: str, channels: int) -> str:
    """Layer norm (Ba et al., 2016) over the channels of each position of x (N, C, H, W).

    The channels of x must sum to zero (see `centred`).
    """
    scale, shift = w.affine(name, channels)
    length = g.op("ReduceL2", x, axes=[1], keepdims=1)
    variance = g.op("Mul", g.op("Mul", length, length), g.scalar(1 / channels))
    normal = g.op("Div", x, g.op("Sqrt", g.op("Add", variance, g.scalar(LN_EPSILON))))
    scaled = g.op("Mul", normal, g.constant(scale[:, None, None], name=f"{name}.scale"))
    return g.op("Add", scaled, g.constant(shift[:, None, None], name=f"{name}.shift"))


def _group_norm(g: Graph, w: Weights, x: str, norm_name: str, channels: int) -> str:
    """GroupNorm (Wu and He, 2018): normalise each group of channels, then scale and shift each channel.

    Raises ConversionError if the channels cannot be divided into groups.
    """
    if channels % GROUPS:
        raise ConversionError(f"{norm_name} is GN with {channels} channels; it must be a multiple of {GROUPS}.")
    scale, shift = w.affine(norm_name, channels)
    ones, zeros = g.constant([1.0] * GROUPS, "float32"), g.constant([0.0] * GROUPS, "float32")
    grouped = g.reshape(x, 0, GROUPS, -1)  # (N, 32, C / 32 * H * W)
    normal = g.op("InstanceNormalization", grouped, ones, zeros, epsilon=GN_EPSILON)
    normal = g.op("Reshape", normal, g.op("Shape", x))
    scaled = g.op("Mul", normal, g.constant(scale[:, None, None], name=f"{norm_name}.scale"))
    return g.op("Add", scaled, g.constant(shift[:, None, None], name=f"{norm_name}.shift"))
