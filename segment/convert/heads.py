"""The second stage: proposals -> boxes, scores, classes and masks.

He et al., "Mask R-CNN", 2017; Cai and Vasconcelos, "Cascade R-CNN", 2018; detectron2/modeling/roi_heads/
(box_head.py, fast_rcnn.py, cascade_rcnn.py, mask_head.py) and detectron2/modeling/poolers.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segment.convert import boxes as box
from segment.convert.backbone import convolution
from segment.convert.config import BoxHead, Config, MaskHead, Pooler
from segment.convert.graph import Graph
from segment.convert.weights import Weights

CANONICAL_LEVEL, CANONICAL_SIZE = 4, 224
"""A box of 224 x 224 pixels is pooled from level 4 (FPN paper, equation 1)."""
MANY_CLASSES = 200
"""Up to this many, all classes' masks are predicted and one is kept, as upstream does it: one int8 convolution, 0.25 MB
an instance with 80 classes. Above, as in LVIS, each instance is multiplied with its own class's weights in float."""


@dataclass(frozen=True)
class Found:
    """What the box head found: tensor names of boxes (N, 4), scores (N,), classes (N,) int64."""

    boxes: str
    scores: str
    classes: str


def pool(g: Graph, pooler: Pooler, maps: dict[int, str], rois: str) -> tuple[str, str]:
    """Crop each of rois (N, 4) from the level that suits its size: (crops (N, C, r, r), order (N,) int64).

    The crops come out level by level: crop i is of roi order[i]. What follows takes that order, since the crops of
    1,000 rois are 50 MB, too much to put back in place.
    """
    size = g.op("Sqrt", box.area(g, rois))
    ratio = g.op("Add", g.op("Div", size, g.scalar(CANONICAL_SIZE)), g.scalar(1e-8))
    log2 = g.op("Div", g.op("Log", ratio), g.scalar(0.6931471805599453))
    level = g.op("Floor", g.op("Add", log2, g.scalar(CANONICAL_LEVEL)))
    level = g.op("Clip", level, g.scalar(pooler.levels[0]), g.scalar(pooler.levels[-1]))
    crops, places = [], []
    for at in pooler.levels:
        index = g.reshape(g.op("NonZero", g.op("Equal", level, g.scalar(at))), -1)
        zeros = g.op("Mul", index, g.ints(0))
        crops.append(
            g.op(
                "RoiAlign",
                maps[at],
                g.gather(rois, index),
                zeros,
                coordinate_transformation_mode="half_pixel",
                output_height=pooler.resolution,
                output_width=pooler.resolution,
                sampling_ratio=pooler.sampling_ratio,
                spatial_scale=1 / 2**at,
                mode="avg",
            )
        )
        places.append(index)
    return g.op("Concat", *crops, axis=0), g.op("Concat", *places, axis=0)


def box_head(
    g: Graph, w: Weights, config: Config, maps: dict[int, str], rois: str, frame: box.Frame
) -> tuple[str, str]:
    """rois (N, 4) -> scores (N, classes), boxes (N, k, 4); k is 1 when boxes are class-agnostic, else classes.

    A cascade refines the boxes in stages and averages their scores.
    """
    head = config.box
    scores: list[str] = []
    for stage, weights in enumerate(head.box_weights):
        suffix = f".{stage}" if head.cascade else ""
        crops, order = pool(g, head.pooler, maps, rois)
        rois, scores = g.gather(rois, order), [g.gather(earlier, order) for earlier in scores]
        x = _box_features(g, w, config, crops, "roi_heads.box_head" + suffix)
        name = "roi_heads.box_predictor" + suffix
        logits = _linear(g, w, x, name + ".cls_score", head.fc_channels, config.classes + 1)
        scores.append(g.op("Sigmoid", logits) if head.sigmoid else g.op("Softmax", logits, axis=1))
        per_roi = 1 if head.agnostic else config.classes
        deltas = _linear(g, w, x, name + ".bbox_pred", head.fc_channels, 4 * per_roi)
        each = g.op("Unsqueeze", rois, g.ints(1))
        if per_roi > 1:
            each = g.op("Expand", each, g.ints(1, per_roi, 1))
        rois = box.decode(g, g.reshape(each, -1, 4), g.reshape(deltas, -1, 4), weights)
        rois = box.clip(g, rois, frame)
    mean = scores[0] if len(scores) == 1 else g.op("Mean", *scores)
    return g.slice(mean, g.ints(0), g.ints(config.classes), axis=1), g.reshape(rois, -1, per_roi, 4)


def _box_features(g: Graph, w: Weights, config: Config, x: str, name: str) -> str:
    """(N, C, r, r) -> (N, fc_channels)."""
    head, into = config.box, config.pyramid.channels
    for i in range(1, head.convs + 1):
        x = convolution(g, w, x, f"{name}.conv{i}", into, head.conv_channels, kernel=3, norm=head.norm, relu=True)
        into = head.conv_channels
    width = into * head.pooler.resolution**2
    x = g.reshape(x, -1, width)
    for i in range(1, head.fcs + 1):
        x = g.op("Relu", _linear(g, w, x, f"{name}.fc{i}", width, head.fc_channels))
        width = head.fc_channels
    return x


