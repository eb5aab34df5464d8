"""Detections are converted to regions by Label Studio's labelling config, and to CVAT's shapes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segment.detections import Detections
from segment.errors import RequestError
from segment.labelling import cvat, labelstudio
from segment.labelling.labelstudio import controls
from segment.mask import THRESHOLD, Mask
from tests.strategies import detections, empty, frames, masks, ring, solid
from tests.test_brush import decode

CLASSES = ("person", "traffic light", "truck")
SIZE = (200, 100)
CONFIG = """
<View>
  <!-- two ways to mark the same photo -->
  <Image name="img" value="$photo" zoom="true"/>
  <BrushLabels name="brush" toName="img">
    <Label value="Person" background="green"/><Label value="Dog"/>
  </BrushLabels>
  <PolygonLabels name="outline" toName="img" model_score_threshold="0.2">
    <Label value="Vehicle" predicted_values="car, truck"/><Label value="traffic_light"/>
  </PolygonLabels>
  <RectangleLabels name="box" toName="img"><Label value="person"/></RectangleLabels>
  <TextArea name="note" toName="img"/>
</View>
"""


def filled(points: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    image = Image.new("1", size)
    ImageDraw.Draw(image).polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in points], fill=1)
    return np.asarray(image)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def disc(x0: float, y0: float, x1: float, y1: float) -> Mask:
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    return Mask(np.clip(1.4 - np.hypot(x, y), 0, 1).astype(np.float32), (x0, y0, x1, y1), (x0, y0, x1, y1))


def pixels(mask: Mask, size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(mask.paste((0, 0, *size)) >= THRESHOLD)


class TestConfig:
    def test_control_tags(self) -> None:
        brush, outline, box = controls(CONFIG, CLASSES)
        assert (brush.kind, brush.name, brush.image, brush.field) == ("brushlabels", "brush", "img", "photo")
        assert brush.labels == {0: "Person"}, "labels are matched without regard to case"
        assert outline.labels == {2: "Vehicle", 1: "traffic_light"}
        assert (brush.min_score, outline.min_score) == (None, 0.2)
        assert (box.kind, box.labels) == ("rectanglelabels", {0: "person"})

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("<View>", "not valid XML"),
            ("<View></View>", "none of the tags BrushLabels, PolygonLabels, RectangleLabels"),
            (CONFIG.replace("$photo", "photo"), "has a value such as"),
            (CONFIG.replace("erson", "onkey").replace("truck", "bus").replace("traffic", "t"), "person, traffic light"),
            (CONFIG.replace("0.2", "2"), "model_score_threshold of outline is '2'; it must be a number from 0 to 1"),
            ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "document type"),
            ("<View>" + " " * (1 << 20), "the maximum is 1,048,576"),
        ],
    )
    def test_config_without_matching_labels_is_refused(self, config: str, words: str) -> None:
        with pytest.raises(RequestError, match=words):
            controls(config, CLASSES)


def predicted(found: Detections, config: str = CONFIG) -> dict[str, Any]:
    pieces = labelstudio.prediction(found, controls(config, CLASSES), 0.5, "model-1")
    document: dict[str, Any] = json.loads(b"".join(pieces))
    return document


class TestPrediction:
    def test_regions(self) -> None:
        found = detections([disc(20, 10, 100, 90), disc(110, 20, 190, 80), solid(0, 0, 50, 50)], SIZE, [0, 2, 1])
        document = predicted(found)
        assert document["model_version"] == "model-1"
        brush, outline, light, box = document["result"]
        assert [one["id"] for one in document["result"]] == [f"region-{n}" for n in range(1, 5)]
        for region in document["result"]:
            assert (region["to_name"], region["original_width"], region["original_height"]) == ("img", *SIZE)
        assert (brush["from_name"], brush["type"], brush["value"]["format"]) == ("brush", "brushlabels", "rle")
        assert brush["value"]["brushlabels"] == ["Person"]
        alpha = decode(bytes(brush["value"]["rle"])).reshape(SIZE[1], SIZE[0], 4)[:, :, 3]
        assert np.array_equal(alpha == 255, pixels(found.masks[0], SIZE))
        assert (outline["value"]["polygonlabels"], light["value"]["polygonlabels"]) == (["Vehicle"], ["traffic_light"])
        assert outline["value"]["closed"]
        points = [(x * SIZE[0] / 100, y * SIZE[1] / 100) for x, y in outline["value"]["points"]]
        assert len(points) < 40, "few enough points to edit by hand"
        assert overlap(filled(points, SIZE), pixels(found.masks[1], SIZE)) > 0.95
        expected = {"x": 10.0, "y": 10.0, "width": 40.0, "height": 80.0, "rotation": 0, "rectanglelabels": ["person"]}
        assert box["value"] == expected
        assert document["score"] == pytest.approx((0.99 + 0.98 + 0.97 + 0.99) / 4)

    def test_scores_of_each_control(self) -> None:
        found = detections([solid(0, 0, 50, 50), solid(0, 0, 50, 50)], SIZE, [0, 2])
        found.scores[:] = 0.3
        assert [one["from_name"] for one in predicted(found)["result"]] == ["outline"]

    def test_nothing(self) -> None:
        assert predicted(detections([], SIZE)) == {"result": [], "score": 0.0, "model_version": "model-1"}
        assert len(predicted(detections([empty(0, 0, 20, 20)], SIZE))["result"]) == 1, "the box is kept"

    def test_a_mask_of_several_parts_is_several_polygons(self) -> None:
        grid = np.zeros((28, 28), np.float32)
        grid[:10], grid[18:] = 1, 1
        mask = Mask(grid, (0, 0, 100, 100), (0, 0, 100, 100))
        result = predicted(detections([mask], SIZE, [2]))["result"]
        assert len(result) == 2


def shapes(found: Detections) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(b"".join(cvat.shapes(found, CLASSES)))
    return document


class TestCvat:
    @given(st.lists(masks(), max_size=3), frames, st.sampled_from([1, 50, 1 << 18]))
    @settings(max_examples=60, deadline=None)
    def test_every_pixel_comes_back(self, masks: list[Mask], size: tuple[int, int], strip: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segment.mask.STRIP_PIXELS", strip)
            answer = shapes(detections(masks, size))
        expected = [dense for mask in masks if (dense := pixels(mask, size)).any()]
        assert len(answer) == len(expected)
        for shape, dense in zip(answer, expected, strict=True):
            *values, left, top, right, bottom = shape["mask"]
            rows, columns = np.nonzero(dense)
            assert [left, top, right, bottom] == [columns.min(), rows.min(), columns.max(), rows.max()]
            crop = np.array(values).reshape(bottom - top + 1, right - left + 1)
            assert np.array_equal(crop, dense[top : bottom + 1, left : right + 1])
            assert len(shape["points"]) >= 6

    def test_shapes(self) -> None:
        found = detections([ring(20, 10, 100, 90), empty(0, 0, 9, 9), disc(110, 20, 190, 80)], SIZE, [0, 0, 2])
        first, second = shapes(found)
        assert (first["label"], first["type"], first["confidence"]) == ("person", "mask", "0.9900")
        assert list(second) == ["confidence", "label", "type", "points", "mask"]
        points = np.array(second["points"]).reshape(-1, 2)
        assert overlap(filled(points, SIZE), pixels(found.masks[2], SIZE)) > 0.95

    def test_a_function_names_each_label_once(self) -> None:
        spec = json.loads(cvat.metadata("model", ["cup", "cup", "bow (weapon)"])["spec"])
        assert spec == [{"id": 1, "name": "cup", "type": "mask"}, {"id": 2, "name": "bow (weapon)", "type": "mask"}]
