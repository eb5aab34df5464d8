"""Sliced inference: detections from overlapping tiles of a photo, merged with those from the whole photo.

Every tile is run at the size that the whole photo is run at, one after the other, so memory stays that of one run. The
whole photo is a view too: it finds what is larger than a tile. Slicing for small objects, and intersection over the
smaller area as the measure of a duplicate, are SAHI's (Akyon et al., arXiv 2202.06934; its `GREEDYNMM` with `IOS` 0.5).
SAHI joins whatever overlaps; here instances of two tiles are joined only if they agree where both tiles look:

1. Instances of one class from different tiles whose masks agree in the tiles' common strip are one. If one of them
   shows all of it, it is taken as it is; otherwise their masks are joined.
2. Instances are sorted by how reliable their geometry is: large in the whole photo, complete in a tile, small in the
   whole photo, cut by a tile's edge; each by score.
3. In that order each instance is kept, unless an instance that is kept already, from another view, stands for it:
   - the same class and nearly the same mask: a duplicate. The one that is kept takes the better of the two scores;
   - the same class and largely inside of it, or another class in the same place: dropped, if the one that is kept is
     at least half as confident;
   - cut by a tile's edge and inside something that the whole photo shows large: a part of it, whatever its class.
   What one view sees as two stays two. An instance without any pixel stands for nothing.

A threshold on the score must only ever select: what is found at a high one has to be found at any lower one. Tiles are
therefore run, and instances merged, at CANDIDATE_SCORE even if a higher score is asked for, and the result is filtered.
Instances below CANDIDATE_SCORE are added last, by score, where nothing is kept yet, and so cannot change the others.

Masks stay small grids on their own rectangles. Overlap is measured on SAMPLES x SAMPLES points where two boxes meet,
and only for pairs whose boxes do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections
from segment.mask import THRESHOLD, Box, Mask, Region

OVERLAP = 0.2
"""Share of a tile's side that it has in common with the next; what is smaller is complete in one of them."""
AGREE = 0.5
"""IoU of two masks, where both tiles look, from which they are one instance."""
SAME = 0.5
"""Overlap of two masks of one class by the smaller's area, from which they are the same."""
DUPLICATE = 0.7
"""IoU of two masks of one class from which they are two detections of the same instance."""
SAME_PLACE = 0.5
"""IoU of two masks of different classes from which they are the same."""
CONFIDENCE = 0.5
"""Share of an instance's score that another must have to replace it, or to be joined with it."""
CANDIDATE_SCORE = 0.05
"""Lowest score of instances that are merged; detectron2's own default of ROI_HEADS.SCORE_THRESH_TEST."""
LARGE = 0.5
"""An instance longer than this share of a tile's side is taken from the whole photo."""
EDGE = 0.02
"""A box that ends within this share of a tile's side from the tile's edge is taken to be cut by it."""
COMPLETE = 0.9
"""An uncut part whose box is at least this share of all the parts' box shows all of the instance."""
SAMPLES = 32
"""Points a side on which masks are compared."""
MOST_CELLS = 256
"""Cells a side of a joined mask's grid at most."""

LARGE_IN_WHOLE, COMPLETE_IN_TILE, SMALL_IN_WHOLE, CUT = range(4)
"""Ranks of instances, the most reliable first."""
WHOLE = -1
"""The whole photo among the views, which are else the tiles' numbers."""


def magnification(detail: int, overlap: float = OVERLAP) -> float:
    """How many times as large a tile is seen as the whole photo: the photo's side by the tile's."""
    return detail - (detail - 1) * overlap


def views(detail: int) -> int:
    """How many runs a photo takes: one per tile and one for the whole."""
    return 1 if detail == 1 else detail**2 + 1


