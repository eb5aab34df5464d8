"""Convert a decoded image to upright RGB, strip by strip, so that no third copy of it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIP_BYTES = 1 << 18
"""Size of the strips in which an image is converted to RGB."""


def upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Convert `image` to RGB, and turn it upright. `orientation`: EXIF orientation, 1-8; 1 is upright."""
    width, height = image.size
    swapped, backwards = orientation >= 5, orientation in (3, 4, 6, 7)
    turn = _TURNS.get(orientation)
    convert = _converter(image)
    result = Image.new("RGB", (height, width) if swapped else (width, height))
    step = max(1, STRIP_BYTES // (4 * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        strip = convert(image.crop((0, top, width, bottom)))
        if turn is not None:
            strip = strip.transpose(turn)
        start = height - bottom if backwards else top
        result.paste(strip, (start, 0) if swapped else (0, start))
    return result


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that applies it (as in PIL.ImageOps.exif_transpose)."""


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that converts strips of `image` to RGB."""
    if image.mode.startswith("I;16"):
        return lambda piece: _grey(np.asarray(piece) >> 8)
    if image.mode in ("I", "F"):
        low, high = _range(image)
        return lambda piece: _grey((np.nan_to_num(np.asarray(piece, np.float64)) - low) * (255 / (high - low)))
    if image.has_transparency_data:
        return _on_white
    return lambda piece: piece.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white in a 32-bit integer or float image.

    The first of the ranges 0-1 (float only), 0-255 and 0-65535 that contains all values, or else their own minimum and
    maximum.
    """
    extrema = np.nan_to_num(np.array(image.getextrema(), np.float64), posinf=0, neginf=0)
    low, high = float(extrema[0]), float(extrema[1])
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((scale for scale in scales if low >= 0 and high <= scale), None)
    return (0.0, top) if top else (low, max(high, low + 1))


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def _on_white(piece: Image.Image) -> Image.Image:
    """Blend `piece` with white."""
    piece = piece.convert("RGBA")
    result = Image.new("RGB", piece.size, "white")
    result.paste(piece, mask=piece)
    return result
