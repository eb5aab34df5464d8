"""Tests of tiling: tiles cover the photo, and merge() joins the detections of a simulated detector in each tile."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment.detections import Detections, from_boxes
from segment.mask import THRESHOLD, Mask, Region
from segment.tiles import OVERLAP, magnification, tiles
from segment.tiles import merge as merging
from segment.tiles.merge import VISIBLE

SIZE = (240, 180)
WHOLE_PHOTO = (0, 0, *SIZE)
COARSE = (24, 18)
"""A network input size so small that no object is large enough in it to be taken from the whole photo."""


def merge(
    whole: Detections, parts: Sequence[tuple[Region, Detections]], network_size: tuple[int, int] = COARSE
) -> Detections:
    return merging.merge(whole, parts, network_size)


# Tiles


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    detail=st.integers(1, 6),
    overlap=st.floats(0, 0.5),
)
def test_tiles_cover_the_photo_and_overlap(width: int, height: int, detail: int, overlap: float) -> None:
    found = tiles((width, height), detail, overlap)
    assert len(found) <= detail**2
    assert len({(right - left, bottom - top) for left, top, right, bottom in found}) == 1
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(tile[low], tile[high]) for tile in found})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        if length >= 50 * detail:
            side = spans[0][1]
            assert len(spans) == detail
            assert side == math.ceil(length / magnification(detail, overlap))
            common = [end - start for (_, end), (start, _) in itertools.pairwise(spans)]
            assert all(pixels >= overlap * side - 2 for pixels in common)


def test_one_tile_is_the_photo() -> None:
    assert tiles((640, 480), 1) == [(0, 0, 640, 480)]
    assert magnification(1) == 1


def test_a_photo_of_one_pixel_is_one_tile() -> None:
    assert tiles((1, 1), 4) == [(0, 0, 1, 1)]


# A simulated detector without errors


@dataclass(frozen=True)
class Thing:
    """An ellipse or a rectangle."""

    box: Region
    label: int
    round: bool

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        left, top, right, bottom = self.box
        x, y = np.arange(SIZE[0])[None, :] + 0.5, np.arange(SIZE[1])[:, None] + 0.5
        if self.round:
            u, v = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
            return np.asarray(u * u + v * v <= 1)
        return np.asarray((x > left) & (x < right) & (y > top) & (y < bottom))


@st.composite
def scenes(draw: st.DrawFn) -> list[Thing]:
    """Objects of two classes that do not touch, of any size from a few pixels to the whole photo."""
    placed: list[Thing] = []
    for _ in range(draw(st.integers(0, 12))):
        longest = draw(st.sampled_from([12, 40, 120, 240]))
        width, height = (draw(st.integers(6, min(longest, side))) for side in SIZE)
        left, top = draw(st.integers(0, SIZE[0] - width)), draw(st.integers(0, SIZE[1] - height))
        box = (left, top, left + width, top + height)
        if all(not _meet(box, other.box) for other in placed):
            placed.append(Thing(box, draw(st.integers(0, 1)), draw(st.booleans())))
    return placed


def _meet(a: Region, b: Region) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def see(things: Sequence[Thing], view: Region, cells: int | None = None, longer_than: int = 0) -> Detections:
    """The exact detections in a region of the photo. Masks have one cell per pixel, or `cells` x `cells` means."""
    left, top, right, bottom = view
    boxes, masks, classes = [], [], []
    for thing in things:
        visible = thing.mask[top:bottom, left:right]
        x0, y0, x1, y1 = _bounds(visible)
        if max(x1 - x0, y1 - y0) <= longer_than:
            continue
        crop = visible[y0:y1, x0:x1].astype(np.float32)
        box = (float(x0), float(y0), float(x1), float(y1))
        boxes.append(box)
        masks.append(Mask(crop if cells is None else _means(crop, cells), box, box))
        classes.append(thing.label)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), 0.9, np.float32),
        np.array(classes, np.int64),
        tuple(masks),
        (right - left, bottom - top),
    )


def _bounds(mask: NDArray[np.bool_]) -> Region:
    """The bounding box of the mask; (0, 0, 0, 0) for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)


