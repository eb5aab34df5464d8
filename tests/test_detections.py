"""Detections: scaling to other image sizes, and selection of instances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.detections import Detections, from_boxes
from segment.mask import THRESHOLD, Mask
from tests.strategies import detections, masks


def found() -> Detections:
    boxes = np.array([[1, 2, 11, 22], [3, 4, 8, 8], [0, 0, 40, 30]], np.float32)
    grids = np.stack([np.full((28, 28), value, np.float32) for value in (0.9, 0.7, 0.6)])
    return from_boxes(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([2, 0, 1]), grids, (40, 30))


def test_each_mask_covers_its_own_box() -> None:
    for box, mask in zip(found().boxes, found().masks, strict=True):
        assert mask.place == mask.bounds == tuple(box)


@given(st.lists(masks(), max_size=4), st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
@settings(deadline=None)
def test_at_scales_boxes_and_masks_alike(drawn: list[Mask], size: tuple[int, int]) -> None:
    before = detections(drawn, (80, 60))
    after = before.at(size)
    sx, sy = size[0] / 80, size[1] / 60
    assert after.size == size
    assert np.allclose(after.boxes, before.boxes * [sx, sy, sx, sy], rtol=1e-5)
    for box, mask, old in zip(after.boxes, after.masks, before.masks, strict=True):
        assert np.allclose(box, mask.bounds, rtol=1e-5, atol=1e-3)
        assert mask.grid is old.grid
    assert (after.scores == before.scores).all()
    back = after.at((80, 60))
    assert np.allclose(back.boxes, before.boxes, rtol=1e-5, atol=1e-4)


def test_at_scales_the_place_of_masks() -> None:
    def parts(detections: Detections) -> list[float]:
        whole = detections.size[0] * detections.size[1]
        strips = [mask.strips(detections.size) for mask in detections.masks]
        return [sum(int((pixels >= THRESHOLD).sum()) for _, pixels in each) / whole for each in strips]

    assert np.allclose(parts(found().at((400, 300))), parts(found().at((1000, 900))), atol=0.01)


def test_instances_are_selected_in_the_order_given() -> None:
    chosen = found()[[2, 0]]
    assert len(chosen) == 2
    assert chosen.classes.tolist() == [1, 2]
    assert [mask.place for mask in chosen.masks] == [(0, 0, 40, 30), (1, 2, 11, 22)]
    assert len(found()[[]]) == 0
    assert found()[[]].boxes.shape == (0, 4)


def test_instances_are_selected_as_in_other_libraries() -> None:
    """By index, by slice and by a boolean mask, as in detectron2's Instances and supervision's Detections."""
    whole = found()
    assert whole[whole.scores > 0.75].classes.tolist() == [2, 0]
    assert whole[np.array([False, False, True])].masks == whole.masks[2:]
    assert repr(whole) == "<Detections: 3 instances in 40 x 30 pixels>"
    assert whole[whole.scores > 1].boxes.shape == (0, 4)
    assert whole[:2].classes.tolist() == [2, 0]
    assert whole[-1].classes.tolist() == [1]
    assert [one.classes.tolist() for one in whole] == [[2], [0], [1]]
    with pytest.raises(IndexError):
        whole[3]
    with pytest.raises(IndexError):
        whole[np.array([True, False])]
