"""The render factor: the size of the network's input.

A render factor f limits the network's input to (16 f)^2 pixels, independent of the photo's size, and with it the
memory. The name and the factor 16 come from DeOldify (`render_factor`, `render_base = 16`).

With `fit="square"` the photo is stretched to a square of 16 f x 16 f pixels. With `fit="aspect"` it is scaled to at
most as many pixels with its aspect ratio kept, to a width and height that are multiples of the network's stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

Fit = Literal["aspect", "square"]

BASE = 16
"""Side of the square in pixels per unit of render factor."""
MIN_RENDER_FACTOR, MAX_RENDER_FACTOR = 4, 256
"""64 x 64 up to 4096 x 4096 pixels."""
MAX_DETAIL = 4
"""Maximum number of tiles per side (segment.tiles): 16 tiles and the whole photo make 17 runs."""


def pixels(render_factor: int) -> int:
    """The maximum number of pixels of the network's input."""
    return (BASE * render_factor) ** 2


def fitted_size(size: tuple[int, int], render_factor: int, fit: Fit, stride: int = 32) -> tuple[int, int]:
    """The (width, height) in pixels to which a photo of `size` (width, height) is scaled.

    With `aspect`, both are positive multiples of `stride`, and width x height <= (16 render_factor)^2. Of these sizes,
    the one that minimizes the sum of distortion and unused pixels is chosen. If even stride x stride is larger, it is
    stride x stride.
    """
    if fit == "square":
        side = BASE * render_factor
        return side, side
    budget = pixels(render_factor)
    ratio = size[0] / size[1]

    def cost(candidate: tuple[int, int]) -> float:
        w, h = candidate
        stretch = abs(math.log(w / h / ratio))
        loss = math.log(budget / (w * h))
        return stretch + loss / 2

    candidates = [*_candidates(ratio, budget, stride), *((w, h) for h, w in _candidates(1 / ratio, budget, stride))]
    longest = max(1, budget // stride // stride) * stride
    return min(candidates, key=cost, default=(longest, stride) if ratio > 1 else (stride, longest))


def square_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The (width, height) in pixels to which a photo of `size` is scaled so that its longer side is `side`.

    detectron2's ResizeShortestEdge with max_size does the same, where `side` is also its shortest edge.
    """
    width, height = (max(1, math.floor(n * side / max(size) + 0.5)) for n in size)
    return width, height


def _candidates(ratio: float, budget: int, stride: int) -> Iterator[tuple[int, int]]:
    """Sizes in whole strides, within `budget` pixels, whose widths are next to the ideal width."""
    ideal = math.sqrt(budget * ratio) / stride
    for columns in {max(1, math.floor(ideal)), math.ceil(ideal)}:
        most = budget // (columns * stride * stride)
        for rows in {math.floor(columns / ratio), math.ceil(columns / ratio), most}:
            if 1 <= rows <= most:
                yield columns * stride, rows * stride
