"""Parse detectron2's YAML configs (CfgNode), as `cfg.dump()` writes them.

Absent keys have detectron2's defaults (detectron2/config/defaults.py). Each number is read with its valid range
(ranges.py). cfgbackbone.py parses the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from segment.convert import cfgbackbone, ranges
from segment.convert.architecture import (
    HEAD_NORMS,
    POOLER_TYPES,
    Anchors,
    BoxHead,
    Config,
    ConvFCHead,
    MaskHead,
    PointRend,
    Pooler,
    Proposals,
    Pyramid,
)
from segment.convert.cfgkeys import Choices, Keys
from segment.convert.ranges import Rows
from segment.errors import ConversionError

MAX_MASK_SIDE = 1024
"""Maximum side of PointRend's masks."""
_RES5_HEADS = "Res5ROIHeads"

_REQUIRED: Choices = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", ("GeneralizedRCNN",)),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", ("RPN",)),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead", ("StandardRPNHead",)),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator", ("DefaultAnchorGenerator",)),
    "MODEL.MASK_ON": (False, (True,)),
    "MODEL.KEYPOINT_ON": (False, (False,)),
    "MODEL.LOAD_PROPOSALS": (False, (False,)),
    "VERSION": (2, (2,)),  # in version 1, thresholds and others have different keys (detectron2/config/compat.py)
}
_REQUIRED_OF_POINT_REND: Choices = {
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": (False, (True,)),
    "MODEL.POINT_HEAD.NAME": ("StandardPointHead", ("StandardPointHead",)),
}
_NO_POOLER: Choices = {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", ("",))}
_REQUIRED_OF_MASK_HEADS: Mapping[str, Choices] = {
    "MaskRCNNConvUpsampleHead": {},
    "PointRendMaskHead": {**_NO_POOLER, **_REQUIRED_OF_POINT_REND},
    "ImplicitPointRendMaskHead": {
        **_NO_POOLER,
        "MODEL.POINT_HEAD.NAME": ("StandardPointHead", ("ImplicitPointHead",)),
    },
    # The name of PointRendMaskHead in 2020. PointRendROIHeads ignores its POOLER_TYPE.
    "CoarseMaskHead": {
        "MODEL.ROI_HEADS.NAME": (_RES5_HEADS, ("PointRendROIHeads",)),
        **_REQUIRED_OF_POINT_REND,
    },
}
_MASK_HEADS_OF: Mapping[str, tuple[str, ...]] = {
    "StandardROIHeads": tuple(_REQUIRED_OF_MASK_HEADS),
    "CascadeROIHeads": tuple(_REQUIRED_OF_MASK_HEADS),
    _RES5_HEADS: ("MaskRCNNConvUpsampleHead",),
    "PointRendROIHeads": ("PointRendMaskHead", "CoarseMaskHead"),
}
"""The ROI heads, and the mask heads that each supports."""
_POINT_SUPERVISED = {
    "MaskRCNNConvUpsamplePointSupHead": "MaskRCNNConvUpsampleHead",
    "ImplicitPointRendPointSupHead": "ImplicitPointRendMaskHead",
}
"""Mask heads of detectron2's projects/PointSup, and the heads that they are at test time."""


def parse(document: Mapping[str, Any]) -> Config:
    """Parse a YAML config given as nested mappings. Raises ConversionError, which names the key."""
    keys = Keys(document)
    keys.check(_REQUIRED)
    res5_heads = _heads(keys) == _RES5_HEADS
    resnet = cfgbackbone.resnet(keys, res5_heads=res5_heads)
    pyramid = cfgbackbone.pyramid(keys, resnet)
    if pyramid and res5_heads:
        raise ConversionError(
            "MODEL.ROI_HEADS.NAME is Res5ROIHeads and MODEL.BACKBONE.NAME is build_resnet_fpn_backbone; "
            "Res5ROIHeads is supported with build_resnet_backbone only."
        )
    feature = 0 if pyramid else cfgbackbone.feature(keys, resnet, res5_heads=res5_heads)
    if pyramid:
        rpn_levels = keys.levels("MODEL.RPN.IN_FEATURES", "p", (*pyramid.levels, pyramid.levels[-1] + 1))
        roi_levels = keys.levels("MODEL.ROI_HEADS.IN_FEATURES", "p", (*pyramid.levels, pyramid.levels[-1] + 1))
    else:
        rpn_levels = roi_levels = (resnet.level(feature),)
    return Config(
        format=keys.one_of("INPUT.FORMAT", "BGR", ("BGR", "RGB")),
        mean=keys.numbers("MODEL.PIXEL_MEAN", ranges.PIXEL, [103.53, 116.28, 123.675], 3),
        std=keys.numbers("MODEL.PIXEL_STD", ranges.DIVISOR, [1.0, 1.0, 1.0], 3),
        classes=_classes(keys),
        bottom_up=resnet,
        pyramid=pyramid,
        feature=feature,
        proposals=_proposals(keys, rpn_levels),
        box=_box_head(keys, roi_levels),
        mask=_mask_head(keys, roi_levels, pyramid),
        res5_heads=res5_heads,
    )


def _heads(keys: Keys) -> str:
    """The class of the ROI heads."""
    return str(keys.one_of("MODEL.ROI_HEADS.NAME", _RES5_HEADS, tuple(_MASK_HEADS_OF)))


def _classes(keys: Keys) -> int:
    return keys.number("MODEL.ROI_HEADS.NUM_CLASSES", ranges.CLASSES, 80)


def _proposals(keys: Keys, levels: tuple[int, ...]) -> Proposals:
    default = [[32.0, 64.0, 128.0, 256.0, 512.0]]
    sizes = keys.per_level("MODEL.ANCHOR_GENERATOR.SIZES", ranges.LENGTH, default, len(levels))
    ratios = keys.per_level("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ranges.RATIO, [[0.5, 1.0, 2.0]], len(levels))
    counts = {len(s) * len(r) for s, r in zip(sizes, ratios, strict=True)}
    if len(counts) > 1:
        raise ConversionError(
            f"MODEL.ANCHOR_GENERATOR has {sorted(counts)} anchors per position on different levels; "
            "the number must be the same on all levels."
        )
    return Proposals(
        levels=levels,
        conv_dims=ranges.conv_dims("MODEL.RPN.CONV_DIMS", keys.get("MODEL.RPN.CONV_DIMS", [-1])),
        anchors=Anchors(sizes, ratios, keys.number("MODEL.ANCHOR_GENERATOR.OFFSET", ranges.SHARE, 0.0)),
        box_weights=keys.numbers("MODEL.RPN.BBOX_REG_WEIGHTS", ranges.DIVISOR, [1.0] * 4, 4),
        nms=keys.number("MODEL.RPN.NMS_THRESH", ranges.OVERLAP, 0.7),
        before_nms=keys.number("MODEL.RPN.PRE_NMS_TOPK_TEST", ranges.COUNT, 6000),
        after_nms=keys.number("MODEL.RPN.POST_NMS_TOPK_TEST", ranges.COUNT, 1000),
        min_size=keys.number("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", ranges.LENGTH_OR_NONE, 0.0),
    )


def _box_head(keys: Keys, levels: tuple[int, ...]) -> BoxHead:
    heads = _heads(keys)
    agnostic = keys.flag("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    cascade = heads == "CascadeROIHeads"
    if cascade and not agnostic:
        raise ConversionError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is false; it must be true with CascadeROIHeads."
        )
    convs, fcs, norm = 0, 0, ""
    if heads != _RES5_HEADS:
        keys.one_of("MODEL.ROI_BOX_HEAD.NAME", "", ("FastRCNNConvFCHead",))
        convs = keys.number("MODEL.ROI_BOX_HEAD.NUM_CONV", ranges.LAYERS_OR_NONE, 0)
        fcs = keys.number("MODEL.ROI_BOX_HEAD.NUM_FC", ranges.LAYERS_OR_NONE, 0)
        norm = keys.one_of("MODEL.ROI_BOX_HEAD.NORM", "", HEAD_NORMS)
        if not (fcs or convs):
            raise ConversionError("MODEL.ROI_BOX_HEAD.NUM_FC and NUM_CONV are both 0; one must be at least 1.")
    return BoxHead(
        pooler=_pooler(keys, "MODEL.ROI_BOX_HEAD", levels),
        convs=convs,
        conv_channels=keys.number("MODEL.ROI_BOX_HEAD.CONV_DIM", ranges.CHANNELS, 256),
        norm=norm,
        fcs=fcs,
        fc_channels=keys.number("MODEL.ROI_BOX_HEAD.FC_DIM", ranges.CHANNELS, 1024),
        agnostic=agnostic,
        sigmoid=keys.flag("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
        cascade=cascade,
        box_weights=_box_weights(keys, cascade),
        min_score=keys.number("MODEL.ROI_HEADS.SCORE_THRESH_TEST", ranges.SCORE, 0.05),
        nms=keys.number("MODEL.ROI_HEADS.NMS_THRESH_TEST", ranges.OVERLAP, 0.5),
        max_detections=keys.number("TEST.DETECTIONS_PER_IMAGE", ranges.COUNT, 100),
    )


def _box_weights(keys: Keys, cascade: bool) -> Rows[float]:
    """The weights of the box deltas, for each stage of a cascade."""
    single = [10.0, 10.0, 5.0, 5.0]
    if not cascade:
        return (keys.numbers("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", ranges.DIVISOR, single, 4),)
    key, default = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[n * each for each in single] for n in (1, 2, 3)]
    return ranges.DIVISOR.rows(key, keys.get(key, default), columns=4)


def _mask_head(keys: Keys, levels: tuple[int, ...], pyramid: Pyramid | None) -> MaskHead | PointRend:
    supported = _MASK_HEADS_OF[_heads(keys)]
    point_supervised = tuple(name for name, same in _POINT_SUPERVISED.items() if same in supported)
    name = keys.one_of("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", (*supported, *point_supervised))
    name = _POINT_SUPERVISED.get(name, name)
    keys.check(_REQUIRED_OF_MASK_HEADS[name])
    if name == "MaskRCNNConvUpsampleHead":
        res5 = _heads(keys) == _RES5_HEADS
        return MaskHead(
            pooler=_pooler(keys, "MODEL.ROI_BOX_HEAD" if res5 else "MODEL.ROI_MASK_HEAD", levels),
            convs=keys.number("MODEL.ROI_MASK_HEAD.NUM_CONV", ranges.LAYERS_OR_NONE, 0),
            channels=keys.number("MODEL.ROI_MASK_HEAD.CONV_DIM", ranges.CHANNELS, 256),
            norm=keys.one_of("MODEL.ROI_MASK_HEAD.NORM", "", HEAD_NORMS),
            agnostic=keys.flag("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"),
            res5=res5,
        )
    if not pyramid:
        raise ConversionError(
            f"MODEL.ROI_MASK_HEAD.NAME is {name} and there is no feature pyramid; "
            "it is supported with MODEL.BACKBONE.NAME build_resnet_fpn_backbone only."
        )
    coarse = _coarse_head(keys, levels, pyramid.channels)
    return _point_rend(keys, levels, coarse, implicit=name == "ImplicitPointRendMaskHead")


def _coarse_head(keys: Keys, levels: tuple[int, ...], channels: int) -> ConvFCHead:
    """PointRend's coarse head, with the defaults of point_rend/config.py. `channels`: those of the maps."""
    head = ConvFCHead(
        levels=keys.levels("MODEL.ROI_MASK_HEAD.IN_FEATURES", "p", levels, ["p2"]),
        resolution=keys.number("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", ranges.SIDE, 14),
        conv_channels=keys.number("MODEL.ROI_MASK_HEAD.CONV_DIM", ranges.CHANNELS, 256),
        fcs=keys.number("MODEL.ROI_MASK_HEAD.NUM_FC", ranges.LAYERS, 2),
        fc_channels=keys.number("MODEL.ROI_MASK_HEAD.FC_DIM", ranges.CHANNELS, 1024),
    )
    if head.resolution % 2:
        raise ConversionError(
            f"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION is {head.resolution}; it must be even for PointRend."
        )
    if head.conv_channels > channels * len(head.levels):
        raise ConversionError(
            f"MODEL.ROI_MASK_HEAD.CONV_DIM is {head.conv_channels}; for PointRend it must be at most the number of "
            f"input channels, {channels * len(head.levels)}."
        )
    return head


def _point_rend(keys: Keys, levels: tuple[int, ...], coarse: ConvFCHead, *, implicit: bool) -> PointRend:
    """The defaults are those of detectron2's projects/PointRend (point_rend/config.py, add_pointrend_config)."""
    classes = _classes(keys)
    if (own := keys.number("MODEL.POINT_HEAD.NUM_CLASSES", ranges.CLASSES, 80)) != classes:
        raise ConversionError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {own} and MODEL.ROI_HEADS.NUM_CLASSES is {classes}; they must be equal."
        )
    points = keys.number("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", ranges.POINTS, 28 * 28)
    coarse_side = 0
    if not implicit:
        coarse_side = keys.number("MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", ranges.COARSE_SIDE, 7)
    first_side, steps = _subdivision(keys, points, coarse_side)
    head = PointRend(
        coarse=coarse,
        levels=keys.levels("MODEL.POINT_HEAD.IN_FEATURES", "p", levels, ["p2"], neighbours=False),
        fcs=keys.number("MODEL.POINT_HEAD.NUM_FC", ranges.LAYERS, 3),
        fc_channels=keys.number("MODEL.POINT_HEAD.FC_DIM", ranges.CHANNELS, 256),
        classes=classes,
        agnostic=keys.flag("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK"),
        first_side=first_side,
        steps=steps,
        points=points,
        coarse_side=coarse_side,
        coarse_each_layer=not implicit and keys.flag("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", default=True),
        implicit=implicit,
        image_features=not implicit or keys.flag("MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED", default=True),
        positions=implicit and keys.flag("MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", default=True),
    )
    if not (head.image_features or head.positions):
        raise ConversionError(
            "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED and POS_ENC_ENABLED are both false; one must be true."
        )
    return head


def _subdivision(keys: Keys, points: int, coarse_side: int) -> tuple[int, int]:
    """Side of the first grid of PointRend, and how often it is doubled.

    `coarse_side`: side of the coarse head's grid; 0 for Implicit PointRend, whose first grid has `points` points.
    """
    steps = asked_steps = keys.number("MODEL.POINT_HEAD.SUBDIVISION_STEPS", ranges.STEPS, 5)
    side = coarse_side or isqrt(points)
    if not coarse_side and side**2 != points:
        raise ConversionError(
            f"MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS is {points}; for Implicit PointRend it must be a square number."
        )
    while 4 * side**2 <= points:  # upstream skips the steps that would predict every point again
        side, steps = 2 * side, steps - 1
    if steps < 0:
        raise ConversionError(
            f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {asked_steps}; with SUBDIVISION_NUM_POINTS {points} it must be at "
            f"least {asked_steps - steps}."
        )
    if side << steps > MAX_MASK_SIDE:
        raise ConversionError(
            f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {asked_steps}, which gives masks of {side << steps} x "
            f"{side << steps}; the maximum is {MAX_MASK_SIDE} x {MAX_MASK_SIDE}."
        )
    return side, steps


def _pooler(keys: Keys, head: str, levels: tuple[int, ...]) -> Pooler:
    return Pooler(
        levels=levels,
        resolution=keys.number(head + ".POOLER_RESOLUTION", ranges.SIDE, 14),
        sampling_ratio=keys.number(head + ".POOLER_SAMPLING_RATIO", ranges.SAMPLES, 0),
        aligned=keys.one_of(head + ".POOLER_TYPE", "ROIAlignV2", POOLER_TYPES) == "ROIAlignV2",
    )
