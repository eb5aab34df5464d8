"""Parse a detectron2 LazyConfig: the calls that would build the model, as `LazyConfig.save` writes them beside a run.

Each mapping with a `_target_` is a call of a class or function with keyword arguments
(detectron2/config/instantiate.py). Nothing is called here. The arguments are read, with the defaults of detectron2's
constructors, into the same Config as that of a YAML config. A call or an argument that is not supported is refused by
its key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segment.convert import ranges
from segment.convert.architecture import (
    BASIC,
    BLOCKS,
    HEAD_NORMS,
    NORMS,
    POOLER_TYPES,
    Anchors,
    BoxHead,
    Config,
    MaskHead,
    Pooler,
    Proposals,
    Pyramid,
    RegNet,
    ResNet,
    SimplePyramid,
    ViT,
)
from segment.convert.document import shown
from segment.convert.lazycall import Call, resolved, value_at
from segment.errors import ConversionError

_BY_SHAPE = ("input_shape", "in_channels", "num_anchors", "num_classes")
"""Arguments that others determine. If they contradict, the shapes of the checkpoint's tensors are wrong, too."""
_TRAINING_OF_VIT = ("drop_path_rate", "rel_pos_zero_init", "use_act_checkpoint")
_PREDICTOR = "FastRCNNOutputLayers"
_BOTTLENECKS = ("BottleneckBlock", "DeformBottleneckBlock")
_GROUPS = (1, 2, 4, 8, 16, 32, 64)
MAX_STAGES = 4
"""Stages of a ResNet, from res2."""
_RES5_HEADS = "Res5ROIHeads"
RES4 = 4
"""The stage that Res5ROIHeads reads."""
LAST_LEVEL = 5
"""The coarsest level of a simple feature pyramid, because LastLevelMaxPool pools p5."""
TORCH_LN_EPSILON = 1e-5
"""The default of torch.nn.LayerNorm."""
AT_TEST_TIME = 1
"""The index in a pair of numbers for training and for test time."""


def parse(document: Mapping[str, Any]) -> Config:
    """The facts of a LazyConfig given as nested values. Raises ConversionError, which names the key."""
    model = Call(document, ("model",), "GeneralizedRCNN")
    image_format = _image_format(document, model)
    bottom_up, pyramid, maps = _backbone(model.call("backbone", "FPN", "SimpleFeaturePyramid", "ResNet"))
    rpn = model.call("proposal_generator", "RPN")
    feature = 0 if pyramid else _feature(rpn, maps)
    heads = _heads(model, feature)
    if feature:  # the heads must read the same map
        maps = {f"res{feature}": bottom_up.level(feature)}
    config = Config(
        format=image_format,
        mean=model.numbers("pixel_mean", ranges.PIXEL, 3),
        std=model.numbers("pixel_std", ranges.DIVISOR, 3),
        classes=heads.number("num_classes", ranges.CLASSES),
        bottom_up=bottom_up,
        pyramid=pyramid,
        feature=feature,
        proposals=_proposals(rpn, maps),
        box=_res5_head(heads, maps, bottom_up) if heads.target == _RES5_HEADS else _box_head(heads, maps),
        mask=_mask_head(heads, maps),
        res5_heads=heads.target == _RES5_HEADS,
    )
    heads.absent("keypoint_in_features", "keypoint_pooler", "keypoint_head")
    heads.finish()
    model.finish()
    return config


def _feature(rpn: Call, maps: Mapping[str, int]) -> int:
    """The stage that the RPN and the heads read if there is no feature pyramid."""
    given = rpn.take("in_features")
    if not isinstance(given, list) or len(given) != 1 or given[0] not in maps:
        raise ConversionError(
            f"{rpn.key('in_features')} is {shown(given)}; without a feature pyramid, it must be a list of one of "
            f"{', '.join(maps)}."
        )
    return int(str(given[0]).removeprefix("res"))


def _heads(model: Call, feature: int) -> Call:
    """The call that makes the heads. Res5ROIHeads only reads res4, and never a feature pyramid."""
    names = ("StandardROIHeads", "CascadeROIHeads")
    return model.call("roi_heads", *names, *((_RES5_HEADS,) if feature == RES4 else ()))


