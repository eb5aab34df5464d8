"""Draw detections on a photo: filled masks with contours, boxes, and tags with the class name and score.

All masks are drawn first, then all boxes, then all tags, so that tags are never covered. Where instances overlap, the
one with the smaller box is on top, because it is often in front of the other or a part of it. Each pixel is filled with
the colour of the topmost mask only: fills that are mixed have colours that belong to no instance. The contours of all
masks are visible. The photo is changed in place and masks are drawn in strips, so drawing takes a few MiB at any photo
size. The width of lines and the size of text depend on the photo's size. colours.py chooses the colours, tags.py the
positions of tags.

The page uses the same rules (web/page/drawing.js).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
from contourpy import FillType, SerialContourGenerator, ZInterp
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segment.detections import Detections
from segment.mask import THRESHOLD, Box, Mask, Region
from segment.options import Colours
from segment.output import tags
from segment.output.colours import Paint, by_class, by_instance, ink
from segment.output.font import Font, font_for, writable

FILL = 0.42
"""Opacity of the fill of a mask; its contour is opaque."""
LINE, OF_INSTANCE = 1 / 550, 1 / 25
"""Width of lines, relative to the square root of the photo's area and of the instance's area; the smaller is used."""
FINE = math.sqrt(0.5)
"""Side of a grid's cell in pixels below which a cell of twice the side is closer to the size of a pixel."""
SPECK = 0.02
"""Pieces and holes with less than this share of the mask's area have no contour."""
MOST_SPECKS = 32
"""A mask with more such pieces and holes is noise; they are not removed, as this would take longer than the drawing."""


def draw(
    photo: Image.Image,
    detections: Detections,
    labels: Sequence[str],
    *,
    masks: bool = True,
    boxes: bool = True,
    text: bool = True,
    colours: Colours = "instance",
    font: Font | None = None,
) -> None:
    """Draw `detections` on `photo`, an RGB image of detections.size, in place.

    `labels`: the model's class names by index. `masks`, `boxes`, `text`: whether to draw them. `colours`: "instance"
    chooses colours that contrast with the photo and with neighbouring instances, "class" uses one colour per class.
    `font`: for class names that the built-in fonts lack.
    """
    if not len(detections):
        return
    order = _from_bottom(detections)
    paints = (by_class if colours == "class" else by_instance)(photo, detections)
    lines = [_line(mask.bounds, photo.size) for mask in detections.masks]
    if masks:
        filled, lined = _Coverage(photo.size), _Coverage(photo.size)
        for i in reversed(order):
            _draw_mask(photo, detections.masks[i], paints[i], lines[i], filled, lined)
    if boxes:
        pen = ImageDraw.Draw(photo)
        for i in order:
            _draw_box(pen, _pixels(detections.boxes[i].tolist(), photo.size), paints[i], round(lines[i]))
    if text:
        _draw_tags(photo, detections, labels, paints, lines, font)


def _from_bottom(detections: Detections) -> NDArray[np.intp]:
    """The order of drawing: the largest box first, and of equal boxes the lowest score first."""
    x0, y0, x1, y1 = detections.boxes.T
    return np.lexsort((detections.scores, -(x1 - x0) * (y1 - y0)))


def _line(box: Box, size: tuple[int, int]) -> float:
    """The width in pixels of the lines of an instance with this box in a photo of `size`."""
    photo, instance = math.sqrt(math.prod(size)), math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1])))
    return max(1.0, min(LINE * photo, OF_INSTANCE * instance))


# Masks


