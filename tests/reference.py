"""Reference implementation of the model families' preprocessing and postprocessing: whole arrays and plain loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment.detections import Detections
from segment.image import resize

Floats = NDArray[np.float32]
CELL = 4


@dataclass(frozen=True)
class Canvas:
    """The network input (3, H, W) in 0-1, with the scale and position of the photo in it."""

    image: Floats
    gain: tuple[float, float]
    offset: tuple[int, int]


def letterbox(photo: NDArray[np.uint8], size: tuple[int, int]) -> Canvas:
    """The photo resized to fit in `size` (width, height), centred on grey 114."""
    height, width = photo.shape[:2]
    gain = min(size[0] / width, size[1] / height)
    new = max(round(width * gain), 1), max(round(height * gain), 1)
    scaled = np.asarray(resize(Image.fromarray(photo), new)) if new != (width, height) else photo
    left, top = (round((size[i] - new[i]) / 2 - 0.1) for i in (0, 1))
    canvas = np.full((size[1], size[0], 3), 114, np.uint8)
    canvas[top : top + new[1], left : left + new[0]] = scaled
    image = (canvas.transpose(2, 0, 1) / 255).astype(np.float32)
    return Canvas(image, (new[0] / width, new[1] / height), (left, top))


def stretch(photo: NDArray[np.uint8], size: tuple[int, int]) -> Canvas:
    """The photo resized to `size` (width, height), whatever its aspect ratio."""
    height, width = photo.shape[:2]
    scaled = np.asarray(resize(Image.fromarray(photo), size)) if size != (width, height) else photo
    image = (scaled.transpose(2, 0, 1) / 255).astype(np.float32)
    return Canvas(image, (size[0] / width, size[1] / height), (0, 0))


def prototypes(image: Floats, weights: Floats, bias: Floats) -> Floats:
    """(P, h, w): each cell's mean colour times weights, plus bias."""
    channels, height, width = image.shape
    cells = image[:, : height // CELL * CELL, : width // CELL * CELL]
    mean = cells.reshape(channels, height // CELL, CELL, width // CELL, CELL).mean((2, 4))
    masks: Floats = np.einsum("pc,chw->phw", weights, mean) + bias[:, None, None]
    return masks


def to_photo(boxes: Floats, canvas: Canvas, size: tuple[int, int]) -> Floats:
    """Boxes (N, 4) XYXY on the canvas, in pixels of the photo of `size`, clipped to its edges."""
    offset, gain = np.array(canvas.offset * 2), np.array(canvas.gain * 2)
    moved: Floats = np.clip((boxes - offset) / gain, 0, np.array(size * 2)).astype(np.float32)
    return moved


def interpolate(logits: Floats, canvas: Canvas, size: tuple[int, int]) -> Floats:
    """Logits of a grid over the canvas, interpolated at the pixel centres of the photo (H, W); edges are repeated."""
    rows, columns = logits.shape
    height, width = canvas.image.shape[1:]
    x = ((np.arange(size[0]) + 0.5) * canvas.gain[0] + canvas.offset[0]) * columns / width - 0.5
    y = ((np.arange(size[1]) + 0.5) * canvas.gain[1] + canvas.offset[1]) * rows / height - 0.5
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, columns - 1), np.minimum(y0 + 1, rows - 1)
    fx, fy = x - x0, (y - y0)[:, None]
    upper = logits[y0][:, x0] * (1 - fx) + logits[y0][:, x1] * fx
    lower = logits[y1][:, x0] * (1 - fx) + logits[y1][:, x1] * fx
    both: Floats = upper * (1 - fy) + lower * fy
    return both


def inside(box: Floats, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels (H, W) of the photo have their centre in `box`."""
    x, y = np.arange(size[0]) + 0.5, (np.arange(size[1]) + 0.5)[:, None]
    within: NDArray[np.bool_] = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    return within


def nms(boxes: Floats, scores: Floats, classes: NDArray[np.int64], most: float) -> list[int]:
    """Indices of the boxes that are kept, best first; boxes are compared pair by pair."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(classes[i] != classes[j] or iou(boxes[i], boxes[j]) <= most for j in kept):
            kept.append(i)
    return kept


def iou(a: Floats, b: Floats) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


def pixels(found: Detections, index: int) -> NDArray[np.bool_]:
    """The service's mask (H, W) of an instance."""
    width, height = found.size
    dense = np.zeros((height, width), bool)
    left, top, right, bottom = found.masks[index].region(found.size)
    dense[top:bottom, left:right] = found.masks[index].paste((left, top, right, bottom)) >= 0.5
    return dense


def same_but_for_ties(got: NDArray[np.bool_], logits: Floats, expected: NDArray[np.bool_]) -> bool:
    """Whether two masks agree, except in pixels whose logit is so close to 0 that rounding can change them."""
    return bool(np.array_equal(got | (np.abs(logits) < 1e-4), expected | (np.abs(logits) < 1e-4)))
