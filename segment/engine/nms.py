"""Non-maximum suppression: of boxes of one class that overlap much, the best is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[Any], most: float, limit: int
) -> NDArray[np.int64]:
    """Indices of at most `limit` boxes to keep, best first.

    `boxes`: (N, 4) XYXY. A box goes if its intersection over union with a better one of its class is above `most`.
    Greedy, as torchvision.ops.batched_nms; it ends as soon as enough are found.
    """
    remaining = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while remaining.size and len(kept) < limit:
        best, others = remaining[0], remaining[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[others, :2])
        high = np.minimum(boxes[best, 2:], boxes[others, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        # shared / union > most, without dividing by an empty union
        same = shared > most * (areas[best] + areas[others] - shared)
        remaining = others[~(same & (classes[others] == classes[best]))]
    return np.array(kept, np.int64)
