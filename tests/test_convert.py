"""The converter: converted models are compared with detectron2's detections in tests/golden (devtools/golden.py)."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from benchmarks.checkpoints import checkpoint as random_tensors
from devtools.server import CACHE
from segment import convert, modelfile
from segment.convert import checkpoint, config
from segment.convert.architecture import MaskHead
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ConversionError, ModelError
from segment.labels import read_labels
from segment.modelfile import ModelMetadata
from training import shapes

GOLDEN = Path(__file__).parent / "golden"
TRAINING = Path(__file__).parent.parent / "training"
FAMILIES = (
    "r50",
    "x101",
    "agnostic",
    "gn",
    "cascade",
    "c4",
    "dc5",
    "roialign",
    "convs",
    "lazy-basic",
    "lazy-c4",
    "lazy-regnety",
    "lazy-stages",
    "vitdet",
    "vitdet-cascade",
    "vitdet-dynamic",
    "pointrend",
    "pointrend-agnostic",
    "implicit",
)
BOX, SCORE, MASK, SHARE = 0.05, 1e-3, 5e-3, 0.95
"""Tolerances: box coordinate in pixels, score, mean absolute mask difference; least share of detections within them."""
RENDERED_IOU = 0.99
"""Least IoU of PointRend's rendered masks, which are 224 x 224 and stored as booleans, thresholded at 0.5."""


def converted(folder: Path, name: str) -> onnx.ModelProto:
    return convert.convert(config.read(folder / f"{name}.yaml"), checkpoint.read(folder / f"{name}.pkl"))


def agreement(model: Path, answers: Any, cache: Path | None = None) -> list[float]:
    """For each image, the share of detectron2's detections that the converted model also finds."""
    engine = load(model, threads=1, cache=cache, memory=Footprint(0, 0.0))
    shares = []
    for i in range(sum(name.startswith("image") for name in answers)):
        found = engine(answers[f"image{i}"], 0.0, 1000)
        wanted = zip(*(answers[f"{name}{i}"] for name in ("boxes", "scores", "classes", "masks")), strict=True)
        hits = [any(_same(found, j, *one) for j in range(len(found))) for one in wanted]
        shares.append(float(np.mean(hits)))
    return shares


def _same(found: Any, j: int, box: Any, score: float, label: int, mask: Any) -> bool:
    return bool(
        found.classes[j] == label
        and abs(found.scores[j] - score) < SCORE
        and np.abs(found.boxes[j] - box).max() < BOX
        and _same_mask(found.masks[j].probabilities, mask)
    )


def _same_mask(found: Any, mask: Any) -> bool:
    if mask.dtype != bool:
        return bool(np.abs(found - mask.astype(np.float32)).mean() < MASK)
    if found.shape != mask.shape:
        return False
    pixels = found >= 0.5
    return bool((pixels & mask).sum() >= RENDERED_IOU * (pixels | mask).sum())


