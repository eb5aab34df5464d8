"""Render factor -> the size the network sees.

The render factor f sets the number of pixels, (16 f)^2, and so the memory, whatever the photo's size. The name and the
16 are the original application's, after DeOldify's `render_factor` (render_base = 16).

`square` is a stretched square of 16 f x 16 f. `aspect` keeps the photo's aspect ratio at the same number of pixels, in
multiples of the network's stride, and never exceeds that number.
"""

from __future__ import annotations

import math
from typing import Literal

Fit = Literal["aspect", "square"]

BASE = 16
"""Pixels of the square's side per unit of render factor."""
MIN_RENDER_FACTOR, MAX_RENDER_FACTOR = 4, 256
"""64 x 64 up to 4096 x 4096 pixels."""


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
    width, height = size
    budget = pixels(render_factor)
    ideal = math.sqrt(budget * width / height)

    def cost(candidate: tuple[int, int]) -> float:
        w, h = candidate
        stretch = abs(math.log((w / h) / (width / height)))
        loss = math.log(budget / (w * h))
        return stretch + loss / 2

    columns = [stride * n for n in {max(1, math.floor(ideal / stride)), max(1, math.ceil(ideal / stride))}]
    candidates = []
    for w in columns:
        for rows in (
            math.floor(w * height / width / stride),
            math.ceil(w * height / width / stride),
            budget // w // stride,
        ):
            h = stride * max(1, rows)
            if w * h <= budget:
                candidates.append((w, h))
    longest = budget // stride // stride * stride
    return min(candidates, key=cost, default=(longest, stride) if width > height else (stride, longest))
