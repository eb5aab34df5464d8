"""Tests of quantisation: int8 files have nearly the same detections as fp32 files, at a quarter of the size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from devtools.server import CACHE
from segment import convert, modelfile
from segment.__main__ import main
from segment.convert import calibration, checkpoint, chunks, config, pointrend, quantise, sampling
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ConversionError
from training import families, shapes
from training.photos import SOURCES

DEMO = Path("segment/models/shapes.onnx")
GOLDEN = Path(__file__).parent / "golden"
MEASURED = Footprint(1 << 24, 99.5, 2048.5, 1 << 20)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with 1,000 proposals, quantised by the command line with scenes that no test uses.

    The memory of a model is measured in tests/test_zoo.py, with a smaller model: it takes seconds of CPU time.
    """
    folder = tmp_path_factory.mktemp("calibration")
    for seed in range(3_000_000, 3_000_020):
        Image.fromarray(shapes.scene(seed)[0]).save(folder / f"{seed}.png")
    model = convert.load(DEMO)
    constant = next(constant for constant in model.graph.initializer if constant.name == "max_proposals")
    constant.CopyFrom(numpy_helper.from_array(np.array([1000]), "max_proposals"))
    wide, path = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segment.engine.footprint.measure", lambda path, threads: MEASURED)
        assert main(["quantise", str(wide), "-o", str(path), "--calibrate", str(folder)]) == 0
    return path


def test_int8_file_is_small_and_has_metadata(int8: Path) -> None:
    facts = modelfile.ModelMetadata.from_metadata(modelfile.metadata(int8))
    assert facts is not None
    assert facts.precision == "int8"
    assert asdict(MEASURED).items() <= asdict(facts).items(), "not that of the fp32 file"
    assert int8.stat().st_size < 0.4 * DEMO.stat().st_size


def test_the_types_in_an_int8_file_are_consistent(int8: Path) -> None:
    """OpenVINO does not read the recorded types; ONNX Runtime refuses a file whose operators contradict them."""
    onnx.checker.check_model(onnx.load(int8), full_check=True)


def test_the_int8_file_finds_what_the_fp32_file_finds(int8: Path) -> None:
    engines = [load(DEMO, threads=1, cache=CACHE), load(int8, threads=1)]
    found, agreed = 0, 0
    for seed in range(20):
        image = shapes.scene(seed)[0]
        wide, narrow = (engine(image, 0.7, 100) for engine in engines)
        found += len(wide)
        for box, label in zip(wide.boxes, wide.classes, strict=True):
            near = [np.abs(other - box).max() < 4 for other in narrow.boxes[narrow.classes == label]]
            agreed += any(near)
    assert found > 40
    assert agreed / found > 0.9


@pytest.mark.slow
def test_without_photos_it_is_calibrated_on_the_packages_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "int8.onnx"
    assert main(["quantise", str(DEMO), "-o", str(path), "--proposals", "100"]) == 0
    assert convert.limit(convert.load(path), 1000) == 100
    assert "calibrated on the photographs that come with this package" in capsys.readouterr().err
    engines = [load(file, threads=1) for file in (DEMO, path)]
    found = [[len(engine(shapes.scene(seed)[0], 0.7, 100)) for seed in range(10)] for engine in engines]
    assert sum(found[1]) > 0.85 * sum(found[0]) > 15


def test_the_default_calibration_has_a_source_for_each_photograph() -> None:
    notice = Path("NOTICE").read_text(encoding="utf-8")
    assert [path.stem for path in calibration.PHOTOS] == sorted(SOURCES)
    assert all(f"{path.name}" in notice for path in calibration.PHOTOS)
    facts = modelfile.ModelMetadata.from_metadata(modelfile.metadata(DEMO))
    assert facts
    views = list(calibration.default(facts))
    assert len(views) == 5 * len(calibration.PHOTOS)
    assert all(view.dtype == np.uint8 and view.shape[2] == 3 for view in views)
    for number, path in enumerate(calibration.PHOTOS):
        with Image.open(path) as photo:
            plain = [np.asarray(view).std() for view in calibration.views(photo.convert("RGB"))]
        shown = [view.std() for view in views[5 * number : 5 * number + 5]]
        assert abs(shown[0] - plain[0]) < 3, "the contrast of the whole photograph must not change"
        assert all(a > b for a, b in zip(shown[1:], plain[1:], strict=True)), "the contrast of its parts must increase"