def _image_format(document: Mapping[str, Any], model: Call) -> str:
    """The order of the channels, which the test data's mapper determines and the model does not check."""
    image_format: str = model.one_of("input_format", ("BGR", "RGB"))
    path = ("dataloader", "test", "mapper", "image_format")
    if value_at(document, path) is not None:
        mapper = resolved(document, path)
        if mapper != image_format:
            raise ConversionError(
                f"dataloader.test.mapper.image_format is {shown(mapper)} and model.input_format is {image_format!r}; "
                "they must be the same."
            )
    return image_format


def _backbone(
    call: Call,
) -> tuple[ResNet | RegNet | ViT, Pyramid | SimplePyramid | None, dict[str, int]]:
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
    block = _block(stages, ("BasicBlock",) if depth in BASIC else _BOTTLENECKS)
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
    blocks = [_block(stage, (*_BOTTLENECKS, "BasicBlock"), required=True) for stage in stages]
    dilated = [i for i, stage in enumerate(stages) if stage.one_of("dilation", (1, 2) if _is_res5(i) else (1,), 1) == 2]
    plain = [replace(block, deformable=False, modulated=False, offset_groups=1) for block in blocks]
    deformable = [block for block in blocks if block.deformable]
    for number, stage in enumerate(stages):
        if plain[number] != plain[0] or (blocks[number].deformable and blocks[number] != deformable[0]):
            raise ConversionError(
                f"{stage.key('num_groups')}, norm, stride_in_1x1, deform_modulated and deform_num_groups must be the "
                "same in all stages, and so must BasicBlock as block_class."
            )
    _stem_norm(stem, stages[0], blocks[0])
    basic, channels = blocks[0].basic, stages[0].number("out_channels", ranges.CHANNELS)
    first = channels if basic else stages[0].number("bottleneck_channels", ranges.CHANNELS)
    into = stem_channels = stem.number("out_channels", ranges.CHANNELS)
    if first % blocks[0].groups:
        raise ConversionError(
            f"{stages[0].key('bottleneck_channels')} is {first}; it must be a multiple of num_groups."
        )
    for number, stage in enumerate(stages):
        stage.one_of("in_channels", (into,))
        into = stage.one_of("out_channels", (channels << number,))
        if not basic:
            stage.one_of("bottleneck_channels", (first << number,))
        strides = stage.numbers("stride_per_block", ranges.SIDE, stage.number("num_blocks", ranges.LAYERS))
        wanted = (2 if number and number not in dilated else 1, *[1] * (len(strides) - 1))
        if strides != wanted:
            raise ConversionError(
                f"{stage.key('stride_per_block')} is {shown(strides)}; supported: a stride of {wanted[0]}, then of 1."
            )
        stage.finish()
    return ResNet(
        blocks=tuple(stage.number("num_blocks", ranges.LAYERS) for stage in stages),
        norm=blocks[0].norm,
        groups=blocks[0].groups,
        width_per_group=first // blocks[0].groups,
        stem_channels=stem_channels,
        res2_channels=channels,
        stride_in_1x1=blocks[0].stride_in_1x1,
        deformable=tuple(number for number, block in enumerate(blocks, start=2) if block.deformable),
        modulated=any(block.modulated for block in blocks),
        offset_groups=deformable[0].offset_groups if deformable else 1,
        res5_dilation=2 if dilated else 1,
        basic=basic,
    )


def _is_res5(index: int) -> bool:
    """Whether the stage at this index of a list of stages is res5, the only one that can be dilated."""
    return index == MAX_STAGES - 1


@dataclass(frozen=True)
class _Block:
    """The arguments that make_default_stages and make_stage pass to every block."""

    basic: bool
    deformable: bool
    modulated: bool
    offset_groups: int
    groups: int
    norm: str
    stride_in_1x1: bool


def _block(stage: Call, classes: tuple[str, ...], *, required: bool = False) -> _Block:
    """The blocks of a stage; without `required`, the first of `classes` is the default."""
    name = stage.class_of("block_class", classes, required=required)
    if name == "BasicBlock":  # has no other arguments
        return _Block(
            basic=True,
            deformable=False,
            modulated=False,
            offset_groups=1,
            groups=1,
            norm=stage.norm("norm", "BN"),
            stride_in_1x1=False,
        )
    deformable = name.startswith("Deform")
    return _Block(
        basic=False,
        deformable=deformable,
        modulated=deformable and stage.flag("deform_modulated"),
        offset_groups=stage.one_of("deform_num_groups", _GROUPS, 1) if deformable else 1,
        groups=stage.one_of("num_groups", _GROUPS, 1),
        norm=stage.norm("norm", "BN"),
        stride_in_1x1=stage.flag("stride_in_1x1"),
    )


