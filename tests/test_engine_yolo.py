"""YOLO-seg files with known weights give the same detections as the reference in plain NumPy (reference.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segment.detections import Detections
from segment.engine import Engine
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ModelError
from segment.labels import coco
from tests import onnxfiles, reference

Floats = NDArray[np.float32]
UNMEASURED = Footprint(0, 0.0)
PROTOTYPES = 8
NAMES = {"names": "{0: 'cat', 1: 'dog', 2: \"cat's toy\"}", "task": "segment", "stride": "32"}


def photo(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A smooth image, so that masks are shapes instead of noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


class Truth:
    """Random rows and prototypes for a canvas of `size`, and the expected detections."""

    def __init__(self, size: tuple[int, int], anchors: int, classes: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.size, self.classes = size, classes
        centres = rng.uniform(0, 1, (anchors, 2)) * size
        extents = rng.uniform(0.05, 0.6, (anchors, 2)) * size
        self.boxes = np.concatenate([centres, extents], 1).astype(np.float32)
        self.scores = (rng.uniform(0, 1, (anchors, classes)) ** 4).astype(np.float32)
        self.coefficients = rng.normal(0, 1, (anchors, PROTOTYPES)).astype(np.float32)
        self.weights = rng.normal(0, 6, (PROTOTYPES, 3)).astype(np.float32)
        self.bias = rng.normal(0, 3, PROTOTYPES).astype(np.float32)

    @property
    def raw(self) -> Floats:
        """(4 + C + P, anchors)"""
        return np.concatenate([self.boxes, self.scores, self.coefficients], 1).T

    @property
    def objectness(self) -> Floats:
        """(anchors, 5 + C + P), with the best score as objectness."""
        best = self.scores.max(1, keepdims=True)
        return np.concatenate([self.boxes, best, self.scores / best, self.coefficients], 1)

    @property
    def final(self) -> Floats:
        """(anchors, 6 + P), with corners and the best class of each anchor."""
        halves = self.boxes[:, 2:] / 2
        corners = np.concatenate([self.boxes[:, :2] - halves, self.boxes[:, :2] + halves], 1)
        best = self.scores.max(1, keepdims=True), self.scores.argmax(1)[:, None].astype(np.float32)
        return np.concatenate([corners, *best, self.coefficients], 1)

    def save(self, path: Path, rows: Floats | None = None, **options: Any) -> Path:
        options = {"size": self.size, "metadata": NAMES if self.classes == 3 else None} | options
        rows = self.raw if rows is None else rows
        return onnxfiles.yolo(path, rows, self.weights, self.bias, **options)

    def check(
        self,
        found: Detections,
        image: NDArray[np.uint8],
        canvas: reference.Canvas,
        min_score: float,
        masks: Floats | None = None,
        iou: float = 0.7,
    ) -> int:
        """Check every instance and return their number. `masks`: the prototypes. `iou`: the threshold of NMS."""
        size = image.shape[1], image.shape[0]
        rows = self.final
        anchors, classes = np.nonzero(self.scores > min_score)
        scores = self.scores[anchors, classes]
        kept = reference.nms(rows[anchors, :4], scores, classes, iou)
        anchors, classes, scores = anchors[kept], classes[kept], scores[kept]
        boxes = reference.to_photo(rows[anchors, :4], canvas, size)
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        self.same(found, anchors[solid], classes[solid], scores[solid], boxes[solid], canvas, masks)
        return int(solid.sum())

    def same(
        self,
        found: Detections,
        anchors: NDArray[np.int64],
        classes: NDArray[np.int64],
        scores: Floats,
        boxes: Floats,
        canvas: reference.Canvas,
        masks: Floats | None = None,
    ) -> None:
        assert len(found) == len(anchors)
        np.testing.assert_array_equal(found.classes, classes)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5, atol=1e-3)
        if masks is None:
            masks = reference.prototypes(canvas.image, self.weights, self.bias)
        for i, anchor in enumerate(anchors):
            logits = np.tensordot(self.coefficients[anchor], masks, 1)
            at_photo = reference.interpolate(logits, canvas, found.size)
            expected = (at_photo > 0) & reference.inside(found.boxes[i], found.size)
            assert reference.same_but_for_ties(reference.pixels(found, i), at_photo, expected)


def open_file(path: Path, labels: tuple[str, ...] = ()) -> Engine:
    return load(path, threads=1, labels=labels, memory=UNMEASURED)


GRID = 96 * 64 // 64 + 96 * 64 // 256 + 96 * 64 // 1024


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (131, 47), (33, 200), (640, 427), (17, 5), (1, 1)])
def test_fixed_size_fits_any_photo(tmp_path: Path, size: tuple[int, int]) -> None:
    truth = Truth((96, 64), GRID, 3)
    engine = open_file(truth.save(tmp_path / "m.onnx"))
    image = photo(size)
    found = engine(image, 0.5, 300)
    assert truth.check(found, image, reference.letterbox(image, (96, 64)), 0.5) > (10 if min(size) > 5 else 0)
    assert engine.labels == ("cat", "dog", "cat's toy")


@pytest.mark.parametrize("size", [(96, 64), (90, 61), (64, 33)])
def test_any_size_is_padded_to_the_stride(tmp_path: Path, size: tuple[int, int]) -> None:
    canvas = -(-size[0] // 32) * 32, -(-size[1] // 32) * 32
    truth = Truth(canvas, 40, 3)
    engine = open_file(truth.save(tmp_path / "m.onnx", size=None, batch=None))
    assert engine.input_size(size) is None
    assert engine.stride == 32
    image = photo(size)
    padded = reference.letterbox(np.zeros((size[1], size[0], 3), np.uint8), size)
    left, top = (round((canvas[i] - size[i]) / 2 - 0.1) for i in (0, 1))
    field = np.full((3, canvas[1], canvas[0]), np.float32(114 / 255))
    field[:, top : top + size[1], left : left + size[0]] = (image.transpose(2, 0, 1) / 255).astype(np.float32)
    padded = reference.Canvas(field, (1.0, 1.0), (left, top))
    assert truth.check(engine(image, 0.5, 300), image, padded, 0.5) > 10


def test_input_size_is_the_photo_without_its_grey(tmp_path: Path) -> None:
    engine = open_file(Truth((96, 64), GRID, 3).save(tmp_path / "m.onnx"))
    assert engine.input_size((960, 640)) == (96, 64)
    assert engine.input_size((1000, 333)) == (96, 32)
    assert engine.input_size((10, 1000)) == (1, 64)


@pytest.mark.parametrize("layout", ["raw", "raw rows", "objectness", "objectness columns"])
@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
def test_layouts(tmp_path: Path, layout: str, named: bool) -> None:
    kind = layout.partition(" ")[0]
    truth = Truth((96, 64), GRID * (3 if kind == "objectness" else 1), 3)
    rows = getattr(truth, kind)
    rows = rows.T if " " in layout else rows
    metadata = NAMES if named else {}
    engine = open_file(truth.save(tmp_path / "m.onnx", np.ascontiguousarray(rows), metadata=metadata))
    image = photo((96, 64))
    iou = 0.45 if kind == "objectness" else 0.7
    assert truth.check(engine(image, 0.3, 300), image, reference.letterbox(image, (96, 64)), 0.3, iou=iou) > 10
    assert engine.labels == (("cat", "dog", "cat's toy") if named else ("0", "1", "2"))


@pytest.mark.parametrize("size", [(96, 64), None], ids=["fixed", "any size"])
def test_end_to_end_rows_are_taken_as_they_are(tmp_path: Path, size: tuple[int, int] | None) -> None:
    truth = Truth((96, 64), 300, 3)
    path = onnxfiles.yolo(
        tmp_path / "m.onnx", truth.final, truth.weights, truth.bias, size=(96, 64), metadata=NAMES | {"end2end": "True"}
    )
    if size is None:
        path = onnxfiles.yolo(
            path, truth.final, truth.weights, truth.bias, size=None, metadata=NAMES | {"end2end": "True"}
        )
    image = photo((96, 64))
    found = open_file(path)(image, 0.25, 300)
    rows = truth.final
    order = np.argsort(-rows[:, 4], kind="stable")
    order = order[rows[order, 4] > 0.25]
    canvas = reference.letterbox(image, (96, 64))
    boxes = reference.to_photo(rows[order, :4], canvas, (96, 64))
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    order, boxes = order[solid], boxes[solid]
    truth.same(found, order, rows[order, 5].astype(np.int64), rows[order, 4], boxes, canvas)
    assert len(found) > 50


def test_one_class(tmp_path: Path) -> None:
    truth = Truth((96, 64), GRID, 1)
    engine = open_file(truth.save(tmp_path / "m.onnx", metadata={"names": "['thing']"}))
    image = photo((80, 60))
    assert truth.check(engine(image, 0.2, 300), image, reference.letterbox(image, (96, 64)), 0.2) > 5
    assert engine.labels == ("thing",)


def test_nothing_found(tmp_path: Path) -> None:
    engine = open_file(Truth((96, 64), GRID, 3).save(tmp_path / "m.onnx"))
    found = engine(photo((50, 40)), 1.0, 100)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.size == (50, 40)


def test_max_detections_keeps_the_best(tmp_path: Path) -> None:
    truth = Truth((320, 320), 2100, 80)
    engine = open_file(truth.save(tmp_path / "m.onnx"))
    found = engine(photo((320, 320)), 0.0, 300)
    assert len(found) == 300
    assert (np.diff(found.scores) <= 0).all()
    assert engine.labels == coco()
    fewer = engine(photo((320, 320)), 0.0, 7)
    np.testing.assert_array_equal(fewer.scores, found.scores[:7])


@pytest.mark.parametrize("options", [{"batch": None}, {"channels_last": True}, {"kind": onnxfiles.FLOAT16}])
def test_inputs_of_other_kinds(tmp_path: Path, options: dict[str, Any]) -> None:
    truth = Truth((96, 64), GRID, 3)
    for name in ("boxes", "scores", "coefficients"):
        setattr(truth, name, getattr(truth, name).astype(np.float16).astype(np.float32))
    engine = open_file(truth.save(tmp_path / "m.onnx", **options))
    image = photo((96, 64))
    found = engine(image, 0.5, 300)
    if options.get("kind") != onnxfiles.FLOAT16:
        assert truth.check(found, image, reference.letterbox(image, (96, 64)), 0.5) > 10
    else:
        exact = open_file(truth.save(tmp_path / "exact.onnx"))(image, 0.5, 300)
        np.testing.assert_array_equal(found.boxes, exact.boxes)
        np.testing.assert_array_equal(found.classes, exact.classes)
        for i in range(len(found)):
            assert (reference.pixels(found, i) ^ reference.pixels(exact, i)).mean() < 0.01


def test_quantised_input_and_outputs(tmp_path: Path) -> None:
    truth = Truth((64, 64), 84, 1)  # one class, so that the order of equal scores is defined
    step = onnxfiles.ROW_STEP
    truth.boxes = np.clip(np.rint(truth.boxes / step), 2, 120) * np.float32(step)
    truth.scores = np.where(truth.scores > 0.3, 1.0, 0.0).astype(np.float32)
    truth.coefficients = np.clip(np.rint(truth.coefficients), -2, 2) * np.float32(step)
    path = truth.save(tmp_path / "m.onnx", kind=onnxfiles.INT8, metadata={"names": "['thing']"})
    image = photo((64, 64))
    canvas = reference.letterbox(image, (64, 64))
    step = onnxfiles.MASK_STEP
    masks = np.rint(reference.prototypes(canvas.image, truth.weights, truth.bias) / step) * np.float32(step)
    assert truth.check(open_file(path)(image, 0.5, 300), image, canvas, 0.5, masks) > 10


def test_uint8_without_a_scale(tmp_path: Path) -> None:
    truth = Truth((96, 64), GRID, 3)
    exact = open_file(truth.save(tmp_path / "exact.onnx"))(photo((96, 64)), 0.5, 300)
    truth.weights /= 255  # the input of the file is 0-255 instead of 0-1
    found = open_file(truth.save(tmp_path / "m.onnx", kind=onnxfiles.UINT8))(photo((96, 64)), 0.5, 300)
    assert len(found) == len(exact) > 10
    for mine, other in zip(found.masks, exact.masks, strict=True):
        np.testing.assert_allclose(mine.grid, other.grid, atol=1e-3)


def test_given_labels_replace_those_of_the_file(tmp_path: Path) -> None:
    path = Truth((96, 64), GRID, 3).save(tmp_path / "m.onnx")
    assert open_file(path, ("a", "b", "c")).labels == ("a", "b", "c")


@pytest.mark.parametrize("metadata", [NAMES, {}], ids=["names", "no names"])
def test_labels_must_be_as_many_as_the_classes(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = Truth((96, 64), GRID, 3).save(tmp_path / "m.onnx", metadata=metadata)
    with pytest.raises(ModelError, match="3 classes, and 2 labels were given"):
        open_file(path, ("a", "b"))


@pytest.mark.parametrize("names", ["{0: __import__('os')}", "{1: 'a'}", "(", "7"])
def test_invalid_names_are_ignored(tmp_path: Path, names: str) -> None:
    engine = open_file(Truth((96, 64), GRID, 3).save(tmp_path / "m.onnx", metadata={"names": names}))
    assert engine.labels == ("0", "1", "2")


@pytest.mark.parametrize("layout", ["raw", "final"])
def test_boxes_outside_the_photo_do_not_count(tmp_path: Path, layout: str) -> None:
    truth = Truth((96, 64), GRID if layout == "raw" else 300, 3)
    truth.boxes[np.argsort(-truth.scores.max(1), kind="stable")[:5], :2] = -500  # outside
    rows = np.ascontiguousarray(getattr(truth, layout))
    metadata = NAMES | ({"end2end": "True"} if layout == "final" else {})
    engine = open_file(truth.save(tmp_path / "m.onnx", rows, metadata=metadata))
    image = photo((96, 64))
    assert len(engine(image, 0.5, 300)) > 3
    found = engine(image, 0.5, 3)
    assert len(found) == 3
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
