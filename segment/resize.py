"""Render factor -> the size the network sees.

The render factor f sets the number of pixels, (16 f)^2, and so the memory, whatever the photo's size. The name and the
16 are the original application's, after DeOldify's `render_factor` (render_base = 16).

`square` is a stretched square of 16 f x 16 f. `aspect` keeps the photo's aspect ratio at the same number of pixels, in
multiples of the network's stride, and never exceeds that number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

Fit = Literal["aspect", "square"]

BASE = 16
"""Pixels of the square's side per unit of render factor."""
MIN_RENDER_FACTOR, MAX_RENDER_FACTOR = 4, 256
"""64 x 64 up to 4096 x 4096 pixels."""
MAX_DETAIL = 4
"""Tiles a side at most (tiles.py): 16 tiles and the whole are 17 runs."""


def pixels(render_factor: int) -> int:
    """How many pixels the network sees at most."""
    return (BASE * render_factor) ** 2


def fitted_size(size: tuple[int, int], render_factor: int, fit: Fit, stride: int = 32) -> tuple[int, int]:
    """The (width, height) in pixels that a photo of `size` (width, height) is scaled to.

    With `aspect` both are multiples of `stride`, at least one stride, and width x height <= (16 render_factor)^2; of
    those sizes it is the one whose distortion and loss of pixels together are least.
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
    longest = budget // stride // stride * stride
    return min(candidates, key=cost, default=(longest, stride) if ratio > 1 else (stride, longest))


def _candidates(ratio: float, budget: int, stride: int) -> Iterator[tuple[int, int]]:
    """Sizes of whole strides within `budget` pixels whose widths are next to the ideal one."""
    ideal = math.sqrt(budget * ratio) / stride
    for columns in {max(1, math.floor(ideal)), math.ceil(ideal)}:
        most = budget // (columns * stride * stride)
        for rows in {math.floor(columns / ratio), math.ceil(columns / ratio), most}:
            if 1 <= rows <= most:
                yield columns * stride, rows * stride
