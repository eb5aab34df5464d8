"""RF-DETR-seg: Roboflow's transformer, in which each query predicts a box, class logits and a mask.

Input: a batch of one image, normalised with ImageNet's mean and standard deviation, stretched to the file's fixed size.
Outputs, as named by `model.export()`: `dets` (1, Q, 4) centre and size in 0-1, `labels` (1, Q, C) logits, `masks`
(1, Q, h, w) logits for the whole image. A score is the sigmoid of a class logit; the detections are the best pairs of
query and class, without NMS, as in rfdetr/models/postprocess.py (Apache-2.0).

The classes of the published weights are COCO's category numbers, 1-90 (labels.coco_by_number).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections, nonempty
from segment.engine.families.letterbox import Letterbox
from segment.engine.families.logits import Window, as_box, to_grid
from segment.engine.signature import ImageInput, Signature, TensorSpec
from segment.labels import labels_for
from segment.mask import Mask

EXPECTED = (
    "RF-DETR-seg: an image 1 x 3 x height x width of a fixed size -> dets 1 x Q x 4, labels 1 x Q x classes, "
    "masks 1 x Q x h x w"
)

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
STRIDE = 32
MAX_PAIRS = 300
"""Maximum number of pairs of query and class; rfdetr's default."""


@dataclass(frozen=True)
class RfDetr:
    """See Family for the interface. `boxes`, `logits`, `masks`: index of each output, and its TensorSpec."""

    labels: tuple[str, ...]
    image: ImageInput
    size: tuple[int, int]
    boxes: tuple[int, TensorSpec]
    logits: tuple[int, TensorSpec]
    masks: tuple[int, TensorSpec]
    unmeasured_bytes_per_pixel: float = 0.0
    stride: int = STRIDE

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size

    def mask_bytes(self, size: tuple[int, int]) -> int:
        height, width = self.masks[1].shape[2:]
        return 4 * ((height or self.size[1]) + 2) * ((width or self.size[0]) + 2)

    def prepare(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Mapping[str, NDArray[Any]]:
        image = Letterbox.stretch((pixels.shape[1], pixels.shape[0]), self.size).paint(pixels)
        image -= MEAN[:, None, None]
        image /= STD[:, None, None]
        return self.image.feed(image)

    def read(
        self, outputs: tuple[NDArray[Any], ...], size: tuple[int, int], min_score: float, max_detections: int
    ) -> Detections:
        boxes, logits, masks = (port.to_real(outputs[at][0]) for at, port in (self.boxes, self.logits, self.masks))
        with np.errstate(over="ignore"):
            scores = np.divide(1, 1 + np.exp(-logits.ravel()), dtype=np.float32)
        best = np.argsort(-scores, kind="stable")[:MAX_PAIRS]
        best = best[scores[best] > min_score]
        queries, classes = np.divmod(best, logits.shape[1])
        centres, halves = boxes[queries, :2], boxes[queries, 2:] / 2
        frame = np.array(size * 2, np.float32)
        unit: NDArray[np.float32] = np.concatenate([centres - halves, centres + halves], axis=1)
        corners: NDArray[np.float32] = np.clip(unit * frame, 0, frame)
        kept = np.flatnonzero(nonempty(corners))[:max_detections]
        grids = tuple(_mask(masks[query], size) for query in queries[kept])
        return Detections(corners[kept], scores[best[kept]], classes[kept], grids, size)


def recognise(signature: Signature, labels: tuple[str, ...]) -> RfDetr | None:
    """The family of a file with this signature, or None. `labels` replace the file's own. Raises ModelError."""
    image = ImageInput.of(signature.inputs[0]) if len(signature.inputs) == 1 else None
    ports = _ports(signature) if len(signature.outputs) == 3 else None
    if image is None or not image.port.is_real or image.size is None or ports is None:
        return None
    classes = ports[1][1].shape[2]
    if classes is None:
        return None
    if len(labels) == classes - 1:
        labels += ("background",)  # an additional last class, which is never predicted
    return RfDetr(labels_for(classes, labels), image, image.size, *ports)


_Numbered = tuple[int, TensorSpec]


def _ports(signature: Signature) -> tuple[_Numbered, _Numbered, _Numbered] | None:
    """The outputs with boxes, logits and masks, by their names or else by their shapes; None if they do not fit."""
    numbered = list(enumerate(signature.outputs))
    named = {port.name: (at, port) for at, port in numbered}
    if {"dets", "labels", "masks"} <= named.keys():
        boxes, logits, masks = named["dets"], named["labels"], named["masks"]
    else:
        rows = [(at, port) for at, port in numbered if len(port.shape) == 3]
        grids = [(at, port) for at, port in numbered if len(port.shape) == 4]
        if len(rows) != 2 or len(grids) != 1:
            return None
        rows.sort(key=lambda row: row[1].shape[2] != 4)  # boxes first; with four classes, in the file's order
        (boxes, logits), (masks,) = rows, grids
    queries = boxes[1].shape[1] if len(boxes[1].shape) == 3 else None
    fit = boxes[1].fits(1, queries, 4) and logits[1].fits(1, queries, None) and masks[1].fits(1, queries, None, None)
    return (boxes, logits, masks) if fit and all(port.is_real for _, port in (boxes, logits, masks)) else None


def _mask(logits: NDArray[np.float32], size: tuple[int, int]) -> Mask:
    """The mask of a query from its logits (h, w), which cover an image of `size`; cropped to the logits above 0."""
    rows, columns = np.flatnonzero((logits > 0).any(axis=1)), np.flatnonzero((logits > 0).any(axis=0))
    if not rows.size:
        return Mask(np.zeros((1, 1), np.float32), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
    window = Window(int(columns[0]) - 1, int(rows[0]) - 1, int(columns[-1]) + 2, int(rows[-1]) + 2)
    place = as_box(window.place((size[0] / logits.shape[1], size[1] / logits.shape[0])))
    return Mask(to_grid(window.cut(logits)), place, place)
