"""Parse detectron2's YAML configs (CfgNode), as `cfg.dump()` writes them.

Absent keys have detectron2's defaults (detectron2/config/defaults.py). Each number is read with its valid range
(ranges.py).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

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
    ConvFCHead,
    MaskHead,
    PointRend,
    Pooler,
    Proposals,
    Pyramid,
    ResNet,
)
from segment.convert.document import ELSEWHERE, shown
from segment.convert.ranges import Number, Range, Rows
from segment.errors import ConversionError

MAX_MASK_SIDE = 1024
"""Maximum side of PointRend's masks."""
MAX_LITERAL = 10_000
"""Maximum number of characters of a value that is written as Python source."""
_RES5_HEADS = "Res5ROIHeads"

Choices = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""Key -> detectron2's default, and the supported values."""

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
    keys = _Keys(document)
    keys.check(_REQUIRED)
    res5_heads = _heads(keys) == _RES5_HEADS
    resnet = _resnet(keys)
    pyramid = _pyramid(keys, resnet)
    if pyramid and res5_heads:
        raise ConversionError(
            "MODEL.ROI_HEADS.NAME is Res5ROIHeads and MODEL.BACKBONE.NAME is build_resnet_fpn_backbone; "
            "Res5ROIHeads is supported with build_resnet_backbone only."
        )
    feature = 0 if pyramid else _feature(keys, resnet)
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


def _heads(keys: _Keys) -> str:
    """The class of the ROI heads."""
    return str(keys.one_of("MODEL.ROI_HEADS.NAME", _RES5_HEADS, tuple(_MASK_HEADS_OF)))


def _classes(keys: _Keys) -> int:
    return keys.number("MODEL.ROI_HEADS.NUM_CLASSES", ranges.CLASSES, 80)


def _resnet(keys: _Keys) -> ResNet:
    stages = max(keys.levels("MODEL.RESNETS.OUT_FEATURES", "res", (2, 3, 4, 5), ["res4"], neighbours=False)) - 1
    depth = keys.one_of("MODEL.RESNETS.DEPTH", 50, tuple(BLOCKS))
    groups = keys.number("MODEL.RESNETS.NUM_GROUPS", ranges.CHANNELS, 1)
    width_per_group = keys.number("MODEL.RESNETS.WIDTH_PER_GROUP", ranges.CHANNELS, 64)
    deformable = _deformable(keys, stages)
    offset_groups = keys.number("MODEL.RESNETS.DEFORM_NUM_GROUPS", ranges.CHANNELS, 1)
    if deformable and groups * width_per_group % offset_groups:
        raise ConversionError(
            f"MODEL.RESNETS.DEFORM_NUM_GROUPS is {offset_groups}; it must divide the {groups * width_per_group} "
            "channels of res2's 3x3 convolutions."
        )
    resnet = ResNet(
        blocks=BLOCKS[depth][:stages],
        basic=depth in BASIC,
        res5_dilation=keys.one_of("MODEL.RESNETS.RES5_DILATION", 1, (1, 2)),
        norm=keys.one_of("MODEL.RESNETS.NORM", "FrozenBN", NORMS),
        groups=groups,
        width_per_group=width_per_group,
        stem_channels=keys.number("MODEL.RESNETS.STEM_OUT_CHANNELS", ranges.CHANNELS, 64),
        res2_channels=keys.number("MODEL.RESNETS.RES2_OUT_CHANNELS", ranges.CHANNELS, 256),
        stride_in_1x1=keys.flag("MODEL.RESNETS.STRIDE_IN_1X1", default=True),
        deformable=deformable,
        modulated=keys.flag("MODEL.RESNETS.DEFORM_MODULATED") and bool(deformable),
        offset_groups=offset_groups if deformable else 1,
    )
    if resnet.basic:
        _check_basic(resnet, depth)
    return resnet


def _check_basic(resnet: ResNet, depth: int) -> None:
    """Raise ConversionError for what basic blocks do not support (detectron2's build_resnet_backbone)."""
    for key, value, required in (
        ("RES2_OUT_CHANNELS", resnet.res2_channels, 64),
        ("DEFORM_ON_PER_STAGE", bool(resnet.deformable), False),
        ("RES5_DILATION", resnet.res5_dilation, 1),
        ("NUM_GROUPS", resnet.groups, 1),
    ):
        if value != required:
            raise ConversionError(f"MODEL.RESNETS.{key} is {value}; with DEPTH {depth}, it must be {required}.")


def _deformable(keys: _Keys, stages: int) -> tuple[int, ...]:
    """The stages with deformable convolutions, among those that are built."""
    key = "MODEL.RESNETS.DEFORM_ON_PER_STAGE"
    given = keys.get(key, [False] * 4)
    if not isinstance(given, list | tuple) or len(given) != 4 or not all(isinstance(on, bool) for on in given):
        raise ConversionError(f"{key} is {shown(given)}; it must be a list of 4 booleans, for res2 to res5.")
    if given[3] and _heads(keys) == _RES5_HEADS:
        raise ConversionError(f"{key} is {list(given)}; Res5ROIHeads has no deformable res5.")
    return tuple(stage for stage, on in enumerate(given[:stages], start=2) if on)


