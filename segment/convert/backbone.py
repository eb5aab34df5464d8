"""The backbone: a bottom-up network, with or without a feature pyramid, that computes one feature map per level.

ResNet: He et al., "Deep Residual Learning", 2015; detectron2/modeling/backbone/resnet.py (BottleneckBlock, BasicBlock).
Pyramid: Lin et al., "Feature Pyramid Networks", 2017; detectron2/modeling/backbone/fpn.py.

Tensor names in the checkpoint are detectron2's: `backbone.bottom_up.res4.2.conv2.weight`.
"""

from __future__ import annotations

from segment.convert import deformable, simple_pyramid, vit
from segment.convert.architecture import Config, Pyramid, RegNet, ResNet, SimplePyramid, ViT
from segment.convert.graph import Graph
from segment.convert.layers import convolution
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
    """x (1, 3, H, W) -> stage: map (1, config.channels(stage), H / 2^level, W / 2^level)."""
    name = prefix + "stem.conv1"
    x = convolution(g, w, x, name, 3, config.stem_channels, kernel=7, stride=2, norm=config.norm, bias=False, relu=True)
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
    y = convolution(g, w, x, name + ".conv1", into, out, kernel=3, stride=stride, norm=norm, bias=False, relu=True)
    y = convolution(g, w, y, name + ".conv2", out, out, kernel=3, norm=norm, bias=False)
    return _joined(g, w, norm, x, y, name, into, out, stride)


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
    first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
    norm, out = config.norm, config.channels(number)
    width = config.groups * config.width_per_group * 2 ** (number - 2)
    y = convolution(g, w, x, name + ".conv1", into, width, stride=first, norm=norm, bias=False, relu=True)
    if number in config.deformable:
        y = deformable.convolution(g, w, config, y, name + ".conv2", width, stride=second, dilation=dilation)
    else:
        y = convolution(
            g,
            w,
            y,
            name + ".conv2",
            width,
            width,
            kernel=3,
            stride=second,
            groups=config.groups,
            dilation=dilation,
            norm=norm,
            bias=False,
            relu=True,
        )
    y = convolution(g, w, y, name + ".conv3", width, out, norm=norm, bias=False)
    return _joined(g, w, norm, x, y, name, into, out, stride)


def _joined(g: Graph, w: Weights, norm: str, x: str, y: str, name: str, into: int, out: int, stride: int) -> str:
    """The end of a residual block: the sum of its input `x`, projected if the channels differ, and `y`."""
    if into != out:
        x = convolution(g, w, x, name + ".shortcut", into, out, stride=stride, norm=norm, bias=False)
    return g.op("Relu", g.op("Add", y, x))


def _pyramid(
    g: Graph, w: Weights, config: Pyramid, network: ResNet | RegNet, features: dict[int, str]
) -> dict[int, str]:
    """stage: feature map -> level: map (1, channels, H / 2^level, W / 2^level), including one additional level."""
    finer: str | None = None
    maps: dict[int, str] = {}
    for level in reversed(config.levels):
        name = f"backbone.fpn_lateral{level}"
        merged = convolution(g, w, features[level], name, network.channels(level), config.channels, norm=config.norm)
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