def _linear(g: Graph, w: Weights, x: str, name: str, into: int, out: int) -> str:
    return g.linear(x, w.take(f"{name}.weight", out, into), w.take(f"{name}.bias", out), name=name)


def select(
    g: Graph, head: BoxHead, classes: int, scores: str, boxes: str, min_score: str, max_detections: str
) -> Found:
    """scores (N, classes), boxes (N, k, 4) -> the best after non-maximum suppression per class.

    `min_score` float32 scalar and `max_detections` int64 scalar narrow what the config admits, never widen it.
    """
    by_class = g.op("Transpose", scores, perm=[1, 0])  # (classes, N)
    if head.agnostic:  # one image with all classes
        batched, axes, column = g.op("Transpose", boxes, perm=[1, 0, 2]), g.ints(0), 1
    else:  # one "image" per class, since each class has boxes of its own
        batched, axes, column = g.op("Transpose", boxes, perm=[1, 0, 2]), g.ints(1), 0
    threshold = g.op("Unsqueeze", g.op("Max", min_score, g.scalar(head.min_score)), g.ints(0))
    kept = g.op(
        "NonMaxSuppression",
        batched,
        g.op("Unsqueeze", by_class, axes),
        g.ints(head.max_detections),
        g.constant([head.nms], "float32"),
        threshold,
    )
    label, roi = g.column(kept, column), g.column(kept, 2)
    count = g.op("Shape", roi)
    flat = g.op("Add", g.op("Mul", label, g.dim(by_class, 1)), roi)
    most = g.minimum(g.op("Unsqueeze", max_detections, g.ints(0)), g.ints(head.max_detections))
    best, order = g.top(g.gather(g.reshape(by_class, -1), flat), g.minimum(most, count))
    label, roi = g.gather(label, order), g.gather(roi, order)
    at = roi if head.agnostic else g.op("Add", g.op("Mul", label, g.dim(by_class, 1)), roi)
    return Found(g.gather(g.reshape(batched, -1, 4), at), best, label)


def masks(g: Graph, w: Weights, config: Config, maps: dict[int, str], found: Found) -> str:
    """Mask probabilities (N, 2r, 2r) of the instances found, each for its own class."""
    head = config.mask
    x, order = pool(g, head.pooler, maps, found.boxes)
    into = config.pyramid.channels
    for i in range(1, head.convs + 1):
        name = f"roi_heads.mask_head.mask_fcn{i}"
        x = convolution(g, w, x, name, into, head.channels, kernel=3, norm=head.norm, relu=True)
        into = head.channels
    name = "roi_heads.mask_head.deconv"
    weight = g.constant(w.take(name + ".weight", into, head.channels, 2, 2), name=name + ".weight")
    bias = g.constant(w.take(name + ".bias", head.channels), name=name + ".bias")
    x = g.op("Relu", g.op("ConvTranspose", x, weight, bias, name=name, kernel_shape=[2, 2], strides=[2, 2]))
    probabilities = g.op("Sigmoid", _predict(g, w, head, config.classes, x, g.gather(found.classes, order)))
    # Sorting the order gives, for each instance, where its mask stands.
    _, place = g.ops("TopK", order, g.op("Shape", order), outputs=2, axis=0, largest=0)
    return g.gather(probabilities, place)


def _predict(g: Graph, w: Weights, head: MaskHead, classes: int, x: str, label: str) -> str:
    """x (N, C, s, s) -> logits (N, s, s) of each instance's own class only."""
    name, side = "roi_heads.mask_head.predictor", 2 * head.pooler.resolution
    outputs = 1 if head.agnostic else classes
    weight, bias = w.conv(name, outputs, head.channels, 1, "")
    if outputs <= MANY_CLASSES:
        logits = g.conv(x, weight, bias, name=name)  # (N, outputs, s, s)
        if outputs > 1:
            instance = g.op("Range", g.constant(np.int64(0)), g.op("Size", label), g.constant(np.int64(1)))
            place = [g.op("Unsqueeze", index, g.ints(1)) for index in (instance, label)]
            logits = g.op("GatherND", logits, g.op("Concat", *place, axis=1))
        return g.reshape(logits, -1, side, side)
    column = g.gather(g.constant(weight.reshape(outputs, -1, 1), name=name + ".weight"), label)
    shift = g.gather(g.constant(np.asarray(bias).reshape(outputs, 1, 1), name=name + ".bias"), label)
    places = g.reshape(g.op("Transpose", x, perm=[0, 2, 3, 1]), 0, side * side, head.channels)
    return g.reshape(g.op("Add", g.op("MatMul", places, column), shift), -1, side, side)
