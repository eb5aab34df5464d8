"""YOLO-seg: the one-stage family of Ultralytics (v5, v8, 11, 26 and their relatives).

There is one input, a batch of one image in 0-1, and two outputs: P *prototypes* (1, P, h, w), which are mask images
shared by all instances, and rows that end with P coefficients. An instance's mask is sigmoid(coefficients . prototypes)
inside its box. There are three kinds of rows:

    raw         4 + C + P       box (centre, size), C scores; 1 x channels x anchors             v8, 11, 26
    objectness  4 + 1 + C + P   scores are multiplied by objectness; 1 x anchors x channels      v5
    final       4 + 2 + P       box (corners), score, class, after NMS                           26 end to end, nms=True

Boxes are in pixels of the input. The kinds are distinguished by the number of names in the metadata or, without names,
by the number of anchors of the input. Written from the formats' description (docs.ultralytics.com; Bolya et al.,
YOLACT, arXiv:1904.02689, for prototypes and coefficients), not from Ultralytics' code, which is AGPL-3.0.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections, nonempty
from segment.engine.families.letterbox import Letterbox, LetterboxInput
from segment.engine.families.logits import Window, as_box, to_grid
from segment.engine.families.nms import suppress
from segment.engine.signature import ImageInput, Signature, TensorSpec
from segment.labels import coco, labels_for
from segment.mask import Mask

EXPECTED = (
    "YOLO-seg: an image 1 x 3 x height x width -> rows, 1 x (4 + classes + P) x anchors or "
    "1 x anchors x (5 + classes + P) or 1 x rows x (6 + P), and prototypes 1 x P x h x w"
)

MAX_CANDIDATES = 30000
"""Maximum number of candidates for NMS; Ultralytics' default, too."""
STRIDE = 32
PROTOTYPE_STRIDE = 4
"""Pixels of the canvas per cell of the prototypes."""

Kind = Literal["final", "raw", "objectness"]
_LAYOUTS: tuple[tuple[Kind, bool], ...] = (
    ("final", False),
    ("raw", True),
    ("objectness", False),
    ("raw", False),
    ("objectness", True),
)
"""The layouts to try, most common first. True: channels x anchors."""
_HEAD: Mapping[Kind, int] = {"final": 6, "raw": 4, "objectness": 5}
"""Number of channels of a row before the class scores; a final row has no class scores."""
_ANCHORS: Mapping[Kind, int] = {"raw": 1, "objectness": 3}
"""Number of anchors per cell of each scale."""
_IOU_THRESHOLD: Mapping[Kind, float] = {"raw": 0.7, "objectness": 0.45}
"""IoU threshold of NMS within a class: the default of Ultralytics' predict commands for these files. At 0.7, v5
leaves duplicates."""
_SCALES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""Strides of a head's scales in pixels: the usual ones, and those of the P6 and P2 variants."""


@dataclass(frozen=True)
class Rows:
    """The layout of an output's rows. `across`: channels x anchors instead of anchors x channels."""

    kind: Kind
    across: bool
    classes: int


