"""Detections drawn on a photo.

Masks first, then boxes, then labels, so that no name is hidden; of instances that overlap, the higher score lies on
top. Everything is drawn into the photo itself, a mask in strips, so drawing takes a few MiB at any size. Lines and
letters grow with the photo. Which colour an instance has is decided in colours.py, where its name goes in tags.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segment.detections import Detections
from segment.mask import THRESHOLD, Box, Mask, Region
from segment.options import Colours
from segment.output import tags
from segment.output.colours import Paint, by_class, by_instance, ink

FILL = 0.42
"""Opacity of a mask's inside; its contour is opaque."""
LINE, OF_INSTANCE = 1 / 550, 1 / 25
"""The width of lines by the root of the photo's area, but on small instances by that of the box's."""
FINE = math.sqrt(0.5)
"""The side in pixels below which a cell is nearer to a pixel's size when it is doubled."""
SPECK = 0.02
"""The part of a mask below which a piece of it, or a hole in it, has no contour."""
MOST_SPECKS = 32
"""A mask with more of them is noise and outlined as it is: removing them would take longer than all other drawing."""


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

    With colours="class" a class has the same colour in every photo; with "instance" colours are chosen to stand out on
    the photo and beside each other. `labels` are the model's class names by index.
    """
    if not len(detections):
        return
    order = np.argsort(detections.scores, kind="stable")  # the best comes last, on top
    paints = (by_class if colours == "class" else by_instance)(photo, detections)
    lines = [_line(mask.bounds, photo.size) for mask in detections.masks]
    if masks:
        for i in order:
            _draw_mask(photo, detections.masks[i], paints[i], lines[i])
    if boxes:
        pen = ImageDraw.Draw(photo)
        for i in order:
            _draw_box(pen, _pixels(detections.boxes[i].tolist(), photo.size), paints[i], round(lines[i]))
    if text:
        _draw_tags(photo, detections, labels, paints, lines)


def _line(box: Box, size: tuple[int, int]) -> float:
    """The width of an instance's lines in pixels: it follows from the photo's size, on small instances from theirs."""
    photo, instance = math.sqrt(math.prod(size)), math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1])))
    return max(1.0, min(LINE * photo, OF_INSTANCE * instance))


# Masks


def _draw_mask(photo: Image.Image, mask: Mask, paint: Paint, line: float) -> None:
    """Fill the mask and draw its contour, `line` pixels wide on the inside of the edge; both without steps."""
    mask = at_pixel_size(mask)
    outlined = without_specks(mask)
    outlines = outlined.distances(photo.size) if outlined is not mask else iter(())
    for region, distance in mask.distances(photo.size):
        inside = _within(mask, region, distance)
        covered = np.clip(inside + np.float32(0.5), 0, 1)
        if outlined is not mask:
            inside = _within(outlined, *next(outlines))
        contour = _band(inside, line)
        if outlined is not mask:
            contour *= np.clip(inside + np.float32(0.5), 0, 1)  # none around what is not outlined
        if not paint.clear:
            casing = _band(inside, 2 * line)
            casing -= contour
            casing *= covered
            photo.paste(ink(paint.colour), region, _alpha(casing))
        contour *= np.float32(1 - FILL)
        contour += np.float32(FILL)
        covered *= contour
        photo.paste(paint.colour, region, _alpha(covered))


def _band(inside: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """The opacity of what is up to `width` pixels inside an edge."""
    opacity: NDArray[np.float32] = np.clip(np.float32(width + 0.5) - inside, 0, 1)
    return opacity


def _alpha(opacity: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((opacity * np.float32(255)).astype(np.uint8))


def _within(mask: Mask, region: Region, inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """The distances `inside` the mask's edge, changed in place: where the bounds cut the mask, they are its edge."""
    left, top, right, bottom = region
    x0, y0, x1, y1 = mask.bounds
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    np.minimum(inside, np.minimum(x - x0, x1 - x), out=inside)
    np.minimum(inside, np.minimum(y - y0, y1 - y), out=inside)
    return inside


def at_pixel_size(mask: Mask) -> Mask:
    """The mask with an unpacked grid, averaged over 2 x 2 cells as long as a cell then comes nearer to a pixel's size.

    PointRend predicts 224 x 224 cells for the smallest instance too. Detail that no pixel shows takes time to draw, and
    its specks would be removed one by one.
    """
    grid = mask.probabilities
    smallest = (mask.place[3] - mask.place[1]) / FINE, (mask.place[2] - mask.place[0]) / FINE
    while all(cells % 2 == 0 and cells > low for cells, low in zip(grid.shape, smallest, strict=True)):
        grid = (grid[::2, ::2] + grid[1::2, ::2] + grid[::2, 1::2] + grid[1::2, 1::2]) * np.float32(0.25)
    return replace(mask, grid=grid)


def without_specks(mask: Mask) -> Mask:
    """The mask without its specks and pin holes: what is smaller than SPECK of it becomes like what surrounds it."""
    rows, columns = _cells_within(mask)
    probabilities = mask.probabilities
    grid = np.pad(probabilities[rows, columns], 1)
    rings = _rings(grid)
    small = np.flatnonzero(np.abs(rings.areas) < SPECK * rings.areas.sum())  # holes count negatively
    if not 0 < len(small) <= MOST_SPECKS:
        return mask
    for chosen in (small[rings.areas[small] > 0], small[rings.areas[small] <= 0]):
        inside = rings.cells(chosen, grid.shape)
        for ring in chosen:
            _level(grid[rings.windows[ring]], inside[rings.windows[ring]], hole=bool(rings.areas[ring] <= 0))
    whole = probabilities.copy()
    whole[rows, columns] = grid[1:-1, 1:-1]
    return replace(mask, grid=whole)


