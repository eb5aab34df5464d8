"""The layers that backbones and heads are made of. Tensor names in the checkpoint are detectron2's."""

from __future__ import annotations

from segment.convert.config import BATCH_NORMS
from segment.convert.graph import Graph
from segment.convert.weights import Weights

GROUPS, GN_EPSILON = 32, 1e-5
"""detectron2's GroupNorm (detectron2/layers/batch_norm.py, get_norm)."""


def convolution(
    g: Graph,
    w: Weights,
    x: str,
    name: str,
    into: int,
    out: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    norm: str = "",
    norm_name: str = "",
    relu: bool = False,
) -> str:
    """detectron2's Conv2d: convolution, norm, activation; padded to keep the size at stride 1.

    `norm_name`: the checkpoint's name of the norm, `{name}.norm` if empty.
    """
    weight, bias = w.conv(name, out, into // groups, kernel, norm, norm_name)
    pad = kernel // 2 * dilation
    x = g.conv(
        x,
        weight,
        bias,
        name=name,
        pads=[pad] * 4,
        strides=[stride] * 2,
        dilations=[dilation] * 2,
        group=groups,
    )
    return normalised(g, w, x, norm_name or f"{name}.norm", out, norm, relu)


def normalised(g: Graph, w: Weights, x: str, norm_name: str, channels: int, norm: str, relu: bool) -> str:
    """What follows a convolution: its norm, unless that is folded into the weights, and its activation."""
    if norm and norm not in BATCH_NORMS:
        x = _group_norm(g, w, x, norm_name, channels)
    return g.op("Relu", x) if relu else x


def _group_norm(g: Graph, w: Weights, x: str, norm_name: str, channels: int) -> str:
    """Wu and He, 2018: normalise over each group of channels, then scale and shift each channel."""
    scale, shift = w.affine(norm_name, channels)
    ones, zeros = g.constant([1.0] * GROUPS, "float32"), g.constant([0.0] * GROUPS, "float32")
    grouped = g.reshape(x, 0, GROUPS, -1)  # (N, 32, C / 32 * H * W)
    normal = g.op("InstanceNormalization", grouped, ones, zeros, epsilon=GN_EPSILON)
    normal = g.op("Reshape", normal, g.op("Shape", x))
    scaled = g.op("Mul", normal, g.constant(scale[:, None, None], name=f"{norm_name}.scale"))
    return g.op("Add", scaled, g.constant(shift[:, None, None], name=f"{norm_name}.shift"))