@dataclass(frozen=True)
class Yolo:
    """See Family for the interface. `row_port`, `prototype_port`: index of the output, and its TensorSpec."""

    labels: tuple[str, ...]
    stride: int
    image: LetterboxInput
    rows: Rows
    row_port: tuple[int, TensorSpec]
    prototype_port: tuple[int, TensorSpec]
    unmeasured_bytes_per_pixel: float = 0.0

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return self.image.size(size)

    def mask_bytes(self, size: tuple[int, int]) -> int:
        canvas = self.image.letterbox(size).canvas
        height, width = self.prototype_port[1].shape[2:]
        return 4 * (height or -(-canvas[1] // PROTOTYPE_STRIDE)) * (width or -(-canvas[0] // PROTOTYPE_STRIDE))

    def prepare(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Mapping[str, NDArray[Any]]:
        return self.image.feed(pixels)

    def read(
        self, outputs: tuple[NDArray[Any], ...], size: tuple[int, int], min_score: float, max_detections: int
    ) -> Detections:
        table, prototypes = (port.to_real(outputs[at][0]) for at, port in (self.row_port, self.prototype_port))
        letterbox = self.image.letterbox(size)
        best = _best(table if self.rows.across else table.T, self.rows, letterbox, min_score, max_detections)
        boxes = letterbox.clip_to_image(best.boxes)
        masks = tuple(_mask(prototypes, *pair, letterbox) for pair in zip(best.coefficients, boxes, strict=True))
        return Detections(boxes, best.scores, best.classes, masks, size)


def recognise(signature: Signature, labels: tuple[str, ...]) -> Yolo | None:
    """The family of a file with this signature, or None. `labels` replace the file's own. Raises ModelError."""
    image = ImageInput.of(signature.inputs[0]) if len(signature.inputs) == 1 else None
    row_ports = [(at, port) for at, port in enumerate(signature.outputs) if port.fits(1, None, None)]
    prototype_ports = [(at, port) for at, port in enumerate(signature.outputs) if port.fits(1, None, None, None)]
    if image is None or len(row_ports) != 1 or len(prototype_ports) != 1:
        return None
    (row_port,), (prototype_port,) = row_ports, prototype_ports
    prototypes = prototype_port[1].shape[1]
    if not prototypes or not (row_port[1].is_real and prototype_port[1].is_real):
        return None
    names = _names(signature.metadata)
    final = _says_final(signature.metadata)
    rows = _layout(row_port[1], prototypes, image.size, len(names), final)
    if rows is None and labels and not names:
        rows = _layout(row_port[1], prototypes, image.size, len(labels), final)
    if rows is None:
        return None
    labels = labels_for(rows.classes or len(names or labels or coco()), labels, names)
    stride = _stride(signature.metadata)
    return Yolo(labels, stride, LetterboxInput(image, stride), rows, row_port, prototype_port)


def _layout(
    port: TensorSpec, prototypes: int, image: tuple[int, int] | None, names: int, says_final: bool
) -> Rows | None:
    """The layout of this output's rows, or None. `names`: number of classes, 0 if unknown."""
    on_grid = {sum((image[0] // s) * (image[1] // s) for s in scales) for scales in _SCALES} if image else set()
    for kind, across in _LAYOUTS:
        channels, anchors = (port.shape[1], port.shape[2]) if across else (port.shape[2], port.shape[1])
        if channels is None:
            continue
        classes = channels - _HEAD[kind] - prototypes
        if kind == "final":
            counted = anchors is not None and not any(anchors in (n, 3 * n) for n in on_grid)
            fits = classes == 0 and (says_final or counted)
        elif names:
            fits = classes == names
        else:
            fits = classes > 0 and (anchors is None or anchors in {n * _ANCHORS[kind] for n in on_grid})
        if fits:
            return Rows(kind, across, classes)
    return None


@dataclass(frozen=True)
class _Found:
    """Detections on the canvas.

    `boxes`: (N, 4) XYXY in pixels of the canvas; `scores`: (N,), descending; `classes`: (N,); `coefficients`: (N, P).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    coefficients: NDArray[np.float32]


def _best(table: NDArray[np.float32], rows: Rows, letterbox: Letterbox, min_score: float, limit: int) -> _Found:
    """At most `limit` instances in `table` (channels, anchors).

    An anchor is a candidate for each class whose score is above `min_score`. Boxes without an area on the image are
    removed first, so that they do not count towards `limit`.
    """
    if rows.kind == "final":
        anchors = np.flatnonzero(table[4] > min_score)
        anchors = anchors[nonempty(letterbox.clip_to_image(table[:4, anchors].T))]
        chosen = table[:, anchors[np.argsort(-table[4, anchors], kind="stable")[:limit]]]
        return _Found(chosen[:4].T, chosen[4], chosen[5].astype(np.int64), chosen[6:].T)
    first, last = _HEAD[rows.kind], _HEAD[rows.kind] + rows.classes
    every = table[first:last]
    if rows.kind == "objectness":
        every = every * table[4]
    classes, anchors = np.nonzero(every > min_score)
    scores = every[classes, anchors]
    if scores.size > MAX_CANDIDATES:
        best = np.argpartition(-scores, MAX_CANDIDATES)[:MAX_CANDIDATES]
        classes, anchors, scores = classes[best], anchors[best], scores[best]
    centres, halves = table[:2, anchors].T, table[2:4, anchors].T / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    visible = nonempty(letterbox.clip_to_image(boxes))
    boxes, scores, classes, anchors = boxes[visible], scores[visible], classes[visible], anchors[visible]
    kept = suppress(boxes, scores, classes, _IOU_THRESHOLD[rows.kind], limit)
    return _Found(boxes[kept], scores[kept], classes[kept], table[last:, anchors[kept]].T)


def _mask(
    prototypes: NDArray[np.float32], coefficients: NDArray[np.float32], box: NDArray[np.float32], letterbox: Letterbox
) -> Mask:
    """The mask of an instance. `box`: XYXY in pixels of the image. `prototypes`: (P, h, w), covering the canvas."""
    _, height, width = prototypes.shape
    cell = letterbox.canvas[0] / width, letterbox.canvas[1] / height
    window = Window.around(letterbox.to_canvas(box), cell)
    rows, columns = window.slices(prototypes.shape)
    logits = window.repeat(np.tensordot(coefficients, prototypes[:, rows, columns], 1), prototypes.shape)
    return Mask(to_grid(logits), as_box(letterbox.to_image(window.place(cell))), as_box(box))


def _names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Class names by index, from the metadata `names`: a Python dict or list as text."""
    try:
        names = ast.literal_eval(metadata.get("names", "()"))
        if isinstance(names, dict):
            names = [names[index] for index in range(len(names))]
        return tuple(str(name) for name in names)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return ()


def _stride(metadata: Mapping[str, str]) -> int:
    stride = metadata.get("stride", "")
    return int(stride) if stride in ("8", "16", "32", "64", "128") else STRIDE


def _says_final(metadata: Mapping[str, str]) -> bool:
    return metadata.get("end2end") == "True" or "'nms': True" in metadata.get("args", "")
