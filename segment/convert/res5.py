"""The second stage of "C4" models, where res5 of the ResNet runs on each region instead of on the image.

He et al., "Deep Residual Learning", 2015, appendix A; detectron2/modeling/roi_heads/roi_heads.py (Res5ROIHeads). Boxes
and masks share the weights. res5 runs on every proposal, which takes most of the network's time.
"""

from __future__ import annotations

from dataclasses import replace

from segment.convert import backbone, chunks, pooler
from segment.convert.architecture import Config, ResNet
from segment.convert.chunks import Rows
from segment.convert.graph import Graph
from segment.convert.weights import Weights

NAME, STAGE = "roi_heads.res5", 5
CHUNK = 20
"""Regions that res5 runs on at a time. The crop of one takes 0.8 MB (1,024 x 14 x 14 float32)."""


def box_features(g: Graph, w: Weights, config: Config, maps: dict[int, str], boxes: str) -> tuple[str, int]:
    """boxes (N, 4) -> the mean of each region's features (N, C), and C."""
    part = "box_regions"
    (boxes,) = chunks.padded(g, part, CHUNK, Rows(boxes, (4,)))
    (boxes,) = chunks.begin(g, part, CHUNK, Rows(boxes, (4,)))
    x, channels = features(g, w, config, maps, boxes)
    x = chunks.end(g, part, g.op("ReduceMean", x, axes=[2, 3], keepdims=0))
    return chunks.unpadded(g, part, x), channels


def features(g: Graph, w: Weights, config: Config, maps: dict[int, str], boxes: str) -> tuple[str, int]:
    """boxes (N, 4) -> the features of each region (N, C, r / 2, r / 2), and C."""
    crops = pooler.crop(g, config.box.pooler, maps, pooler.assign(g, config.box.pooler, boxes))
    resnet = network(config)
    return backbone.stage(g, w, resnet, crops, NAME, STAGE), resnet.channels(STAGE)


def network(config: Config) -> ResNet:
    """The backbone with the heads' res5: in all of these models, three bottleneck blocks without dilation."""
    assert isinstance(config.bottom_up, ResNet)
    return replace(config.bottom_up, blocks=(*config.bottom_up.blocks[:3], 3), basic=False, res5_dilation=1)
