"""Files with the inputs and outputs of torchvision's exported Mask R-CNN give the expected detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segment.detections import from_boxes
from segment.engine import Engine
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ModelError
from tests import onnxfiles, reference
from tests.test_engine_yolo import photo

N = 30
RNG = np.random.default_rng(0)
CORNERS = RNG.uniform(0, 40, (N, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(3, 40, (N, 2))], 1).astype(np.float32)
SCORES = np.sort(RNG.uniform(0, 1, N))[::-1].astype(np.float32)
LABELS = RNG.integers(1, 91, N)
GRIDS = RNG.uniform(0, 1, (N, 28, 28)).astype(np.float32)


def open_file(path: Path, **options: object) -> Engine:
    values = {"boxes": BOXES, "labels": LABELS, "scores": SCORES, "grids": GRIDS} | options
    return load(onnxfiles.torchvision(path, **values), threads=1, memory=Footprint(0, 0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("batched", [True, False])
def test_grids_lie_over_their_boxes(tmp_path: Path, batched: bool) -> None:
    engine = open_file(tmp_path / "m.onnx", batched=batched)
    assert engine.input_size((100, 90)) is None
    found = engine(photo((100, 90)), 0.3, 100)
    count = int((SCORES > 0.3).sum())
    expected = from_boxes(BOXES[:count], SCORES[:count], LABELS[:count], GRIDS[:count], (100, 90))
    assert len(found) == count > 10
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    for i in range(count):
        np.testing.assert_array_equal(reference.pixels(found, i), reference.pixels(expected, i))


@pytest.mark.parametrize("size", [(64, 48), (101, 67)])
def test_masks_that_were_pasted_are_cut_out_again(tmp_path: Path, size: tuple[int, int]) -> None:
    image = photo(size)
    found = open_file(tmp_path / "m.onnx", grids=None)(image, 0.0, 100)
    red = image[..., 0] / 255 >= 0.5
    for i, box in enumerate(found.boxes):
        x0, y0, x1, y1 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
        inside = reference.inside(np.array([x0, y0, x1, y1], np.float32), size)
        got = reference.pixels(found, i)
        np.testing.assert_array_equal(got & inside, red & inside)
        near = reference.inside(np.array([x0 - 5, y0 - 5, x1 + 5, y1 + 5], np.float32), size)
        assert not (got & ~near).any()


def test_a_fixed_size_is_letterboxed(tmp_path: Path) -> None:
    engine = open_file(tmp_path / "m.onnx", size=(96, 64))
    assert engine.input_size((200, 200)) == (64, 64)
    image = photo((50, 100))
    found = engine(image, 0.0, 100)
    boxes = reference.to_photo(BOXES, reference.letterbox(image, (96, 64)), (50, 100))
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)


def test_the_best_are_kept(tmp_path: Path) -> None:
    engine = open_file(tmp_path / "m.onnx")
    np.testing.assert_array_equal(engine(photo((99, 99)), 0.0, 5).scores, SCORES[:5])
    assert len(engine(photo((99, 99)), 1.0, 5)) == 0
    assert engine.labels[90] == "toothbrush"


def test_a_class_without_a_label_is_refused(tmp_path: Path) -> None:
    engine = open_file(tmp_path / "m.onnx", labels=LABELS + 90)
    with pytest.raises(ModelError, match=r"returned class \d+, .* SEGMENT_LABELS"):
        engine(photo((99, 99)), 0.0, 5)


@pytest.mark.parametrize("size", [(99, 99), (450, 450), (640, 320)])
def test_masks_are_as_small_as_the_engine_says(size: tuple[int, int], tmp_path: Path) -> None:
    """Pasted masks are reduced to a grid like the network's: 100 of 450 x 450 took 90 MiB that was not planned."""
    boxes = np.array([[0, 0, *size]] * len(SCORES), np.float32)
    for grids in (GRIDS, None):
        engine = open_file(tmp_path / "m.onnx", boxes=boxes, grids=grids)
        found = engine(photo(size), 0.0, 100)
        assert len(found) == len(SCORES)
        assert all(0 < mask.probabilities.nbytes <= engine.mask_bytes(size) < 64 << 10 for mask in found.masks)


def test_empty_boxes_do_not_count(tmp_path: Path) -> None:
    boxes = BOXES.copy()
    boxes[:5, 2] = boxes[:5, 0]
    found = open_file(tmp_path / "m.onnx", boxes=boxes)(photo((100, 90)), 0.0, 3)
    np.testing.assert_array_equal(found.scores, SCORES[5:8])
    assert len(found.masks) == 3