def test_coordinates_are_not_quantised(int8: Path) -> None:
    graph = onnx.load(int8).graph
    made_by = {name: node for node in graph.node for name in node.output}
    # Layers, operations fused with them, and operations on pixels and crops before a layer.
    allowed = {"Conv", "Gemm", "Relu", "Add", "Resize", "MaxPool", "Pad", "RoiAlign", "Concat", "Reshape"}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in made_by:
            maker = made_by[node.input[0]]
            assert maker.op_type in allowed, f"{maker.op_type} {maker.name}"
            if maker.op_type == "Add":
                assert {made_by[name].op_type for name in maker.input} & {"Conv", "DequantizeLinear"}, maker.name


def test_an_int8_file_uses_300_proposals_by_default(int8: Path) -> None:
    assert convert.limit(convert.load(int8), 1000) == 300


def test_int8_is_not_quantised_again(int8: Path) -> None:
    with pytest.raises(ConversionError, match="already is int8"):
        convert.quantised(convert.load(int8), [])


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no photos"):
        convert.quantised(convert.load(DEMO), [])
    with pytest.raises(ConversionError, match="cannot be read"):
        convert.load(tmp_path)


def test_calibration_without_detections_is_refused() -> None:
    """The levels of the application's log handlers do not change."""
    grey = np.full((64, 64, 3), 114, np.uint8)
    handler = logging.NullHandler()
    logging.getLogger("nncf").addHandler(handler)
    with pytest.raises(ConversionError, match="found no instance with a score of at least"):
        quantise.quantise(convert.load(DEMO), [grey])
    logging.getLogger("nncf").removeHandler(handler)
    assert handler.level == logging.NOTSET


@pytest.mark.slow
def test_calibration_in_several_passes_gives_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, given = shapes.scene(3_000_000)[0], convert.load(DEMO)
    whole = quantise.quantise(given, [scene])
    assert given == convert.load(DEMO), "the fp32 model must not change"
    monkeypatch.setattr(quantise, "WEIGHTS_PER_PASS", DEMO.stat().st_size // 3)
    parts = quantise.quantise(given, [scene])
    assert parts.graph.node == whole.graph.node
    for a, b in zip(parts.graph.initializer, whole.graph.initializer, strict=True):
        values, others = numpy_helper.to_array(a), numpy_helper.to_array(b)
        tolerance = 1 if values.dtype == np.int8 else 1e-3 * np.abs(others).max()
        np.testing.assert_allclose(values.astype(float), others.astype(float), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "side"), [("c4", 14), pytest.param("dc5", 28, marks=pytest.mark.slow)])
def test_models_without_a_pyramid_become_int8(name: str, side: int, tmp_path: Path) -> None:
    """Every convolution is quantised, including those inside loops."""
    model = convert.convert(config.read(GOLDEN / f"{name}.yaml"), checkpoint.read(GOLDEN / f"{name}.pkl"))
    images = np.load(GOLDEN / f"{name}.npz")
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for i, photo in enumerate(photos):
        Image.fromarray(images[f"image{i}"]).save(photo)
    narrow = convert.quantised(model, photos)
    onnx.checker.check_model(narrow, full_check=True)
    made_by = {output: node.op_type for node in _nodes(narrow.graph) for output in node.output}
    convolutions = [node for node in _nodes(narrow.graph) if node.op_type == "Conv"]
    assert {made_by[node.input[1]] for node in convolutions} == {"DequantizeLinear"}
    onnx.save(narrow, tmp_path / "int8.onnx")
    facts = modelfile.ModelMetadata.from_metadata(modelfile.metadata(tmp_path / "int8.onnx"))
    assert facts is not None
    assert facts.precision == "int8"
    found = load(tmp_path / "int8.onnx", threads=1, memory=Footprint(0, 0.0))(images["image0"], 0.0, 20)
    assert len(found) == 20
    assert {mask.grid.shape for mask in found.masks} == {(side, side)}


