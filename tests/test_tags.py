"""Tests of placing labels: legible, next to their instance, and not over faces, instances' centres or other labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment.output import tags
from segment.output.tags import COVERED, HIDDEN, Tag, core, covered, place
from tests.scripts import constants

SIZE = (1280, 960)
Boxes = NDArray[np.float32]


def measure(text: str, points: int) -> tuple[int, int]:
    return round(0.55 * points * len(text)) + points // 2, round(1.25 * points)


def placed(boxes: list[tuple[float, float, float, float]] | Boxes, size: tuple[int, int] = SIZE) -> list[Tag]:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    return place(table, [("person 97%", "person")] * len(table), size, measure)


def test_the_page_uses_the_same_numbers() -> None:
    known = constants("tags.js")
    assert set(known) == {"LONGEST", "COVERED", "CORE", "REACH", "DIRECTIONS", "LEADER"}
    assert {name: np.array(getattr(tags, name)).tolist() for name in known} == known


def test_long_names_are_shortened() -> None:
    assert tags.texts("person", 0.974) == ("person 97%", "person")
    assert tags.texts("a bicycle with a very large basket", 0.974) == (
        "a bicycle with a very l… 97%",
        "a bicycle with a very l…",
    )


def crowd(people: int) -> Boxes:
    """Boxes of people in six overlapping rows, larger towards the front."""
    rng = np.random.default_rng(people)
    rows = 6
    boxes = []
    for row, number in itertools.product(range(rows), range(people // rows)):
        height = 110 + 28 * row
        width = 0.45 * height * rng.uniform(0.8, 1.2)
        x = (number + rng.uniform(0.2, 0.8)) * SIZE[0] / (people // rows) - width / 2
        y = 200 + 95 * row + rng.uniform(-10, 10)
        boxes.append((max(0.0, x), y, min(SIZE[0], x + width), min(SIZE[1], y + height)))
    return np.array(boxes, np.float32)[rng.permutation(len(boxes))]


def gap(tag: Tag, box: NDArray[np.float32]) -> float:
    left, top, right, bottom = tag.rect
    return float(max(box[0] - right, left - box[2], box[1] - bottom, top - box[3]))


@pytest.mark.parametrize("people", [24, 60, 102])
def test_tags_in_a_crowd_do_not_cover_faces_or_tags(people: int) -> None:
    boxes = crowd(people)
    found = placed(boxes)
    rects = np.array([tag.rect for tag in found], np.float32)
    assert covered(rects, core(boxes)).max() <= COVERED
    assert not any(overlap(a.rect, b.rect) for a, b in itertools.combinations(found, 2))
    assert rects.min() >= 0
    assert (rects[:, 2:] <= SIZE).all()
    assert len(found) >= min(people, 30), "labels must also be placed in a crowd"


def overlap(a: tags.Rect, b: tags.Rect) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_a_core_holds_the_centre_and_the_face() -> None:
    (rect,) = core(np.array([[100, 100, 200, 400]], np.float32))
    assert rect[0] <= 150 <= rect[2]
    assert rect[1] <= 120
    assert rect[3] >= 250


def test_tag_is_beside_its_box_or_has_a_leader_line() -> None:
    for boxes in (crowd(60), np.array([[x, y, x + 6, y + 5] for x in range(90, 200, 11) for y in range(90, 200, 11)])):
        for tag in placed(boxes):
            box = boxes[tag.index]
            if tag.leader is None:
                assert gap(tag, box) <= tags.LEADER * (tag.rect[3] - tag.rect[1])
            else:
                x, y = tag.leader[2:]
                assert box[0] <= x <= box[2]
                assert box[1] <= y <= box[3]
                assert gap(tag, box) <= (max(tags.REACH) + 1) * (tag.rect[3] - tag.rect[1])


def test_tags_of_tiny_instances_have_leader_lines() -> None:
    found = placed([(x, y, x + 6, y + 5) for x in range(600, 660, 12) for y in range(400, 430, 10)])
    assert any(tag.leader for tag in found)


def test_text_size_depends_on_the_instance() -> None:
    tiny, small, large = (tags.letters(np.array([0, 0, side, side], np.float32), SIZE) for side in (8, 100, 800))
    assert 9 <= tiny < small < large <= 24


def test_a_name_is_shortened_where_there_is_no_room() -> None:
    assert [tag.text for tag in placed([(500, 400, 700, 700)])] == ["person 97%"]
    (short,) = placed([(0, 0, 50, 30)], (50, 90))
    assert short.text == "person"
    assert placed([(0, 0, 20, 20)], (20, 20)) == []


@pytest.mark.parametrize("box", [(0, 0, 40, 40), (1240, 0, 1280, 30), (0, 920, 30, 960), (1250, 930, 1280, 960)])
def test_a_tag_stays_on_the_photo(box: tuple[float, float, float, float]) -> None:
    (tag,) = placed([box])
    assert 0 <= tag.rect[0] < tag.rect[2] <= SIZE[0]
    assert 0 <= tag.rect[1] < tag.rect[3] <= SIZE[1]
    assert tag.text == "person 97%"


def test_tags_cover_little_of_a_thumbnail() -> None:
    found = placed([(4 * i, 3 * i, 4 * i + 20, 3 * i + 20) for i in range(10)], (64, 48))
    assert sum((r - left) * (b - t) for left, t, r, b in (tag.rect for tag in found)) <= HIDDEN * 64 * 48


@given(
    st.lists(st.tuples(*[st.floats(-50, 250, width=32)] * 2, *[st.floats(0, 200, width=32)] * 2), max_size=8),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
@settings(max_examples=60, deadline=None)
def test_places_anything(found: list[tuple[float, float, float, float]], size: tuple[int, int]) -> None:
    boxes = [(x, y, x + width, y + height) for x, y, width, height in found]
    for tag in placed(boxes, size):
        assert 0 <= tag.rect[0] < tag.rect[2] <= size[0]
        assert 0 <= tag.rect[1] < tag.rect[3] <= size[1]