SLOW = ("lazy-c4",)
"""Takes 4 s of CPU time, for 1,000 proposals through a wide res5. Other models have each of its parts: res5 in the
heads (c4), ROIAlign as in configs of 2019 (roialign), deformable layers (test_deformable.py) and a LazyConfig."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]
)
def test_converted_checkpoint_matches_detectron2(name: str, tmp_path: Path) -> None:
    onnx.save(converted(GOLDEN, name), tmp_path / "model.onnx")
    shares = agreement(tmp_path / "model.onnx", np.load(GOLDEN / f"{name}.npz"))
    assert len(shares) == 3
    assert min(shares) >= SHARE


@pytest.mark.parametrize("seen", ["IMAGE_FEATURE_ENABLED", "POS_ENC_ENABLED"])
def test_implicit_pointrend_runs_with_either_input_of_its_points(seen: str, tmp_path: Path) -> None:
    """Without image features, no value in the loop over the instances depends on their boxes."""
    document = changed("MODEL.IMPLICIT_POINTREND." + seen, False, "implicit")
    document["MODEL"]["POINT_HEAD"]["CLS_AGNOSTIC_MASK"] = True
    facts = config.parse(document)
    onnx.save(convert.convert(facts, random_tensors(facts)), tmp_path / "model.onnx")
    found = load(tmp_path / "model.onnx", threads=1, memory=Footprint(0, 0.0))(shapes.scene(0)[0], 0.0, 5)
    assert len(found) == 5
    assert all(np.asarray(mask.grid).shape == (224, 224) for mask in found.masks)


def test_implicit_pointrend_predicts_the_parameters_of_a_few_instances_at_a_time() -> None:
    """For all instances of an image, they would take megabytes each."""
    graph = converted(GOLDEN, "implicit").graph
    loop = next(node for node in graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    layer = "roi_heads.mask_head.parameter_head.prediction"
    assert layer in {node.name for node in body.node}
    assert layer not in {node.name for node in graph.node}


def test_embedded_demo_matches_detectron2() -> None:
    shares = agreement(Path("segment/models/shapes.onnx"), np.load(GOLDEN / "shapes.npz"), CACHE)
    assert len(shares) == 8
    assert min(shares) >= SHARE


def test_embedded_demo_is_the_converted_checkpoint() -> None:
    fresh = converted(TRAINING, "shapes").graph
    shipped = onnx.load("segment/models/shapes.onnx").graph
    assert [node.op_type for node in fresh.node] == [node.op_type for node in shipped.node]
    assert {t.name: t.raw_data for t in fresh.initializer} == {t.name: t.raw_data for t in shipped.initializer}
    assert Path("segment/models/shapes.onnx").stat().st_size < 15e6


def test_the_layers_of_the_mask_head_take_no_memory_per_instance() -> None:
    """The layers run on a few instances at a time; only the crops are kept for all, before and after concatenation."""
    facts = ModelMetadata.read(Path("segment/models/shapes.onnx"))
    settings = config.read(TRAINING / "shapes.yaml")
    assert isinstance(settings.mask, MaskHead)
    crop = 4 * settings.channels * settings.mask.pooler.resolution**2
    mask = 4 * settings.mask.side**2
    assert facts is not None
    assert 0 < facts.bytes_per_instance < 2 * crop + mask


def test_model_file_has_the_documented_inputs_and_outputs() -> None:
    model = converted(GOLDEN, "r50")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["image", "min_score", "max_detections"]
    assert [o.name for o in model.graph.output] == ["boxes", "scores", "classes", "masks"]


def test_score_and_count_limits_apply(tmp_path: Path) -> None:
    onnx.save(converted(GOLDEN, "r50"), tmp_path / "model.onnx")
    engine = load(tmp_path / "model.onnx", threads=1, memory=Footprint(0, 0.0))
    image = np.load(GOLDEN / "r50.npz")["image0"]
    every = engine(image, 0.0, 1000)
    third = float(every.scores[2])
    assert len(engine(image, 0.0, 1)) == 1
    assert len(engine(image, (third + float(every.scores[3])) / 2, 1000)) == 3
    assert len(engine(image, 1.0, 1000)) == 0


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (31, 33), (500, 40)])
def test_any_image_size_is_accepted(size: tuple[int, int]) -> None:
    engine = load(Path("segment/models/shapes.onnx"), threads=1, cache=CACHE, memory=Footprint(0, 0.0))
    found = engine(np.full((*size, 3), 90, np.uint8), 0.0, 10)
    assert found.size == (size[1], size[0])
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= size[1]).all()


def test_number_of_proposals_can_be_reduced() -> None:
    model = convert.load(Path("segment/models/shapes.onnx"))
    assert convert.limit(model, 10**30) == 200
    assert convert.limit(model, 10) == 10
    assert convert.limit(model, 50) == 10
    with pytest.raises(ConversionError, match="at least 1"):
        convert.limit(model, 0)
    constants = model.graph.initializer
    constants.remove(next(constant for constant in constants if constant.name == "max_proposals"))
    with pytest.raises(ConversionError, match="Convert its checkpoint again"):
        convert.limit(model, 10)


def test_with_one_proposal_no_more_is_found_than_one_box_of_each_class(tmp_path: Path) -> None:
    model = convert.load(Path("segment/models/shapes.onnx"))
    convert.limit(model, 1)
    onnx.save(model, tmp_path / "one.onnx")
    found = load(tmp_path / "one.onnx", threads=1, memory=Footprint(0, 0.0))(shapes.scene(1)[0], 0.0, 100)
    assert 0 < len(found) == len(set(found.classes.tolist()))


# Configs


def changed(key: str, value: Any, name: str = "r50") -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(yaml.safe_load((GOLDEN / f"{name}.yaml").read_text()))
    *parents, last = key.split(".")
    at = document
    for parent in parents:
        at = at[parent]
    at[last] = value
    return document


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        ("MODEL.BACKBONE.NAME", "build_mvitv2_fpn_backbone"),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "DensePoseROIHeads"),
        ("MODEL.ROI_MASK_HEAD.NAME", "ConvDeconvMaskHead"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
        ("MODEL.RESNETS.OUT_FEATURES", ["stem"]),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.RESNETS.DEPTH", 20),
        ("MODEL.RESNETS.NORM", "LN"),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.MASK_ON", False),
        ("MODEL.LOAD_PROPOSALS", True),
        ("MODEL.FPN.IN_FEATURES", ["res2", "res4"]),
        ("MODEL.FPN.FUSE_TYPE", "max"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 0),
        ("MODEL.RPN.IN_FEATURES", ["p2", "p7"]),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "many"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 10**12),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 10**30),
        ("MODEL.RPN.NMS_THRESH", float("nan")),
        ("MODEL.RPN.NMS_THRESH", None),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", [1.0, 0.0, 1.0, 1.0]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[]]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[10**400]]),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 10**6),
        ("MODEL.PIXEL_MEAN", [1.0]),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0]),
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("VERSION", 1),
    ],
)
def test_unsupported_values_are_refused_with_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
        config.parse(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
        ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False),
        ("MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p6"]),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 15),
        ("MODEL.ROI_MASK_HEAD.CONV_DIM", 64),
        ("MODEL.ROI_MASK_HEAD.NUM_FC", 0),
        ("MODEL.POINT_HEAD.NAME", "ImplicitPointHead"),
        ("MODEL.POINT_HEAD.NUM_CLASSES", 80),
        ("MODEL.POINT_HEAD.IN_FEATURES", []),
        ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 1),
        ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 0),
    ],
)
def test_unsupported_values_of_pointrend_are_refused_with_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConversionError, match=key.rpartition(".")[0].replace(".", r"\.")):
        config.parse(changed(key, value, "pointrend"))


@pytest.mark.parametrize(
    ("heads", "mask_head"), [("StandardROIHeads", "CoarseMaskHead"), ("PointRendROIHeads", "MaskRCNNConvUpsampleHead")]
)
def test_incompatible_heads_are_refused(heads: str, mask_head: str) -> None:
    document = changed("MODEL.ROI_MASK_HEAD.NAME", mask_head, "pointrend")
    document["MODEL"]["ROI_HEADS"]["NAME"] = heads
    with pytest.raises(ConversionError, match=r"MODEL\.ROI_"):
        config.parse(document)


def test_config_of_2020_is_read_like_todays() -> None:
    """Configs of 2020 call PointRend's mask head CoarseMaskHead, and its tensors have other names."""
    document = changed("MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead", "pointrend")
    document["MODEL"]["ROI_HEADS"]["NAME"] = "PointRendROIHeads"
    document["MODEL"]["ROI_MASK_HEAD"]["POOLER_TYPE"] = "ROIAlignV2"
    today = config.read(GOLDEN / "pointrend.yaml")
    assert config.parse(document) == today
    tensors = checkpoint.read(GOLDEN / "pointrend.pkl")
    earlier = {
        name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        .replace("mask_head.coarse_head", "mask_coarse_head")
        .replace("mask_head.point_head", "mask_point_head"): tensor
        for name, tensor in tensors.items()
    }
    assert not any("mask_head" in name for name in earlier)
    assert convert.convert(today, earlier) == convert.convert(today, tensors)