def _means(crop: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    fine = np.repeat(np.repeat(crop, cells, axis=0), cells, axis=1)
    rows, columns = crop.shape
    return np.asarray(fine.reshape(cells, rows, cells, columns).mean((1, 3)), np.float32)


def merged(
    things: Sequence[Thing],
    detail: int,
    whole: Detections,
    cells: int | None = None,
    network_size: tuple[int, int] = COARSE,
) -> Detections:
    return merge(whole, [(tile, see(things, tile, cells)) for tile in tiles(SIZE, detail)], network_size)


def nothing(size: tuple[int, int] = SIZE) -> Detections:
    empty = np.zeros((0, 28, 28), np.float32)
    return from_boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), empty, size)


def assert_found(found: Detections, things: Sequence[Thing], iou: float = 0.9) -> None:
    """Assert that each object was found exactly once, with its class, and nothing else was found."""
    pasted = [mask.paste(WHOLE_PHOTO) >= THRESHOLD for mask in found.masks]
    left = list(range(len(found)))
    for thing in things:
        truth = thing.mask
        scores = {i: _iou(truth, pasted[i]) for i in left if found.classes[i] == thing.label}
        best = max(scores, key=lambda i: scores[i], default=-1)
        assert best >= 0, f"{thing} was not found"
        assert scores[best] > iou, f"{thing} was found with IoU {scores[best]:.3f}"
        assert found.boxes[best] == pytest.approx(_bounds(truth), abs=1.5)
        left.remove(best)
    assert not left, f"{len(left)} detections match no object"


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(a & b)) / max(int(np.count_nonzero(a | b)), 1)


@given(things=scenes(), detail=st.integers(2, 4), scale=st.sampled_from([0.1, 0.5, 1, 4]))
@settings(deadline=None, max_examples=25)
def test_perfect_detector_in_tiles_and_whole(things: list[Thing], detail: int, scale: float) -> None:
    network_size = (round(SIZE[0] * scale), round(SIZE[1] * scale))
    assert_found(merged(things, detail, see(things, WHOLE_PHOTO), network_size=network_size), things)


@given(things=scenes(), detail=st.integers(2, 4))
@settings(deadline=None, max_examples=25)
def test_tiles_alone_are_joined(things: list[Thing], detail: int) -> None:
    """The parts of an object in several tiles become one detection, even without one in the whole photo."""
    assert_found(merged(things, detail, nothing()), things)


@given(things=scenes(), detail=st.integers(2, 4), longer_than=st.integers(10, 100))
@settings(deadline=None, max_examples=25)
def test_small_instances_missed_in_the_whole_photo_are_found_in_tiles(
    things: list[Thing], detail: int, longer_than: int
) -> None:
    assert_found(merged(things, detail, see(things, WHOLE_PHOTO, longer_than=longer_than)), things)


@given(things=scenes(), detail=st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_coarse_masks(things: list[Thing], detail: int) -> None:
    """Masks of 28 x 28 cells, as Mask R-CNN returns them. Corners are less exact, so the IoU is lower."""
    solid = [thing for thing in things if min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) > 8]
    assert_found(merged(solid, detail, see(solid, WHOLE_PHOTO, 28), 28), solid, iou=0.8)


