"""Compute the palette of segment/output/colours.py: `python -m devtools.palette` prints it.

Farthest-point sampling of the sRGB colours within bounds of lightness and chroma: each colour is the one that is
farthest from all previous ones. The distance is the smaller of the distances in OKLab and in CIE Lab (CIE 1976),
because each alone overestimates some differences. The colours are then ordered so that each differs most from the
previous few.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from segment.output.colours import Colour, oklab

COLOURS = 30
LIGHTNESS = 0.48, 0.93
CHROMA = 0.07, 0.27
STEP = 17
"""Step between the values of a channel: 16 values."""
CIE_PER_OKLAB = 180.0
"""Units of CIE Lab per unit of OKLab."""
WINDOW = 3
"""Number of previous colours from which each colour should differ most."""

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def cielab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3) sRGB in 0-255 -> CIE Lab for the white of D65 (N, 3)."""
    value = np.asarray(colours) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    x = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def palette() -> list[Colour]:
    """The colours in order."""
    levels = range(0, 256, STEP)
    rgb = np.array(list(itertools.product(levels, repeat=3)), np.uint8)
    ok = oklab(rgb)
    chroma = np.hypot(ok[:, 1], ok[:, 2])
    useful = _between(ok[:, 0], LIGHTNESS) & _between(chroma, CHROMA)
    rgb, first = rgb[useful], int(chroma[useful].argmax())
    distances = np.minimum(_distances(oklab(rgb)), _distances(cielab(rgb)) / CIE_PER_OKLAB)
    return [
        (int(red), int(green), int(blue)) for red, green, blue in rgb[_ordered(distances, _spread(distances, first))]
    ]


def _between(values: NDArray[np.float32], bounds: tuple[float, float]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (values >= bounds[0]) & (values <= bounds[1])
    return result


def _distances(points: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.linalg.norm(points[:, None] - points, axis=2))


def _spread(distances: NDArray[np.floating], first: int) -> list[int]:
    """Farthest-point sampling from `first`: each index is that of the colour farthest from all previous ones."""
    chosen = [first]
    while len(chosen) < COLOURS:
        chosen.append(int(distances[chosen].min(axis=0).argmax()))
    return chosen


def _ordered(distances: NDArray[np.floating], chosen: list[int]) -> list[int]:
    """The same colours, ordered so that each is far from the previous WINDOW colours."""
    order, rest = chosen[:1], chosen[1:]
    while rest:
        nearest = distances[np.ix_(rest, order[-WINDOW:])].min(axis=1)
        order.append(rest.pop(int(nearest.argmax())))
    return order


def main() -> None:
    """Print the palette as hexadecimal numbers, ten per line."""
    codes = [f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette()]
    for start in range(0, COLOURS, 10):
        print(" ".join(codes[start : start + 10]))


if __name__ == "__main__":
    main()
