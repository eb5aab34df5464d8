"""PNG files of overlays, read back by Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from segment.output import png


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (300, 301), (90_000, 2)])
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_pixels_are_kept(size: tuple[int, int], kind: str) -> None:
    shape = (*size[::-1], 3)
    pixels = (
        np.random.default_rng(0).integers(0, 256, shape, np.uint8) if kind == "noise" else np.full(shape, 200, np.uint8)
    )
    body = png.encode(Image.fromarray(pixels))
    with Image.open(io.BytesIO(body)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
        assert np.array_equal(np.asarray(image), pixels)
    with Image.open(io.BytesIO(body)) as image:
        image.verify()  # checksums
    assert len(body) < (1.01 * pixels.size if kind == "noise" else 0.02 * pixels.size) + 200