def tiles(size: tuple[int, int], detail: int, overlap: float = OVERLAP) -> list[Region]:
    """A photo of `size` (width, height) cut into `detail` x `detail` tiles in whole pixels, row by row.

    Tiles are of one size and shape as the photo's; each has the share `overlap` (or a little more, for whole pixels) of
    its sides in common with the next. A photo of fewer pixels than that has fewer tiles.
    """
    columns, rows = (_intervals(length, detail, overlap) for length in size)
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _intervals(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    side = min(length, math.ceil(length / magnification(count, overlap)))
    starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
    return [(start, start + side) for start in dict.fromkeys(starts)]


@dataclass(frozen=True)
class _Instance:
    """Something seen, in the photo's pixels. `views`: the numbers of the tiles that saw it, or WHOLE."""

    box: Box
    score: float
    label: int
    mask: Mask
    views: frozenset[int]


def merge(whole: Detections, parts: Sequence[tuple[Region, Detections]]) -> Detections:
    """What is in the photo, from what was seen in it as a `whole` and in tiles; best score first.

    `whole` is in the photo's pixels, and so is the answer. `parts`: each tile in the photo's pixels and what was found
    in it, in pixels of any frame that covers the tile.
    """
    if not parts:
        return whole
    regions = [tile for tile, _ in parts]
    seen = [instance for number, (tile, found) in enumerate(parts) for instance in _in_photo(number, tile, found)]
    candidates = [*_instances(whole, WHOLE), *seen]
    certain = [instance for instance in candidates if instance.score >= CANDIDATE_SCORE]
    kept = _merged(certain, regions, whole.size)
    rest = sorted((c for c in candidates if c.score < CANDIDATE_SCORE), key=lambda instance: -instance.score)
    kept = sorted(_unique([*kept, *rest], regions, whole.size), key=lambda instance: -instance.score)
    return Detections(
        boxes=np.array([instance.box for instance in kept], np.float32).reshape(-1, 4),
        scores=np.array([instance.score for instance in kept], np.float32),
        classes=np.array([instance.label for instance in kept], np.int64),
        masks=tuple(instance.mask for instance in kept),
        size=whole.size,
    )


def _merged(instances: Sequence[_Instance], regions: Sequence[Region], size: tuple[int, int]) -> list[_Instance]:
    """Join what tiles show in parts, then leave out what is found twice."""
    whole = [instance for instance in instances if WHOLE in instance.views]
    joined = _joined([instance for instance in instances if WHOLE not in instance.views], regions, size)
    ordered = sorted([*whole, *joined], key=lambda instance: (_rank(instance, regions, size), -instance.score))
    return _unique(ordered, regions, size)


def _in_photo(number: int, tile: Region, found: Detections) -> Iterator[_Instance]:
    """What was found in a tile, in the photo's pixels."""
    left, top, right, bottom = tile
    placed = found.at((right - left, bottom - top))
    boxes = placed.boxes + np.array([left, top, left, top], np.float32)
    masks = tuple(mask.moved(left, top) for mask in placed.masks)
    return _instances(replace(placed, boxes=boxes, masks=masks), number)


def _instances(found: Detections, view: int) -> Iterator[_Instance]:
    views = frozenset([view])
    for (x0, y0, x1, y1), score, label, mask in zip(
        found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), found.masks, strict=True
    ):
        yield _Instance((x0, y0, x1, y1), score, label, mask, views)


def _rank(instance: _Instance, regions: Sequence[Region], size: tuple[int, int]) -> int:
    """How reliable the instance's geometry is; lower is better."""
    if WHOLE in instance.views:
        return LARGE_IN_WHOLE if _is_large(instance.box, regions[0]) else SMALL_IN_WHOLE
    return CUT if _is_cut(instance, regions, size) else COMPLETE_IN_TILE


def _is_large(box: Box, tile: Region) -> bool:
    return box[2] - box[0] > LARGE * (tile[2] - tile[0]) or box[3] - box[1] > LARGE * (tile[3] - tile[1])


def _is_cut(instance: _Instance, regions: Sequence[Region], size: tuple[int, int]) -> bool:
    """Whether the instance ends where one of its tiles does, and the photo does not."""
    for left, top, right, bottom in (regions[view] for view in instance.views):
        x, y = EDGE * (right - left), EDGE * (bottom - top)
        x0, y0, x1, y1 = instance.box
        if (left > 0 and abs(x0 - left) < x) or (top > 0 and abs(y0 - top) < y):
            return True
        if (right < size[0] and abs(x1 - right) < x) or (bottom < size[1] and abs(y1 - bottom) < y):
            return True
    return False


# Joining what tiles saw parts of


