"""torchvision's Mask R-CNN: exports of `maskrcnn_resnet50_fpn` and `_v2`.

Input: an image (3, H, W), or a batch of one, in 0-1, which the network scales and normalises. Outputs, in any order:
boxes (N, 4) XYXY in pixels of the input, labels (N,) integers, scores (N,), and masks of probabilities. Masks are
either (N, 1, m, m), covering their boxes, as predicted by the mask head, or (N, 1, H, W), pasted into the image by
torchvision's postprocessing (torchvision/models/detection/roi_heads.py, paste_masks_in_image).

Labels are the class indices of the training data: COCO's category numbers 1-90 for the published weights, with 0 as the
background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment.detections import Detections, nonempty
from segment.engine.families.letterbox import Letterbox, LetterboxInput
from segment.engine.families.logits import Window, as_box
from segment.engine.signature import ImageInput, Signature
from segment.labels import coco_by_number
from segment.mask import Mask

EXPECTED = (
    "torchvision's Mask R-CNN: an image 3 x height x width -> boxes N x 4, labels N, scores N, "
    "masks N x 1 x 28 x 28 or N x 1 x height x width"
)

STRIDE = 32
MAX_DETECTIONS = 100
"""Maximum number of detections of torchvision's models (box_detections_per_img)."""
MAX_GRID = 112
"""Maximum cells per side of a mask that was pasted. The network predicts 28 x 28, so more cells add no detail."""


@dataclass(frozen=True)
class Torchvision:
    """See Family for the interface. `boxes`, `classes`, `scores`, `masks`: indices of the outputs."""

    labels: tuple[str, ...]
    image: LetterboxInput
    boxes: int
    classes: int
    scores: int
    masks: int
    pasted: bool
    stride: int = STRIDE

    @property
    def unmeasured_bytes_per_pixel(self) -> float:
        return 4.0 * MAX_DETECTIONS if self.pasted else 0.0

    def mask_bytes(self, size: tuple[int, int]) -> int:
        return 4 * MAX_GRID**2

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return self.image.size(size)

    def prepare(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Mapping[str, NDArray[Any]]:
        return self.image.feed(pixels)

    def read(
        self, outputs: tuple[NDArray[Any], ...], size: tuple[int, int], min_score: float, max_detections: int
    ) -> Detections:
        letterbox = self.image.letterbox(size)
        all_scores = outputs[self.scores].astype(np.float32, copy=False)
        best = np.argsort(-all_scores, kind="stable")
        best = best[all_scores[best] > min_score]
        boxes = outputs[self.boxes][best].astype(np.float32, copy=False)
        corners = letterbox.clip_to_image(boxes)
        solid = np.flatnonzero(nonempty(corners))[:max_detections]
        masks = outputs[self.masks]
        pasted = masks.shape[2:] == letterbox.canvas[::-1]
        cut = _pasted_mask if pasted else _box_mask
        return Detections(
            boxes=corners[solid],
            scores=all_scores[best[solid]],
            classes=outputs[self.classes][best[solid]].astype(np.int64, copy=False),
            masks=tuple(cut(masks[best[i], 0], boxes[i], letterbox) for i in solid),
            size=size,
        )


def recognise(signature: Signature, labels: tuple[str, ...]) -> Torchvision | None:
    """The family of a file with this signature, or None. `labels` replace the file's own."""
    image = ImageInput.of(signature.inputs[0]) if len(signature.inputs) == 1 else None
    outputs = [(at, port) for at, port in enumerate(signature.outputs)]
    found = (
        [at for at, port in outputs if port.fits(None, 4) and port.is_float],
        [at for at, port in outputs if port.fits(None) and port.type in ("int64", "int32")],
        [at for at, port in outputs if port.fits(None) and port.is_float],
        [at for at, port in outputs if port.fits(None, 1, None, None) and port.is_float],
    )
    if image is None or len(outputs) != 4 or any(len(ports) != 1 for ports in found):
        return None
    (boxes,), (classes,), (scores,), (masks,) = found
    pasted = signature.outputs[masks].shape[2:] != (28, 28)
    return Torchvision(labels or coco_by_number(), LetterboxInput(image, 1), boxes, classes, scores, masks, pasted)


def _box_mask(grid: NDArray[Any], box: NDArray[np.float32], letterbox: Letterbox) -> Mask:
    """A mask that covers its box, XYXY in pixels of the canvas."""
    place = as_box(letterbox.to_image(box))
    return Mask(_reduced(grid.astype(np.float32)), place, place)


def _pasted_mask(frame: NDArray[Any], box: NDArray[np.float32], letterbox: Letterbox) -> Mask:
    """A mask that was pasted into the canvas, cropped around its box, XYXY in pixels of the canvas.

    Pasting rounds the box and extends beyond it by one cell of the mask (expand_masks, expand_boxes).
    """
    width, height = letterbox.canvas
    beyond = (box[2:] - box[:2]) / 28 + 1
    inside = np.clip(np.concatenate([box[:2] - beyond, box[2:] + beyond]), 0, [width, height, width, height])
    window = Window.around(inside, (1.0, 1.0))
    place = as_box(letterbox.to_image(window.place((1.0, 1.0))))
    return Mask(_reduced(window.cut(frame).astype(np.float32)), place, place)


def _reduced(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce `grid` to at most MAX_GRID cells per side by averaging."""
    height, width = grid.shape
    if max(height, width) <= MAX_GRID:
        return grid
    size = min(width, MAX_GRID), min(height, MAX_GRID)
    return np.array(Image.fromarray(grid).resize(size, Image.Resampling.BOX), np.float32)