class _Coverage:
    """The pixels of a photo of `size` (width, height) that something covers, in one bit each."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._bits = np.zeros((size[1], math.ceil(size[0] / 8)), np.uint8)

    def add(self, region: Region, opacity: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Cover the pixels of `region` with an `opacity` of at least one half.

        `opacity`: (h, w). Returns whether each pixel was not covered before: (h, w) bool.
        """
        left, top, right, bottom = region
        packed = self._bits[top:bottom, left // 8 : math.ceil(right / 8)]
        bits = np.unpackbits(packed, axis=1)
        here = bits[:, left % 8 : left % 8 + right - left]
        free: NDArray[np.bool_] = here == 0
        here |= opacity >= 0.5
        packed[:] = np.packbits(bits, axis=1)
        return free


def _draw_mask(photo: Image.Image, mask: Mask, paint: Paint, line: float, filled: _Coverage, lined: _Coverage) -> None:
    """Fill the mask and draw its contour, which is `line` pixels wide and inside the edge; both are antialiased.

    Masks are drawn from the top to the bottom. `filled`, `lined`: what the masks and the lines drawn so far cover.
    """
    mask = at_pixel_size(mask)
    outlined = without_specks(mask)
    outlines = outlined.distances(photo.size) if outlined is not mask else iter(())
    for region, distance in mask.distances(photo.size):
        inside = _within(mask, region, distance)
        covered = within = np.clip(inside + np.float32(0.5), 0, 1)
        if outlined is not mask:
            inside = _within(outlined, *next(outlines))
            within = covered * np.clip(inside + np.float32(0.5), 0, 1)  # no contour around removed pieces
        contour = _band(inside, line)
        casing = contour if paint.clear else _band(inside, 2 * line)
        casing *= within
        casing *= lined.add(region, casing)
        if not paint.clear:
            np.minimum(contour, casing, out=contour)
            casing -= contour
            photo.paste(ink(paint.colour), region, _alpha(casing))
        fill = covered * filled.add(region, covered)
        fill -= contour
        np.maximum(fill, 0, out=fill)
        fill *= np.float32(FILL)
        fill += contour
        photo.paste(paint.colour, region, _alpha(fill))


def _band(inside: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """The opacity of a band of `width` pixels along the edge. `inside`: distances from the edge, positive inside."""
    opacity: NDArray[np.float32] = np.clip(np.float32(width + 0.5) - inside, 0, 1)
    return opacity


def _alpha(opacity: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((opacity * np.float32(255)).astype(np.uint8))


def _within(mask: Mask, region: Region, inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Limit the distances `inside` of the pixels of `region` by those from the mask's bounds, in place.

    Where the bounds cut the mask, they are its edge.
    """
    left, top, right, bottom = region
    x0, y0, x1, y1 = mask.bounds
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    np.minimum(inside, np.minimum(x - x0, x1 - x), out=inside)
    np.minimum(inside, np.minimum(y - y0, y1 - y), out=inside)
    return inside


def at_pixel_size(mask: Mask) -> Mask:
    """The mask with its grid decompressed, and reduced by averaging 2 x 2 cells until a cell has about a pixel's size.

    PointRend predicts 224 x 224 cells even for the smallest instances. Detail below the size of a pixel is not visible,
    but would take time to draw.
    """
    grid = mask.probabilities
    smallest = (mask.place[3] - mask.place[1]) / FINE, (mask.place[2] - mask.place[0]) / FINE
    while all(cells % 2 == 0 and cells > low for cells, low in zip(grid.shape, smallest, strict=True)):
        grid = (grid[::2, ::2] + grid[1::2, ::2] + grid[::2, 1::2] + grid[1::2, 1::2]) * np.float32(0.25)
    return replace(mask, grid=grid)


def without_specks(mask: Mask) -> Mask:
    """The mask without pieces and holes smaller than SPECK: their cells get the value of the surrounding cells."""
    rows, columns = _cells_within(mask)
    probabilities = mask.probabilities
    inner = probabilities[rows, columns]
    grid = np.zeros((inner.shape[0] + 2, inner.shape[1] + 2), np.float32)
    grid[1:-1, 1:-1] = inner
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
    """The rows and columns of the mask's grid that are within its bounds."""
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
    """The R closed lines (rings) at THRESHOLD in a grid. Neighbouring points are at most a cell apart.

    `points`: (P, 2) x, y in cells, ring by ring. `starts`: (R + 1,) index of each ring's first point, and P. `areas`:
    (R,) in cells, negative for holes.
    """

    points: NDArray[np.float64]
    starts: NDArray[np.intp]
    areas: NDArray[np.float64]

    @cached_property
    def windows(self) -> list[tuple[slice, slice]]:
        """The rows and columns that contain each ring."""
        low = np.floor(np.minimum.reduceat(self.points, self.starts[:-1])).astype(int)
        high = np.ceil(np.maximum.reduceat(self.points, self.starts[:-1])).astype(int) + 1
        return [
            (slice(top, bottom), slice(left, right))
            for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def cells(self, chosen: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether the centre of each cell of a grid of `shape` is inside one of the rings `chosen`: bool of that shape.

        All chosen rings must have the same orientation. Each segment of a ring crosses at most one row of centres; the
        winding number of the centres to the right of it changes by one.
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
    """The closed lines at THRESHOLD in `grid`."""
    y, x = np.indices(grid.shape, np.float64)
    # contour_generator() makes the same object, but checks its arguments for longer than it takes to find the lines.
    make = cast(Any, SerialContourGenerator)  # its type does not allow None for the mask
    generator = make(
        *(x, y, grid, None),
        fill_type=FillType.ChunkCombinedOffset,
        line_type=SerialContourGenerator.default_line_type,
        corner_mask=True,
        quad_as_tri=False,
        z_interp=ZInterp.Linear,
    )
    (points,), (starts,) = cast(tuple[list[Any], list[Any]], generator.filled(THRESHOLD, math.inf))
    if points is None:  # a grid without any line
        return _Rings(np.zeros((0, 2)), np.zeros(1, np.intp), np.zeros(0))
    starts = starts.astype(np.intp)
    (x, y), areas = points.T, np.zeros(len(points))
    np.subtract(x[:-1] * y[1:], x[1:] * y[:-1], out=areas[:-1])
    areas[starts[1:] - 1] = 0  # not from a ring's last point to the next ring's first
    return _Rings(points, starts, np.add.reduceat(areas, starts[:-1]) / 2)


def _level(part: NDArray[np.float32], inside: NDArray[np.bool_], *, hole: bool) -> None:
    """Set the cells of `part` inside a ring to the value of the surrounding cells, in place."""
    around = part[~inside & ((part >= THRESHOLD) == hole)]
    if len(around):
        part[inside] = around.max() if hole else around.min()


# Boxes and tags


def _draw_box(pen: ImageDraw.ImageDraw, box: Region, paint: Paint, width: int) -> None:
    if not paint.clear:
        pen.rectangle(box, outline=ink(paint.colour), width=width + max(1, width // 2))
    pen.rectangle(box, outline=paint.colour, width=width)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Region:
    """The pixels of the box inside an image of `size`: left, top, right, bottom, right and bottom inclusive."""
    width, height = size
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return left, top, max(min(x1, width) - 1, left), max(min(y1, height) - 1, top)


def _draw_tags(
    photo: Image.Image,
    detections: Detections,
    labels: Sequence[str],
    paints: Sequence[Paint],
    lines: Sequence[float],
    font: Font | None,
) -> None:
    """Draw the class name and score of each instance on a filled tag."""
    names = [writable(labels[index], index + 1, font) for index in detections.classes.tolist()]
    texts = [tags.texts(name, score) for name, score in zip(names, detections.scores.tolist(), strict=True)]
    corners = np.array([_pixels(box, photo.size) for box in detections.boxes.tolist()], np.float32)
    corners[:, 2:] += 1
    pen = ImageDraw.Draw(photo)
    placed = tags.place(corners, texts, photo.size, partial(_measure, font=font))
    for tag in placed:
        if tag.leader:
            pen.line(tag.leader, fill=paints[tag.index].colour, width=round(lines[tag.index]))
    for tag in placed:
        letters, colour = font_for(tag.text, tag.points, font), paints[tag.index].colour
        left, top, right, bottom = tag.rect
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        pen.text((left + _pad(tag.points), top + letters.getmetrics()[0]), tag.text, ink(colour), letters, anchor="ls")


def _measure(text: str, points: int, font: Font | None) -> tuple[int, int]:
    """The (width, height) in pixels of a tag."""
    letters = font_for(text, points, font)
    return math.ceil(letters.getlength(text)) + 2 * _pad(points), sum(letters.getmetrics())


def _pad(points: int) -> int:
    """Horizontal padding of a tag's text in pixels."""
    return max(1, round(points / 4))