@pytest.mark.parametrize(
    ("name", "head"), [("r50", "MaskRCNNConvUpsamplePointSupHead"), ("implicit", "ImplicitPointRendPointSupHead")]
)
def test_a_head_trained_with_points_is_at_test_time_the_one_trained_with_masks(name: str, head: str) -> None:
    """detectron2's projects/PointSup."""
    assert config.parse(changed("MODEL.ROI_MASK_HEAD.NAME", head, name)) == config.read(GOLDEN / f"{name}.yaml")
    with pytest.raises(ConversionError, match=r"MODEL\.ROI_MASK_HEAD\.NAME is 'ImplicitPointRendPointSupHead'"):
        config.parse(changed("MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendPointSupHead", "c4"))


def test_base_configs_are_read(tmp_path: Path) -> None:
    """As in fvcore: paths are relative to the file, later bases override earlier ones, the file overrides its bases."""
    (tmp_path / "configs").mkdir()
    base = yaml.safe_load((GOLDEN / "r50.yaml").read_text())
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "more.yaml").write_text("MODEL: {RPN: {NMS_THRESH: 0.6}, ROI_HEADS: {NMS_THRESH_TEST: 0.3}}")
    child = tmp_path / "configs" / "child.yaml"
    child.write_text('_BASE_: ["../base.yaml", "../more.yaml"]\nMODEL: {ROI_HEADS: {NMS_THRESH_TEST: 0.4}}\n')
    wanted, found = config.parse(base), config.read(child)
    assert (found.proposals.nms, found.box.nms) == (0.6, 0.4)
    assert found == replace(wanted, proposals=replace(wanted.proposals, nms=0.6), box=replace(wanted.box, nms=0.4))
    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("_BASE_: configs/child.yaml\nMODEL: {RPN: {NMS_THRESH: 0.5}}\n")
    assert config.read(grandchild).proposals.nms == 0.5


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("missing.yaml", "there is no such file. Put the base there, or give the full config"),
        ("https://example.com/base.yaml", "Download it, or give the full config"),
        ("3", "path of a file on this machine"),
        ("config.yaml", "is its own base"),
        ("other.yaml", "MODEL is a mapping; in its base, it is 3"),
        ([f"{number}.yaml" for number in range(20)], "more than the maximum of 15 base files"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(tmp_path: Path, base: str | list[str], said: str) -> None:
    (tmp_path / "other.yaml").write_text("MODEL: 3")
    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text("MODEL: {}")
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {base}\nMODEL: {{MASK_ON: true}}\n")
    with pytest.raises(ConversionError, match=said):
        config.read(path)


def test_config_from_a_url_cannot_read_local_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((GOLDEN / "r50.yaml").read_text())
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: base.yaml\n")
    assert config.read(path) == config.read(GOLDEN / "r50.yaml")
    with pytest.raises(ConversionError, match="is from a URL and has _BASE_"):
        config.read(path, bases=False)


def test_labels_come_from_lines_or_from_metadata(tmp_path: Path) -> None:
    lines, metadata = tmp_path / "labels.txt", tmp_path / "metadata.json"
    lines.write_text("cat\n\n dog \n")
    metadata.write_text('{"thing_classes": ["cat", "dog"], "name": "pets"}')
    assert read_labels(lines) == read_labels(metadata) == ("cat", "dog")
    lines.write_bytes("Bär".encode("latin-1"))
    with pytest.raises(ModelError, match=r"labels\.txt is not text in UTF-8"):
        read_labels(lines)
    with pytest.raises(ModelError, match=r"nowhere\.txt cannot be read: No such file or directory\."):
        read_labels(tmp_path / "nowhere.txt")
    with pytest.raises(ConversionError, match=r"the config has 7 classes .*, and 2 were given"):
        convert.convert(config.read(GOLDEN / "r50.yaml"), checkpoint.read(GOLDEN / "r50.pkl"), ("cat", "dog"))


# Checkpoints


def tensors() -> dict[str, Any]:
    return checkpoint.read(GOLDEN / "r50.pkl")


def test_a_missing_tensor_is_named() -> None:
    given = tensors()
    del given["backbone.bottom_up.res4.2.conv2.weight"]
    message = r"no tensor backbone\.bottom_up\.res4\.2\.conv2\.weight, .* similar name is .*\.conv2\.weight\. "
    with pytest.raises(ConversionError, match=message):
        convert.convert(config.read(GOLDEN / "r50.yaml"), given)


def test_a_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    given = tensors()
    given["roi_heads.box_head.fc1.weight"] = given["roi_heads.box_head.fc1.weight"][:, :-1]
    with pytest.raises(ConversionError, match=r"roi_heads\.box_head\.fc1\.weight .*\(64, 1567\).*\(64, 1568\)"):
        convert.convert(config.read(GOLDEN / "r50.yaml"), given)


def test_another_number_of_classes_is_named_with_the_key_of_the_config() -> None:
    document = changed("MODEL.ROI_HEADS.NUM_CLASSES", 9)
    with pytest.raises(ConversionError, match=r"cls_score\.weight .*\(10, 64\)\. .*MODEL\.ROI_HEADS\.NUM_CLASSES"):
        convert.convert(config.parse(document), tensors())


def test_unused_tensor_is_named() -> None:
    given = tensors()
    given["backbone.bottom_up.res4.6.conv1.weight"] = np.zeros((1,), np.float32)  # exists in a deeper network only
    with pytest.raises(ConversionError, match=r"res4\.6\.conv1\.weight"):
        convert.convert(config.read(GOLDEN / "r50.yaml"), given)


def test_the_rpns_convolutions_can_have_the_width_of_the_one_before() -> None:
    facts = config.parse(changed("MODEL.RPN.CONV_DIMS", [16, -1]))
    given = random_tensors(facts)
    assert given["proposal_generator.rpn_head.conv.conv1.weight"].shape == (16, 16, 3, 3)
    assert convert.convert(facts, given)


def test_gn_with_channels_that_make_no_groups_is_refused() -> None:
    facts = config.parse(changed("MODEL.ROI_MASK_HEAD.NORM", "GN"))
    assert isinstance(facts.mask, MaskHead)
    facts = replace(facts, mask=replace(facts.mask, channels=40))
    with pytest.raises(ConversionError, match=r"mask_fcn1\.norm is GN with 40 channels; .* a multiple of 32"):
        convert.convert(facts, random_tensors(facts))


def test_numbers_that_are_not_finite_are_refused() -> None:
    given = tensors()
    given["roi_heads.box_head.fc1.bias"] = np.full(64, np.nan, np.float32)
    with pytest.raises(ConversionError, match=r"fc1\.bias .*finite"):
        convert.convert(config.read(GOLDEN / "r50.yaml"), given)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/the-pickle-ran",)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pkl", Path("/tmp/the-pickle-ran")
    trace.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps({"model": {"weight": Code()}}))
    with pytest.raises(ConversionError, match=r"would run (posix|nt|os)\.system"):
        checkpoint.read(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
def test_builtins_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02cbuiltins\n" + name.encode() + b"\n.")
    with pytest.raises(ConversionError, match=name):
        checkpoint.read(path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_checkpoint_is_refused(part: float, tmp_path: Path) -> None:
    whole = (GOLDEN / "r50.pkl").read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ConversionError, match=r"cut\.pkl"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"model": {}}, {"model": {"a": np.array(["x"])}}])
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConversionError):
        checkpoint.read(path)