@given(things=scenes(), detail=st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_empty_tiles_leave_the_whole(things: list[Thing], detail: int) -> None:
    whole = see(things, WHOLE_PHOTO)
    empty = [(tile, nothing((tile[2] - tile[0], tile[3] - tile[1]))) for tile in tiles(SIZE, detail)]
    assert_found(merge(whole, empty), things)


def test_no_tiles_is_the_whole() -> None:
    whole = see([Thing((10, 10, 60, 60), 0, True)], WHOLE_PHOTO)
    assert merge(whole, []) is whole


def test_no_detections_in_any_view() -> None:
    found = merged([], 3, nothing())
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.size == SIZE


def test_one_tile_seen_twice() -> None:
    things = [Thing((10, 10, 60, 60), 0, True), Thing((100, 20, 130, 90), 1, False)]
    assert_found(merged(things, 1, see(things, WHOLE_PHOTO)), things)


# Rules


def one(box: tuple[float, float, float, float], score: float = 0.9, label: int = 0, fill: float = 1.0) -> Detections:
    """A detection of one rectangle in the whole photo."""
    grid = np.full((1, 28, 28), fill, np.float32)
    boxes, scores = np.array([box], np.float32), np.array([score], np.float32)
    return from_boxes(boxes, scores, np.array([label], np.int64), grid, SIZE)


def in_tile(tile: Region, found: Detections) -> tuple[Region, Detections]:
    """The tile and the same detections in the tile's coordinates."""
    left, top, right, bottom = tile
    moved = tuple(mask.moved(-left, -top) for mask in found.masks)
    boxes = found.boxes - np.array([left, top, left, top], np.float32)
    return tile, Detections(boxes, found.scores, found.classes, moved, (right - left, bottom - top))


def test_joined_across_four_tiles_keeps_the_best_score_and_its_resolution() -> None:
    thing = Thing((60, 50, 180, 130), 0, True)
    parts = [(tile, see([thing], tile)) for tile in tiles(SIZE, 2)]
    scores = (0.6, 0.8, 0.7, 0.5)
    scored = [
        (tile, Detections(f.boxes, np.array([s], np.float32), f.classes, f.masks, f.size))
        for (tile, f), s in zip(parts, scores, strict=True)
    ]
    found = merge(nothing(), scored)
    assert found.scores.tolist() == pytest.approx([0.8])
    assert found.masks[0].grid.shape == (80, 120)  # one cell per pixel, as in the parts
    assert_found(found, [thing], iou=0.99)


def test_joined_logits_keep_their_edge() -> None:
    """Grids with values outside [0, 1] (YOLO, RF-DETR) are joined without moving the contour at the threshold."""
    thing = Thing((60, 50, 180, 130), 0, True)
    parts = []
    for tile in tiles(SIZE, 2):
        found = see([thing], tile, 28)
        grids = ((mask.probabilities - np.float32(0.5)) * np.float32(20) + np.float32(0.5) for mask in found.masks)
        masks = tuple(replace(mask, grid=grid) for mask, grid in zip(found.masks, grids, strict=True))
        parts.append((tile, Detections(found.boxes, found.scores, found.classes, masks, found.size)))
    assert_found(merge(nothing(), parts), [thing], iou=0.95)


def test_instance_complete_in_a_tile_is_used_unchanged() -> None:
    thing = Thing((116, 84, 126, 94), 0, True)  # in the overlap of all four tiles
    parts = [(tile, see([thing], tile, 28)) for tile in tiles(SIZE, 2)]
    found = merge(see([thing], WHOLE_PHOTO, 7), parts)
    assert [mask.grid.shape for mask in found.masks] == [(28, 28)]


def test_large_instance_is_taken_from_the_whole_photo() -> None:
    thing = Thing((10, 10, 230, 170), 0, True)
    found = merged([thing], 3, see([thing], WHOLE_PHOTO, 28))
    assert [mask.grid.shape for mask in found.masks] == [(28, 28)]
    assert_found(found, [thing], iou=0.95)


def test_visible_instance_keeps_the_score_of_the_whole_photo() -> None:
    """A detection in a tile that is large enough for the whole view (VISIBLE) is not added and raises no score."""
    tile = tiles(SIZE, 2)[0]
    side, seen = VISIBLE + 2, (20.0, 20.0, 20 + VISIBLE + 2, 20 + VISIBLE + 2)
    assert side * side < (SIZE[0] / 2) ** 2
    assert len(merge(nothing(), [in_tile(tile, one(seen))], SIZE)) == 0
    assert len(merge(one(seen, 0.3, label=1), [in_tile(tile, one(seen, 0.9))], SIZE)) == 1
    both = merge(one(seen, 0.3), [in_tile(tile, one(seen, 0.9))], SIZE)
    assert both.scores.tolist() == pytest.approx([0.3])
    smaller = (20.0, 20.0, 18 + VISIBLE, 18 + VISIBLE)
    assert len(merge(nothing(), [in_tile(tile, one(smaller))], SIZE)) == 1


def test_parts_within_a_large_object_are_not_objects() -> None:
    """Inside a confident large object, a tile's detections are added only if they are too small for the whole view."""
    tile, part = tiles(SIZE, 2)[0], (20.0, 20.0, 40.0, 40.0)
    found = [in_tile(tile, one(part, label=1))]
    assert merge(one((10, 10, 230, 170), 0.95), found, SIZE).classes.tolist() == [0]
    assert merge(one((10, 10, 230, 170), 0.7), found, SIZE).classes.tolist() == [1, 0]
    assert merge(one((120, 10, 230, 170), 0.95), found, SIZE).classes.tolist() == [0, 1]
    tiny = [in_tile(tile, one((20, 20, 30, 30), label=1))]
    assert len(merge(one((10, 10, 230, 170), 0.95), tiny, SIZE)) == 2


def test_instance_large_in_the_network_is_taken_from_the_whole_photo() -> None:
    """The mask is from the whole view if the object is large enough in the network's input, else from the tile."""
    thing, fine = Thing((10, 10, 58, 58), 0, True), (2 * SIZE[0], 2 * SIZE[1])
    parts = [(tile, see([thing], tile, 7)) for tile in tiles(SIZE, 2)]
    assert [m.grid.shape for m in merge(see([thing], WHOLE_PHOTO, 28), parts, fine).masks] == [(28, 28)]
    assert [m.grid.shape for m in merge(see([thing], WHOLE_PHOTO, 28), parts, COARSE).masks] == [(7, 7)]


def test_a_part_is_a_duplicate_within_its_class() -> None:
    tile = tiles(SIZE, 2)[0]
    square, inside = (20.0, 20.0, 60.0, 60.0), (30.0, 30.0, 50.0, 50.0)
    assert len(merge(one(square, label=0), [in_tile(tile, one(inside, label=0))])) == 1
    assert len(merge(one(square, label=0), [in_tile(tile, one(inside, label=1))])) == 2


def test_better_view_decides_between_two_classes() -> None:
    tile = tiles(SIZE, 2)[0]
    small, large = (20.0, 20.0, 50.0, 50.0), (10.0, 10.0, 110.0, 90.0)
    for box, label in ((small, 1), (large, 0)):  # the small box has the tile's class, the large box the whole view's
        found = merge(one(box, 0.6, label=0), [in_tile(tile, one(box, 0.5, label=1))])
        assert found.classes.tolist() == [label]


def test_a_part_inside_the_whole_is_a_duplicate() -> None:
    tile = tiles(SIZE, 2)[0]
    found = merge(one((10, 10, 110, 90), 0.6), [in_tile(tile, one((20, 20, 40, 40), 0.9))])
    assert found.boxes.tolist() == [[10, 10, 110, 90]]


def test_two_instances_of_one_view_stay_separate() -> None:
    tile = tiles(SIZE, 2)[0]
    outer, inner = one((20, 20, 60, 60), 0.9), one((30, 30, 50, 50), 0.8)
    both = Detections(
        np.concatenate([outer.boxes, inner.boxes]),
        np.concatenate([outer.scores, inner.scores]),
        np.concatenate([outer.classes, inner.classes]),
        (*outer.masks, *inner.masks),
        SIZE,
    )
    assert len(merge(nothing(), [in_tile(tile, both)])) == 2


def test_unconfirmed_part_at_a_tile_edge_is_dropped() -> None:
    """A box that the first tile's edge cuts is dropped if the second tile, which shows all of it, has no such box."""
    first, second = (tile for tile in tiles(SIZE, 2) if tile[1] == 0)
    seen = (float(first[2] - 12), 30.0, float(first[2]), 42.0)
    assert second[0] < seen[0]
    assert len(merge(nothing(), [in_tile(first, one(seen))])) == 0
    assert len(merge(nothing(), [in_tile(first, one(seen)), in_tile(second, one(seen))])) == 1
    assert len(merge(one(seen), [in_tile(first, one(seen))])) == 1
    at_the_border = (0.0, 30.0, 12.0, 42.0)
    assert len(merge(nothing(), [in_tile(first, one(at_the_border))])) == 1


def test_touching_neighbours_at_a_seam_stay_separate() -> None:
    left, right = (tile for tile in tiles(SIZE, 2) if tile[1] == 0)
    found = merge(nothing(), [in_tile(left, one((80, 30, 118, 60))), in_tile(right, one((118, 30, 160, 60)))])
    assert len(found) == 2


def test_empty_masks_are_accepted() -> None:
    tile = tiles(SIZE, 2)[0]
    square = (20.0, 20.0, 50.0, 50.0)
    assert len(merge(one(square, fill=0), [in_tile(tile, one(square, fill=0))])) >= 1


def test_equal_scores_keep_the_order() -> None:
    things = [Thing((10 * i, 10, 10 * i + 8, 18), 0, False) for i in range(10)]
    first, again = (merged(things, 2, see(things, WHOLE_PHOTO)) for _ in range(2))
    assert first.boxes.tolist() == again.boxes.tolist()
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)


