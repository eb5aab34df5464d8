"""Tests of the converter's ROI pooler, executed by OpenVINO: crops computed row by row equal crops computed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segment.convert import pooler
from segment.convert.architecture import Pooler
from segment.convert.graph import FLOAT, INT64, Graph, tensor

LEVELS, CHANNELS, SIDE = (2, 3, 4, 5), 3, 448
CORNERS = st.tuples(*[st.integers(0, 4 * SIDE)] * 4).filter(lambda c: c[0] != c[2] and c[1] != c[3])
BOXES = st.lists(CORNERS, max_size=12).map(
    lambda all_corners: (
        np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in all_corners], np.float32).reshape(
            -1, 4
        )
        / 4
    )
)
"""(N, 4) XYXY inside SIDE x SIDE pixels, in multiples of 1/4, which float32 represents exactly. Rounding could make the
number of samples differ between the two ways of cropping."""

Crops = Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """Boxes (N, 4) -> crops computed at once, crops concatenated from rows, order."""
    g, settings = Graph(), Pooler(levels=LEVELS, resolution=7, sampling_ratio=0)
    maps = {level: f"map{level}" for level in LEVELS}
    rois = pooler.assign(g, settings, "boxes")
    g.rename(pooler.crop(g, settings, maps, rois), "whole")
    rows = [pooler.crop(g, settings, maps, rois, range(row, row + 1)) for row in range(7)]
    g.rename(g.op("Concat", *rows, axis=2), "by_rows")
    g.rename(rois.order, "order")
    inputs = [tensor("boxes", FLOAT, "n", 4)]
    inputs += [tensor(name, FLOAT, 1, CHANNELS, SIDE >> level, SIDE >> level) for level, name in maps.items()]
    outputs = [tensor(name, FLOAT, "n", CHANNELS, 7, 7) for name in ("whole", "by_rows")]
    model = g.model(inputs, [*outputs, tensor("order", INT64, "n")], {})
    onnx.save(model, file := tmp_path_factory.mktemp("pooler") / "crops.onnx")
    network = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    noise = np.random.default_rng(0)
    values = {
        name: noise.normal(size=(1, CHANNELS, SIDE >> n, SIDE >> n)).astype(np.float32) for n, name in maps.items()
    }

    def run(boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        found = network({"boxes": boxes, **values})
        return found["whole"], found["by_rows"], found["order"]

    return run


@given(boxes=BOXES)
def test_rows_put_together_are_the_whole(crops: Crops, boxes: NDArray[np.float32]) -> None:
    whole, by_rows, order = crops(boxes)
    assert sorted(order.tolist()) == list(range(len(boxes)))
    np.testing.assert_allclose(by_rows, whole, atol=5e-3)


@pytest.mark.parametrize("size", [448, 224, 112, 56, 28])
def test_a_box_of_whole_cells_is_sampled_as_often_by_rows(crops: Crops, size: int) -> None:
    whole, by_rows, _ = crops(np.array([[0, 0, size, size], [10, SIDE - size, size, SIDE]], np.float32))
    np.testing.assert_allclose(by_rows, whole, atol=5e-3)


def test_crops_come_level_by_level(crops: Crops) -> None:
    large, small = [0, 0, 448, 448], [5, 5, 20, 20]
    assert crops(np.array([large, small, large], np.float32))[2].tolist()[0] == 1
