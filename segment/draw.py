"""Detections drawn on a photo.

Masks first, then boxes, then labels, so that no name is hidden; of instances that overlap, the higher score lies on
top. Everything is drawn into the photo itself, a mask in strips, so drawing takes a few MiB at any size. Lines and
letters grow with the photo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segment.detections import Detections
from segment.mask import Mask
from segment.options import Colours

Colour = tuple[int, int, int]
Tag = tuple[int, int, int, int]
"""(left, top, right, bottom) of a label, in pixels."""

FILL = 0.42
"""Opacity of a mask's inside; its contour is opaque."""

PALETTE: tuple[Colour, ...] = tuple(
    (code >> 16, code >> 8 & 255, code & 255)
    for code in (
        (0xFF3D5A, 0x1E88FF, 0x14C96B, 0xFFB300, 0xA855F7, 0x00C8D7, 0xFF7A1A, 0xE84AD0, 0x8BD31A, 0x5B6BFF)
        + (0xFF8FA3, 0x00A58E, 0xFFE14D, 0xC77DFF, 0x4DC3FF, 0xD94F1E, 0x6FE3A8, 0xB8860B, 0xFF5FA8, 0x7F8FA9)
    )
)
"""Twenty colours that stay apart from their neighbours in the list, on bright and on dark photos."""


def draw(
    photo: Image.Image,
    detections: Detections,
    labels: Sequence[str],
    *,
    masks: bool = True,
    boxes: bool = True,
    text: bool = True,
    colours: Colours = "instance",
) -> None:
    """Draw `detections` on `photo`, an RGB image of detections.size, in place.

    With colours="class" a class has the same colour in every photo; with "instance" the colours follow the scores'
    order. `labels` are the model's class names by index.
    """
    order = np.argsort(detections.scores, kind="stable")  # the best comes last, on top
    key = detections.classes if colours == "class" else np.arange(len(detections))
    paint = [PALETTE[int(index) % len(PALETTE)] for index in key]
    line = max(1.0, math.sqrt(math.prod(photo.size)) / 550)
    if masks:
        for i in order:
            _draw_mask(photo, detections.masks[i], paint[i], line)
    pen = ImageDraw.Draw(photo)
    corners = [_pixels(box, photo.size) for box in detections.boxes]
    if boxes:
        for i in order:
            pen.rectangle(corners[i], outline=paint[i], width=max(1, round(line)))
    if text:
        names = [f"{labels[c]} {s:.0%}" for c, s in zip(detections.classes, detections.scores, strict=True)]
        _draw_labels(pen, names, corners, paint, photo.size)


def _draw_mask(photo: Image.Image, mask: Mask, colour: Colour, line: float) -> None:
    """Fill the mask and draw its contour, `line` pixels wide on the inside of the edge."""
    for (left, top, right, bottom), probabilities in mask.strips(photo.size):
        opacity = mask.opacity(probabilities)
        layer = Image.fromarray((opacity * np.float32(255 * FILL)).astype(np.uint8))
        photo.paste(colour, (left, top, right, bottom), layer)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Tag:
    """The box's outermost pixels inside an image of `size`, both included."""
    x0, y0, x1, y1 = (float(value) for value in box)
    width, height = size
    left, top = min(max(round(x0), 0), width - 1), min(max(round(y0), 0), height - 1)
    return left, top, max(min(round(x1), width) - 1, left), max(min(round(y1), height) - 1, top)


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    names: Sequence[str],
    corners: Sequence[Tag],
    paint: Sequence[Colour],
    size: tuple[int, int],
) -> None:
    """Draw each name on a filled tag at its box, best score first, each where it hides least of the tags before."""
    points = max(9.0, math.sqrt(math.prod(size)) / 62)
    font = ImageFont.load_default(points)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels hold FreeType
    taken: list[Tag] = []
    for name, corner, colour in zip(names, corners, paint, strict=True):
        pad = max(1, round(points / 4))
        left, _, right, _ = pen.textbbox((0, 0), name, font, anchor="ls")
        ascent, descent = font.getmetrics()
        width, height = math.ceil(right - left) + 2 * pad, ascent + descent
        tag = _place(corner, (width, height), size, taken)
        taken.append(tag)
        pen.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
        pen.text((tag[0] + pad - left, tag[1] + ascent), name, _ink(colour), font, anchor="ls")


def _place(corner: Tag, tag: tuple[int, int], size: tuple[int, int], taken: Sequence[Tag]) -> Tag:
    """Where a tag of (width, height) goes: of the places around its box, the first that hides least."""
    width, height = tag
    left, top, right, bottom = corner
    places = [
        (left, top - height),
        (left, top),
        (right + 1 - width, top - height),
        (right + 1 - width, top),
        (left, bottom + 1),
        (left, bottom + 1 - height),
        (right + 1 - width, bottom + 1),
        (right + 1 - width, bottom + 1 - height),
    ]
    inside = [(max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))) for x, y in places]
    boxes = [(x, y, x + width, y + height) for x, y in inside]
    costs = [
        sum(_overlap(box, other) for other in taken) + (place != want)
        for box, place, want in zip(boxes, inside, places, strict=True)
    ]
    return boxes[int(np.argmin(costs))]


def _overlap(a: Tag, b: Tag) -> int:
    """The pixels that two tags share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour` (relative luminance, ITU-R BT.709)."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else (255, 255, 255)