def test_many_instances_take_little_time() -> None:
    """The time must grow with the number of overlapping pairs, not of all pairs."""
    size = (4000, 3000)
    grids = np.ones((1000, 28, 28), np.float32)
    rng = np.random.default_rng(0)

    def crowd(width: int, height: int) -> Detections:
        corners = rng.uniform(0, 1, (1000, 2)) * (width - 20, height - 20)
        boxes = np.concatenate([corners, corners + 20], axis=1).astype(np.float32)
        return from_boxes(boxes, np.full(1000, 0.5, np.float32), np.zeros(1000, np.int64), grids, (width, height))

    parts = [(tile, crowd(tile[2] - tile[0], tile[3] - tile[1])) for tile in tiles(size, 2, OVERLAP)]
    start = time.process_time()
    found = merge(crowd(*size), parts)
    assert len(found) > 2000
    assert time.process_time() - start < 10


# Scores


def _views(things: Sequence[tuple[Region, float, int]], detail: int = 2) -> list[tuple[Region, Detections]]:
    """Each tile with the detections of the rectangles whose top left corner is in it."""
    parts = []
    for tile in tiles(SIZE, detail):
        inside = [thing for thing in things if tile[0] <= thing[0][0] < tile[2] and tile[1] <= thing[0][1] < tile[3]]
        moved = [((x0 - tile[0], y0 - tile[1], x1 - tile[0], y1 - tile[1]), s, c) for (x0, y0, x1, y1), s, c in inside]
        parts.append((tile, _boxes(moved, (tile[2] - tile[0], tile[3] - tile[1]))))
    return parts


