"""Non-maximum suppression (NMS): of boxes of one class that overlap, keep the one with the highest score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
"""Number of boxes processed at once; most calls end within the first few blocks."""


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[Any], iou_threshold: float, limit: int
) -> NDArray[np.int64]:
    """Indices of at most `limit` boxes to keep, sorted by descending score.

    `boxes`: (N, 4) XYXY. A box is removed if its IoU with a kept box of its class is above `iou_threshold`. Greedy, as
    torchvision.ops.batched_nms, but stops after `limit` boxes.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block = block[~_rivals(boxes, classes, kept, block, iou_threshold).any(axis=0)]
        while block.size and len(kept) < limit:
            kept = np.append(kept, block[0])
            block = block[1:][~_rivals(boxes, classes, block[:1], block[1:], iou_threshold)[0]]
        if len(kept) == limit:
            break
    return kept


def _rivals(
    boxes: NDArray[np.float32],
    classes: NDArray[Any],
    these: NDArray[np.int64],
    those: NDArray[np.int64],
    iou_threshold: float,
) -> NDArray[np.bool_]:
    """Whether each pair of boxes at the indices `these` and `those` has one class and an IoU above `iou_threshold`.

    (len(these), len(those)) bool.
    """
    a, b = boxes[these][:, None], boxes[those]
    shared = np.maximum(np.minimum(a[..., 2], b[:, 2]) - np.maximum(a[..., 0], b[:, 0]), 0)
    shared *= np.maximum(np.minimum(a[..., 3], b[:, 3]) - np.maximum(a[..., 1], b[:, 1]), 0)
    union = _area(a) + _area(b) - shared
    rivals: NDArray[np.bool_] = (shared > iou_threshold * union) & (classes[these][:, None] == classes[those])
    return rivals


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    area: NDArray[np.float32] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area
