"""Parse a detectron2 LazyConfig: the calls that would build the model, as `LazyConfig.save` writes them beside a run.

Each mapping with a `_target_` is a call of a class or function with keyword arguments
(detectron2/config/instantiate.py). Nothing is called here. The arguments are read, with the defaults of detectron2's
constructors, into the same Config as that of a YAML config. A call or an argument that is not supported is refused by
its key. lazybackbone.py parses the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segment.convert import lazybackbone, ranges
from segment.convert.architecture import (
    BLOCKS,
    HEAD_NORMS,
    POOLER_TYPES,
    Anchors,
    BoxHead,
    Config,
    MaskHead,
    Pooler,
    Proposals,
    RegNet,
    ResNet,
    ViT,
)
from segment.convert.document import shown
from segment.convert.lazycall import Call, resolved, value_at
from segment.errors import ConversionError

_BY_SHAPE = ("input_shape", "in_channels", "num_anchors", "num_classes")
"""Arguments that others determine. If they contradict, the shapes of the checkpoint's tensors are wrong, too."""
_PREDICTOR = "FastRCNNOutputLayers"
_RES5_HEADS = "Res5ROIHeads"
RES4 = 4
"""The stage that Res5ROIHeads reads."""
AT_TEST_TIME = 1
"""The index in a pair of numbers for training and for test time."""


def parse(document: Mapping[str, Any]) -> Config:
    """Parse a LazyConfig given as nested values. Raises ConversionError, which names the key."""
    model = Call(document, ("model",), "GeneralizedRCNN")
    image_format = _image_format(document, model)
    bottom_up, pyramid, maps = lazybackbone.backbone(model.call("backbone", "FPN", "SimpleFeaturePyramid", "ResNet"))
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
    block = lazybackbone.Block.of(res5, lazybackbone.BOTTLENECKS, required=True)
    own = (block.norm, block.groups, block.stride_in_1x1, block.deformable)
    if own != (bottom_up.norm, bottom_up.groups, bottom_up.stride_in_1x1, False):
        raise ConversionError(
            f"{res5.key('norm')}, num_groups and stride_in_1x1 must be those of the backbone's stages, and block_class "
            "must be BottleneckBlock."
        )
    res5.one_of("dilation", (1,), 1)
    res5.one_of("num_blocks", (BLOCKS[50][3],))
    width = 8 * bottom_up.groups * bottom_up.width_per_group
    lazybackbone.check_stage(res5, channels, 2 * channels, width, stride=2)
    return _box_predictor(heads.call("box_predictor", _PREDICTOR), _pooler(heads, maps, "in_features", "pooler"))


def _mask_head(heads: Call, maps: Mapping[str, int]) -> MaskHead:
    call = heads.call("mask_head", "MaskRCNNConvUpsampleHead")
    dims = call.dims("conv_dims")
    if not dims:
        raise ConversionError(f"{call.key('conv_dims')} is empty; its last value is the width of the upsampling.")
    classes = call.number("num_classes", ranges.CLASSES)
    res5 = heads.target == _RES5_HEADS
    pooler = ("in_features", "pooler") if res5 else ("mask_in_features", "mask_pooler")
    mask = MaskHead(
        pooler=_pooler(heads, maps, *pooler),
        convs=len(dims) - 1,
        channels=dims[0],
        norm=call.norm("conv_norm", "", HEAD_NORMS),
        agnostic=classes == 1,
        res5=res5,
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