def _joined(seen: Sequence[_Instance], regions: Sequence[Region], size: tuple[int, int]) -> list[_Instance]:
    """The instances, those that are one joined."""
    group = list(range(len(seen)))

    def first(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, j in _meeting(seen):
        alike = seen[i].label == seen[j].label and _comparable(seen[i], seen[j])
        if alike and first(i) != first(j) and _agree(seen[i], seen[j], regions):
            group[max(first(i), first(j))] = min(first(i), first(j))
    members: dict[int, list[_Instance]] = {}
    for i, instance in enumerate(seen):
        members.setdefault(first(i), []).append(instance)
    return [_join(parts, [part for part in parts if not _is_cut(part, regions, size)]) for parts in members.values()]


def _comparable(a: _Instance, b: _Instance) -> bool:
    """Whether neither score is too low beside the other."""
    return min(a.score, b.score) >= CONFIDENCE * max(a.score, b.score)


def _agree(a: _Instance, b: _Instance, regions: Sequence[Region]) -> bool:
    """Whether two tiles show the same where both look."""
    (tile_a,), (tile_b,) = ([regions[view] for view in instance.views] for instance in (a, b))
    where = _intersection(_intersection(tile_a, tile_b), _union([a.mask.bounds, b.mask.bounds]))
    if _area(where) <= 0:
        return False
    in_a, in_b = _sample(a.mask, where), _sample(b.mask, where)
    both, either = int(np.count_nonzero(in_a & in_b)), int(np.count_nonzero(in_a | in_b))
    return either > 0 and both >= AGREE * either


def _join(parts: Sequence[_Instance], uncut: Sequence[_Instance]) -> _Instance:
    """One instance of parts that are one: the best that shows all of it, or all their masks on one grid.

    The grid lies over all the parts, with cells as small as the parts' smallest; in each the greatest probability.
    """
    box = _union([part.box for part in parts])
    score = max(part.score for part in parts)
    if complete := [part for part in uncut if _area(part.box) >= COMPLETE * _area(box)]:
        return replace(max(complete, key=lambda part: part.score), score=score)
    if len(parts) == 1:
        return parts[0]
    place = _union([part.mask.bounds for part in parts])
    cells = [_cell(part.mask) for part in parts]
    columns = _cells(place[2] - place[0], min(width for width, _ in cells))
    rows = _cells(place[3] - place[1], min(height for _, height in cells))
    grid = np.zeros((rows, columns), np.float32)
    for part in parts:
        seen = _resampled(part.mask, place, columns, rows)
        np.maximum(grid, np.minimum(seen, 1), out=grid)  # logits beyond 1 would push the edge outwards
    views = frozenset(itertools.chain.from_iterable(part.views for part in parts))
    return _Instance(box, score, parts[0].label, Mask(grid, place, place), views)


def _cell(mask: Mask) -> tuple[float, float]:
    """Width and height of a cell of the mask's grid, in pixels."""
    x0, y0, x1, y1 = mask.place
    return (x1 - x0) / mask.grid.shape[1], (y1 - y0) / mask.grid.shape[0]


def _cells(length: float, cell: float) -> int:
    return min(max(1, round(length / max(cell, 1e-6))), MOST_CELLS)


# Leaving out what was seen twice


def _unique(ordered: Sequence[_Instance], regions: Sequence[Region], size: tuple[int, int]) -> list[_Instance]:
    """The instances without those that an earlier one stands for; a duplicate's better score is passed on."""
    areas = [_shared_area(instance.mask, instance.mask) for instance in ordered]
    ranks = [_rank(instance, regions, size) for instance in ordered]
    scores = [instance.score for instance in ordered]

    def stands_for(i: int, j: int) -> bool:
        """Whether i, which is kept, stands for j."""
        shared = _shared_area(ordered[i].mask, ordered[j].mask)
        union = areas[i] + areas[j] - shared
        if shared <= 0:
            return False
        if ordered[i].label == ordered[j].label and shared >= DUPLICATE * union:
            scores[i] = max(scores[i], scores[j])
            return True
        if scores[i] < CONFIDENCE * scores[j]:
            return False
        if ordered[i].label == ordered[j].label:
            return shared >= SAME * min(areas[i], areas[j])
        if ranks[i] == LARGE_IN_WHOLE and ranks[j] == CUT:
            return shared >= SAME * areas[j]
        return shared >= SAME_PLACE * union

    better: dict[int, list[int]] = {}
    for i, j in _meeting(ordered):
        better.setdefault(j, []).append(i)
    dropped: set[int] = set()
    for j in sorted(better):
        if any(i not in dropped and stands_for(i, j) for i in better[j]):
            dropped.add(j)
    return [replace(ordered[i], score=scores[i]) for i in range(len(ordered)) if i not in dropped]


def _meeting(instances: Sequence[_Instance]) -> Iterator[tuple[int, int]]:
    """The pairs i < j whose masks' bounds meet and that no view saw both of."""
    bounds = np.array([instance.mask.bounds for instance in instances], np.float64).reshape(-1, 4)
    order = np.argsort(bounds[:, 0], kind="stable")
    x0, y0, x1, y1 = bounds[order].T
    for at, end in enumerate(np.searchsorted(x0, x1)):  # from left to right; from `end` on all begin further right
        others = slice(at + 1, end)
        meets = (y0[others] < y1[at]) & (y1[others] > y0[at])
        for other in order[others][meets]:
            i, j = sorted((int(order[at]), int(other)))
            if instances[i].views.isdisjoint(instances[j].views):
                yield i, j


def _shared_area(a: Mask, b: Mask) -> float:
    """The area that two masks share, in pixels."""
    where = _intersection(a.bounds, b.bounds)
    share = np.count_nonzero(_sample(a, where) & _sample(b, where)) / SAMPLES**2
    return float(share * _area(where))


def _sample(mask: Mask, where: Box) -> NDArray[np.bool_]:
    """Whether each of SAMPLES x SAMPLES points spread over `where` belongs to the instance."""
    return _resampled(mask, where, SAMPLES, SAMPLES) >= THRESHOLD


def _resampled(mask: Mask, where: Box, columns: int, rows: int) -> NDArray[np.float32]:
    """The mask's probabilities (rows, columns) at the centres of cells that cover `where`."""
    x0, y0, x1, y1 = where
    moved = mask.moved(-x0, -y0).scaled(columns / max(x1 - x0, 1e-6), rows / max(y1 - y0, 1e-6))
    return moved.paste((0, 0, columns, rows))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _intersection(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _union(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