def _stem_norm(stem: Call, stages: Call, block: _Block) -> None:
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


def _proposals(call: Call, maps: Mapping[str, int]) -> Proposals:
    levels = call.levels("in_features", maps)
    head = call.call("head", "StandardRPNHead")
    anchors = call.call("anchor_generator", "DefaultAnchorGenerator")
    head.one_of("box_dim", (4,), 4)
    strides = anchors.numbers("strides", ranges.LENGTH, len(levels))
    if strides != tuple(2.0**level for level in levels):
        raise ConversionError(f"{anchors.key('strides')} is {strides}; it must be the strides of {levels}.")
    proposals = Proposals(
        levels=levels,
        conv_dims=ranges.conv_dims(head.key("conv_dims"), head.take("conv_dims", [-1])),
        anchors=Anchors(
            anchors.per_level("sizes", ranges.LENGTH, len(levels)),
            anchors.per_level("aspect_ratios", ranges.RATIO, len(levels)),
            anchors.number("offset", ranges.SHARE, 0.5),
        ),
        box_weights=_box_weights(call),
        nms=call.number("nms_thresh", ranges.OVERLAP, 0.7),
        before_nms=call.numbers("pre_nms_topk", ranges.COUNT, 2)[AT_TEST_TIME],
        after_nms=call.numbers("post_nms_topk", ranges.COUNT, 2)[AT_TEST_TIME],
        min_size=call.number("min_box_size", ranges.LENGTH_OR_NONE, 0.0),
    )
    if len({len(s) * len(r) for s, r in zip(proposals.anchors.sizes, proposals.anchors.ratios, strict=True)}) > 1:
        raise ConversionError(f"{anchors.key('sizes')} must give the same number of anchors on each level.")
    for part in (head, anchors, call):
        part.finish(_BY_SHAPE)
    return proposals


def _box_weights(call: Call) -> tuple[float, ...]:
    transform = call.call("box2box_transform", "Box2BoxTransform")
    weights = transform.numbers("weights", ranges.DIVISOR, 4)
    transform.finish()
    return weights


def _box_head(heads: Call, maps: Mapping[str, int]) -> BoxHead:
    pooler = _pooler(heads, maps, "box_in_features", "box_pooler")
    if heads.target == "StandardROIHeads":
        head, predictor = heads.call("box_head", "FastRCNNConvFCHead"), heads.call("box_predictor", _PREDICTOR)
        return _box_stage(head, predictor, pooler, cascade=False)
    box_heads, predictors = heads.calls("box_heads", "FastRCNNConvFCHead"), heads.calls("box_predictors", _PREDICTOR)
    if len(box_heads) != len(predictors):
        raise ConversionError(f"{heads.key('box_heads')} and {heads.key('box_predictors')} must have the same length.")
    stages = [
        _box_stage(head, predictor, pooler, cascade=True) for head, predictor in zip(box_heads, predictors, strict=True)
    ]
    last = stages[-1]
    if any(replace(stage, box_weights=last.box_weights) != last for stage in stages):
        raise ConversionError(f"{heads.key('box_heads')}: the stages may differ in box2box_transform only.")
    return replace(last, box_weights=tuple(stage.box_weights[0] for stage in stages))


def _box_stage(head: Call, predictor: Call, pooler: Pooler, *, cascade: bool) -> BoxHead:
    convs, fcs = head.dims("conv_dims"), head.dims("fc_dims")
    if not (fcs or convs):
        raise ConversionError(f"{head.key('fc_dims')} and conv_dims are both empty; one must list a layer.")
    stage = replace(
        _box_predictor(predictor, pooler),
        convs=len(convs),
        conv_channels=convs[0] if convs else 256,
        norm=head.norm("conv_norm", "", HEAD_NORMS),
        fcs=len(fcs),
        fc_channels=fcs[0] if fcs else 1024,
        cascade=cascade,
    )
    if cascade and not stage.agnostic:
        raise ConversionError(f"{predictor.key('cls_agnostic_bbox_reg')} must be true in a cascade.")
    head.finish(_BY_SHAPE)
    return stage


