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
    for number in range(2, 2 + len(config.blocks)):
        x = features[number] = stage(g, w, config, x, f"{prefix}res{number}", number)
    return features


def stage(g: Graph, w: Weights, config: ResNet, x: str, name: str, number: int) -> str:
    """The blocks of res`number`: x (N, C, H, W) -> (N, C', H', W')."""
    into, out, stride = config.inputs(number), config.channels(number), config.stride(number)
    for block in range(config.blocks[number - 2]):
        shortcut = Conv(into, out, stride=stride, norm=config.norm, bias=False)
        x = _block(g, w, config, x, f"{name}.{block}", number, shortcut)
        into, stride = out, 1
    return x


def _block(g: Graph, w: Weights, config: ResNet, x: str, name: str, number: int, shortcut: Conv) -> str:
    """A residual block of res`number`: x plus the output of the block's layers.

    `shortcut`: is applied to x if the block changes the channels, as every block with a stride does.
    """
    y = x
    for i, layer in enumerate(_layers(config, number, shortcut), start=1):
        if number in config.deformable and layer.kernel == deformable.KERNEL:
            y = deformable.convolution(g, w, config, y, f"{name}.conv{i}", layer)
        else:
            y = convolution(g, w, y, f"{name}.conv{i}", layer)
    if shortcut.into != shortcut.out:
        x = convolution(g, w, x, name + ".shortcut", shortcut)
    return g.op("Relu", g.op("Add", y, x))


def _layers(config: ResNet, number: int, shortcut: Conv) -> tuple[Conv, ...]:
    """The convolutions of a block of res`number`, which have no biases: 3x3 and 3x3, or 1x1, 3x3 and 1x1."""
    into, out, stride, norm = shortcut.into, shortcut.out, shortcut.stride, config.norm
    if config.basic:
        last = Conv(out, out, kernel=3, norm=norm, bias=False)
        return replace(last, into=into, stride=stride, relu=True), last
    width, in_first = config.width(number), config.stride_in_1x1
    first = Conv(into, width, stride=stride if in_first else 1, norm=norm, bias=False, relu=True)
    second = replace(
        first,
        into=width,
        kernel=3,
        stride=1 if in_first else stride,
        groups=config.groups,
        dilation=config.dilation(number),
    )
    return first, second, Conv(width, out, norm=norm, bias=False)


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
