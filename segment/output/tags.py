"""Where the names of instances go.

A tag lies at its instance's box, or close to it with a leader line from the one to the other. It covers no other tag,
and at most a tenth of any instance's core, the middle of its box without the lowest part: this is where the faces of
people and animals are. In a crowd names are shortened, then left out. Letters are as large as suits the instance,
within bounds that follow from the photo.

The page draws tags by the same rules (web/page/tags.js).
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
"""(N, 4) of them."""

COVERED = 0.1
"""The part of an instance's core that a tag may cover at most."""
CORE = 0.2, 0.0, 0.8, 0.7
"""An instance's core in its box: (left, top, right, bottom)."""
HIDDEN = 0.15
"""The part of the photo that tags may hide together: on a thumbnail the best few are named."""
SMALLEST, SMALL, LARGE = 9.0, 1 / 75, 1 / 52
"""Sizes of letters in pixels: at least; at least and at most, by the root of the photo's area."""
OF_INSTANCE = 0.2
"""The size of letters by the root of the box's area."""
REACH = 0.8, 1.6
"""Lengths of leader lines that are tried, by the tag's height."""
DIRECTIONS = 16
LEADER = 0.3
"""A tag that is further from its box than this, by its height, has a leader line."""


@dataclass(frozen=True)
class Tag:
    """A name on the photo. `leader`: the line (x0, y0, x1, y1) from the tag to its instance, if there is one."""

    index: int
    text: str
    points: int
    rect: Rect
    leader: Rect | None


Measure = Callable[[str, int], tuple[int, int]]
"""(text, points) -> the (width, height) of its tag in pixels."""


def place(boxes: Rects, texts: Sequence[Sequence[str]], size: tuple[int, int], measure: Measure) -> list[Tag]:
    """Place names on a photo of `size` (width, height) for `boxes` (N, 4), best score first.

    `texts`: for each instance what to choose from, the longest first. Without room for any, an instance has no tag.
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
    """The size of an instance's letters in pixels."""
    photo, instance = math.sqrt(math.prod(size)), math.sqrt(max(0.0, float((box[2] - box[0]) * (box[3] - box[1]))))
    return round(max(SMALLEST, SMALL * photo, min(LARGE * photo, OF_INSTANCE * instance)))


def core(boxes: Rects) -> Rects:
    """The cores (N, 4) of instances in these boxes (N, 4)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    left, top, right, bottom = CORE
    x0, y0 = boxes[:, 0], boxes[:, 1]
    return np.stack([x0 + left * width, y0 + top * height, x0 + right * width, y0 + bottom * height], axis=1)


def covered(rects: Rects, cores: Rects) -> NDArray[np.float32]:
    """(C, N): the part of each core (N, 4) that each rectangle (C, 4) covers."""
    low = np.maximum(rects[:, None, :2], cores[None, :, :2])
    high = np.minimum(rects[:, None, 2:], cores[None, :, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    area = np.maximum((cores[:, 2] - cores[:, 0]) * (cores[:, 3] - cores[:, 1]), 1)
    return np.asarray(shared / area, np.float32)


def _best(
    box: NDArray[np.float32], tag: tuple[int, int], size: tuple[int, int], cores: Rects, taken: Sequence[Rect]
) -> Rect | None:
    """The best place for a tag of (width, height); None if there is none."""
    width, height = tag
    if width > size[0] or height > size[1]:
        return None
    at, penalty = _candidates(box, width, height)
    x = np.clip(at[:, 0], 0, size[0] - width)
    y = np.clip(at[:, 1], 0, size[1] - height)
    rects: Rects = np.stack([x, y, x + width, y + height], axis=1).round()
    shares = covered(rects, cores)
    away = np.hypot(*(at - np.stack([x, y], axis=1)).T) / height  # moved so far to lie on the photo
    cost = penalty + away + shares.sum(axis=1) / COVERED
    allowed = shares.max(axis=1, initial=0) <= COVERED
    if taken:
        allowed &= ~_meets(rects, np.array(taken, np.float32))
    if not allowed.any():
        return None
    left, top, right, bottom = rects[np.where(allowed, cost, np.inf).argmin()].tolist()
    return left, top, right, bottom


def _candidates(box: NDArray[np.float32], width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Upper left corners (C, 2) of places for a tag of this size, and how far each is from the best (C,)."""
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
    """(C,): which rectangles (C, 4) share a pixel with one of the others (M, 4)."""
    low = np.maximum(rects[:, None, :2], others[:, :2])
    high = np.minimum(rects[:, None, 2:], others[:, 2:])
    meet: NDArray[np.bool_] = np.all(low < high, axis=2)
    return np.asarray(meet.any(axis=1))


def _leader(rect: Rect, box: NDArray[np.float32], core: NDArray[np.float32]) -> Rect | None:
    """The line from a tag to its instance's core, if it does not lie at the box."""
    left, top, right, bottom = rect
    gap = max(box[0] - right, left - box[2], box[1] - bottom, top - box[3])
    if gap <= LEADER * (bottom - top):
        return None
    x, y = (core[0] + core[2]) / 2, (core[1] + core[3]) / 2
    x0, y0 = min(max(float(x), left), right), min(max(float(y), top), bottom)
    x1, y1 = min(max(x0, float(core[0])), float(core[2])), min(max(y0, float(core[1])), float(core[3]))
    return x0, y0, x1, y1