def _box_predictor(call: Call, pooler: Pooler) -> BoxHead:
    """The box head without layers of its own, as in Res5ROIHeads."""
    predictor = BoxHead(
        pooler=pooler,
        convs=0,
        conv_channels=256,
        norm="",
        fcs=0,
        fc_channels=1024,
        agnostic=call.flag("cls_agnostic_bbox_reg"),
        sigmoid=call.flag("use_sigmoid_ce"),
        cascade=False,
        box_weights=(_box_weights(call),),
        min_score=call.number("test_score_thresh", ranges.SCORE, 0.0),
        nms=call.number("test_nms_thresh", ranges.OVERLAP, 0.5),
        max_detections=call.number("test_topk_per_image", ranges.COUNT, 100),
    )
    call.finish(_BY_SHAPE)
    return predictor


def _res5_head(heads: Call, maps: Mapping[str, int], bottom_up: ResNet | RegNet | ViT) -> BoxHead:
    """The box head of Res5ROIHeads. Its res5 must be that of the backbone's ResNet."""
    assert isinstance(bottom_up, ResNet)
    res5, channels = heads.call("res5", "make_stage"), bottom_up.channels(RES4)
    block = _block(res5, _BOTTLENECKS, required=True)
    res5.one_of("dilation", (1,), 1)
    own = (block.norm, block.groups, block.stride_in_1x1, block.deformable)
    if own != (bottom_up.norm, bottom_up.groups, bottom_up.stride_in_1x1, False):
        raise ConversionError(
            f"{res5.key('norm')}, num_groups and stride_in_1x1 must be those of the backbone's stages, and block_class "
            "must be BottleneckBlock."
        )
    res5.one_of("num_blocks", (BLOCKS[50][3],))
    res5.one_of("stride_per_block", ([2, 1, 1], (2, 1, 1)))
    res5.one_of("in_channels", (channels,))
    res5.one_of("bottleneck_channels", (8 * bottom_up.groups * bottom_up.width_per_group,))
    res5.one_of("out_channels", (2 * channels,))
    res5.finish()
    return _box_predictor(heads.call("box_predictor", _PREDICTOR), _pooler(heads, maps, "in_features", "pooler"))


def _mask_head(heads: Call, maps: Mapping[str, int]) -> MaskHead:
    call = heads.call("mask_head", "MaskRCNNConvUpsampleHead")
    dims = call.dims("conv_dims")
    if not dims:
        raise ConversionError(f"{call.key('conv_dims')} is empty; its last value is the width of the upsampling.")
    classes = call.number("num_classes", ranges.CLASSES)
    pooler = ("in_features", "pooler") if heads.target == "Res5ROIHeads" else ("mask_in_features", "mask_pooler")
    mask = MaskHead(
        pooler=_pooler(heads, maps, *pooler),
        convs=len(dims) - 1,
        channels=dims[0],
        norm=call.norm("conv_norm", "", HEAD_NORMS),
        agnostic=classes == 1,
    )
    call.finish(_BY_SHAPE)
    return mask


def _pooler(heads: Call, maps: Mapping[str, int], features: str, name: str) -> Pooler:
    """The ROIPooler called `name`, which crops from the maps listed by `features`."""
    levels = heads.levels(features, maps)
    call = heads.call(name, "ROIPooler")
    aligned = call.one_of("pooler_type", POOLER_TYPES) == "ROIAlignV2"
    call.one_of("canonical_box_size", (224,), 224)
    call.one_of("canonical_level", (4,), 4)
    scales = call.numbers("scales", ranges.RATIO, len(levels))
    if scales != tuple(0.5**level for level in levels):
        raise ConversionError(f"{call.key('scales')} is {scales}; it must be 1 / stride of {features}.")
    side, samples = call.number("output_size", ranges.SIDE), call.number("sampling_ratio", ranges.SAMPLES)
    pooler = Pooler(levels, side, samples, aligned)
    call.finish()
    return pooler
