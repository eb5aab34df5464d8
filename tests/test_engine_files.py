"""engine.file.load accepts or refuses model files and determines the memory that they need."""

from __future__ import annotations

import fcntl
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from segment.detections import Detections, from_boxes
from segment.engine import footprint, measurement
from segment.engine.families import recognise
from segment.engine.families.letterbox import Letterbox
from segment.engine.families.nms import suppress
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.engine.signature import Signature, TensorSpec
from segment.errors import ModelError
from segment.labels import coco, coco_by_number, labels_for
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from tests import onnxfiles, reference
from tests.onnxfiles import FLOAT, Graph
from tests.test_engine_yolo import Truth, photo

EMBEDDED = Path(__file__).parents[1] / "segment" / "models" / "shapes.onnx"


def unknown(path: Path) -> Path:
    graph = Graph()
    image = graph.input("pixels", FLOAT, [1, 3, 32, 32])
    graph.output("probabilities", graph.node("GlobalAveragePool", image), FLOAT, [1, 3, 1, 1])
    return graph.save(path)


def test_an_unknown_file_is_refused_with_what_was_expected_and_found(tmp_path: Path) -> None:
    path = unknown(tmp_path / "yolov8n-seg.onnx")
    with pytest.raises(ModelError) as refusal:
        load(path, threads=1, memory=Footprint(0, 0.0))
    for part in ("YOLO-seg", "RF-DETR-seg", "torchvision", "segment convert", "pixels float32 1 x 3 x 32 x 32"):
        assert part in str(refusal.value)


def test_unknown_file_is_refused_when_measured(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not of a supported model family"):
        load(unknown(tmp_path / "m.onnx"), threads=1)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (
            [TensorSpec("i", "float32", (2, 3, 64, 64))],
            [TensorSpec("a", "float32", (2, 116, 84)), TensorSpec("b", "float32", (2, 32, 16, 16))],
        ),
        (
            [TensorSpec("i", "int8", (1, 3, 64, 64))],
            [TensorSpec("a", "float32", (1, 116, 84)), TensorSpec("b", "float32", (1, 32, 16, 16))],
        ),
        (
            [TensorSpec("i", "float32", (1, 3, 64, 64))],
            [TensorSpec("a", "int8", (1, 116, 84)), TensorSpec("b", "int8", (1, 32, 16, 16))],
        ),
        (
            [TensorSpec("i", "float32", (1, 3, 64, 64))],
            [TensorSpec("a", "float32", (1, 36, 84)), TensorSpec("b", "float32", (1, 32, 16, 16))],
        ),
        (
            [TensorSpec("i", "float32", (1, 1, 64, 64))],
            [TensorSpec("a", "float32", (1, 116, 84)), TensorSpec("b", "float32", (1, 32, 16, 16))],
        ),
    ],
    ids=["a batch of two", "int8 without a scale", "int8 outputs without", "no classes", "grey"],
)
def test_similar_signatures_are_refused(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    with pytest.raises(ModelError, match="not of a supported model family"):
        recognise(Signature("m.onnx", tuple(inputs), tuple(outputs)), ())


def test_file_that_is_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load(path, threads=1)
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path / "absent.onnx", threads=1)


def test_measurement_of_other_files_is_cached(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (15, 84)).astype(np.float32)
    path = onnxfiles.yolo(
        tmp_path / "m.onnx", rows, np.ones((8, 3), np.float32), np.zeros(8, np.float32), size=None,
        metadata={"names": "['a', 'b', 'c']"},
    )  # fmt: skip
    engine = load(path, threads=1, cache=tmp_path / "cache")
    assert 0 <= engine.footprint.fixed_bytes < 200 << 20
    assert 12 < engine.footprint.bytes_per_pixel < 300  # the float32 input alone takes 12
    (note,) = (tmp_path / "cache").glob("*.footprint.json")
    note.write_text(json.dumps({"fixed_bytes": 7, "bytes_per_pixel": 2.5}))
    again = load(path, threads=1, cache=tmp_path / "cache")
    assert (again.footprint.fixed_bytes, again.footprint.bytes_per_pixel) == (7, 2.5)
    note.write_text("{")
    assert load(path, threads=1, cache=tmp_path / "cache").footprint.bytes_per_pixel > 12


def test_a_fixed_size_takes_fixed_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (15, 84)).astype(np.float32)
    weights, bias = np.ones((8, 3), np.float32), np.zeros(8, np.float32)
    path = onnxfiles.yolo(
        tmp_path / "m.onnx", rows, weights, bias, size=(320, 320), metadata={"names": "['a', 'b', 'c']"}
    )
    found = footprint.measure(path)
    assert found.fixed_bytes > 12 * 320 * 320
    assert found.bytes_per_pixel == 0


class PreparesWeightsForInstances:
    """An engine that, like OpenVINO, prepares the weights of layers that run on instances when it finds the first."""

    labels, stride, streams, footprint = ("a",), 32, 1, Footprint(0, 0.0)

    def __init__(self) -> None:
        self.weights: NDArray[np.uint8] | None = None

    def input_size(self, size: tuple[int, int]) -> None:
        return None

    def mask_bytes(self, size: tuple[int, int]) -> int:
        return 0

    def release(self) -> None:
        pass

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        if min_score < 1 and self.weights is None:
            self.weights = np.ones(64 << 20, np.uint8)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        return from_boxes(*nothing, [], (pixels.shape[1], pixels.shape[0]))


