"""Merge the detections from overlapping tiles of a photo with those from the whole photo.

Intersection over the smaller area as the measure of duplicates is from SAHI (Akyon et al., arXiv 2202.06934; its
`GREEDYNMM` with `IOS` 0.5). SAHI joins whatever overlaps. Here, instances are merged in five steps:

1. Instances of one class from different tiles are joined if their masks agree where both tiles see the photo. If one of
   them shows all of the object, it is used; otherwise the masks are combined.
2. What a tile's edge still cuts is dropped. An object smaller than the overlap is complete in one of the tiles, and a
   larger one is joined from its parts or found in the whole photo. What is left is a part that the next tile, which
   shows more of it, does not confirm.
3. Each view is trusted for objects of the sizes that it can show, as in SNIP (Singh and Davis, arXiv 1711.08189). The
   whole photo shows objects of VISIBLE pixels or more as well as a tile does, and more of their surroundings. The score
   of such an instance of a tile is therefore reduced to that of the same instance in the whole photo. If there is none,
   it is dropped: most are parts of large objects, or patterns of the background. In the box of a large object, where
   parts are likely, this applies from VISIBLE_INSIDE pixels on.
4. Instances are ordered by the reliability of their masks: large in the whole photo, in tiles, small in the whole
   photo. Instances of the same reliability are ordered by score.
5. In that order each instance is kept, unless one of the following holds for an instance of another view that is kept
   already:
   - It has the same class and nearly the same mask. It takes over the score of the duplicate if that is higher.
   - It has at least half the score, and either the same class and most of the smaller mask in common, or another class
     and nearly the same mask.
   Instances of one view never remove each other. An instance with an empty mask removes nothing.

A threshold on the score must only select: what is found at a high threshold must also be found at any lower one. The
network is therefore run, and instances are merged, at CANDIDATE_SCORE even if a higher score is requested, and the
result is filtered. Instances below CANDIDATE_SCORE are added afterwards, by score, where nothing is kept yet, so they
cannot change the others.

Masks are kept as small grids. Overlaps are measured on SAMPLES x SAMPLES points in the intersection of two boxes, and
only for pairs whose boxes intersect.
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

AGREE = 0.5
"""Minimum IoU of two masks, where both tiles see the photo, to be joined."""
SAME = 0.5
"""Minimum overlap of two masks of one class, relative to the smaller, to be one instance."""
DUPLICATE = 0.7
"""Minimum IoU of two masks of one class to be two detections of the same instance."""
SAME_PLACE = 0.5
"""Minimum IoU of two masks to be the same object, possibly with different classes."""
CONFIDENCE = 0.5
"""Minimum score of an instance that removes another or is joined with it, relative to the other's."""
CANDIDATE_SCORE = 0.05
"""Minimum score of instances that are merged; detectron2's default of ROI_HEADS.SCORE_THRESH_TEST."""
VISIBLE = 28.0
"""Side (square root of the mask's area) from which an instance is shown by the whole photo as well as by a tile, in
pixels of the network's input. The box head pools 7 x 7 bins of features of stride 4, which are 28 pixels."""
VISIBLE_INSIDE = 16.0
"""The same within a large instance. Of the demo model's true finds of this size in tiles, nine of ten are also found in
the whole photo."""
LARGE = 56.0
"""Side (square root of the box's area) of a large instance in the whole photo, in pixels of the network's input. The
mask head pools 14 x 14 bins of features of stride 4, so magnification adds nothing to its mask."""
LARGE_IN_TILE = 0.5
"""An instance of the whole photo that is longer than this share of a tile's side is large, too: most tiles cut it. With
small inputs, this is less than LARGE."""
LARGE_SCORE = 0.8
"""Minimum score of a large instance for VISIBLE_INSIDE to apply within its box. In crowds of small objects, the whole
photo often shows groups of them as one large object, with a lower score."""
INSIDE = 0.5
"""Minimum share of a box within another for it to be inside."""
EDGE = 0.02
"""A box that ends within this share of a tile's side from the tile's edge is cut by it."""
COMPLETE = 0.9
"""An uncut part is complete if its box is at least this share of the box of all parts."""
SAMPLES = 32
"""Points per side on which masks are compared."""
MOST_CELLS = 256
"""Maximum number of cells per side of a combined mask's grid."""

LARGE_IN_WHOLE, IN_TILES, SMALL_IN_WHOLE = range(3)
"""Reliability of an instance's mask, the most reliable first."""
WHOLE = -1
"""Number of the whole photo among the views; the others are the indices of tiles."""


