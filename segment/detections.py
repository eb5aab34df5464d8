"""The instances detected in an image: boxes, scores, classes and masks.

To map detections to another image size, only their coordinates are scaled; the masks' small grids are kept as they are
(see mask.py). Detections take a few hundred KB at any image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segment.mask import Grid, Mask
from segment.wording import counted

Index = int | slice | list[int] | NDArray[Any]
"""One number, a slice, several numbers, or an (N,) bool array."""


@dataclass(frozen=True, eq=False)
class Detections:
    """N instances in an image, sorted by descending score.

    `boxes`: (N, 4) float32 XYXY in pixels of the image. `scores`: (N,) float32 in 0-1. `classes`: (N,) int64, indices
    into the model's labels. `masks`: N masks. `size`: (width, height) of the image in pixels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: Sequence[Mask]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        width, height = self.size
        return f"<{type(self).__name__}: {counted(len(self), 'instance')} in {width} x {height} pixels>"

    def __iter__(self) -> Iterator[Self]:
        """Each instance, as Detections of length one."""
        return (self[i] for i in range(len(self)))

    def at(self, size: tuple[int, int]) -> Self:
        """The same instances in the image scaled to `size` (width, height)."""
        if size == self.size:
            return self
        sx, sy = size[0] / self.size[0], size[1] / self.size[1]
        return replace(
            self,
            boxes=self.boxes * np.array([sx, sy, sx, sy], np.float32),
            masks=tuple(mask.scaled(sx, sy) for mask in self.masks),
            size=size,
        )

    def __getitem__(self, index: Index) -> Self:
        """The instances at `index`, such as `found[0]`, `found[:10]`, `found[[2, 0]]` or `found[found.scores >= 0.8]`.

        As in detectron2's Instances and supervision's Detections, the result has the same type for a single number.
        Raises IndexError.
        """
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            classes=self.classes[chosen],
            masks=tuple(self.masks[i] for i in chosen),
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