def test_a_file_of_an_earlier_version_is_refused() -> None:
    """Its loops have other names, from which the parts cannot be restored."""
    model = convert.convert(config.read(GOLDEN / "c4.yaml"), checkpoint.read(GOLDEN / "c4.pkl"))
    for node in _nodes(model.graph):
        for names in (node.input, node.output):
            names[:] = [name.partition("@")[0] for name in names]
    with pytest.raises(ConversionError, match="Convert the checkpoint again"):
        chunks.whole(model)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, including those of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def test_pointrend_samples_its_points_from_int8_tables(tmp_path: Path) -> None:
    """Point sampling reads int8 tables, and masks of the same instance in fp32 and int8 have a median IoU over 0.95."""
    wide = convert.convert(
        config.read(families.FOLDER / "pointrend.yaml"), families.trained("pointrend"), shapes.CLASSES
    )
    narrow = quantise.quantise(wide, [shapes.scene(seed)[0] for seed in range(3_000_000, 3_000_003)])
    onnx.checker.check_model(narrow, full_check=True)
    loop = next(node for node in narrow.graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body").node
    rows = {node.output[0] for node in body if node.op_type == "Gather" and node.input[0].endswith(sampling.TABLE)}
    assert len(rows) == 4, "one operator in each step"
    sampled = {name for node in body if node.op_type == "Split" and node.input[0] in rows for name in node.output}
    assert len(sampled) == 4 * 4, "four corners in each of four steps"
    assert sampled == {node.input[0] for node in body if node.op_type == "DequantizeLinear"} & sampled
    for model, chunk in ((wide, pointrend.CHUNK), (narrow, pointrend.CHUNK_INT8)):
        constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        reshape = next(node for node in model.graph.node if node.name == f"{pointrend.PART}.loop/chunks0")
        assert constants[reshape.input[1]].tolist() == [-1, chunk, 4]
    assert not any("probe" in each.name for model in (wide, narrow) for each in model.graph.node)
    engines = []
    for name, model in (("fp32", wide), ("int8", narrow)):
        onnx.save(model, tmp_path / name)
        engines.append(load(tmp_path / name, threads=1, memory=Footprint(0, 0.0)))
    shared = []
    for seed in range(4):
        fine, coarse = (engine(shapes.scene(seed)[0], 0.7, 100) for engine in engines)
        for box, mask in zip(fine.boxes, fine.masks, strict=True):
            near = [i for i, other in enumerate(coarse.boxes) if np.abs(other - box).max() < 2]
            inside = [each.probabilities >= 0.5 for each in (mask, *(coarse.masks[i] for i in near[:1]))]
            shared += [float((inside[0] & other).sum() / (inside[0] | other).sum()) for other in inside[1:]]
    assert len(shared) >= 5
    assert np.median(shared) > 0.95


@pytest.mark.slow
def test_a_large_layer_is_quantised_without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """NNCF determines only the scale of the layer's input. The fp32 model is not changed."""
    tensors = checkpoint.read(GOLDEN / "implicit.pkl")
    name = f"{pointrend.HEAD}.parameter_head.prediction"
    weight, bias = (tensors[f"{name}.{kind}"].astype(np.float32) for kind in ("weight", "bias"))
    monkeypatch.setattr(quantise, "LARGE_LAYER", 4 * weight.size - 1)
    model = convert.convert(config.read(GOLDEN / "implicit.yaml"), tensors)
    before = model.SerializeToString()
    narrow = quantise.quantise(model, [np.load(GOLDEN / "implicit.npz")["image0"]])
    assert model.SerializeToString() == before
    constants = {constant.name: numpy_helper.to_array(constant) for constant in narrow.graph.initializer}
    loop = next(node for node in narrow.graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body").node
    made_by = {output: node for node in body for output in node.output}
    layer = next(node for node in body if node.name == name)
    assert made_by[layer.input[0]].op_type == made_by[layer.input[1]].op_type == "DequantizeLinear"
    steps, scale, _ = (constants[each] for each in made_by[layer.input[1]].input)
    assert steps.dtype == np.int8
    columns = pointrend.parameters(config.read(GOLDEN / "implicit.yaml").mask, 32)  # type: ignore[arg-type]
    assert steps.shape == (columns, weight.shape[1])
    assert np.abs(np.sort((steps * scale[:, None]).ravel()) - np.sort(weight.ravel())).max() < scale.max()
    assert np.array_equal(np.sort(constants[layer.input[2]]), np.sort(bias))
