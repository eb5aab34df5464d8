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

LONGEST = 24
"""Maximum number of characters of a name; a longer one is shortened."""
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

_PLACES = [(column, row, penalty) for row, penalty in ((0, 0.0), (1, 0.3), (2, 0.4), (3, 0.6)) for column in (0, 1, 2)]
_PLACES += [(column, row, 0.8) for column in (3, 4) for row in (3, 4, 2)]
"""Column, row and penalty of each position beside or inside the box. Columns: at the left edge, in the middle, at the
right edge, to the right and to the left of the box. Rows: above, below, at the bottom, at the top, in the middle."""
_COLUMN, _ROW = np.array([place[:2] for place in _PLACES]).T
_REACH = np.repeat(REACH, DIRECTIONS)
_ANGLES = [2 * math.pi * direction / DIRECTIONS for direction in range(DIRECTIONS)] * len(REACH)
_COS, _SIN = np.array([math.cos(angle) for angle in _ANGLES]), np.array([math.sin(angle) for angle in _ANGLES])
_PENALTIES = np.array([*(penalty for _, _, penalty in _PLACES), *(1.5 + _REACH)], np.float32)
"""The positions beside or inside the box, then those around it."""


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


def texts(name: str, score: float) -> tuple[str, str]:
    """The alternatives for the text of a tag, the longest first."""
    shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1].rstrip()}…"
    return f"{shown} {score:.0%}", shown


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
    width, height = _shared(rects, cores)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    area = np.maximum((cores[:, 2] - cores[:, 0]) * (cores[:, 3] - cores[:, 1]), 1)
    return np.asarray(shared / area, np.float32)


def _shared(rects: Rects, others: Rects) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Width and height of the intersections of `rects` (C, 4) with `others` (M, 4): (C, M); negative if apart."""
    left, top, right, bottom = (edge[:, None] for edge in rects.T)
    width = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
    return width, np.minimum(bottom, others[:, 3]) - np.maximum(top, others[:, 1])


def _best(
    box: NDArray[np.float32], tag: tuple[int, int], size: tuple[int, int], cores: Rects, taken: Sequence[Rect]
) -> Rect | None:
    """The best position of a tag of (width, height); None if no position is allowed."""
    width, height = tag
    if width > size[0] or height > size[1]:
        return None
    wanted = _candidates(box, width, height)
    at = np.minimum(np.maximum(wanted, 0), np.array([size[0] - width, size[1] - height], np.float32))
    rects: Rects = np.concatenate([at, at + np.array(tag, np.float32)], axis=1).round()
    shares = covered(rects, cores)
    away = np.hypot(*(wanted - at).T) / height  # how far it was moved to be inside the photo
    cost = _PENALTIES + away + shares.sum(axis=1) / COVERED
    allowed = shares.max(axis=1, initial=0) <= COVERED
    if taken:
        allowed &= ~_meets(rects, np.array(taken, np.float32))
    if not allowed.any():
        return None
    left, top, right, bottom = rects[np.where(allowed, cost, np.inf).argmin()].tolist()
    return left, top, right, bottom


def _candidates(box: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Upper left corners (C, 2) of possible positions for a tag of this size, in the order of _PENALTIES."""
    x0, y0, x1, y1 = (float(value) for value in box)
    x, y = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    columns = np.array([x0, x, x1 - width, x1, x0 - width])
    rows = np.array([y0 - height, y1, y1 - height, y0, y])
    reach = _REACH * height
    across = x + _COS * ((x1 - x0 + width) / 2 + reach)
    down = y - _SIN * ((y1 - y0 + height) / 2 + reach)
    places = np.empty((len(_PENALTIES), 2), np.float32)
    places[:, 0] = np.concatenate([columns[_COLUMN], across])
    places[:, 1] = np.concatenate([rows[_ROW], down])
    return places


def _meets(rects: Rects, others: Rects) -> NDArray[np.bool_]:
    """Whether each of `rects` (C, 4) intersects one of `others` (M, 4): (C,) bool."""
    width, height = _shared(rects, others)
    return np.asarray(((width > 0) & (height > 0)).any(axis=1))


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
