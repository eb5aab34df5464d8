"""The second stage, which predicts boxes, scores, classes and masks from proposals.

He et al., "Mask R-CNN", 2017; Cai and Vasconcelos, "Cascade R-CNN", 2018; detectron2/modeling/roi_heads/
(box_head.py, fast_rcnn.py, cascade_rcnn.py, mask_head.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from segment.convert import boxes as box
from segment.convert import chunks, pooler, res5
from segment.convert.architecture import BoxHead, Config, MaskHead
from segment.convert.chunks import Rows
from segment.convert.graph import INT64, Graph
from segment.convert.layers import Conv, convolution
from segment.convert.pooler import Rois
from segment.convert.weights import Weights

MASK_CHUNK = 4
"""Instances that the mask head runs on at a time, so that only the crops of all instances are in memory. With 80
classes, the layers take 0.5 MB per instance in int8, and twice as much in float32. The last chunk is padded."""
NEVER = -1.0
"""A score below every threshold."""
LOWEST_SCORE = "lowest_score"
"""Name of the constant with the config's score threshold."""
MANY_CLASSES = 200
"""Up to this number of classes, the masks of all classes are predicted and one is kept, as in detectron2. It takes one
int8 convolution. With more classes, such as those of LVIS, each instance is multiplied by the weights of its own class
in float32."""


@dataclass(frozen=True)
class Found:
    """The instances found by the box head: names of the tensors boxes (N, 4), scores (N,) and classes (N,) int64."""

    boxes: str
    scores: str
    classes: str


def box_head(
    g: Graph, w: Weights, config: Config, maps: dict[int, str], rois: str, frame: box.Frame
) -> tuple[str, str]:
    """rois (N, 4) -> scores (N, classes) and boxes (N, k, 4); k is 1 if boxes are class-agnostic, else `classes`.

    A cascade refines the boxes in several stages and averages the scores of all stages.
    """
    head = config.box
    scores: list[str] = []
    for stage, weights in enumerate(head.box_weights):
        suffix = f".{stage}" if head.cascade else ""
        if config.res5_heads:
            x, width = res5.box_features(g, w, config, maps, rois)
        else:
            by_level = pooler.assign(g, head.pooler, rois)
            rois, *scores = (by_level.arranged(g, earlier) for earlier in (rois, *scores))
            x, width = _box_features(g, w, config, maps, by_level, "roi_heads.box_head" + suffix)
        name = "roi_heads.box_predictor" + suffix
        logits = _linear(g, w, x, name + ".cls_score", width, config.classes + 1)
        scores.append(g.op("Sigmoid", logits) if head.sigmoid else g.op("Softmax", logits, axis=1))
        per_roi = 1 if head.agnostic else config.classes
        deltas = _linear(g, w, x, name + ".bbox_pred", width, 4 * per_roi)
        each = g.op("Unsqueeze", rois, g.ints(1))
        if per_roi > 1:
            each = g.op("Expand", each, g.ints(1, per_roi, 1))
        rois = box.decode(g, g.reshape(each, -1, 4), g.reshape(deltas, -1, 4), weights)
        rois = box.clip(g, rois, frame)
    mean = scores[0] if len(scores) == 1 else g.op("Mean", *scores)
    return g.slice(mean, g.ints(0), g.ints(config.classes), axis=1), g.reshape(rois, -1, per_roi, 4)


def _box_features(g: Graph, w: Weights, config: Config, maps: dict[int, str], rois: Rois, name: str) -> tuple[str, int]:
    """The features (N, width) of the crops (N, C, r, r) of rois, and their width."""
    head, into = config.box, config.channels
    if head.fcs and not head.convs:
        x, width, first = _by_rows(g, w, config, maps, rois, name + ".fc1"), head.fc_channels, 2
    else:
        x, first = pooler.crop(g, head.pooler, maps, rois), 1
        for i in range(1, head.convs + 1):
            layer = Conv(into, head.conv_channels, kernel=3, norm=head.norm, relu=True)
            x = convolution(g, w, x, f"{name}.conv{i}", layer)
            into = head.conv_channels
        width = into * head.pooler.resolution**2
        x = g.reshape(x, -1, width)
    for i in range(first, head.fcs + 1):
        x = g.op("Relu", _linear(g, w, x, f"{name}.fc{i}", width, head.fc_channels))
        width = head.fc_channels
    return x, width


