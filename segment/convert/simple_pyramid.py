"""ViTDet's simple feature pyramid, which computes every level from the single map of a plain vision transformer.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022; detectron2/modeling/backbone/
vit.py (SimpleFeaturePyramid). Tensor names in the checkpoint are detectron2's: `backbone.simfp_2.0.weight`.
"""

from __future__ import annotations

import numpy as np

from segment.convert.architecture import BATCH_NORMS, SimplePyramid, ViT
from segment.convert.graph import Graph
from segment.convert.layers import Conv, centred, convolution, gelu, normalised
from segment.convert.weights import Array, Weights


def feature_maps(g: Graph, w: Weights, config: SimplePyramid, network: ViT, x: str) -> dict[int, str]:
    """x (1, width, h, w) -> level: (1, channels, H / 2^level, W / 2^level), including one coarser level."""
    maps = {level: _level(g, w, config, network, x, level) for level in config.levels}
    top = config.levels[-1]
    maps[top + 1] = g.op("MaxPool", maps[top], kernel_shape=[1, 1], strides=[2, 2])
    return maps


def _level(g: Graph, w: Weights, config: SimplePyramid, network: ViT, x: str, level: int) -> str:
    """x (1, width, h, w) -> (1, channels, k * h, k * w), where k is 4, 2, 1 or 0.5."""
    name, width, out = f"backbone.simfp_{level}", network.width, config.channels
    times = network.patch / 2**level
    if times == 4:
        x = _doubled(g, w, x, f"{name}.0", width, width // 2, config.norm, f"{name}.1")
        x = gelu(g, x)
        x = _doubled_and_projected(g, w, config, x, f"{name}.3", f"{name}.4", width // 2, width // 4)
        first = 5
    elif times == 2:
        x = _doubled_and_projected(g, w, config, x, f"{name}.0", f"{name}.1", width, width // 2)
        first = 2
    else:
        if times == 0.5:
            x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        first = 1 if times == 0.5 else 0
        x = convolution(g, w, x, f"{name}.{first}", Conv(width, out, norm=config.norm))
        first += 1
    return convolution(g, w, x, f"{name}.{first}", Conv(out, out, kernel=3, norm=config.norm))


def _doubled(g: Graph, w: Weights, x: str, name: str, into: int, out: int, norm: str, norm_name: str) -> str:
    """A 2x2 transposed convolution with stride 2, and its norm: (1, into, h, w) -> (1, out, 2h, 2w)."""
    weight, bias = _places(w, name, into, out)
    if norm in BATCH_NORMS:
        factor, shift = w.batch_norm(norm_name, out)
        weight, bias = (weight * factor[:, None]).astype(np.float32), (bias * factor + shift).astype(np.float32)
    elif norm == "LN":
        weight, bias = np.stack([centred(place) for place in weight]), centred(bias)
    x = _four_places(g, x, weight, bias, name)
    return normalised(g, w, x, norm_name, out, norm, relu=False)


def _doubled_and_projected(
    g: Graph, w: Weights, config: SimplePyramid, x: str, name: str, projection: str, into: int, between: int
) -> str:
    """A transposed convolution as in `_doubled`, a 1x1 convolution and its norm: (1, into, h, w) -> (1, out, 2h, 2w).

    There is no activation between them, so their weights are multiplied.
    """
    out, norm = config.channels, config.norm
    weight, bias = _places(w, name, into, between)
    second, second_bias = w.conv(projection, out, between, 1, norm)
    second = centred(second) if norm == "LN" else second
    matrix = second.reshape(out, between).astype(np.float64)
    weight = (matrix @ weight).astype(np.float32)  # (4, out, into)
    bias = (matrix @ bias + (0 if second_bias is None else second_bias)).astype(np.float32)
    x = _four_places(g, x, weight, bias, projection)
    return normalised(g, w, x, f"{projection}.norm", out, norm, relu=False)


def _places(w: Weights, name: str, into: int, out: int) -> tuple[Array, Array]:
    """Weight (4, out, into) and bias (out,) of a transposed convolution, one matrix for each of the four positions."""
    weight = w.take(f"{name}.weight", into, out, 2, 2)
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(4, out, into), w.take(f"{name}.bias", out)


def _four_places(g: Graph, x: str, weight: Array, bias: Array, name: str) -> str:
    """x (1, into, h, w) -> (1, out, 2h, 2w): each position becomes four, row by row. `weight`: (4, out, into)."""
    _, out, into = weight.shape
    x = g.conv(x, weight.reshape(4 * out, into, 1, 1), np.tile(bias, 4), name=name)
    return g.op("DepthToSpace", x, blocksize=2, mode="DCR")
