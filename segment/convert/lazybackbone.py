"""Parse the backbone of a LazyConfig: a ResNet, RegNet or vision transformer, and its feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segment.convert import ranges
from segment.convert.architecture import BASIC, BLOCKS, HEAD_NORMS, NORMS, Pyramid, RegNet, ResNet, SimplePyramid, ViT
from segment.convert.document import shown
from segment.convert.lazycall import Call
from segment.errors import ConversionError

BOTTLENECKS = ("BottleneckBlock", "DeformBottleneckBlock")
MAX_STAGES = 4
"""Stages of a ResNet, from res2."""
LAST_LEVEL = 5
"""The coarsest level of a simple feature pyramid, because LastLevelMaxPool pools p5."""
TORCH_LN_EPSILON = 1e-5
"""The default of torch.nn.LayerNorm."""
_GROUPS = (1, 2, 4, 8, 16, 32, 64)
_TRAINING_OF_VIT = ("drop_path_rate", "rel_pos_zero_init", "use_act_checkpoint")


def backbone(call: Call) -> tuple[ResNet | RegNet | ViT, Pyramid | SimplePyramid | None, dict[str, int]]:
    """The bottom-up network, its pyramid if it has one, and the maps of the backbone: level by name."""
    bottom_up: ResNet | RegNet | ViT
    pyramid: Pyramid | SimplePyramid | None = None
    if call.target == "ResNet":
        bottom_up = _bottom_up(call)
        return bottom_up, None, {f"res{n}": bottom_up.level(n) for n in _network_levels(call, "out_features")}
    if call.target == "SimpleFeaturePyramid":
        bottom_up = _vit(call.call("net", "ViT"))
        pyramid = _simple_pyramid(call, bottom_up)
    else:
        network = call.call("bottom_up", "ResNet", "RegNet")  # first, so that other networks are refused by their name
        pyramid = _pyramid(call)
        bottom_up = _bottom_up(network, pyramid.levels)
        if isinstance(bottom_up, ResNet) and bottom_up.res5_dilation != 1:
            raise ConversionError(f"{network.key('stages.3.dilation')} is 2; it must be 1 below a feature pyramid.")
    call.finish()
    return bottom_up, pyramid, {f"p{level}": level for level in (*pyramid.levels, pyramid.levels[-1] + 1)}


def _bottom_up(call: Call, levels: tuple[int, ...] = ()) -> ResNet | RegNet:
    """The network with at least the maps `levels`. A ResNet has only the stages up to the last of its out_features."""
    network = _regnet(call) if call.target == "RegNet" else _resnet(call)
    given = _network_levels(call, "out_features")
    if max(given) > len(network.blocks) + 1:
        stages = "depth, w_0, w_a and w_m give" if isinstance(network, RegNet) else "stages lists"
        raise ConversionError(f"{call.key(stages)} fewer stages than out_features.")
    if not set(levels) <= set(given):
        raise ConversionError(f"{call.key('out_features')} lacks maps that the feature pyramid's in_features lists.")
    if isinstance(network, ResNet):
        built = network.blocks[: max(given) - 1]
        deformable = tuple(stage for stage in network.deformable if stage <= max(given))
        dilation = network.res5_dilation if len(built) == MAX_STAGES else 1
        network = replace(network, blocks=built, deformable=deformable, res5_dilation=dilation)
    call.finish()
    return network


def _network_levels(call: Call, name: str) -> tuple[int, ...]:
    """Levels of maps by the names of a ResNet, res2 and so on, or of a RegNet, s1 and so on."""
    names = {f"res{level}": level for level in (2, 3, 4, 5)} | {f"s{level - 1}": level for level in (2, 3, 4, 5)}
    return call.levels(name, names)


def _resnet(call: Call) -> ResNet:
    stem = call.call("stem", "BasicStem")
    stem.one_of("in_channels", (3,), 3)
    listed = isinstance(call.take("stages"), list)
    resnet = _listed_stages(call, stem) if listed else _default_stages(call, stem)
    call.absent("num_classes")
    stem.finish()
    return resnet


def _default_stages(call: Call, stem: Call) -> ResNet:
    """All four stages by one call of make_default_stages, which derives their blocks and channels from a depth."""
    stages = call.call("stages", "make_default_stages")
    stem.one_of("out_channels", (64,), 64)
    stages.absent("bottleneck_channels")
    stages.one_of("dilation", (1,), 1)
    depth = stages.one_of("depth", tuple(BLOCKS))
    block = Block.of(stages, ("BasicBlock",) if depth in BASIC else BOTTLENECKS)
    _stem_norm(stem, stages, block)
    stages.finish()
    return ResNet(
        blocks=BLOCKS[depth],
        basic=block.basic,
        norm=block.norm,
        groups=block.groups,
        width_per_group=64 // block.groups,
        stem_channels=64,
        res2_channels=64 if block.basic else 256,
        stride_in_1x1=block.stride_in_1x1,
        deformable=(2, 3, 4, 5) if block.deformable else (),
        modulated=block.modulated,
        offset_groups=block.offset_groups,
    )


def _listed_stages(call: Call, stem: Call) -> ResNet:
    """Each stage by a call of make_stage, with any blocks, widths and groups; strides and channels as in a ResNet."""
    stages = call.calls("stages", "make_stage")
    if len(stages) > MAX_STAGES:
        raise ConversionError(f"{call.key('stages')} lists {len(stages)} stages; the maximum is {MAX_STAGES}.")
    blocks = _same_blocks(stages)
    first, deformable = blocks[0], [number for number, block in enumerate(blocks) if block.deformable]
    _stem_norm(stem, stages[0], first)
    into = stem_channels = stem.number("out_channels", ranges.CHANNELS)
    channels = stages[0].number("out_channels", ranges.CHANNELS)
    width = channels if first.basic else stages[0].number("bottleneck_channels", ranges.CHANNELS)
    if width % first.groups:
        raise ConversionError(
            f"{stages[0].key('bottleneck_channels')} is {width}; it must be a multiple of num_groups."
        )
    dilation = 1
    for number, stage in enumerate(stages):
        is_res5 = number == MAX_STAGES - 1
        dilation = stage.one_of("dilation", (1, 2) if is_res5 else (1,), 1)
        stride = 1 if number == 0 or dilation == 2 else 2
        check_stage(stage, into, channels << number, 0 if first.basic else width << number, stride)
        into = channels << number
    return ResNet(
        blocks=tuple(stage.number("num_blocks", ranges.LAYERS) for stage in stages),
        norm=first.norm,
        groups=first.groups,
        width_per_group=width // first.groups,
        stem_channels=stem_channels,
        res2_channels=channels,
        stride_in_1x1=first.stride_in_1x1,
        deformable=tuple(number + 2 for number in deformable),
        modulated=any(block.modulated for block in blocks),
        offset_groups=blocks[deformable[0]].offset_groups if deformable else 1,
        res5_dilation=dilation,
        basic=first.basic,
    )


def _same_blocks(stages: Sequence[Call]) -> list[Block]:
    """The blocks of each stage. Raises ConversionError if they differ, except in whether they are deformable."""
    blocks = [Block.of(stage, (*BOTTLENECKS, "BasicBlock"), required=True) for stage in stages]
    plain = [replace(block, deformable=False, modulated=False, offset_groups=1) for block in blocks]
    deformable = [block for block in blocks if block.deformable]
    for number, stage in enumerate(stages):
        if plain[number] != plain[0] or (blocks[number].deformable and blocks[number] != deformable[0]):
            raise ConversionError(
                f"{stage.key('num_groups')}, norm, stride_in_1x1, deform_modulated and deform_num_groups must be the "
                "same in all stages, and so must BasicBlock as block_class."
            )
    return blocks


def check_stage(stage: Call, into: int, out: int, width: int, stride: int) -> None:
    """Raise ConversionError unless a call of make_stage has these channels, and this stride in its first block only.

    `width`: channels of the 3x3 convolutions of bottleneck blocks; 0 for basic blocks.
    """
    stage.one_of("in_channels", (into,))
    stage.one_of("out_channels", (out,))
    if width:
        stage.one_of("bottleneck_channels", (width,))
    strides = stage.numbers("stride_per_block", ranges.SIDE, stage.number("num_blocks", ranges.LAYERS))
    if strides != (stride, *[1] * (len(strides) - 1)):
        raise ConversionError(
            f"{stage.key('stride_per_block')} is {shown(strides)}; supported: a stride of {stride}, then of 1."
        )
    stage.finish()


@dataclass(frozen=True)
class Block:
    """The arguments that make_default_stages and make_stage pass to every block. Basic blocks only have `norm`."""

    norm: str
    basic: bool = False
    deformable: bool = False
    modulated: bool = False
    offset_groups: int = 1
    groups: int = 1
    stride_in_1x1: bool = False

    @classmethod
    def of(cls, stage: Call, classes: tuple[str, ...], *, required: bool = False) -> Block:
        """The blocks of a stage; without `required`, the first of `classes` is the default."""
        name, norm = stage.class_of("block_class", classes, required=required), stage.norm("norm", "BN")
        if name == "BasicBlock":
            return cls(norm, basic=True)
        deformable = name == "DeformBottleneckBlock"
        return cls(
            norm,
            deformable=deformable,
            modulated=deformable and stage.flag("deform_modulated"),
            offset_groups=stage.one_of("deform_num_groups", _GROUPS, 1) if deformable else 1,
            groups=stage.one_of("num_groups", _GROUPS, 1),
            stride_in_1x1=stage.flag("stride_in_1x1"),
        )


def _stem_norm(stem: Call, stages: Call, block: Block) -> None:
    if stem.norm("norm", "BN") != block.norm:
        raise ConversionError(f"{stem.key('norm')} must be the same norm as {stages.key('norm')}.")


def _regnet(call: Call) -> RegNet:
    call.class_of("stem_class", ("SimpleStem",), required=True)
    call.class_of("block_class", ("ResBottleneckBlock",), required=True)
    call.one_of("stride", (2,), 2)
    call.one_of("bottleneck_ratio", (1,), 1)
    call.absent("activation_class")
    depth, group_width = call.number("depth", ranges.LAYERS), call.number("group_width", ranges.CHANNELS)
    first = call.number("w_0", ranges.CHANNELS)
    slope, factor = call.number("w_a", ranges.SLOPE), call.number("w_m", ranges.GROWTH)
    if factor == 1 or first % 8:
        raise ConversionError(
            f"{call.key('w_m')} and w_0 are {factor:g} and {first}; w_m must be more than 1, and w_0 a multiple of 8."
        )
    widths, blocks = regnet_stages(slope, first, factor, depth)
    if widths[-1] > ranges.CHANNELS.high or len(widths) > MAX_STAGES:
        raise ConversionError(
            f"{call.key('w_a')}, w_m, w_0 and depth make stages of {shown(widths)} channels; at most {MAX_STAGES} "
            f"stages of at most {ranges.CHANNELS.high:,} channels are supported."
        )
    groups = tuple(min(group_width, width) for width in widths)
    return RegNet(
        stem_channels=call.number("stem_width", ranges.CHANNELS),
        widths=tuple(max(group, round(width / group) * group) for width, group in zip(widths, groups, strict=True)),
        blocks=blocks,
        group_widths=groups,
        se_ratio=call.number("se_ratio", ranges.SQUEEZE, 0.0),
        norm=call.norm("norm", "BN", NORMS[1:]),  # upstream's blocks call their norm
    )


def regnet_stages(slope: float, first: int, factor: float, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width and number of blocks of each stage (Radosavovic et al. 2020, equations 2 to 4).

    The width of block i is first + slope * i, rounded to a power of `factor` times `first` and then to a multiple of 8;
    the blocks of the same width are a stage.
    """
    wanted = np.arange(depth) * slope + first
    powers = np.round(np.log(wanted / first) / math.log(factor))
    rounded = np.round(first * np.power(factor, powers) / 8) * 8
    widths, blocks = np.unique(rounded, return_counts=True)
    return tuple(int(width) for width in widths), tuple(int(count) for count in blocks)