def test_weights_that_are_prepared_with_the_first_instance_are_part_of_the_footprint() -> None:
    """The first run of the service finds nothing, so that the memory it holds when it is ready lacks these weights."""
    found = measurement.measure_engine(PreparesWeightsForInstances())
    assert found.kept > 60 << 20
    assert found.fixed_bytes > 60 << 20


def test_measurement_timeout_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "TIMEOUT_SECONDS", 0.01)
    with pytest.raises(ModelError, match=r"Measuring the memory of m\.onnx took more than 0\.01 s\. Try again"):
        footprint.measure(tmp_path / "m.onnx")


def test_killed_measurement_is_reported_as_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelError, match="may have too little"):
        footprint.measure(tmp_path / "m.onnx")


@pytest.mark.parametrize("size", [(96, 64), None], ids=["fixed size", "any size"])
def test_the_service_answers_with_a_foreign_file(tmp_path: Path, size: tuple[int, int] | None) -> None:
    truth = Truth((96, 64), 126, 3)
    path = truth.save(tmp_path / "m.onnx", size=size)
    environment = {"SEGMENT_MODEL": str(path), "SEGMENT_FIXED_BYTES": "64Mi", "SEGMENT_BYTES_PER_PIXEL": "100"}
    service = Service(Settings.from_environment(environment | {"SEGMENT_RENDER_FACTOR": "4", "SEGMENT_THREADS": "1"}))
    image = photo((600, 400))
    upload = io.BytesIO()
    Image.fromarray(image).save(upload, "PNG")
    result = service.segment(upload.getvalue(), Options.defaults(service.settings), ("json",))
    answer = json.loads(result.files[0].body)
    assert result.network_size == ((96, 64) if size else (64, 64))
    assert result.instances == len(answer["annotations"]) > 10
    assert {a["category_name"] for a in answer["annotations"]} == {"cat", "dog", "cat's toy"}
    if size:
        found = load(path, threads=1, memory=Footprint(0, 0.0))(image, 0.5, 100)
        for index, annotation in enumerate(answer["annotations"]):
            mask = rle.decode(annotation["segmentation"]).astype(bool)
            expected = reference.pixels(found, index)
            assert (mask ^ expected).sum() <= 0.02 * max(expected.sum(), 50)


def test_converted_files_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "measure", None)
    engine = load(EMBEDDED, threads=1)
    assert engine.labels == ("circle", "square", "triangle", "star", "ring")
    assert engine.input_size((100, 100)) is None


def test_processes_compile_into_a_cache_one_after_the_other(tmp_path: Path) -> None:
    """Two at a time would read files that are being written: OpenVINO maps them into memory."""
    cache = tmp_path / "cache"
    cache.mkdir()
    folder = os.open(cache, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as other:
        loading = other.submit(load, EMBEDDED, threads=1, cache=cache, memory=Footprint(0, 0.0))
        with pytest.raises(TimeoutError):
            loading.result(timeout=0.5)
        assert not list(cache.iterdir())
        os.close(folder)
        loading.result()
    assert list(cache.glob("*.blob"))


def test_labels() -> None:
    assert len(coco()) == 80
    assert len(coco_by_number()) == 91
    assert labels_for(80) == coco()
    assert labels_for(91) == coco_by_number()
    assert labels_for(2) == ("0", "1")
    assert labels_for(2, own=("a", "b")) == ("a", "b")
    assert labels_for(2, ("x", "y"), ("a", "b")) == ("x", "y")
    assert labels_for(3, own=("x", "y")) == ("0", "1", "2")
    with pytest.raises(ModelError, match="the model has 2 classes, and 3 labels were given"):
        labels_for(2, ("x", "y", "z"))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 40), st.just(4)), elements=st.integers(0, 20).map(float)),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_suppression_is_that_of_plain_loops(boxes: reference.Floats, classes: int, random: object) -> None:
    boxes[:, 2:] += boxes[:, :2]
    rng = np.random.default_rng(len(boxes))
    scores, kinds = rng.permutation(len(boxes)).astype(np.float32), rng.integers(0, classes, len(boxes))
    expected = reference.nms(boxes, scores, kinds, 0.5)
    assert suppress(boxes, scores, kinds, 0.5, 100).tolist() == expected
    assert suppress(boxes, scores, kinds, 0.5, 3).tolist() == expected[:3]


@given(*[st.tuples(st.integers(1, 3000), st.integers(1, 3000))] * 2)
def test_letterbox_contains_the_image_and_maps_boxes_back(image: tuple[int, int], canvas: tuple[int, int]) -> None:
    box = Letterbox.fit(image, canvas)
    for i in (0, 1):
        assert 0 <= box.offset[i] <= canvas[i] - box.inner[i] - box.offset[i]
        assert canvas[i] - box.inner[i] - 2 * box.offset[i] in (0, 1)
    assert max(box.inner[0] / canvas[0], box.inner[1] / canvas[1]) == 1
    whole = np.array([[0, 0, *image]], np.float32)
    np.testing.assert_allclose(box.to_image(box.to_canvas(whole)), whole, rtol=1e-3, atol=1e-2)