def _boxes(things: Sequence[tuple[Region, float, int]], size: tuple[int, int]) -> Detections:
    """Detections of rectangles, sorted by descending score."""
    ordered = sorted(things, key=lambda thing: -thing[1])
    return from_boxes(
        np.array([box for box, _, _ in ordered], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in ordered], np.float32),
        np.array([label for _, _, label in ordered], np.int64),
        np.ones((len(ordered), 4, 4), np.float32),
        size,
    )


def test_a_duplicate_passes_its_score_on() -> None:
    confident, doubtful = ((20, 20, 60, 60), 0.97, 0), ((21, 20, 60, 60), 0.17, 0)
    found = merge(_boxes([confident], SIZE), _views([doubtful]))
    assert found.scores.tolist() == pytest.approx([0.97])


def test_a_duplicate_passes_its_score_on_to_the_most_confident_only() -> None:
    """The position of the second detection, left or right of the first, makes no difference."""
    for shift in (-2, 2):
        confident, doubtful = ((20, 20, 90, 90), 0.9, 0), ((20 + shift, 20, 90 + shift, 90), 0.1, 0)
        found = merge(_boxes([confident, doubtful], SIZE), _views([((20, 20, 90, 90), 0.8, 0)]), SIZE)
        assert found.scores.tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("label", [0, 1])
