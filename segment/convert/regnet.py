"""RegNetX and RegNetY: bottom-up networks with stages of equal blocks whose widths follow a linear function.

Radosavovic et al., "Designing Network Design Spaces", 2020. RegNetY adds squeeze and excitation (Hu et al.,
"Squeeze-and-Excitation Networks", 2018); detectron2/modeling/backbone/regnet.py (SimpleStem, ResBottleneckBlock).
"""

from __future__ import annotations

from segment.convert.architecture import RegNet
from segment.convert.graph import Graph
from segment.convert.layers import Conv, convolution
from segment.convert.weights import Weights


def regnet(g: Graph, w: Weights, config: RegNet, x: str, prefix: str) -> dict[int, str]:
    """x (1, 3, H, W) -> level: map (1, config.channels(level), H / 2^level, W / 2^level), from level 2 up."""
    name, into = prefix + "stem", config.stem_channels
    layer = Conv(3, into, kernel=3, stride=2, norm=config.norm, relu=True)
    x = convolution(g, w, x, name + ".conv", layer, name + ".bn")
    features = {}
    stages = zip(config.widths, config.blocks, config.group_widths, strict=True)
    for stage, (width, blocks, group_width) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            shortcut = Conv(into, width, stride=2 if block == 1 else 1, norm=config.norm)
            x = _block(g, w, config, x, f"{prefix}s{stage}.b{block}", shortcut, group_width)
            into = width
        features[stage + 1] = x
    return features


def _block(g: Graph, w: Weights, config: RegNet, x: str, name: str, shortcut: Conv, group_width: int) -> str:
    """A residual block of 1x1, 3x3 and 1x1 convolutions, with squeeze and excitation before the last one.

    `shortcut`: is applied to x if the block changes the channels or the size.
    """
    into, width, stride, norm, inner = shortcut.into, shortcut.out, shortcut.stride, shortcut.norm, name + ".f"
    y = convolution(g, w, x, inner + ".a", Conv(into, width, norm=norm, relu=True), inner + ".a_bn")
    grouped = Conv(width, width, kernel=3, stride=stride, groups=width // group_width, norm=norm, relu=True)
    y = convolution(g, w, y, inner + ".b", grouped, inner + ".b_bn")
    squeezed = round(into * config.se_ratio)
    if squeezed:
        y = _excite(g, w, y, inner + ".se.f_ex", width, squeezed)
    y = convolution(g, w, y, inner + ".c", Conv(width, width, norm=norm), inner + ".c_bn")
    if into != width or stride != 1:
        x = convolution(g, w, x, name + ".proj", shortcut, name + ".bn")
    return g.op("Relu", g.op("Add", y, x))


def _excite(g: Graph, w: Weights, x: str, name: str, width: int, squeezed: int) -> str:
    """Multiply each channel of x (1, width, H, W) by a gate between 0 and 1, which depends on all positions.

    The gate is computed with matrix products, which stay in float32 in int8 models: it only takes a few thousand
    multiplications, and an error in it would change a whole channel.
    """
    mean = g.op("ReduceMean", x, axes=[2, 3], keepdims=0)  # (1, width)
    hidden = g.op("Relu", _product(g, w, mean, name + ".0", width, squeezed))
    gate = g.op("Sigmoid", _product(g, w, hidden, name + ".2", squeezed, width))
    return g.op("Mul", x, g.op("Unsqueeze", gate, g.ints(2, 3)))


def _product(g: Graph, w: Weights, x: str, name: str, into: int, out: int) -> str:
    """x (1, into) -> (1, out): a 1x1 convolution of the checkpoint as a matrix product."""
    weight = w.take(f"{name}.weight", out, into, 1, 1).reshape(out, into)
    product = g.op("MatMul", x, g.constant(weight.T.copy(), name=f"{name}.weight"), name=name)
    return g.op("Add", product, g.constant(w.take(f"{name}.bias", out), name=f"{name}.bias"))