def _cells_within(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns of the mask's grid that its bounds show."""
    height, width = mask.grid.shape
    x0, y0, x1, y1 = mask.place
    sx, sy = width / max(x1 - x0, 1e-6), height / max(y1 - y0, 1e-6)
    left, right = (mask.bounds[0] - x0) * sx, (mask.bounds[2] - x0) * sx
    top, bottom = (mask.bounds[1] - y0) * sy, (mask.bounds[3] - y0) * sy
    return _whole(top, bottom, height), _whole(left, right, width)


def _whole(low: float, high: float, length: int) -> slice:
    return slice(min(max(math.floor(low), 0), length), min(max(math.ceil(high), 0), length))


@dataclass(frozen=True)
class _Rings:
    """The closed lines at THRESHOLD in a grid, none of which is longer than a cell from one point to the next.

    `points` (P, 2): x, y in cells, one ring after the other. `starts` (R + 1,): where each begins in them. `areas` (R,)
    in cells; that of a hole is negative.
    """

    points: NDArray[np.float64]
    starts: NDArray[np.intp]
    areas: NDArray[np.float64]

    @cached_property
    def windows(self) -> list[tuple[slice, slice]]:
        """The rows and columns that each ring lies in."""
        low = np.floor(np.minimum.reduceat(self.points, self.starts[:-1])).astype(int)
        high = np.ceil(np.maximum.reduceat(self.points, self.starts[:-1])).astype(int) + 1
        return [
            (slice(top, bottom), slice(left, right))
            for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def cells(self, chosen: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which cells' centres of a grid of `shape` lie inside the chosen rings, all of which turn the same way.

        A segment crosses one row of centres at most. The winding number changes there.
        """
        of_chosen = np.zeros(len(self.areas), bool)
        of_chosen[chosen] = True
        begins = np.repeat(of_chosen, np.diff(self.starts))
        begins[self.starts[1:] - 1] = False  # the last point of a ring is its first
        here = np.flatnonzero(begins)
        (x0, y0), (x1, y1) = self.points[here].T, self.points[here + 1].T
        row = np.ceil(np.minimum(y0, y1))
        crosses = row < np.maximum(y0, y1)
        x0, y0, x1, y1, row = (values[crosses] for values in (x0, y0, x1, y1, row))
        column = np.ceil(x0 + (x1 - x0) * (row - y0) / (y1 - y0))
        turns = np.zeros((shape[0], shape[1] + 1), np.int32)
        np.add.at(turns, (row.astype(int), column.astype(int)), np.where(y1 > y0, 1, -1))
        inside: NDArray[np.bool_] = np.cumsum(turns, axis=1)[:, :-1] != 0
        return inside


def _rings(grid: NDArray[np.float32]) -> _Rings:
    """The closed lines at THRESHOLD."""
    generator = contour_generator(z=grid, fill_type=FillType.ChunkCombinedOffset)
    (points,), (starts,) = cast(tuple[list[Any], list[Any]], generator.filled(THRESHOLD, math.inf))
    if points is None:  # a grid without any line
        return _Rings(np.zeros((0, 2)), np.zeros(1, np.intp), np.zeros(0))
    starts = starts.astype(np.intp)
    (x, y), areas = points.T, np.zeros(len(points))
    np.subtract(x[:-1] * y[1:], x[1:] * y[:-1], out=areas[:-1])
    areas[starts[1:] - 1] = 0  # from the end of a ring to the beginning of the next
    return _Rings(points, starts, np.add.reduceat(areas, starts[:-1]) / 2)


def _level(part: NDArray[np.float32], inside: NDArray[np.bool_], *, hole: bool) -> None:
    """Give the cells inside a ring, in place, the value of what surrounds them."""
    around = part[~inside & ((part >= THRESHOLD) == hole)]
    if len(around):
        part[inside] = around.max() if hole else around.min()


# Boxes and names


def _draw_box(pen: ImageDraw.ImageDraw, box: Region, paint: Paint, width: int) -> None:
    if not paint.clear:
        pen.rectangle(box, outline=ink(paint.colour), width=width + max(1, width // 2))
    pen.rectangle(box, outline=paint.colour, width=width)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Region:
    """The box's outermost pixels inside an image of `size`, both included."""
    width, height = size
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return left, top, max(min(x1, width) - 1, left), max(min(y1, height) - 1, top)


def _draw_tags(
    photo: Image.Image, detections: Detections, labels: Sequence[str], paints: Sequence[Paint], lines: Sequence[float]
) -> None:
    """Draw names on filled tags at their boxes."""
    names = [labels[int(index)] for index in detections.classes]
    texts = [(f"{name} {score:.0%}", name) for name, score in zip(names, detections.scores, strict=True)]
    corners = np.array([_pixels(box, photo.size) for box in detections.boxes.tolist()], np.float32)
    corners[:, 2:] += 1
    font = cache(_font)
    pen = ImageDraw.Draw(photo)
    placed = tags.place(corners, texts, photo.size, lambda text, points: _measure(font(points), text, points))
    for tag in placed:
        if tag.leader:
            pen.line(tag.leader, fill=paints[tag.index].colour, width=round(lines[tag.index]))
    for tag in placed:
        letters, colour = font(tag.points), paints[tag.index].colour
        left, top, right, bottom = tag.rect
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        pen.text((left + _pad(tag.points), top + letters.getmetrics()[0]), tag.text, ink(colour), letters, anchor="ls")


def _font(points: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(points)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels hold FreeType
    return font


def _measure(font: ImageFont.FreeTypeFont, text: str, points: int) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + 2 * _pad(points), sum(font.getmetrics())


def _pad(points: int) -> int:
    """Between a tag's edge and its text."""
    return max(1, round(points / 4))