def _vit(call: Call) -> ViT:
    """detectron2/modeling/backbone/vit.py; out_feature is a name that only the pyramid reads."""
    patch, width = call.number("patch_size", ranges.SIDE, 16), call.number("embed_dim", ranges.CHANNELS, 768)
    heads = call.number("num_heads", ranges.CHANNELS, 12)
    if patch & (patch - 1):
        raise ConversionError(f"{call.key('patch_size')} is {patch}; it must be a power of 2.")
    if width % heads:
        raise ConversionError(f"{call.key('embed_dim')} is {width}; it must be a multiple of num_heads, {heads}.")
    ratio = call.number("mlp_ratio", ranges.RATIO, 4.0)
    if not 1 <= width * ratio <= ranges.CHANNELS.high:
        raise ConversionError(
            f"{call.key('mlp_ratio')} is {ratio:g} and embed_dim {width}; layers of 1 to {ranges.CHANNELS.high:,} "
            "channels are supported."
        )
    trained = call.number("img_size", ranges.IMAGE_SIDE, 1024)
    pretrained = call.number("pretrain_img_size", ranges.IMAGE_SIDE, 224)
    absolute, relative = call.flag("use_abs_pos", default=True), call.flag("use_rel_pos")
    call.one_of("in_chans", (3,), 3)
    call.torch_class("act_layer", "GELU")
    epsilon = call.torch_class("norm_layer", "LayerNorm", "eps").get("eps", TORCH_LN_EPSILON)
    network = ViT(
        patch=patch,
        width=width,
        depth=call.number("depth", ranges.LAYERS, 12),
        heads=heads,
        hidden=int(width * ratio),
        qkv_bias=call.flag("qkv_bias", default=True),
        positions=pretrained // patch if absolute else 0,
        class_token=call.flag("pretrain_use_cls_token", default=True),
        relative_positions=trained // patch if relative else 0,
        window=call.number("window_size", ranges.WINDOW, 0),
        window_blocks=call.indexes("window_block_indexes"),
        residual_blocks=call.indexes("residual_block_indexes"),
        epsilon=ranges.EPSILON.one(call.key("norm_layer.eps"), epsilon),
    )
    for name, size, used in (("pretrain_img_size", pretrained, absolute), ("img_size", trained, relative)):
        if used and size < patch:
            raise ConversionError(f"{call.key(name)} is {size}; it must be at least patch_size, {patch}.")
    call.finish((*_TRAINING_OF_VIT, "out_feature"))
    return network


