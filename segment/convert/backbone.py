"""The backbone: a bottom-up network, with or without a feature pyramid, that computes one feature map per level.

ResNet: He et al., "Deep Residual Learning", 2015; detectron2/modeling/backbone/resnet.py (BottleneckBlock, BasicBlock).
Pyramid: Lin et al., "Feature Pyramid Networks", 2017; detectron2/modeling/backbone/fpn.py.

Tensor names in the checkpoint are detectron2's: `backbone.bottom_up.res4.2.conv2.weight`.
"""

from __future__ import annotations

from dataclasses import replace

from segment.convert import deformable, simple_pyramid, vit
from segment.convert.architecture import Config, Pyramid, RegNet, ResNet, SimplePyramid, ViT
from segment.convert.graph import Graph
from segment.convert.layers import Conv, convolution
from segment.convert.regnet import regnet
from segment.convert.weights import Weights


def prefix(config: Config) -> str:
    """Prefix of the bottom-up network's tensor names in the checkpoint."""
    if isinstance(config.bottom_up, ViT):
        return "backbone.net."
    return "backbone.bottom_up." if config.pyramid else "backbone."


def stem(config: Config) -> str:
    """Name of the first convolution in the checkpoint."""
    names = {RegNet: "stem.conv", ResNet: "stem.conv1", ViT: "patch_embed.proj"}
    return prefix(config) + names[type(config.bottom_up)]


def feature_maps(g: Graph, w: Weights, config: Config, image: str) -> dict[int, str]:
    """image (1, 3, H, W) -> level: map (1, config.channels, H / 2^level, W / 2^level), for the RPN and the heads."""
    network = config.bottom_up
    if isinstance(network, ViT):
        assert isinstance(config.pyramid, SimplePyramid)
        x = vit.feature_map(g, w, network, image, prefix(config), config.square)
        return simple_pyramid.feature_maps(g, w, config.pyramid, network, x)
    if isinstance(network, RegNet):
        features = regnet(g, w, network, image, prefix(config))
    else:
        features = _resnet(g, w, network, image, prefix(config))
    if isinstance(config.pyramid, Pyramid):
        return _pyramid(g, w, config.pyramid, network, features)
    return {network.level(config.feature): features[config.feature]}


def _resnet(g: Graph, w: Weights, config: ResNet, x: str, prefix: str) -> dict[int, str]:
    """x (1, 3, H, W) -> stage: map (1, config.channels(stage), H / 2^level, W / 2^level), level config.level(stage)."""
    layer = Conv(3, config.stem_channels, kernel=7, stride=2, norm=config.norm, bias=False, relu=True)
    x = convolution(g, w, x, prefix + "stem.conv1", layer)
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    features = {}
    into = config.stem_channels
    for number, blocks in enumerate(config.blocks, start=2):
        dilated = number == 5 and config.res5_dilation == 2
        x = stage(
            g,
            w,
            config,
            x,
            f"{prefix}res{number}",
            number,
            into,
            blocks=blocks,
            stride=1 if number == 2 or dilated else 2,
            dilation=2 if dilated else 1,
        )
        into = config.channels(number)
        features[number] = x
    return features


def stage(
    g: Graph,
    w: Weights,
    config: ResNet,
    x: str,
    name: str,
    number: int,
    into: int,
    *,
    blocks: int,
    stride: int,
    dilation: int = 1,
) -> str:
    """The blocks of res`number`: x (N, into, H, W) -> (N, C, H', W'). The first block has the stride."""
    for block in range(blocks):
        step = stride if block == 0 else 1
        if config.basic:
            x = _basic(g, w, config.norm, x, f"{name}.{block}", into, config.channels(number), step)
        else:
            x = _bottleneck(g, w, config, x, f"{name}.{block}", number, into, step, dilation)
        into = config.channels(number)
    return x


def _basic(g: Graph, w: Weights, norm: str, x: str, name: str, into: int, out: int, stride: int) -> str:
    """A residual block of two 3x3 convolutions, which have no biases."""
    layer = Conv(out, out, kernel=3, norm=norm, bias=False)
    y = convolution(g, w, x, name + ".conv1", replace(layer, into=into, stride=stride, relu=True))
    y = convolution(g, w, y, name + ".conv2", layer)
    return _joined(g, w, x, y, name, Conv(into, out, stride=stride, norm=norm, bias=False))


def _bottleneck(
    g: Graph,
    w: Weights,
    config: ResNet,
    x: str,
    name: str,
    number: int,
    into: int,
    stride: int,
    dilation: int,
) -> str:
    """A residual block of 1x1, 3x3 and 1x1 convolutions, which have no biases."""
    norm, out = config.norm, config.channels(number)
    width = config.groups * config.width_per_group * 2 ** (number - 2)
    first = Conv(into, width, norm=norm, bias=False, relu=True)
    second = replace(first, into=width, kernel=3, groups=config.groups, dilation=dilation)
    if config.stride_in_1x1:
        first = replace(first, stride=stride)
    else:
        second = replace(second, stride=stride)
    y = convolution(g, w, x, name + ".conv1", first)
    if number in config.deformable:
        y = deformable.convolution(g, w, config, y, name + ".conv2", second)
    else:
        y = convolution(g, w, y, name + ".conv2", second)
    y = convolution(g, w, y, name + ".conv3", Conv(width, out, norm=norm, bias=False))
    return _joined(g, w, x, y, name, Conv(into, out, stride=stride, norm=norm, bias=False))


def _joined(g: Graph, w: Weights, x: str, y: str, name: str, shortcut: Conv) -> str:
    """The end of a residual block: the sum of `y` and its input `x`, to which `shortcut` is applied to change channels.

    Every block with a stride also changes the channels.
    """
    if shortcut.into != shortcut.out:
        x = convolution(g, w, x, name + ".shortcut", shortcut)
    return g.op("Relu", g.op("Add", y, x))


def _pyramid(
    g: Graph, w: Weights, config: Pyramid, network: ResNet | RegNet, features: dict[int, str]
) -> dict[int, str]:
    """stage: feature map -> level: map (1, channels, H / 2^level, W / 2^level), including one additional level."""
    output = Conv(config.channels, config.channels, kernel=3, norm=config.norm)
    finer: str | None = None
    maps: dict[int, str] = {}
    for level in reversed(config.levels):
        lateral = Conv(network.channels(level), config.channels, norm=config.norm)
        merged = convolution(g, w, features[level], f"backbone.fpn_lateral{level}", lateral)
        if finer is not None:
            merged = g.op("Add", merged, _upsample(g, finer))
            if config.average:
                merged = g.op("Mul", merged, g.scalar(0.5))
        finer = merged
        maps[level] = convolution(g, w, merged, f"backbone.fpn_output{level}", output)
    top = config.levels[-1]
    maps[top + 1] = g.op("MaxPool", maps[top], kernel_shape=[1, 1], strides=[2, 2])
    return maps


def _upsample(g: Graph, x: str) -> str:
    """Nearest-neighbour upsampling by 2."""
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
