"""What is drawn, and what is left as it was."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segment.mask import Mask
from segment.output import overlay as module
from segment.output.overlay import PALETTE, draw
from tests.strategies import detections, empty, frames, masks, ring, solid

SIZE = (320, 240)
LABELS = ("ring", "a rather long name for a thing")
GREY = (128, 128, 128)


def drawn(found: list[Mask], size: tuple[int, int] = SIZE, classes: list[int] | None = None, **options: Any) -> Any:
    photo = Image.new("RGB", size, GREY)
    draw(photo, detections(found, size, classes), LABELS, **options)
    return np.asarray(photo)


def changed(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((pixels != GREY).any(axis=2))


ONLY_MASKS: dict[str, Any] = {"boxes": False, "text": False}
ONLY_BOXES: dict[str, Any] = {"masks": False, "text": False}
ONLY_TEXT: dict[str, Any] = {"masks": False, "boxes": False}


def test_each_part_can_be_turned_off() -> None:
    mask = ring(60, 60, 260, 220)
    assert not changed(drawn([mask], masks=False, boxes=False, text=False)).any()
    assert changed(drawn([mask], **ONLY_BOXES))[60:220, 60].all()
    assert not changed(drawn([mask], **ONLY_BOXES))[100, 100]
    assert changed(drawn([mask], **ONLY_TEXT))[:60].any()
    assert not changed(drawn([mask], **ONLY_TEXT))[60:].any()


def test_a_mask_is_filled_but_for_its_hole_and_has_a_contour() -> None:
    pixels = drawn([ring(60, 60, 260, 220)], **ONLY_MASKS)
    filled = tuple(round(128 + module.FILL * (value - 128)) for value in PALETTE[0])
    assert np.abs(pixels[80, 160].astype(int) - filled).max() <= 1
    assert (pixels[140, 160] == GREY).all()
    assert (pixels[20, 20] == GREY).all()
    row = np.abs(pixels[140, 55:70].astype(int) - PALETTE[0]).max(axis=1)
    assert row.min() <= 6, "the contour has the full colour"


def test_edges_have_no_steps() -> None:
    y, x = np.mgrid[:28, :28]
    disc = np.clip(12 - np.hypot(x - 13.5, y - 13.5), 0, 1).astype(np.float32)
    pixels = drawn([Mask(disc, (20, 20, 220, 220), (20, 20, 220, 220))], **ONLY_MASKS)
    red = pixels[..., 0].astype(int)
    assert len(np.unique(red)) > 40
    outside = np.hypot(*(np.mgrid[:240, :320] + 0.5 - 120)) > 95
    assert not changed(pixels)[outside].any()


def test_strips_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ring(20, 20, 300, 230)
    whole = drawn([mask], **ONLY_MASKS)
    monkeypatch.setattr("segment.mask.STRIP_PIXELS", 20 * 280)
    difference = np.abs(drawn([mask], **ONLY_MASKS).astype(int) - whole)
    assert (difference > 24).mean() < 1e-3


def test_the_better_instance_lies_on_top() -> None:
    pixels = drawn([solid(50, 50, 150, 150), solid(80, 80, 200, 200)], **ONLY_BOXES)
    assert tuple(pixels[149, 90]) == PALETTE[0]
    crossing = drawn([solid(50, 50, 150, 150), solid(50, 50, 200, 200)], **ONLY_BOXES)
    assert tuple(crossing[50, 60]) == PALETTE[0]


def test_colours_by_class_are_the_same_in_every_photo() -> None:
    left, right = solid(10, 10, 60, 60), solid(100, 10, 160, 60)
    one = drawn([left], classes=[1], colours="class", **ONLY_BOXES)
    two = drawn([right, left], classes=[0, 1], colours="class", **ONLY_BOXES)
    assert tuple(one[10, 20]) == tuple(two[10, 20]) == PALETTE[1]
    same = drawn([right, left], classes=[1, 1], colours="class", **ONLY_BOXES)
    assert tuple(same[10, 20]) == tuple(same[10, 120])
    apart = drawn([right, left], classes=[1, 1], colours="instance", **ONLY_BOXES)
    assert tuple(apart[10, 20]) != tuple(apart[10, 120])


def test_the_palette_has_no_two_alike() -> None:
    colours = np.array(PALETTE, int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(len(colours), dtype=int)
    assert distances.min() > 60
    luminance = ((colours / 255) ** 2.2) @ [0.2126, 0.7152, 0.0722]
    inks = np.array([sum(module._ink(colour)) > 0 for colour in PALETTE])
    contrast = np.where(inks, 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05)
    assert contrast.min() > 4.5, "WCAG's AA for text"


@pytest.mark.parametrize("box", [(0, 0, 40, 40), (280, 0, 320, 30), (0, 200, 30, 240), (290, 210, 320, 240)])
def test_a_label_stays_inside_the_photo(box: tuple[float, float, float, float]) -> None:
    def tag(pixels: NDArray[np.uint8]) -> tuple[int, int]:
        rows, columns = np.nonzero(changed(pixels))
        return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1

    free = tag(drawn([solid(100, 100, 200, 200)], **ONLY_TEXT))
    assert tag(drawn([solid(*box)], **ONLY_TEXT)) == free


def test_labels_do_not_lie_on_each_other() -> None:
    taken: list[module.Tag] = []
    for i in range(8):
        place = module._place((100 + i, 100 + i, 200, 200), (50, 12), SIZE, taken)
        if place is not None:
            assert not any(module._overlap(place, other) for other in taken)
            taken.append(place)
    assert len(taken) >= 6


def test_labels_leave_most_of_a_thumbnail_to_be_seen() -> None:
    found = [solid(4 * i, 3 * i, 4 * i + 20, 3 * i + 20) for i in range(10)]
    pixels = drawn(found, (64, 48), **ONLY_TEXT)
    assert 0 < changed(pixels).mean() <= module.HIDDEN + 0.01


def test_text_and_lines_grow_with_the_photo() -> None:
    def measures(scale: int) -> tuple[int, int]:
        size, mask = (400 * scale, 300 * scale), solid(100 * scale, 100 * scale, 300 * scale, 200 * scale)
        line = changed(drawn([mask], size, **ONLY_BOXES))[:, 200 * scale].sum()
        return int(line) // 2, int(changed(drawn([mask], size, **ONLY_TEXT)).any(axis=1).sum())

    small, large = measures(1), measures(10)
    assert small[0] == 1
    assert small[1] >= 9
    assert large[0] >= 5
    assert large[1] >= 5 * small[1]


@given(st.lists(masks(), max_size=5), frames)
@settings(max_examples=60, deadline=None)
def test_draws_anything(found: list[Mask], size: tuple[int, int]) -> None:
    drawn(found, size, classes=[i % 2 for i in range(len(found))])


def test_an_empty_mask_draws_nothing() -> None:
    assert not changed(drawn([empty(50, 50, 100, 100)], **ONLY_MASKS)).any()
    assert not changed(drawn([solid(50, 50, 50, 90), solid(60, 60, 20, 20)], **ONLY_MASKS)).any()


def test_a_large_photo_takes_little_memory_and_time() -> None:
    size = (4000, 3000)
    photo = Image.new("RGB", size, GREY)
    found = detections([ring(100 * i, 80 * i, 1600 + 100 * i, 1000 + 80 * i) for i in range(20)], size)
    tracemalloc.start()
    draw(photo, found, LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
    started = time.process_time()
    draw(photo, found, LABELS)
    assert time.process_time() - started < 3, "0.3 s on an idle machine"
