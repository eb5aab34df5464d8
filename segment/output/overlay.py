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
from segment.mask import Mask, edge_distance
from segment.options import Colours

Colour = tuple[int, int, int]
Tag = tuple[int, int, int, int]
"""(left, top, right, bottom) of a label, in pixels."""

FILL = 0.42
"""Opacity of a mask's inside; its contour is opaque."""
HIDDEN = 0.2
"""The part of the photo that labels may hide together: on a thumbnail the best few are named."""

_BRIGHT = 0xFF3D5A, 0x1E88FF, 0x14C96B, 0xFFB300, 0xA855F7, 0x00C8D7, 0xFF7A1A, 0xE84AD0, 0x8BD31A, 0x5B6BFF
_SECOND = 0xFFB8A0, 0x00A58E, 0xFFE14D, 0xC77DFF, 0x4DC3FF, 0xD94F1E, 0x6FE3A8, 0xB8860B, 0xFF5FA8, 0x7F8FA9
PALETTE: tuple[Colour, ...] = tuple((code >> 16, code >> 8 & 255, code & 255) for code in _BRIGHT + _SECOND)
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
    corners = [_pixels(box, photo.size) for box in detections.boxes]
    if masks:
        for i in order:
            _draw_mask(photo, detections.masks[i], paint[i], line)
    if boxes:
        pen = ImageDraw.Draw(photo)
        for i in order:
            pen.rectangle(corners[i], outline=paint[i], width=round(line))
    if text:
        found = zip((labels[int(index)] for index in detections.classes), detections.scores, strict=True)
        _draw_labels(photo, [(f"{label} {score:.0%}", label) for label, score in found], corners, paint)


def _draw_mask(photo: Image.Image, mask: Mask, colour: Colour, line: float) -> None:
    """Fill the mask and draw its contour, `line` pixels wide on the inside of the edge; both without steps."""
    for region, probabilities in mask.strips(photo.size):
        inside = edge_distance(probabilities)
        covered = np.clip(inside + np.float32(0.5), 0, 1)
        contour = np.clip(np.float32(line + 0.5) - inside, 0, 1, out=inside)
        contour *= np.float32(255 * (1 - FILL))
        contour += np.float32(255 * FILL)
        covered *= contour
        photo.paste(colour, region, Image.fromarray(covered.astype(np.uint8)))


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Tag:
    """The box's outermost pixels inside an image of `size`, both included."""
    width, height = size
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return left, top, max(min(x1, width) - 1, left), max(min(y1, height) - 1, top)


def _draw_labels(
    photo: Image.Image, names: Sequence[tuple[str, ...]], corners: Sequence[Tag], paint: Sequence[Colour]
) -> None:
    """Draw names on filled tags at their boxes, best score first.

    `names`: for each instance the texts to choose from; the first that fits is drawn. A name that would lie on
    another is left out, for of two on one spot none can be read; so is what would hide too much of the photo.
    """
    pen = ImageDraw.Draw(photo)
    points = max(9.0, math.sqrt(math.prod(photo.size)) / 62)
    font = ImageFont.load_default(points)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels hold FreeType
    ascent, descent = font.getmetrics()
    pad = max(1, round(points / 4))
    taken: list[Tag] = []
    room = HIDDEN * math.prod(photo.size)
    for texts, corner, colour in zip(names, corners, paint, strict=True):
        for text in texts:
            width = math.ceil(font.getlength(text)) + 2 * pad
            height = ascent + descent
            tag = _place(corner, (width, height), photo.size, taken) if width * height <= room else None
            if tag is not None:
                taken.append(tag)
                room -= width * height
                pen.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
                pen.text((tag[0] + pad, tag[1] + ascent), text, _ink(colour), font, anchor="ls")
                break


def _place(corner: Tag, tag: tuple[int, int], size: tuple[int, int], taken: Sequence[Tag]) -> Tag | None:
    """Where a tag of (width, height) goes: the first place at its box that is free; sideways it may shift."""
    width, height = tag
    left, top, right, bottom = corner
    if width > size[0] or height > size[1]:
        return None
    for x in (left, right + 1 - width, (left + right + 1 - width) // 2):
        for y in (top - height, top, bottom + 1 - height, bottom + 1):
            x0, y0 = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
            place = x0, y0, x0 + width, y0 + height
            if y0 == y and not any(_overlap(place, other) for other in taken):
                return place
    return None


def _overlap(a: Tag, b: Tag) -> bool:
    """Whether two tags share a pixel."""
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast on `colour` (WCAG 2, relative luminance)."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)