def _by_rows(g: Graph, w: Weights, config: Config, maps: dict[int, str], rois: Rois, name: str) -> str:
    """The output (N, fc_channels) of the first fully connected layer for rois, computed one row of bins at a time.

    The layer is a sum over all values of a crop, so that the sums of the rows can be added. This saves memory: one row
    of 1,000 crops takes 7 MB, and whole crops would take 50 MB.
    """
    head, channels = config.box, config.channels
    side, out = head.pooler.resolution, head.fc_channels
    weight = w.take(f"{name}.weight", out, channels * side**2).reshape(out, channels, side, side)
    bias = w.take(f"{name}.bias", out)
    total = ""
    for row in range(side):
        x = g.reshape(pooler.crop(g, head.pooler, maps, rois, range(row, row + 1)), -1, channels * side)
        kernel = np.ascontiguousarray(weight[:, :, row]).reshape(out, -1)
        x = g.linear(x, kernel, bias if row == 0 else np.zeros_like(bias), name=f"{name}.row{row}")
        # The additions alternate between two shapes. Otherwise, the runtime would fuse them into one operator, which
        # would keep the products of all rows in memory.
        shape = (-1, out) if row % 2 else (-1, 1, out)
        total = g.op("Add", g.reshape(total, *shape), g.reshape(x, *shape)) if total else x
    return g.op("Relu", g.reshape(total, -1, out))


def _linear(g: Graph, w: Weights, x: str, name: str, into: int, out: int) -> str:
    return g.linear(x, w.take(f"{name}.weight", out, into), w.take(f"{name}.bias", out), name=name)


def select(
    g: Graph, head: BoxHead, classes: int, scores: str, boxes: str, min_score: str, max_detections: str
) -> Found:
    """scores (N, classes), boxes (N, k, 4) -> the instances with the highest scores after NMS per class.

    `min_score` (float32 scalar) and `max_detections` (int64 scalar) can only restrict the limits in the config.

    Boxes without an area are not selected. detectron2 removes them at the end (detector_postprocess), where each has
    taken the place of another instance among the `max_detections`. Otherwise the result is the same, because these
    boxes suppress no others.
    """
    batched = g.op("Transpose", boxes, perm=[1, 0, 2])  # (k, N, 4)
    solid = g.reshape(box.larger_than(g, g.reshape(batched, -1, 4), 0.0), 1 if head.agnostic else classes, -1)
    by_class = g.op("Where", solid, g.op("Transpose", scores, perm=[1, 0]), g.scalar(NEVER))  # (classes, N)
    # Class-agnostic boxes are one "image" with all classes. Otherwise each class is an "image" with its own boxes.
    axes, column = (g.ints(0), 1) if head.agnostic else (g.ints(1), 0)
    threshold = g.op(
        "Unsqueeze", g.op("Max", min_score, g.constant(np.float32(head.min_score), name=LOWEST_SCORE)), g.ints(0)
    )
    grouped = g.op("Unsqueeze", by_class, axes)
    kept = box.suppress(g, batched, grouped, head.nms, g.ints(head.max_detections), threshold)
    label, roi = g.column(kept, column), g.column(kept, 2)
    count = g.op("Shape", roi)
    flat = g.op("Add", g.op("Mul", label, g.dim(by_class, 1)), roi)
    most = g.minimum(g.op("Unsqueeze", max_detections, g.ints(0)), g.ints(head.max_detections))
    best, order = g.top(g.gather(g.reshape(by_class, -1), flat), g.minimum(most, count))
    label, roi = g.gather(label, order), g.gather(roi, order)
    at = roi if head.agnostic else g.op("Add", g.op("Mul", label, g.dim(by_class, 1)), roi)
    return Found(g.gather(g.reshape(batched, -1, 4), at), best, label)


@contextlib.contextmanager
def any_score(model: onnx.ModelProto) -> Iterator[None]:
    """Set the score threshold of a converted model to 0 within the context, so that it finds instances in any image."""
    threshold = next((constant for constant in model.graph.initializer if constant.name == LOWEST_SCORE), None)
    if threshold is None:  # converted by an earlier version
        yield
        return
    before = numpy_helper.to_array(threshold)
    threshold.CopyFrom(numpy_helper.from_array(np.zeros_like(before), LOWEST_SCORE))
    try:
        yield
    finally:
        threshold.CopyFrom(numpy_helper.from_array(before, LOWEST_SCORE))