@dataclass(frozen=True)
class _Instance:
    """A detected instance in the photo's pixels. `views`: the indices of the tiles it was seen in, or WHOLE."""

    box: Box
    score: float
    label: int
    mask: Mask
    views: frozenset[int]


@dataclass(frozen=True)
class _Photo:
    """The photo's `size` (width, height), its tiles, and the network's pixels per pixel of the photo in the whole."""

    size: tuple[int, int]
    tiles: Sequence[Region]
    scale: float


def merge(whole: Detections, parts: Sequence[tuple[Region, Detections]], network_size: tuple[int, int]) -> Detections:
    """Merge the detections in the whole photo with those in its tiles, sorted by descending score.

    `whole` and the result are in the photo's pixels. `parts`: each tile in the photo's pixels, and the detections in it
    in pixels of any image that covers the tile. `network_size`: (width, height) of the network's input.
    """
    if not parts:
        return whole
    scale = math.sqrt(network_size[0] * network_size[1] / (whole.size[0] * whole.size[1]))
    photo = _Photo(whole.size, [tile for tile, _ in parts], scale)
    seen = [instance for number, (tile, found) in enumerate(parts) for instance in _in_photo(number, tile, found)]
    candidates = [*_instances(whole, WHOLE), *seen]
    kept = _merged([instance for instance in candidates if instance.score >= CANDIDATE_SCORE], photo)
    rest = [instance for instance in candidates if instance.score < CANDIDATE_SCORE and not _is_cut(instance, photo)]
    rest.sort(key=lambda instance: -instance.score)
    kept = sorted(_unique([*kept, *rest]), key=lambda instance: -instance.score)
    return Detections(
        boxes=np.array([instance.box for instance in kept], np.float32).reshape(-1, 4),
        scores=np.array([instance.score for instance in kept], np.float32),
        classes=np.array([instance.label for instance in kept], np.int64),
        masks=tuple(instance.mask for instance in kept),
        size=whole.size,
    )


def _merged(instances: Sequence[_Instance], photo: _Photo) -> list[_Instance]:
    """Join the parts seen in tiles, compare them with the whole photo, and remove duplicates."""
    whole = [instance for instance in instances if WHOLE in instance.views]
    joined = _joined([instance for instance in instances if WHOLE not in instance.views], photo)
    large = [instance for instance in whole if instance.score >= LARGE_SCORE and _is_large(instance.box, photo)]
    complete = [instance for instance in joined if not _is_cut(instance, photo)]
    believed = [instance for seen in complete for instance in _compared(seen, whole, large, photo)]
    ordered = sorted([*whole, *believed], key=lambda instance: (_rank(instance, photo), -instance.score))
    return _unique(ordered)


def _in_photo(number: int, tile: Region, found: Detections) -> Iterator[_Instance]:
    """The instances of a tile in the photo's pixels."""
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


def _rank(instance: _Instance, photo: _Photo) -> int:
    """The reliability of the instance's mask; lower is better."""
    if WHOLE not in instance.views:
        return IN_TILES
    return LARGE_IN_WHOLE if _is_large(instance.box, photo) else SMALL_IN_WHOLE


def _is_large(box: Box, photo: _Photo) -> bool:
    left, top, right, bottom = photo.tiles[0]
    across = (box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top)
    return max(across) > LARGE_IN_TILE or math.sqrt(_area(box)) * photo.scale >= LARGE


def _is_cut(instance: _Instance, photo: _Photo) -> bool:
    """Whether the instance ends at an edge of the area of its tiles that is not an edge of the photo."""
    if WHOLE in instance.views:
        return False
    left, top, right, bottom = _union([photo.tiles[view] for view in instance.views])
    x0, y0, x1, y1 = instance.box
    x, y = EDGE * (photo.tiles[0][2] - photo.tiles[0][0]), EDGE * (photo.tiles[0][3] - photo.tiles[0][1])
    across = (left > 0 and x0 - left < x) or (right < photo.size[0] and right - x1 < x)
    return across or (top > 0 and y0 - top < y) or (bottom < photo.size[1] and bottom - y1 < y)


# Comparing tiles with the whole photo


