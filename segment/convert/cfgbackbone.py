"""Parse the backbone of a YAML config: a ResNet, and its feature pyramid."""

from __future__ import annotations

from segment.convert import ranges
from segment.convert.architecture import BASIC, BLOCKS, HEAD_NORMS, NORMS, Pyramid, ResNet
from segment.convert.cfgkeys import Keys
from segment.convert.document import shown
from segment.errors import ConversionError


def resnet(keys: Keys, *, res5_heads: bool) -> ResNet:
    """The ResNet. `res5_heads`: Res5ROIHeads is the heads' class, which has a res5 of its own."""
    stages = max(keys.levels("MODEL.RESNETS.OUT_FEATURES", "res", (2, 3, 4, 5), ["res4"], neighbours=False)) - 1
    depth = keys.one_of("MODEL.RESNETS.DEPTH", 50, tuple(BLOCKS))
    groups = keys.number("MODEL.RESNETS.NUM_GROUPS", ranges.CHANNELS, 1)
    width_per_group = keys.number("MODEL.RESNETS.WIDTH_PER_GROUP", ranges.CHANNELS, 64)
    deformable = _deformable(keys, stages, res5_heads=res5_heads)
    offset_groups = keys.number("MODEL.RESNETS.DEFORM_NUM_GROUPS", ranges.CHANNELS, 1)
    if deformable and groups * width_per_group % offset_groups:
        raise ConversionError(
            f"MODEL.RESNETS.DEFORM_NUM_GROUPS is {offset_groups}; it must divide the {groups * width_per_group} "
            "channels of res2's 3x3 convolutions."
        )
    network = ResNet(
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
    if network.basic:
        _check_basic(network, depth)
    return network


def _check_basic(network: ResNet, depth: int) -> None:
    """Raise ConversionError for what basic blocks do not support (detectron2's build_resnet_backbone)."""
    for key, value, required in (
        ("RES2_OUT_CHANNELS", network.res2_channels, 64),
        ("DEFORM_ON_PER_STAGE", bool(network.deformable), False),
        ("RES5_DILATION", network.res5_dilation, 1),
        ("NUM_GROUPS", network.groups, 1),
    ):
        if value != required:
            raise ConversionError(f"MODEL.RESNETS.{key} is {value}; with DEPTH {depth}, it must be {required}.")


def _deformable(keys: Keys, stages: int, *, res5_heads: bool) -> tuple[int, ...]:
    """The stages with deformable convolutions, among those that are built."""
    key = "MODEL.RESNETS.DEFORM_ON_PER_STAGE"
    given = keys.get(key, [False] * 4)
    if not isinstance(given, list | tuple) or len(given) != 4 or not all(isinstance(on, bool) for on in given):
        raise ConversionError(f"{key} is {shown(given)}; it must be a list of 4 booleans, for res2 to res5.")
    if given[3] and res5_heads:
        raise ConversionError(f"{key} is {list(given)}; Res5ROIHeads has no deformable res5.")
    return tuple(stage for stage, on in enumerate(given[:stages], start=2) if on)


def pyramid(keys: Keys, network: ResNet) -> Pyramid | None:
    """The feature pyramid; None without one."""
    backbones = ("build_resnet_backbone", "build_resnet_fpn_backbone")
    if keys.one_of("MODEL.BACKBONE.NAME", backbones[0], backbones) == backbones[0]:
        return None
    built = tuple(range(2, 2 + len(network.blocks)))
    levels = keys.levels("MODEL.FPN.IN_FEATURES", "res", built)
    if network.res5_dilation != 1:
        raise ConversionError(
            f"MODEL.RESNETS.RES5_DILATION is {network.res5_dilation}; it must be 1 with build_resnet_fpn_backbone."
        )
    return Pyramid(
        levels=levels,
        channels=keys.number("MODEL.FPN.OUT_CHANNELS", ranges.CHANNELS, 256),
        norm=keys.one_of("MODEL.FPN.NORM", "", HEAD_NORMS),
        average=keys.one_of("MODEL.FPN.FUSE_TYPE", "sum", ("sum", "avg")) == "avg",
    )


def feature(keys: Keys, network: ResNet, *, res5_heads: bool) -> int:
    """The stage that the RPN and the heads read if there is no pyramid."""
    built = tuple(range(2, 2 + len(network.blocks)))
    stages_read = (4,) if res5_heads else built
    proposals = keys.levels("MODEL.RPN.IN_FEATURES", "res", built, ["res4"])
    heads = keys.levels("MODEL.ROI_HEADS.IN_FEATURES", "res", stages_read, ["res4"])
    for key, stages in (("MODEL.RPN.IN_FEATURES", proposals), ("MODEL.ROI_HEADS.IN_FEATURES", heads)):
        if len(stages) > 1 or stages != heads:
            raise ConversionError(
                f"{key} is {['res' + str(stage) for stage in stages]}; without a feature pyramid, MODEL.RPN and "
                "MODEL.ROI_HEADS must both have the same single stage."
            )
    return heads[0]
