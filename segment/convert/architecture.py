"""The parts of the networks that can be converted, as values that determine the graph.

They are read from YAML configs (cfgnode.py) and LazyConfigs (lazyconfig.py).
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""ResNet depth -> blocks in res2, res3, res4, res5 (He et al. 2015, table 1)."""
BASIC = (18, 34)
"""Depths with basic blocks; the others have bottleneck blocks."""
BATCH_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
"""detectron2's batch norms (detectron2/layers/batch_norm.py). At test time, all are the same affine map."""
NORMS = ("", "GN", *BATCH_NORMS)
HEAD_NORMS = (*NORMS, "LN")
"""Norms of heads and feature pyramids. LN is a layer norm over the channels of each position."""
POOLER_TYPES = ("ROIAlignV2", "ROIAlign")


@dataclass(frozen=True)
class Anchors:
    """Anchor boxes of the RPN.

    `sizes[l]`: sizes on level l, in pixels. `ratios[l]`: height / width. `offset`: offset of the centres, in strides.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    offset: float


@dataclass(frozen=True)
class ResNet:
    """A ResNet or ResNeXt as the bottom-up network, with the stages res2, res3 and so on.

    `blocks`: the number of blocks of each stage that is built, from res2. `basic`: they are basic blocks, to which
    groups, widths and `stride_in_1x1` do not apply. `res5_dilation`: 2 keeps res5 at the stride of res4. `deformable`:
    the stages with deformable 3x3 convolutions. Each of the `offset_groups` groups of channels has its own offsets.
    `modulated`: each tap of the kernel also has a factor (v2).
    """

    blocks: tuple[int, ...]
    norm: str
    groups: int
    width_per_group: int
    stem_channels: int
    res2_channels: int
    stride_in_1x1: bool
    res5_dilation: int = 1
    deformable: tuple[int, ...] = ()
    modulated: bool = False
    offset_groups: int = 1
    basic: bool = False

    def inputs(self, stage: int) -> int:
        """Channels of the input of res`stage`."""
        return self.stem_channels if stage == 2 else self.channels(stage - 1)

    def channels(self, stage: int) -> int:
        """Channels of the output of res`stage`."""
        return self.res2_channels << (stage - 2)

    def width(self, stage: int) -> int:
        """Channels of the 3x3 convolutions of res`stage`, if it has bottleneck blocks."""
        return (self.groups * self.width_per_group) << (stage - 2)

    def dilation(self, stage: int) -> int:
        """Dilation of the 3x3 convolutions of res`stage`, if it has bottleneck blocks."""
        return self.res5_dilation if stage == 5 else 1

    def stride(self, stage: int) -> int:
        """Stride of the first block of res`stage`."""
        return 1 if stage == 2 or self.dilation(stage) == 2 else 2

    def level(self, stage: int) -> int:
        """The stride of the output of res`stage` as a power of two."""
        return stage - 1 if self.dilation(stage) == 2 else stage


@dataclass(frozen=True)
class RegNet:
    """A RegNet as the bottom-up network, with the stages s1, s2 and so on.

    `widths`, `blocks`, `group_widths`: one entry per stage. `se_ratio`: width of a squeeze-and-excitation layer,
    divided by the number of input channels of its block; 0 without such layers.
    """

    stem_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    group_widths: tuple[int, ...]
    se_ratio: float
    norm: str

    def channels(self, stage: int) -> int:
        """Channels of the map with stride 2^stage. s1 has stride 4, so it is stage 2."""
        return self.widths[stage - 2]

    def level(self, stage: int) -> int:
        """The stride of a stage as a power of two."""
        return stage


@dataclass(frozen=True)
class ViT:
    """A plain vision transformer as the bottom-up network: `depth` blocks on tokens of `patch` x `patch` pixels.

    `hidden`: width of the hidden layer of a block's MLP. `positions`: side of the square table of absolute position
    embeddings, 0 without one; `class_token`: the table has one additional row, which is not used. `relative_positions`:
    side of the map for which the relative position embeddings of the global blocks were made, 0 without any.
    `window_blocks`: blocks whose attention is within windows of `window` x `window` tokens; all others are global.
    `residual_blocks`: blocks that end with a bottleneck of convolutions. `epsilon`: that of the blocks' layer norms.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    qkv_bias: bool
    positions: int
    class_token: bool
    relative_positions: int
    window: int
    window_blocks: frozenset[int]
    residual_blocks: frozenset[int]
    epsilon: float

    def channels(self, stage: int) -> int:
        """Channels of the output, which is a single map."""
        return self.width

    def level(self, stage: int) -> int:
        """The stride of a map as a power of two."""
        return stage


@dataclass(frozen=True)
class SimplePyramid:
    """The feature pyramid of ViTDet, which is computed from one map. `levels`, `channels` and `norm` as in Pyramid.

    `square`: side in pixels of the square that every image is padded to; 0: images are not padded to a square.
    """

    levels: tuple[int, ...]
    channels: int
    norm: str
    square: int


