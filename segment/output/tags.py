"""Place the tags with the names of instances on a photo.

A tag is next to its instance's box, or near it and connected by a leader line. Tags do not cover each other, nor more
than a tenth of any instance's core. The core is the middle of a box without its lowest part, where the faces of people
and animals are. If there is no room, the name is shortened or left out. The size of the text depends on the size of the
instance, within limits that depend on the size of the photo.

The page uses the same rules (web/page/tags.js).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rect = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""
Rects = NDArray[np.float32]
"""(N, 4) left, top, right, bottom in pixels."""

COVERED = 0.1
"""Maximum share of an instance's core that a tag may cover."""
CORE = 0.2, 0.0, 0.8, 0.7
"""(left, top, right, bottom) of the core, relative to the width and height of the box."""
HIDDEN = 0.15
"""Maximum share of the photo that all tags together may cover. On a small photo, only the best instances have tags."""
SMALLEST, SMALL, LARGE = 9.0, 1 / 75, 1 / 52
"""Minimum text size in pixels; minimum and maximum, relative to the square root of the photo's area."""
OF_INSTANCE = 0.2
"""Text size, relative to the square root of the box's area."""
REACH = 0.8, 1.6
"""Lengths of leader lines that are tried, relative to the tag's height."""
DIRECTIONS = 16
"""Number of directions in which they are tried."""
LEADER = 0.3
"""A tag whose distance from its box is more than this, relative to the tag's height, has a leader line."""


@dataclass(frozen=True)
class Tag:
    """A placed tag.

    `index`: the instance's index. `points`: text size in pixels. `leader`: the line (x0, y0, x1, y1) from the tag to
    its instance, if there is one.
    """

    index: int
    text: str
    points: int
    rect: Rect
    leader: Rect | None


Measure = Callable[[str, int], tuple[int, int]]
"""Returns the (width, height) in pixels of a tag with this text in this size."""


def place(boxes: Rects, texts: Sequence[Sequence[str]], size: tuple[int, int], measure: Measure) -> list[Tag]:
    """Place tags for `boxes` (N, 4), sorted by descending score, on a photo of `size` (width, height).

    `texts`: alternatives for each instance, the longest first. If there is no room for any, the instance has no tag.
    """
    cores = core(boxes)
    taken: list[Rect] = []
    tags: list[Tag] = []
    room = HIDDEN * math.prod(size)
    for index, (box, choices) in enumerate(zip(boxes, texts, strict=True)):
        points = letters(box, size)
        for text in choices:
            width, height = measure(text, points)
            rect = _best(box, (width, height), size, cores, taken) if width * height <= room else None
            if rect is None:
                continue
            line = _leader(rect, box, cores[index])
            tags.append(Tag(index, text, points, rect, line))
            taken.append(rect)
            room -= width * height
            break
    return tags


def letters(box: NDArray[np.float32], size: tuple[int, int]) -> int:
    """The text size in pixels for an instance with this box in a photo of `size`."""
    photo, instance = math.sqrt(math.prod(size)), math.sqrt(max(0.0, float((box[2] - box[0]) * (box[3] - box[1]))))
    return round(max(SMALLEST, SMALL * photo, min(LARGE * photo, OF_INSTANCE * instance)))


def core(boxes: Rects) -> Rects:
    """The cores (N, 4) of instances with `boxes` (N, 4)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    left, top, right, bottom = CORE
    x0, y0 = boxes[:, 0], boxes[:, 1]
    return np.stack([x0 + left * width, y0 + top * height, x0 + right * width, y0 + bottom * height], axis=1)


def covered(rects: Rects, cores: Rects) -> NDArray[np.float32]:
    """The share of each core (N, 4) that each rectangle (C, 4) covers: (C, N)."""
    low = np.maximum(rects[:, None, :2], cores[None, :, :2])
    high = np.minimum(rects[:, None, 2:], cores[None, :, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    area = np.maximum((cores[:, 2] - cores[:, 0]) * (cores[:, 3] - cores[:, 1]), 1)
    return np.asarray(shared / area, np.float32)


def _best(
    box: NDArray[np.float32], tag: tuple[int, int], size: tuple[int, int], cores: Rects, taken: Sequence[Rect]
) -> Rect | None:
    """The best position of a tag of (width, height); None if no position is allowed."""
    width, height = tag
    if width > size[0] or height > size[1]:
        return None
    at, penalty = _candidates(box, width, height)
    x = np.clip(at[:, 0], 0, size[0] - width)
    y = np.clip(at[:, 1], 0, size[1] - height)
    rects: Rects = np.stack([x, y, x + width, y + height], axis=1).round()
    shares = covered(rects, cores)
    away = np.hypot(*(at - np.stack([x, y], axis=1)).T) / height  # how far it was moved to be inside the photo
    cost = penalty + away + shares.sum(axis=1) / COVERED
    allowed = shares.max(axis=1, initial=0) <= COVERED
    if taken:
        allowed &= ~_meets(rects, np.array(taken, np.float32))
    if not allowed.any():
        return None
    left, top, right, bottom = rects[np.where(allowed, cost, np.inf).argmin()].tolist()
    return left, top, right, bottom


def _candidates(box: NDArray[np.float32], width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Upper left corners (C, 2) of possible positions for a tag of this size, and their penalties (C,)."""
    x0, y0, x1, y1 = (float(value) for value in box)
    across = x0, (x0 + x1 - width) / 2, x1 - width
    down = y0, (y0 + y1 - height) / 2, y1 - height
    places = [(x, y, p) for y, p in ((y0 - height, 0.0), (y1, 0.3), (y1 - height, 0.4), (y0, 0.6)) for x in across]
    places += [(x, y, 0.8) for x in (x1, x0 - width) for y in down]
    for reach in REACH:
        for direction in range(DIRECTIONS):
            angle = 2 * math.pi * direction / DIRECTIONS
            along, up = math.cos(angle), math.sin(angle)
            x = (x0 + x1 - width) / 2 + along * ((x1 - x0 + width) / 2 + reach * height)
            y = (y0 + y1 - height) / 2 - up * ((y1 - y0 + height) / 2 + reach * height)
            places.append((x, y, 1.5 + reach))
    table = np.array(places, np.float32)
    return table[:, :2], table[:, 2]


def _meets(rects: Rects, others: Rects) -> NDArray[np.bool_]:
    """Whether each of `rects` (C, 4) intersects one of `others` (M, 4): (C,) bool."""
    low = np.maximum(rects[:, None, :2], others[:, :2])
    high = np.minimum(rects[:, None, 2:], others[:, 2:])
    meet: NDArray[np.bool_] = np.all(low < high, axis=2)
    return np.asarray(meet.any(axis=1))


def _leader(rect: Rect, box: NDArray[np.float32], core: NDArray[np.float32]) -> Rect | None:
    """The line from a tag to its instance's core; None if the tag is next to the box."""
    left, top, right, bottom = rect
    gap = max(box[0] - right, left - box[2], box[1] - bottom, top - box[3])
    if gap <= LEADER * (bottom - top):
        return None
    x, y = (core[0] + core[2]) / 2, (core[1] + core[3]) / 2
    x0, y0 = min(max(float(x), left), right), min(max(float(y), top), bottom)
    x1, y1 = min(max(x0, float(core[0])), float(core[2])), min(max(y0, float(core[1])), float(core[3]))
    return x0, y0, x1, y1