def _compared(
    seen: _Instance, whole: Sequence[_Instance], large: Sequence[_Instance], photo: _Photo
) -> Iterator[_Instance]:
    """An instance of a tile with at most the score of the same one in the whole photo, if that is able to show it.

    `large`: the large ones among those of the whole photo, within which parts are likely.
    """
    if math.sqrt(_area(seen.mask.bounds)) * photo.scale < VISIBLE_INSIDE:
        yield seen
        return
    area = _shared_area(seen.mask, seen.mask)
    inside = any(_is_inside(seen.box, instance.box) for instance in large)
    if math.sqrt(area) * photo.scale < (VISIBLE_INSIDE if inside else VISIBLE):
        yield seen
        return
    same = [one.score for one in whole if one.label == seen.label and _is_same(seen.mask, one.mask, area)]
    if same:
        yield replace(seen, score=min(seen.score, max(same)))


def _is_inside(box: Box, large: Box) -> bool:
    """Whether the box is inside another that is at least twice as large."""
    area = _area(box)
    return 2 * area <= _area(large) and _area(_intersection(box, large)) >= INSIDE * area


def _is_same(a: Mask, b: Mask, area: float) -> bool:
    """Whether two masks, the first of that area, are of the same object."""
    if _area(_intersection(a.bounds, b.bounds)) <= 0:
        return False
    shared = _shared_area(a, b)
    return shared > 0 and shared >= SAME_PLACE * (area + _shared_area(b, b) - shared)


# Joining parts


def _joined(seen: Sequence[_Instance], photo: _Photo) -> list[_Instance]:
    """The instances, with the parts of one object joined."""
    groups = [[index] for index in range(len(seen))]  # by instance; the same list for all instances of a group
    for i, j in _meeting(seen):
        alike = seen[i].label == seen[j].label and _comparable(seen[i], seen[j])
        if alike and groups[i] is not groups[j] and _agree(seen[i], seen[j], photo):
            groups[i] += groups[j]
            for member in groups[j]:
                groups[member] = groups[i]
    return [
        _join([seen[member] for member in sorted(group)], photo)
        for index, group in enumerate(groups)
        if index == min(group)
    ]


def _comparable(a: _Instance, b: _Instance) -> bool:
    """Whether neither score is much lower than the other."""
    return min(a.score, b.score) >= CONFIDENCE * max(a.score, b.score)


def _agree(a: _Instance, b: _Instance, photo: _Photo) -> bool:
    """Whether two masks agree where both of their tiles see the photo."""
    (tile_a,), (tile_b,) = ([photo.tiles[view] for view in instance.views] for instance in (a, b))
    where = _intersection(_intersection(tile_a, tile_b), _union([a.mask.bounds, b.mask.bounds]))
    if _area(where) <= 0:
        return False
    in_a, in_b = _sample(a.mask, where), _sample(b.mask, where)
    both, either = int(np.count_nonzero(in_a & in_b)), int(np.count_nonzero(in_a | in_b))
    return either > 0 and both >= AGREE * either


def _join(parts: Sequence[_Instance], photo: _Photo) -> _Instance:
    """One instance of the parts: the best complete part, or all their masks combined on one grid.

    The grid covers all parts, with cells as small as the parts' smallest; each contains the greatest probability.
    """
    box = _union([part.box for part in parts])
    score = max(part.score for part in parts)
    complete = [part for part in parts if _area(part.box) >= COMPLETE * _area(box) and not _is_cut(part, photo)]
    if complete:
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


# Removing duplicates


def _unique(ordered: Sequence[_Instance]) -> list[_Instance]:
    """The instances without those that an earlier one replaces, which takes over a duplicate's higher score."""
    areas = [_shared_area(instance.mask, instance.mask) for instance in ordered]
    scores = [instance.score for instance in ordered]

    def replaces(i: int, j: int) -> bool:
        """Whether i, which is kept, replaces j."""
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
        return shared >= SAME_PLACE * union

    better: dict[int, list[int]] = {}
    for i, j in _meeting(ordered):
        better.setdefault(j, []).append(i)
    dropped: set[int] = set()
    for j in sorted(better):
        if any(i not in dropped and replaces(i, j) for i in sorted(better[j])):
            dropped.add(j)
    return [replace(ordered[i], score=scores[i]) for i in range(len(ordered)) if i not in dropped]


def _meeting(instances: Sequence[_Instance]) -> Iterator[tuple[int, int]]:
    """The pairs i < j whose masks' bounds intersect and that have no view in common."""
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
    """The area of the intersection of two masks in pixels."""
    where = _intersection(a.bounds, b.bounds)
    share = np.count_nonzero(_sample(a, where) & _sample(b, where)) / SAMPLES**2
    return float(share * _area(where))


def _sample(mask: Mask, where: Box) -> NDArray[np.bool_]:
    """Whether each of SAMPLES x SAMPLES points in `where` belongs to the instance."""
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
