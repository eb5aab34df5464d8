"""Choose the colour of each instance of an overlay.

The palette's colours are far apart in OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab/). In this colour
space, distances correspond to perceived differences, for blue hues better than in CIE Lab. `python -m devtools.palette`
computes the palette.

Per instance, in the order of the detections (best score first), the colour is chosen that differs most from the photo
below the instance and from the colours of neighbouring instances. Per class, the colour is the same in all photos; if
it is similar to the photo below, its contour gets a casing (see overlay.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from segment.detections import Detections
from segment.mask import THRESHOLD, Mask, Region

Colour = tuple[int, int, int]
"""Red, green, blue in 0-255."""
Lab = NDArray[np.float32]
"""(..., 3) OKLab: lightness in 0-1, a (green to red), b (blue to yellow)."""

_HEX = """
55ff33 7700dd ff5500 007711 00ffee 3344dd ff77aa 00aa00 eeee00 0077ee
dd0022 ffaaee aaaa00 665599 ee0088 aaddff bb7700 aa77ff aa1155 ffddaa
009999 ff55ee 885511 ffbb00 66bbff aa00aa aa7799 aadd88 dd9977 22cc99
"""
PALETTE: tuple[Colour, ...] = tuple((int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16)) for h in _HEX.split())
"""30 colours that are easy to tell apart; consecutive ones differ most."""

ENOUGH = 0.25
"""Distance in OKLab above which colours count as equally different. The distance of black and white is 1.

With a larger distance, only a few colours contrast enough with a street or with skin, and most of a crowd would have
the same one."""
CLEAR = 0.2
"""Minimum distance at which a line of one colour is clearly visible on another colour without a casing."""
BESIDE = 0.25
"""Instances are neighbours if their boxes meet when each is enlarged on all sides by this share of its longer side."""
THUMBNAIL = 256
"""The photo's colours are sampled at about this many pixels on the longer side."""

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)


_CHANNEL = np.arange(256, dtype=np.float32) / 255
_LINEAR = np.where(_CHANNEL <= 0.04045, _CHANNEL / 12.92, ((_CHANNEL + 0.055) / 1.055) ** 2.4).astype(np.float32)
"""sRGB in 0-255 -> linear light in 0-1."""


def oklab(colours: ArrayLike) -> Lab:
    """Convert (..., 3) sRGB, integers in 0-255, to OKLab."""
    linear = _LINEAR[np.asarray(colours)]
    lab: Lab = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return lab.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Paint:
    """The colour of an instance. `clear`: whether it is clearly visible on the photo below the instance."""

    colour: Colour
    clear: bool


def by_class(photo: Image.Image, detections: Detections) -> list[Paint]:
    """The colour of each instance's class, which is the same in all photos."""
    palette = oklab(PALETTE)
    chosen = [int(label) % len(PALETTE) for label in detections.classes]
    return [
        Paint(PALETTE[index], bool(_distance(palette[index : index + 1], below)[0] >= CLEAR))
        for index, below in zip(chosen, _grounds(photo, detections), strict=True)
    ]


def by_instance(photo: Image.Image, detections: Detections) -> list[Paint]:
    """For each instance, the colour that differs most from the photo below it and from its neighbours' colours.

    Of equally different colours, the one that is used least so far is chosen.
    """
    palette = oklab(PALETTE)
    between = np.linalg.norm(palette[:, None] - palette, axis=2)
    beside = _beside(detections)
    used = np.zeros(len(PALETTE), np.int64)
    chosen: list[int] = []
    clear: list[bool] = []
    for index, below in enumerate(_grounds(photo, detections)):
        on_photo = _distance(palette, below)
        taken = [chosen[other] for other in np.flatnonzero(beside[index, :index])]
        distance = np.minimum(on_photo, between[:, taken].min(axis=1, initial=math.inf))
        best = int(np.lexsort((used, -np.minimum(distance, ENOUGH)))[0])
        chosen.append(best)
        clear.append(bool(on_photo[best] >= CLEAR))
        used[best] += 1
    return [Paint(PALETTE[index], stands_out) for index, stands_out in zip(chosen, clear, strict=True)]


def _distance(colours: Lab, grounds: Lab) -> NDArray[np.float32]:
    """The distance of each of `colours` (C, 3) to the most similar of `grounds` (G, 3): (C,)."""
    distance: NDArray[np.float32] = np.linalg.norm(colours[:, None] - grounds, axis=2).min(axis=1)
    return distance


def _grounds(photo: Image.Image, detections: Detections) -> list[Lab]:
    """The mean colours of the photo below each instance's mask and around it: (2, 3) each, (1, 3) if one is empty."""
    step = max(1, math.ceil(max(photo.size) / THUMBNAIL))
    pixels = np.asarray(photo.reduce(step))
    size = pixels.shape[1], pixels.shape[0]
    masks = detections.at(size).masks
    regions = [_surroundings(mask, size) for mask in masks]
    seen = np.zeros(pixels.shape[:2], bool)
    for left, top, right, bottom in regions:
        seen[top:bottom, left:right] = True
    lab = np.empty(pixels.shape, np.float32)
    lab[seen] = oklab(pixels[seen])
    return [_ground(lab, mask, region) for mask, region in zip(masks, regions, strict=True)]


def _surroundings(mask: Mask, size: tuple[int, int]) -> Region:
    """The mask's region, enlarged by an eighth on each side, in an image of `size`."""
    left, top, right, bottom = mask.region(size)
    x, y = max(1, (right - left) // 8), max(1, (bottom - top) // 8)
    return max(0, left - x), max(0, top - y), min(size[0], right + x), min(size[1], bottom + y)


def _ground(lab: Lab, mask: Mask, region: Region) -> Lab:
    inside = mask.paste(region) >= THRESHOLD
    pixels = lab[region[1] : region[3], region[0] : region[2]]
    parts = [found.sum(axis=0) / len(found) for found in (pixels[inside], pixels[~inside]) if len(found)]
    return np.array(parts or [[0.5, 0, 0]], np.float32)


def _beside(detections: Detections) -> NDArray[np.bool_]:
    """Whether each two instances are neighbours: (N, N) bool."""
    x0, y0, x1, y1 = detections.boxes.T
    margin = BESIDE * np.maximum(x1 - x0, y1 - y0)
    left, top, right, bottom = (edge[:, None] for edge in (x0 - margin, y0 - margin, x1 + margin, y1 + margin))
    meet: NDArray[np.bool_] = (left <= right.T) & (right >= left.T) & (top <= bottom.T) & (bottom >= top.T)
    return meet


def ink(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast on `colour` (WCAG 2, relative luminance)."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)
