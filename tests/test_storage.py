"""Model files are written one weight at a time, and weights can be moved to a file beside the model."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.external_data_helper import load_external_data_for_model

from segment.convert import storage
from segment.convert.graph import FLOAT, Graph, tensor

DEMO = Path("segment/models/shapes.onnx")
MIB = 1 << 20


def test_a_written_file_contains_the_model(tmp_path: Path) -> None:
    model = onnx.load(DEMO)
    storage.save(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == model
    assert (tmp_path / "model.onnx").stat().st_size == model.ByteSize()


def test_writing_holds_one_weight_at_a_time(tmp_path: Path) -> None:
    model = _layers(16)
    assert model.ByteSize() > 16 * MIB
    tracemalloc.start()
    storage.save(model, tmp_path / "model.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MIB


def test_weights_can_be_in_a_file_beside_the_model(tmp_path: Path) -> None:
    model = _layers(3)
    copy = storage.without_weights(model, tmp_path)
    assert copy.ByteSize() < 0.01 * model.ByteSize()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    x = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(each.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {"x": x})
        for each in (model, copy)
    ]
    np.testing.assert_array_equal(*results)
    load_external_data_for_model(copy, str(tmp_path))
    for constant in copy.graph.initializer:
        constant.ClearField("data_location")
    assert copy == model


def _layers(count: int) -> onnx.ModelProto:
    """A model of `count` fully connected layers with 1 MiB of weights each."""
    g, x, rng = Graph(), "x", np.random.default_rng(1)
    for i in range(count):
        weight = np.float32(0.04) * rng.standard_normal((512, 512), np.float32)
        x = g.linear(x, weight, np.zeros(512, np.float32), name=f"layer{i}")
    g.rename(x, "y")
    return g.model([tensor("x", FLOAT, "n", 512)], [tensor("y", FLOAT, "n", 512)], {"key": "value"})
