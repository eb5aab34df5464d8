"""RegNets from LazyConfigs: stages as in the paper, refused options and int8. Detections: tests/test_convert.py."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.checkpoints import checkpoint as random_tensors
from segment import convert, zoo
from segment.convert import checkpoint, config, document
from segment.convert.architecture import RegNet
from segment.convert.lazybackbone import regnet_stages
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ConversionError

GOLDEN = Path(__file__).parent / "golden"


def lazy() -> dict[str, Any]:
    return copy.deepcopy(document.read(GOLDEN / "lazy-regnety.yaml"))


@pytest.mark.parametrize(
    ("parameters", "blocks"),
    [
        ((38.65, 96, 2.43, 23), (2, 5, 14, 2)),  # RegNetX-4.0GF
        ((31.41, 96, 2.24, 22), (2, 6, 12, 2)),  # RegNetY-4.0GF
    ],
)
def test_the_stages_are_the_papers(parameters: tuple[float, int, float, int], blocks: tuple[int, ...]) -> None:
    assert regnet_stages(*parameters)[1] == blocks


@pytest.mark.parametrize(("name", "widths"), [("x", (80, 240, 560, 1360)), ("y", (128, 192, 512, 1088))])
def test_widths_are_multiples_of_the_groups(name: str, widths: tuple[int, ...]) -> None:
    network = config.parse(zoo.entry(f"mask_rcnn_regnet{name}_4gf_dds_FPN_100ep_LSJ").config).bottom_up
    assert isinstance(network, RegNet)
    assert network.widths == widths


def test_the_zoos_rows_are_what_detectron2_saves() -> None:
    assert config.read(GOLDEN / "lazy-regnety-lsj.yaml") == config.parse(
        zoo.entry("mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ").config
    )
    row = config.parse(zoo.entry("mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ").config).bottom_up
    assert isinstance(row, RegNet)
    assert config.read(GOLDEN / "lazy-regnetx.yaml").bottom_up == replace(row, norm="FrozenBN")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stem_class", document.Name("detectron2.modeling.backbone.regnet.ResStem")),
        ("stem_class", document.Name("os.SimpleStem")),
        ("block_class", document.Name("detectron2.modeling.backbone.regnet.VanillaBlock")),
        ("activation_class", document.Name("torch.nn.SiLU")),
        ("bottleneck_ratio", 2.0),
        ("stride", 1),
        ("w_0", 13),
        ("w_a", -1.0),
        ("w_a", float("nan")),
        ("w_a", 1e9),
        ("depth", 10**9),
        ("se_ratio", -0.25),
        ("norm", "LN"),
        ("out_features", ["s4"]),
    ],
)
def test_unsupported_values_are_refused_with_their_key(key: str, value: Any) -> None:
    given = lazy()
    given["model"]["backbone"]["in_features"] = ["s1", "s2", "s3", "s4"]
    given["model"]["backbone"]["bottom_up"][key] = value
    with pytest.raises(ConversionError, match=r"model\.backbone\.bottom_up\.\w+"):
        config.parse(given)


def test_unsaved_norm_requires_batch_norms_in_the_checkpoint() -> None:
    given, tensors = lazy(), checkpoint.read(GOLDEN / "lazy-regnety.pkl")
    for head in ("box_head", "mask_head"):
        given["model"]["roi_heads"][head]["conv_norm"] = document.Name("a.<lambda>")
    assert (
        convert.convert(config.parse(given), dict(tensors)).graph
        == convert.convert(config.read(GOLDEN / "lazy-regnety.yaml"), dict(tensors)).graph
    )
    del tensors["roi_heads.box_head.conv1.norm.running_mean"]
    with pytest.raises(ConversionError, match=r"no tensor roi_heads\.box_head\.conv1\.norm\.running_mean"):
        convert.convert(config.parse(given), tensors)


def test_int8_leaves_the_gates_in_float(tmp_path: Path) -> None:
    """With five blocks, of which one stage has two, instead of the golden file's twelve."""
    image = np.load(GOLDEN / "lazy-regnety.npz")["image0"]
    Image.fromarray(image).save(tmp_path / "photo.png")
    given = lazy()
    given["model"]["backbone"]["bottom_up"].update(depth=5, w_a=20.0)
    facts = config.parse(given)
    narrow = convert.quantised(convert.convert(facts, random_tensors(facts)), [tmp_path / "photo.png"])
    made_by = {name: node.op_type for node in narrow.graph.node for name in node.output}
    gates = [node for node in narrow.graph.node if node.op_type == "MatMul" and ".se." in node.name]
    assert len(gates) == 2 * 5
    assert not any(made_by.get(name) == "DequantizeLinear" for node in gates for name in node.input)
    convolutions = [node for node in narrow.graph.node if node.op_type == "Conv"]
    assert all(made_by.get(node.input[1]) == "DequantizeLinear" for node in convolutions)
    onnx.save(narrow, tmp_path / "int8.onnx")
    found = load(tmp_path / "int8.onnx", threads=1, memory=Footprint(0, 0.0))(image, 0.0, 20)
    assert len(found) > 0