def _simple_pyramid(call: Call, network: ViT) -> SimplePyramid:
    call.call("top_block", "LastLevelMaxPool").finish()
    call.take("in_feature")
    scales = call.numbers("scale_factors", ranges.RATIO)
    levels = tuple(int(math.log2(network.patch / scale)) for scale in scales if scale in (4.0, 2.0, 1.0, 0.5))
    if not levels or len(levels) != len(scales) or levels != tuple(range(levels[-1] - len(levels) + 1, LAST_LEVEL + 1)):
        raise ConversionError(
            f"{call.key('scale_factors')} is {shown(scales)}; supported: 4, 2, 1 and 0.5 without gaps, down to a "
            f"stride of {2**LAST_LEVEL} pixels, with a patch_size of {network.patch}."
        )
    norm = call.norm("norm", "LN", HEAD_NORMS)
    if not norm:
        raise ConversionError(f"{call.key('norm')} is empty; detectron2 runs this pyramid with a norm only.")
    square = call.number("square_pad", ranges.SQUARE, 0)
    if 0 < square < 2**LAST_LEVEL:
        raise ConversionError(f"{call.key('square_pad')} is {square}; it must be 0 or at least {2**LAST_LEVEL}.")
    return SimplePyramid(levels, call.number("out_channels", ranges.CHANNELS), norm, square)


def _pyramid(call: Call) -> Pyramid:
    call.call("top_block", "LastLevelMaxPool").finish()
    call.one_of("square_pad", (0,), 0)
    return Pyramid(
        levels=_network_levels(call, "in_features"),
        channels=call.number("out_channels", ranges.CHANNELS),
        norm=call.norm("norm", "", HEAD_NORMS),
        average=call.one_of("fuse_type", ("sum", "avg"), "sum") == "avg",
    )
