"""Files written by segment.convert: models of the detectron2 family, including all pre- and post-processing.

Inputs: `image` (H, W, 3) uint8 RGB, `min_score` float32, `max_detections` int64. Outputs: `boxes` (N, 4) XYXY in pixels
of the image, `scores` (N,), `classes` (N,), `masks` (N, 28, 28) probabilities, each covering its box. PointRend's
`masks` are (N, 224, 224) uint8, floor(256 p) for a probability p; these grids are compressed when read (packed.py).
Labels and memory are in the file's metadata (modelfile.ModelMetadata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections, from_boxes, nonempty
from segment.engine.signature import Signature
from segment.labels import labels_for
from segment.modelfile import ModelMetadata
from segment.packed import MOST_BYTES, pack
from segment.resize import square_size

EXPECTED = "a file written by segment convert: image, min_score, max_detections -> boxes, scores, classes, masks"

INPUTS = ("image", "min_score", "max_detections")
OUTPUTS: Mapping[str, tuple[int | None, ...]] = {
    "boxes": (None, 4),
    "scores": (None,),
    "classes": (None,),
    "masks": (None, None, None),
}
"""The outputs in their order, with their shapes; None is any length."""


@dataclass(frozen=True)
class MaskRcnn:
    """See Family for the interface.

    `grid`: (height, width) of a mask. `square`: see ModelMetadata. `packed`: whether the file's masks are uint8.
    """

    labels: tuple[str, ...]
    stride: int
    grid: tuple[int, int] = (28, 28)
    square: int = 0
    packed: bool = False
    unmeasured_bytes_per_pixel: float = 0.0

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size that fills the square to which the network pads; None if any size is accepted."""
        return square_size(size, self.square) if self.square else None

    def mask_bytes(self, size: tuple[int, int]) -> int:
        return MOST_BYTES if self.packed else 4 * self.grid[0] * self.grid[1]

    def prepare(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Mapping[str, NDArray[Any]]:
        return {
            "image": np.ascontiguousarray(pixels),
            "min_score": np.array(min_score, np.float32),
            "max_detections": np.array(max_detections, np.int64),
        }

    def read(
        self, outputs: tuple[NDArray[Any], ...], size: tuple[int, int], min_score: float, max_detections: int
    ) -> Detections:
        boxes, scores, classes = (output.copy() for output in outputs[:3])
        masks = [pack(steps) for steps in outputs[3]] if self.packed else outputs[3].copy()
        found = from_boxes(boxes, scores, classes, masks, size)
        solid = nonempty(boxes)
        return found if solid.all() else found[solid]


def recognise(signature: Signature, labels: tuple[str, ...]) -> MaskRcnn | None:
    """The family of a file with this signature, or None. `labels` replace the file's own. Raises ModelError."""
    converted = ModelMetadata.from_metadata(signature.metadata)
    ours = tuple(port.name for port in signature.inputs) == INPUTS and len(signature.outputs) == len(OUTPUTS)
    shapes_fit = all(port.fits(*shape) for port, shape in zip(signature.outputs, OUTPUTS.values(), strict=False))
    if not (converted and ours and shapes_fit):
        return None
    masks = signature.outputs[-1]
    _, height, width = masks.shape
    names, grid = labels_for(len(converted.labels), labels, converted.labels), (height or 28, width or 28)
    return MaskRcnn(names, converted.stride, grid, converted.square, packed=masks.type == "uint8")