def masks(g: Graph, w: Weights, config: Config, head: MaskHead, maps: dict[int, str], found: Found) -> str:
    """Mask probabilities (N, 2r, 2r) of the instances, each for its own class."""
    part, pool, outputs = "mask_regions", head.pooler, 1 if head.agnostic else config.classes
    chunk = MASK_CHUNK if config.pyramid else res5.CHUNK
    boxes, label = chunks.padded(g, part, chunk, Rows(found.boxes, (4,)), Rows(found.classes, (), INT64))
    # A loop gets copies of the maps that it crops, in a layout in which RoIAlign takes three times as long. Therefore
    # the crops are made before the loop, except for networks without a pyramid. Their maps have 1,024 or 2,048
    # channels, and one crop takes 0.8 or 1.6 MB.
    if config.pyramid:
        rois, into = pooler.assign(g, pool, boxes), config.channels
        crops = Rows(pooler.crop(g, pool, maps, rois), (into, pool.resolution, pool.resolution))
        x, label = chunks.begin(g, part, chunk, crops, Rows(rois.arranged(g, label), (), INT64))
        x = rois.restored(g, chunks.end(g, part, _masks(g, w, head, outputs, x, into, label)))
    else:
        boxes, label = chunks.begin(g, part, chunk, Rows(boxes, (4,)), Rows(label, (), INT64))
        if config.res5_heads:
            x, into = res5.features(g, w, config, maps, boxes)
        else:
            x, into = pooler.crop(g, pool, maps, pooler.assign(g, pool, boxes)), config.channels
        x = chunks.end(g, part, _masks(g, w, head, outputs, x, into, label))
    return g.op("Identity", chunks.unpadded(g, part, x))


def _masks(g: Graph, w: Weights, head: MaskHead, outputs: int, x: str, into: int, label: str) -> str:
    """Features x (N, into, r, r) and classes (N,) -> mask probabilities (N, 2r, 2r).

    `outputs`: number of masks that are predicted per instance: one per class, or one in all if class-agnostic.
    """
    return _own_class(g, w, head, outputs, _mask_features(g, w, head, x, into), label)


def _mask_features(g: Graph, w: Weights, head: MaskHead, x: str, into: int) -> str:
    """x (N, into, r, r) -> (N, 4 * C, r, r): four positions per position of x."""
    for i in range(1, head.convs + 1):
        name = f"roi_heads.mask_head.mask_fcn{i}"
        x = convolution(g, w, x, name, Conv(into, head.channels, kernel=3, norm=head.norm, relu=True))
        into = head.channels
    return _upsampled(g, w, head, x, into)


def _upsampled(g: Graph, w: Weights, head: MaskHead, x: str, into: int) -> str:
    """x (N, C, r, r) -> (N, 4 * channels, r, r): the four positions into which each is upsampled, row by row.

    detectron2's transposed convolution has a 2 x 2 kernel and stride 2, so its outputs do not overlap. It is therefore
    equal to four 1 x 1 convolutions, which OpenVINO can fuse with the activation.
    """
    name = "roi_heads.mask_head.deconv"
    weight = w.take(name + ".weight", into, head.channels, 2, 2)
    bias = w.take(name + ".bias", head.channels)
    kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(4 * head.channels, into, 1, 1)
    return g.op("Relu", g.conv(x, kernel, np.tile(bias, 4), name=name))


def _own_class(g: Graph, w: Weights, head: MaskHead, outputs: int, x: str, label: str) -> str:
    """x (N, 4 * C, r, r), label (N,) -> mask probabilities (N, 2r, 2r) of each instance's own class."""
    name, side = "roi_heads.mask_head.predictor", head.side // 2
    weight = w.take(name + ".weight", outputs, head.channels, 1, 1)
    bias = w.take(name + ".bias", outputs)
    if outputs > MANY_CLASSES:
        column = g.gather(g.constant(weight.reshape(outputs, 1, -1, 1), name=name + ".weight"), label)  # (N, 1, C, 1)
        shift = g.gather(g.constant(bias.reshape(outputs, 1, 1, 1), name=name + ".bias"), label)
        places = g.op("Transpose", g.reshape(x, 0, 4, head.channels, side**2), perm=[0, 1, 3, 2])  # (N, 4, r * r, C)
        logits = g.op("Add", g.op("MatMul", places, column), shift)
    else:
        logits = g.conv(x, np.tile(weight, (4, 1, 1, 1)), np.tile(bias, 4), name=name, group=4)
        logits = g.reshape(logits, -1, outputs, side, side)  # (N * 4, outputs, r, r)
        if outputs > 1:
            four_times = g.op("Expand", g.op("Unsqueeze", label, g.ints(1)), g.ints(1, 4))
            logits = pick(g, logits, g.reshape(four_times, -1))
    rows_and_columns = g.op("Transpose", g.reshape(logits, -1, 2, 2, side, side), perm=[0, 3, 1, 4, 2])
    return g.op("Sigmoid", g.reshape(rows_and_columns, -1, 2 * side, 2 * side))


def pick(g: Graph, x: str, index: str) -> str:
    """x (N, K, r, r), index (N,) -> (N, r, r): x[i, index[i]]."""
    each = g.op("Range", g.constant(np.int64(0)), g.op("Size", index), g.constant(np.int64(1)))
    pairs = g.op("Concat", *(g.op("Unsqueeze", part, g.ints(1)) for part in (each, index)), axis=1)
    return g.op("GatherND", x, pairs)