def test_confident_instance_is_not_removed_by_an_uncertain_one(label: int) -> None:
    confident, doubtful = ((20, 20, 60, 60), 0.67, label), ((14, 14, 66, 66), 0.06, 0)
    found = merge(_boxes([confident], SIZE), _views([doubtful]))
    assert max(score for score, at in zip(found.scores, found.classes, strict=True) if at == label) >= 0.66


def test_an_empty_mask_removes_nothing() -> None:
    nothing = _boxes([((20, 20, 60, 60), 0.9, 0)], SIZE)
    empty = replace(nothing, masks=(replace(nothing.masks[0], grid=np.zeros((4, 4), np.float32)),))
    thing = ((25, 25, 55, 55), 0.8, 0)
    assert len(merge(empty, _views([thing]))) == 2


def test_parts_of_a_large_object_are_not_objects() -> None:
    """Tiles that detect parts of a large object as another class add nothing to the whole view's detection."""
    large = ((10, 10, 230, 170), 0.9, 0)
    assert len(merge(_boxes([large], SIZE), [(tile, _piece(tile, large[0])) for tile in tiles(SIZE, 2)])) == 1


def _piece(tile: Region, box: Region) -> Detections:
    x0, y0 = max(tile[0], box[0]) - tile[0], max(tile[1], box[1]) - tile[1]
    x1, y1 = min(tile[2], box[2]) - tile[0], min(tile[3], box[3]) - tile[1]
    return _boxes([((x0, y0, x1, y1), 0.8, 1)], (tile[2] - tile[0], tile[3] - tile[1]))


RECTANGLES = st.lists(
    st.builds(
        lambda x, y, w, h, score, label: ((x, y, min(x + w, SIZE[0]), min(y + h, SIZE[1])), score / 100, label),
        st.integers(0, SIZE[0] - 10),
        st.integers(0, SIZE[1] - 10),
        st.integers(5, 120),
        st.integers(5, 120),
        st.integers(1, 99),
        st.integers(0, 1),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(
    whole=RECTANGLES,
    parts=RECTANGLES,
    low=st.sampled_from([0.0, 0.01, 0.03, 0.05]),
    network_size=st.sampled_from([COARSE, SIZE, (480, 360)]),
)
def test_instances_below_candidate_score_do_not_change_others(
    whole: list[tuple[Region, float, int]],
    parts: list[tuple[Region, float, int]],
    low: float,
    network_size: tuple[int, int],
) -> None:
    """Every detection merged from candidates of 0.05 or more is also among those of all candidates, score unchanged."""

    def found(lowest: float) -> set[tuple[float, ...]]:
        kept = [[thing for thing in things if thing[1] >= lowest] for things in (whole, parts)]
        answer = merge(_boxes(kept[0], SIZE), _views(kept[1]), network_size)
        rows = zip(answer.scores.tolist(), answer.classes.tolist(), answer.boxes.tolist(), strict=True)
        return {(score, label, *box) for score, label, box in rows}

    assert found(0.05) <= found(low)
