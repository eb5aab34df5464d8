"""Conversion of Results to the types of pycocotools, supervision and FiftyOne, read back with those libraries.

supervision and FiftyOne are no development requirements. The slow test in test_package.py installs each into its own
environment and runs this file there.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segment.detections import Detections, from_boxes
from segment.errors import MissingPackage, OptionError
from segment.mask import THRESHOLD
from segment.results import Results

SIZE = 61, 47
LABELS = ("person", "bicycle", "car")


@pytest.fixture
def found() -> Results:
    """Four discs: one with an empty mask, some with fractional coordinates, one that reaches the edge of the photo."""
    boxes = np.array([[1, 2, 31, 22], [3.4, 4.6, 18.2, 28.9], [40.5, 20.5, 61, 47], [5, 30, 9, 40]], np.float32)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    disc = np.clip(1.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    grids = np.stack([disc, disc, disc, np.zeros_like(disc)])
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    return Results.of(from_boxes(boxes, scores, np.array([2, 0, 1, 2]), grids, SIZE), LABELS)


def pixels(found: Detections) -> NDArray[np.bool_]:
    """All masks in the whole frame, (N, height, width)."""
    return np.array([mask.paste((0, 0, *SIZE)) >= THRESHOLD for mask in found.masks]).reshape(-1, SIZE[1], SIZE[0])


def test_results_are_printed_in_a_line(found: Results) -> None:
    """repr() must not show arrays of probabilities: notebooks display the value of a cell's last line."""
    assert repr(found) == "<Results: 2 car, 1 person, 1 bicycle in 61 x 47 pixels>"
    assert repr(found[[]]) == "<Results: no instances in 61 x 47 pixels>"


def test_results_are_compared_by_identity(found: Results) -> None:
    """Comparison by value raised a ValueError because the fields are arrays."""
    assert found == found  # noqa: PLR0124
    assert found != found[:]
    assert found.masks[0] in {found.masks[0]}


def test_the_labels_stay(found: Results) -> None:
    assert found.names == ["car", "person", "bicycle", "car"]
    assert found[[1]].names == ["person"]
    assert found.at((10, 10)).labels == LABELS


def test_to_coco_refuses_another_encoding(found: Results) -> None:
    with pytest.raises(OptionError, match="segmentation is 'masks'; it must be one of rle, polygons"):
        found.to_coco(segmentation="masks")  # type: ignore[arg-type]


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_pycocotools_evaluates_to_coco(found: Results, segmentation: str) -> None:
    """COCO evaluation against the results themselves as ground truth: AP50 is 1; AP over 0.99 (RLE), 0.8 (polygons)."""
    found = found[[0, 1, 2]]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 7, "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(LABELS)],
        "annotations": found.to_coco(image_id=7),
    }
    truth.createIndex()
    results = truth.loadRes(found.to_coco(7, segmentation))  # type: ignore[arg-type]
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[1] == pytest.approx(1)
    assert evaluation.stats[0] > (0.99 if segmentation == "rle" else 0.8)
    if segmentation == "rle":
        for annotation, mask in zip(truth.dataset["annotations"], pixels(found), strict=True):
            assert (truth.annToMask(annotation) == mask).all()


@pytest.mark.parametrize("dense", [False, True])
def test_supervision_has_every_pixel(found: Results, dense: bool) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed; see test_package.py")
    theirs = found.to_supervision(dense)
    assert isinstance(theirs, supervision.Detections)
    assert (theirs.xyxy == found.boxes).all()
    assert (theirs.confidence == found.scores).all()
    assert theirs["class_name"].tolist() == found.names
    assert (np.asarray(theirs.mask) == pixels(found)).all()
    picture = supervision.MaskAnnotator().annotate(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), theirs)
    assert ((picture > 0).any(axis=2) == pixels(found).any(axis=0)).all()


def test_supervision_of_nothing(found: Results) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed; see test_package.py")
    assert len(found[[]].to_supervision()) == 0


def test_fiftyone_has_every_pixel(found: Results) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed; see test_package.py")
    theirs = found.to_fiftyone()
    assert isinstance(theirs, fiftyone.Detections)
    assert [detection.label for detection in theirs.detections] == found.names
    assert [detection.confidence for detection in theirs.detections] == pytest.approx(found.scores)
    for detection, mask, box in zip(theirs.detections, pixels(found), found.boxes, strict=True):
        x, y, width, height = np.array(detection.bounding_box) * (*SIZE, *SIZE)
        assert (x, y, x + width, y + height) == pytest.approx(box, abs=1)
        left, top = round(x), round(y)
        rows, columns = detection.mask.shape
        assert (detection.mask == mask[top : top + rows, left : left + columns]).all()
        assert detection.mask.sum() == mask.sum()
    drawn = theirs.detections[0].to_segmentation(frame_size=SIZE, target=1)
    assert (drawn.mask == pixels(found)[0]).mean() > 0.98


@pytest.mark.parametrize("package", ["supervision", "fiftyone"])
def test_a_missing_library_is_one_sentence(found: Results, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"needs the package {package}. Install it with: pip install"):
        getattr(found, f"to_{package}")()