@dataclass(frozen=True)
class Pyramid:
    """The feature pyramid (FPN). `levels`: log2 of the strides of its inputs, such as 2 for res2.

    `average`: whether merged maps are averaged instead of added.
    """

    levels: tuple[int, ...]
    channels: int
    norm: str
    average: bool


@dataclass(frozen=True)
class Proposals:
    """The region proposal network (RPN).

    `levels` as in Pyramid; the level above the pyramid's last one is that one, pooled. `nms`: IoU threshold.
    `before_nms`, `after_nms`: number of proposals per level before, and in total after non-maximum suppression.
    """

    levels: tuple[int, ...]
    conv_dims: tuple[int, ...]
    anchors: Anchors
    box_weights: tuple[float, ...]
    nms: float
    before_nms: int
    after_nms: int
    min_size: float


@dataclass(frozen=True)
class Pooler:
    """RoIAlign on the pyramid's `levels`. `aligned`: whether it is detectron2's ROIAlignV2, or ROIAlign (pooler.py)."""

    levels: tuple[int, ...]
    resolution: int
    sampling_ratio: int
    aligned: bool = True


@dataclass(frozen=True)
class BoxHead:
    """The box head. `box_weights` has one entry per stage of a cascade; without a cascade, it has one.

    `convs` and `fcs` are 0 if res5 is used instead (Config.res5_heads).
    """

    pooler: Pooler
    convs: int
    conv_channels: int
    norm: str
    fcs: int
    fc_channels: int
    agnostic: bool
    sigmoid: bool
    cascade: bool
    box_weights: tuple[tuple[float, ...], ...]
    min_score: float
    nms: float
    max_detections: int


@dataclass(frozen=True)
class MaskHead:
    """The mask head: `convs` 3x3 convolutions, upsampling by 2, and a 1x1 convolution that predicts.

    `res5`: it reads the output of res5, which has half the resolution of the pooler (Config.res5_heads).
    """

    pooler: Pooler
    convs: int
    channels: int
    norm: str
    agnostic: bool
    res5: bool = False

    @property
    def side(self) -> int:
        """Side of a mask: twice that of the features that the head reads."""
        return 2 * (-(-self.pooler.resolution // 2) if self.res5 else self.pooler.resolution)


@dataclass(frozen=True)
class ConvFCHead:
    """PointRend's coarse head: `resolution` x `resolution` points per box, sampled from the maps `levels`, a 2x2
    convolution with stride 2, and `fcs` fully connected layers."""

    levels: tuple[int, ...]
    resolution: int
    conv_channels: int
    fcs: int
    fc_channels: int


@dataclass(frozen=True)
class PointRend:
    """A mask head that renders masks point by point from the maps `levels`: PointRend, or `implicit` PointRend.

    `first_side`: side of the first grid, which is doubled `steps` times; each time, `points` points are predicted
    again. `coarse_side`: side of the coarse head's grid. `coarse_each_layer`: whether the input of every layer contains
    the coarse logits. `image_features`, `positions`: whether the input of Implicit PointRend contains these.
    """

    coarse: ConvFCHead
    levels: tuple[int, ...]
    fcs: int
    fc_channels: int
    classes: int
    agnostic: bool
    first_side: int
    steps: int
    points: int
    coarse_side: int = 0
    coarse_each_layer: bool = False
    implicit: bool = False
    image_features: bool = True
    positions: bool = False

    @property
    def side(self) -> int:
        """Side of a finished mask."""
        return self.first_side << self.steps

    @property
    def outputs(self) -> int:
        """Number of logits per point: one per class, or one in all if masks are class-agnostic."""
        return 1 if self.agnostic else self.classes


@dataclass(frozen=True)
class Config:
    """A Mask R-CNN at test time. `mean` and `std` have the channel order `format`.

    `pyramid`: None if the RPN and the heads read the stage `feature` of the bottom-up network; with a pyramid,
    `feature` is 0. `res5_heads`: res5 runs on each region, for boxes and masks, instead of on the image ("C4" models).
    """

    format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    bottom_up: ResNet | RegNet | ViT
    pyramid: Pyramid | SimplePyramid | None
    proposals: Proposals
    box: BoxHead
    mask: MaskHead | PointRend
    feature: int = 0
    res5_heads: bool = False

    @property
    def stride(self) -> int:
        """Stride of the coarsest map. With an FPN, the image is padded to a multiple of it."""
        return int(2 ** (self.pyramid.levels[-1] if self.pyramid else self.bottom_up.level(self.feature)))

    @property
    def square(self) -> int:
        """Side in pixels of the square that every image is padded to; 0 without such padding."""
        return self.pyramid.square if isinstance(self.pyramid, SimplePyramid) else 0

    @property
    def channels(self) -> int:
        """Channels of the maps that the RPN and the heads read."""
        return self.pyramid.channels if self.pyramid else self.bottom_up.channels(self.feature)
