"""The region proposal network (RPN), which predicts boxes that may contain an object from feature maps.

Ren et al., "Faster R-CNN", 2015; detectron2/modeling/proposal_generator/rpn.py and proposal_utils.py
(find_top_rpn_proposals). detectron2 decodes a box for every anchor; here, only the PRE_NMS_TOPK_TEST highest logits of
each level are decoded.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from segment.convert import boxes as box
from segment.convert.architecture import Config
from segment.convert.graph import Graph
from segment.convert.weights import Weights
from segment.errors import ConversionError

NEVER = -3.0e38
"""A score below every logit."""
MOST = "max_proposals"
"""Name of the constant with the maximum number of proposals."""
_HEAD = "proposal_generator.rpn_head."


def proposals(g: Graph, w: Weights, config: Config, maps: dict[int, str], frame: box.Frame) -> str:
    """Feature maps by level -> boxes (N, 4) XYXY, sorted by descending score, N <= POST_NMS_TOPK_TEST."""
    rpn = config.proposals
    head = _Head(w, config)
    boxes, scores = [], []
    most = g.constant([rpn.after_nms], np.int64, name=MOST)
    for level, sizes, ratios in zip(rpn.levels, rpn.anchors.sizes, rpn.anchors.ratios, strict=True):
        logits, deltas = head(g, maps[level], level)
        columns = g.dim(logits, 3)
        best, index = g.top(_per_anchor(g, logits, -1), g.ints(rpn.before_nms))
        anchors = box.anchors(g, index, columns, box.cell_anchors(sizes, ratios), 2**level, rpn.anchors.offset)
        found = box.decode(g, anchors, g.gather(_per_anchor(g, deltas, -1, 4), index), rpn.box_weights)
        found = box.clip(g, found, frame)
        best = g.op("Where", box.larger_than(g, found, rpn.min_size), best, g.scalar(NEVER))
        keep = _suppress(g, found, best, rpn.nms, most)
        boxes.append(g.gather(found, keep))
        scores.append(g.gather(best, keep))
    _, order = g.top(g.op("Concat", *scores, axis=0), most)
    return g.op("Gather", g.op("Concat", *boxes, axis=0), order, axis=0, name="proposals")


def limit(model: onnx.ModelProto, most: int) -> int:
    """Reduce the number of proposals of a converted model to `most`, and return the number.

    The number is not increased. Raises ConversionError.
    """
    if most < 1:
        raise ConversionError(f"The number of proposals is {most}; it must be at least 1.")
    constant = next((constant for constant in model.graph.initializer if constant.name == MOST), None)
    if constant is None:
        raise ConversionError("The model was converted by an earlier version. Convert its checkpoint again.")
    fewer = min(int(numpy_helper.to_array(constant)[0]), most)
    constant.CopyFrom(numpy_helper.from_array(np.array([fewer], np.int64), MOST))
    return fewer


class _Head:
    """The RPN's head: convolutions, an objectness logit and box deltas per anchor. All levels share the weights."""

    def __init__(self, w: Weights, config: Config) -> None:
        into, dims = config.channels, config.proposals.conv_dims
        names = ["conv"] if len(dims) == 1 else [f"conv.conv{i}" for i in range(len(dims))]
        self.convs = []
        for name, dim in zip(names, dims, strict=True):
            out = into if dim == -1 else dim
            self.convs.append((_HEAD + name, w.conv(_HEAD + name, out, into, 3)))
            into = out
        anchors = len(config.proposals.anchors.sizes[0]) * len(config.proposals.anchors.ratios[0])
        self.logits = w.conv(_HEAD + "objectness_logits", anchors, into, 1)
        self.deltas = w.conv(_HEAD + "anchor_deltas", 4 * anchors, into, 1)

    def __call__(self, g: Graph, x: str, level: int) -> tuple[str, str]:
        """A feature map -> logits (1, A, H, W), deltas (1, 4A, H, W)."""
        for name, weights in self.convs:
            x = g.conv(x, *weights, name=f"{name}.p{level}", weights=name, pads=[1] * 4)
            x = g.op("Relu", x)
        name = _HEAD + "objectness_logits"
        logits = g.conv(x, *self.logits, name=f"{name}.p{level}", weights=name)
        name = _HEAD + "anchor_deltas"
        return logits, g.conv(x, *self.deltas, name=f"{name}.p{level}", weights=name)


def _per_anchor(g: Graph, x: str, *shape: int) -> str:
    """(1, A * k, H, W) -> (H * W * A, k)."""
    return g.reshape(g.op("Transpose", x, perm=[0, 2, 3, 1]), *shape)


def _suppress(g: Graph, boxes: str, scores: str, overlap: float, most: str) -> str:
    """Non-maximum suppression of boxes (N, 4) with scores (N,). Returns the indices to keep, int64."""
    boxes, scores = g.op("Unsqueeze", boxes, g.ints(0)), g.op("Unsqueeze", scores, g.ints(0, 1))
    return g.column(box.suppress(g, boxes, scores, overlap, most, g.constant([NEVER / 2], "float32")), 2)
