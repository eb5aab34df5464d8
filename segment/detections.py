"""The instances detected in an image: boxes, scores, classes and masks.

To map detections to another image size, only their coordinates are scaled; the masks' small grids are kept as they are
(see mask.py). Detections take a few hundred KB at any image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from segment.mask import Grid, Mask


@dataclass(frozen=True)
class Detections:
    """N instances in an image, sorted by descending score.

    `boxes`: (N, 4) float32 XYXY in pixels of the image. `scores`: (N,) float32 in 0-1. `classes`: (N,) int64, indices
    into the model's labels. `masks`: N masks. `size`: (width, height) of the image in pixels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: tuple[Mask, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, size: tuple[int, int]) -> Self:
        """The same instances in the image scaled to `size` (width, height)."""
        sx, sy = size[0] / self.size[0], size[1] / self.size[1]
        return replace(
            self,
            boxes=self.boxes * np.array([sx, sy, sx, sy], np.float32),
            masks=tuple(mask.scaled(sx, sy) for mask in self.masks),
            size=size,
        )

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """The instances at `indices`, in that order."""
        index = np.asarray(indices, np.int64)
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            classes=self.classes[index],
            masks=tuple(self.masks[i] for i in index),
        )


def nonempty(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes (N, 4) XYXY have a positive area, as detectron2's Boxes.nonempty: (N,) bool."""
    result: NDArray[np.bool_] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return result


def from_boxes(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    grids: Iterable[Grid],
    size: tuple[int, int],
) -> Detections:
    """Detections whose masks cover their boxes, as predicted by Mask R-CNN. `grids`: N times (h, w)."""
    places = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]
    masks = tuple(Mask(grid, place, place) for grid, place in zip(grids, places, strict=True))
    return Detections(boxes, scores, classes, masks, size)