class Storage:
    """The storage of a tensor, to which torch.save refers by a persistent id."""

    def __init__(self, kind: str, key: str, array: Any) -> None:
        self.kind, self.key, self.array = kind, key, array


Pickler: Any = pickle._Pickler  # the implementation in Python, whose methods can be overridden


class TorchPickler(Pickler):  # type: ignore[misc]
    """Writes the pickle format of torch.save, without torch."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", Global("torch", obj.kind), obj.key, "cpu", obj.array.size)
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Tensor):
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
            stride = tuple(s // obj.array.itemsize for s in obj.array.strides)
            super().save((obj.storage, 0, obj.array.shape, stride, False, {}))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class Global:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Tensor:
    """A tensor whose values are in `data`, by default the array itself."""

    def __init__(self, key: str, array: Any, data: Any = None) -> None:
        kind = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}[array.dtype.name]
        self.storage, self.array = Storage(kind, key, array if data is None else data), array


def save_pth(path: Path, document: Any) -> None:
    """Write a file in the format of torch.save: a zip with data.pkl and one file per storage."""
    buffer = io.BytesIO()
    arrays: list[Tensor] = []

    def wrapped(value: Any) -> Any:
        if isinstance(value, np.ndarray | Tensor):
            arrays.append(value if isinstance(value, Tensor) else Tensor(str(len(arrays)), value))
            return arrays[-1]
        return {k: wrapped(v) for k, v in value.items()} if isinstance(value, dict) else value

    TorchPickler(buffer, 2).dump(wrapped(document))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for tensor in arrays:
            archive.writestr(f"archive/data/{tensor.storage.key}", tensor.storage.array.tobytes())


def test_a_training_runs_pth_is_read_without_torch(tmp_path: Path) -> None:
    given = tensors()
    save_pth(tmp_path / "model_final.pth", {"model": given, "iteration": 89999, "optimizer": {"state": {}}})
    back = checkpoint.read(tmp_path / "model_final.pth")
    assert back.keys() == given.keys()
    assert all(np.array_equal(back[name], given[name]) for name in given)


def test_a_damaged_pth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_pth(path, {"model": {"weight": np.arange(10, dtype=np.float32)}})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["archive/data/0"] = entries["archive/data/0"][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(ConversionError, match="storage 0 has 8 bytes"):
        checkpoint.read(path)


def test_a_tensor_with_more_values_than_its_data_is_refused(tmp_path: Path) -> None:
    """An expanded tensor: a file of a kilobyte would take gigabytes of memory."""
    path, one = tmp_path / "model.pth", np.ones(1, np.float32)
    expanded = Tensor("0", np.lib.stride_tricks.as_strided(one, (1 << 40,), (0,)), one)
    save_pth(path, {"model": {"weight": expanded}})
    with pytest.raises(ConversionError, match="larger than its data"):
        checkpoint.read(path)


# Model files


def test_model_file_contains_its_metadata() -> None:
    facts = modelfile.ModelMetadata.from_metadata(modelfile.metadata(Path("segment/models/shapes.onnx")))
    assert facts is not None
    assert facts.labels == ("circle", "square", "triangle", "star", "ring")
    assert (facts.precision, facts.stride) == ("fp32", 32)
    assert facts.bytes_per_pixel > 0


def test_a_pth_is_not_inflated(tmp_path: Path) -> None:
    """Compressed entries are refused before they are unpacked: a megabyte could hold a gigabyte of zeros."""
    path = tmp_path / "model.pth"
    save_pth(path, {"model": {"weight": np.zeros(16 << 20, np.float32)}})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="compressed"):
        checkpoint.read(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1500,
        "MODEL: " + "{a: " * 3000,
        "MODEL: 5",
        "MODEL: [1, 2]",
        "MODEL: {MASK_ON: true, RESNETS: 7}",
        "? [1, 2]\n: MODEL",
        "MODEL: 2001-99-99",
        "MODEL: {RESNETS: {DEFORM_ON_PER_STAGE: 3}}",
        "MODEL: {FPN: {IN_FEATURES: 5}}",
        "MODEL: {PIXEL_MEAN: {a: b}}",
        "MODEL: !!int abc",
        "MODEL: !!timestamp x",
        "&a [*a]",
        "MODEL: &a {MODEL: *a}",
        "\0",
    ],
)
def test_an_odd_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConversionError):
        config.read(tmp_path / "config.yaml")


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    """Each key of a valid config in turn gets values of other types; no error but a ConversionError is raised."""
    document = yaml.safe_load(Path("tests/golden/r50.yaml").read_text())

    def change(node: dict[str, Any]) -> None:
        for key, value in list(node.items()):
            if isinstance(value, dict):
                change(value)
            odds: list[Any] = [None, "text", -1, [], {}, [[]], float("nan"), 10**400]
            for odd in odds:
                node[key] = odd
                with contextlib.suppress(ConversionError):
                    config.parse(document)
            node[key] = value

    change(document)


def test_a_pickle_of_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(np.zeros(3)))
    with pytest.raises(ConversionError, match="wrong structure"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("key", "prefix"), [("model", "module."), ("state_dict", "model."), ("model", "module.model.")]
)
def test_the_prefix_of_a_wrapper_is_removed(tmp_path: Path, key: str, prefix: str) -> None:
    """DistributedDataParallel and Lightning save the model as a part of theirs."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({key: {prefix + "a": np.zeros(3), prefix + "b": np.ones(2)}, "epoch": 1}))
    assert list(checkpoint.read(path)) == ["a", "b"]


def test_the_keys_of_a_checkpoint_without_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"net": {"a": np.zeros(3)}, "epoch": 1}))
    with pytest.raises(ConversionError, match=r"no tensors at a known place\. Its keys are \['net', 'epoch'\]"):
        checkpoint.read(path)


def test_a_file_of_another_format_is_refused_with_the_call_that_saves_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(ConversionError, match=r"safetensors, with torch\.save"):
        checkpoint.read(path)


def test_a_deeply_nested_config_is_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: " + "[" * 20_000)
    with pytest.raises(ConversionError, match="nested levels"):
        config.read(path)


def test_iou_thresholds_are_in_the_range_of_onnx() -> None:
    """The runtime that calibrates int8 models refuses others. The config has the thresholds 0 and 1."""
    graph = converted(GOLDEN, "convs").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    limits = [float(values[node.input[3]][0]) for node in graph.node if node.op_type == "NonMaxSuppression"]
    assert limits
    assert all(0 < limit <= 1 for limit in limits)
