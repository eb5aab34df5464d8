"""ResNet and feature pyramid: pixels -> one feature map per level.

ResNet: He et al., "Deep Residual Learning", 2015; detectron2/modeling/backbone/resnet.py (BottleneckBlock).
Pyramid: Lin et al., "Feature Pyramid Networks", 2017; detectron2/modeling/backbone/fpn.py.

Tensor names in the checkpoint are detectron2's: `backbone.bottom_up.res4.2.conv2.weight`.
"""

from __future__ import annotations

from segment.convert.config import BATCH_NORMS, Pyramid, ResNet
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
    norm: str = "",
    relu: bool = False,
) -> str:
    """detectron2's Conv2d: convolution, norm, activation; padded to keep the size at stride 1."""
    weight, bias = w.conv(name, out, into // groups, kernel, norm)
    pad = kernel // 2
    x = g.conv(x, weight, bias, name=name, pads=[pad] * 4, strides=[stride] * 2, group=groups)
    if norm and norm not in BATCH_NORMS:
        x = _group_norm(g, w, x, name, out)
    return g.op("Relu", x) if relu else x


def _group_norm(g: Graph, w: Weights, x: str, name: str, channels: int) -> str:
    """Wu and He, 2018: normalise over each group of channels, then scale and shift each channel."""
    scale, shift = w.affine(name, channels)
    ones, zeros = g.constant([1.0] * GROUPS, "float32"), g.constant([0.0] * GROUPS, "float32")
    grouped = g.reshape(x, 0, GROUPS, -1)  # (N, 32, C / 32 * H * W)
    normal = g.op("InstanceNormalization", grouped, ones, zeros, epsilon=GN_EPSILON)
    normal = g.op("Reshape", normal, g.op("Shape", x))
    scaled = g.op("Mul", normal, g.constant(scale[:, None, None], name=f"{name}.norm.scale"))
    return g.op("Add", scaled, g.constant(shift[:, None, None], name=f"{name}.norm.shift"))


def resnet(g: Graph, w: Weights, config: ResNet, x: str) -> dict[int, tuple[str, int]]:
    """x (1, 3, H, W) -> level: (feature map (1, C, H / 2^level, W / 2^level), C), for levels 2 to 5."""
    prefix = "backbone.bottom_up."
    x = convolution(
        g, w, x, prefix + "stem.conv1", 3, config.stem_channels, kernel=7, stride=2, norm=config.norm, relu=True
    )
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    features = {}
    into, out, width = config.stem_channels, config.res2_channels, config.groups * config.width_per_group
    for level, blocks in enumerate(config.blocks, start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and level > 2 else 1
            x = _bottleneck(g, w, config, x, f"{prefix}res{level}.{block}", into, width, out, stride)
            into = out
        features[level] = x, out
        out, width = out * 2, width * 2
    return features


def _bottleneck(
    g: Graph, w: Weights, config: ResNet, x: str, name: str, into: int, width: int, out: int, stride: int
) -> str:
    """1x1, 3x3 and 1x1 convolutions around which the input is added again."""
    first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
    norm = config.norm
    y = convolution(g, w, x, name + ".conv1", into, width, stride=first, norm=norm, relu=True)
    y = convolution(
        g, w, y, name + ".conv2", width, width, kernel=3, stride=second, groups=config.groups, norm=norm, relu=True
    )
    y = convolution(g, w, y, name + ".conv3", width, out, norm=norm)
    if into != out:
        x = convolution(g, w, x, name + ".shortcut", into, out, stride=stride, norm=norm)
    return g.op("Relu", g.op("Add", y, x))


def pyramid(g: Graph, w: Weights, config: Pyramid, features: dict[int, tuple[str, int]]) -> dict[int, str]:
    """level: feature map -> level: (1, channels, H / 2^level, W / 2^level), and one coarser level on top."""
    finer: str | None = None
    maps: dict[int, str] = {}
    for level in reversed(config.levels):
        x, into = features[level]
        name = f"backbone.fpn_lateral{level}"
        merged = convolution(g, w, x, name, into, config.channels, norm=config.norm)
        if finer is not None:
            merged = g.op("Add", merged, _upsample(g, finer))
            if config.average:
                merged = g.op("Mul", merged, g.scalar(0.5))
        finer = merged
        name = f"backbone.fpn_output{level}"
        maps[level] = convolution(g, w, merged, name, config.channels, config.channels, kernel=3, norm=config.norm)
    top = config.levels[-1]
    maps[top + 1] = g.op("MaxPool", maps[top], kernel_shape=[1, 1], strides=[2, 2])
    return maps


def _upsample(g: Graph, x: str) -> str:
    """Twice the size, each value repeated."""
    scales = g.constant([1, 1, 2, 2], "float32")
    return g.op(
        "Resize",
        x,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