def _pyramid(keys: _Keys, resnet: ResNet) -> Pyramid | None:
    backbones = ("build_resnet_backbone", "build_resnet_fpn_backbone")
    if keys.one_of("MODEL.BACKBONE.NAME", backbones[0], backbones) == backbones[0]:
        return None
    built = tuple(range(2, 2 + len(resnet.blocks)))
    levels = keys.levels("MODEL.FPN.IN_FEATURES", "res", built)
    if resnet.res5_dilation != 1:
        raise ConversionError(
            f"MODEL.RESNETS.RES5_DILATION is {resnet.res5_dilation}; it must be 1 with build_resnet_fpn_backbone."
        )
    return Pyramid(
        levels=levels,
        channels=keys.number("MODEL.FPN.OUT_CHANNELS", ranges.CHANNELS, 256),
        norm=keys.one_of("MODEL.FPN.NORM", "", HEAD_NORMS),
        average=keys.one_of("MODEL.FPN.FUSE_TYPE", "sum", ("sum", "avg")) == "avg",
    )


def _feature(keys: _Keys, resnet: ResNet) -> int:
    """The stage that the RPN and the heads read if there is no pyramid."""
    built = tuple(range(2, 2 + len(resnet.blocks)))
    stages_read = (4,) if _heads(keys) == _RES5_HEADS else built
    proposals = keys.levels("MODEL.RPN.IN_FEATURES", "res", built, ["res4"])
    heads = keys.levels("MODEL.ROI_HEADS.IN_FEATURES", "res", stages_read, ["res4"])
    for key, stages in (("MODEL.RPN.IN_FEATURES", proposals), ("MODEL.ROI_HEADS.IN_FEATURES", heads)):
        if len(stages) > 1 or stages != heads:
            raise ConversionError(
                f"{key} is {['res' + str(stage) for stage in stages]}; without a feature pyramid, MODEL.RPN and "
                "MODEL.ROI_HEADS must both have the same single stage."
            )
    return heads[0]


def _proposals(keys: _Keys, levels: tuple[int, ...]) -> Proposals:
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


def _box_head(keys: _Keys, levels: tuple[int, ...]) -> BoxHead:
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


def _box_weights(keys: _Keys, cascade: bool) -> Rows[float]:
    """The weights of the box deltas, for each stage of a cascade."""
    single = [10.0, 10.0, 5.0, 5.0]
    if not cascade:
        return (keys.numbers("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", ranges.DIVISOR, single, 4),)
    key, default = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[n * each for each in single] for n in (1, 2, 3)]
    return ranges.DIVISOR.rows(key, keys.get(key, default), columns=4)


def _mask_head(keys: _Keys, levels: tuple[int, ...], pyramid: Pyramid | None) -> MaskHead | PointRend:
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


def _coarse_head(keys: _Keys, levels: tuple[int, ...], channels: int) -> ConvFCHead:
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


def _point_rend(keys: _Keys, levels: tuple[int, ...], coarse: ConvFCHead, *, implicit: bool) -> PointRend:
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


def _subdivision(keys: _Keys, points: int, coarse_side: int) -> tuple[int, int]:
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


def _pooler(keys: _Keys, head: str, levels: tuple[int, ...]) -> Pooler:
    return Pooler(
        levels=levels,
        resolution=keys.number(head + ".POOLER_RESOLUTION", ranges.SIDE, 14),
        sampling_ratio=keys.number(head + ".POOLER_SAMPLING_RATIO", ranges.SAMPLES, 0),
        aligned=keys.one_of(head + ".POOLER_TYPE", "ROIAlignV2", POOLER_TYPES) == "ROIAlignV2",
    )


class _Keys:
    """A nested mapping whose values are read by dotted key. Every error names the key."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def get(self, key: str, default: Any) -> Any:
        value: Any = self.document
        for part in key.split("."):
            if not isinstance(value, Mapping):
                raise ConversionError(f"{key} cannot be read: its parent is {shown(value)}, not a mapping.")
            if part not in value:
                return default
            value = value[part]
        return _decoded(value)

    def check(self, choices: Choices) -> None:
        """Raise ConversionError if one of these keys has a value that is not supported."""
        for key, (default, allowed) in choices.items():
            self.one_of(key, default, allowed)

    def one_of(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """The value. Raises ConversionError if it is not one of `allowed`."""
        value = self.get(key, default)
        if value not in allowed:
            raise ConversionError(
                f"{key} is {shown(value)}, which cannot be converted. Supported: "
                f"{', '.join(repr(a) for a in allowed)}. {ELSEWHERE}"
            )
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        return ranges.flag(key, self.get(key, default))

    def number(self, key: str, valid: Range[Number], default: Number) -> Number:
        return valid.one(key, self.get(key, default))

    def numbers(
        self, key: str, valid: Range[Number], default: list[Number], count: int | None = None
    ) -> tuple[Number, ...]:
        return valid.several(key, self.get(key, default), count)

    def per_level(self, key: str, valid: Range[Number], default: list[list[Number]], levels: int) -> Rows[Number]:
        return valid.per_level(key, self.get(key, default), levels)

    def levels(
        self, key: str, prefix: str, allowed: tuple[int, ...], default: Sequence[str] = (), *, neighbours: bool = True
    ) -> tuple[int, ...]:
        """The levels of the feature maps that `key` lists, of those called `prefix` and a level in `allowed`."""
        known = {f"{prefix}{level}": level for level in allowed}
        return ranges.levels(key, self.get(key, default), known, neighbours=neighbours)


def _decoded(value: Any) -> Any:
    """A value as detectron2 reads it: text that is a Python literal, such as a tuple, is that literal.

    fvcore/common/config.py and yacs (CfgNode._decode_cfg_value).
    """
    if not isinstance(value, str) or len(value) > MAX_LITERAL:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
