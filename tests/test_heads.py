"""The selection of boxes by the second stage (heads.select), run in OpenVINO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray

from segment.convert import config, heads
from segment.convert.architecture import BoxHead
from segment.convert.graph import FLOAT, INT64, Graph, tensor

CLASSES = 2
HEAD = config.read(Path(__file__).parent / "golden" / "agnostic.yaml").box
NOTHING = [5.0, 5.0, 5.0, 40.0]


def chosen(head: BoxHead, boxes: Any, scores: Any, folder: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes, scores and classes that the head selects from boxes (N, k, 4) and scores (N, CLASSES)."""
    g, table = Graph(), np.array(boxes, np.float32)
    found = heads.select(g, head, CLASSES, "scores", "boxes", "min_score", "max_detections")
    for name, value in (("chosen", found.boxes), ("best", found.scores), ("labels", found.classes)):
        g.rename(value, name)
    inputs = [tensor("boxes", FLOAT, "n", table.shape[1], 4), tensor("scores", FLOAT, "n", CLASSES)]
    inputs += [tensor("min_score", FLOAT), tensor("max_detections", INT64)]
    outputs = [tensor("chosen", FLOAT, "m", 4), tensor("best", FLOAT, "m"), tensor("labels", INT64, "m")]
    onnx.save(g.model(inputs, outputs, {}), folder / "select.onnx")
    network = openvino.Core().compile_model(folder / "select.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = {"boxes": table, "scores": np.array(scores, np.float32), "min_score": np.float32(0)}
    result = network({**given, "max_detections": np.int64(100)})
    return result["chosen"], result["best"], result["labels"]


@pytest.mark.parametrize("agnostic", [True, False])
def test_empty_boxes_do_not_count(agnostic: bool, tmp_path: Path) -> None:
    head = replace(HEAD, agnostic=agnostic, max_detections=2, min_score=0.05)
    one, two, three = [0.0, 0, 10, 10], [20.0, 20, 40, 50], [60.0, 0, 90, 9]
    boxes = [[row] if agnostic else [row, row] for row in (NOTHING, one, [7.0, 7, 7, 7], two, three)]
    scores = [[0.99, 0.98], [0.9, 0.01], [0.97, 0.96], [0.02, 0.8], [0.7, 0.01]]
    found, best, labels = chosen(head, boxes, scores, tmp_path)
    assert found.tolist() == [one, two]
    assert best == pytest.approx([0.9, 0.8])
    assert labels.tolist() == [0, 1]


def test_only_empty_boxes_give_no_detections(tmp_path: Path) -> None:
    head = replace(HEAD, agnostic=True)
    found, best, labels = chosen(head, [[NOTHING]], [[0.9, 0.9]], tmp_path)
    assert (len(found), len(best), len(labels)) == (0, 0, 0)
