"""RF-DETR-seg files with known weights give the same detections as the reference in plain NumPy (reference.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segment.engine import Engine
from segment.engine.file import load
from segment.engine.footprint import Footprint
from tests import onnxfiles, reference
from tests.test_engine_yolo import photo

SIZE = (64, 64)
QUERIES = 40
MEAN, STD = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Truth:
    """Random boxes, logits and masks."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.boxes = rng.uniform(0.05, 0.7, (QUERIES, 4)).astype(np.float32)
        self.logits = rng.normal(-3, 2, (QUERIES, classes)).astype(np.float32)
        self.weights = rng.normal(0, 2, (QUERIES, 3)).astype(np.float32)
        self.bias = rng.normal(-1, 1, QUERIES).astype(np.float32)
        self.bias[0], self.logits[0, 0] = -1e3, 9  # the instance with the highest score has an empty mask

    def open(
        self, path: Path, batch: int | None = 1, names: tuple[str, str, str] = ("dets", "labels", "masks")
    ) -> Engine:
        onnxfiles.rfdetr(path, self.boxes, self.logits, self.weights, self.bias, size=SIZE, batch=batch, names=names)
        return load(path, threads=1, memory=Footprint(0, 0.0))

    def check(self, engine: Engine, image: NDArray[np.uint8], min_score: float, limit: int) -> int:
        size = image.shape[1], image.shape[0]
        found = engine(image, min_score, limit)
        scores = (1 / (1 + np.exp(-self.logits))).ravel()
        best = [i for i in np.argsort(-scores, kind="stable")[: min(limit, 300)] if scores[i] > min_score]
        queries, classes = np.array(best) // self.logits.shape[1], np.array(best) % self.logits.shape[1]
        x, y, w, h = (self.boxes[queries] * np.array(size * 2)).T
        corners = np.clip(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), 0, np.array(size * 2))
        np.testing.assert_allclose(found.boxes, corners, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.scores, scores[best], rtol=1e-5)
        np.testing.assert_array_equal(found.classes, classes)
        canvas = reference.stretch(image, SIZE)
        normalised = ((canvas.image - MEAN) / STD).astype(np.float32)
        masks = reference.prototypes(normalised, self.weights, self.bias)
        for i, query in enumerate(queries):
            logits = reference.interpolate(masks[query], canvas, size)
            assert reference.same_but_for_ties(reference.pixels(found, i), logits, logits > 0)
        return len(found)


@pytest.mark.parametrize("size", [(64, 64), (131, 47), (33, 200), (640, 427), (3, 2)])
def test_any_photo_is_stretched(tmp_path: Path, size: tuple[int, int]) -> None:
    truth = Truth(5)
    engine = truth.open(tmp_path / "m.onnx")
    assert engine.input_size(size) == SIZE
    assert truth.check(engine, photo(size), 0.2, 100) > 20


def test_an_instance_without_a_mask_keeps_its_box(tmp_path: Path) -> None:
    found = Truth(5).open(tmp_path / "m.onnx")(photo((60, 50)), 0.9, 100)
    assert found.boxes[0, 2] > found.boxes[0, 0]
    assert not reference.pixels(found, 0).any()


@pytest.mark.parametrize(("limit", "expected"), [(300, 300), (1000, 300), (7, 7)])
def test_max_detections_limits_the_result(tmp_path: Path, limit: int, expected: int) -> None:
    truth = Truth(91)
    assert truth.check(truth.open(tmp_path / "m.onnx"), photo((20, 30)), 0.0, limit) == expected


def test_nothing_found(tmp_path: Path) -> None:
    assert len(Truth(5).open(tmp_path / "m.onnx")(photo((20, 30)), 1.0, 100)) == 0


@pytest.mark.parametrize("classes", [1, 4, 91])
@pytest.mark.parametrize("names", [("dets", "labels", "masks"), ("a", "b", "c")], ids=["names", "shapes"])
def test_outputs_are_known_by_name_or_by_shape(tmp_path: Path, classes: int, names: tuple[str, str, str]) -> None:
    truth = Truth(classes)
    engine = truth.open(tmp_path / "m.onnx", batch=None, names=names)
    assert truth.check(engine, photo((64, 64)), 0.05, 100) > 5
    assert len(engine.labels) == classes


def test_cocos_numbers_name_the_classes(tmp_path: Path) -> None:
    labels = Truth(91).open(tmp_path / "m.onnx").labels
    assert (labels[1], labels[13], labels[90]) == ("person", "stop sign", "toothbrush")
    assert labels[12] == "12"


def test_a_background_needs_no_label(tmp_path: Path) -> None:
    Truth(3).open(tmp_path / "m.onnx")
    engine = load(tmp_path / "m.onnx", threads=1, labels=("cat", "dog"), memory=Footprint(0, 0.0))
    assert engine.labels == ("cat", "dog", "background")


def test_empty_boxes_do_not_count(tmp_path: Path) -> None:
    truth = Truth(5)
    best = np.argsort(-truth.logits.max(1), kind="stable")
    truth.boxes[best[:5], 2] = 0
    found = truth.open(tmp_path / "m.onnx")(photo((60, 50)), 0.05, 3)
    assert len(found) == 3
    assert found.boxes[:, 2].min() > 0
