"""Deformable convolutions, compared with their definition and with detectron2's detections; int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from PIL import Image

from segment import convert
from segment.convert import config, deformable
from segment.convert.architecture import ResNet
from segment.convert.graph import FLOAT, Graph, tensor
from segment.convert.layers import Conv
from segment.convert.weights import Weights
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ConversionError
from tests.test_convert import GOLDEN, SHARE, agreement, changed, converted

WIDTH = 8
STABLE = (0, 2)
"""Images of which detectron2 finds all 20 detections again on another processor. Of image 1 it finds 15 again, and with
noise of 1e-4 grey levels 10 or 11, so that image is not compared."""


def test_golden_model_matches_detectron2(tmp_path: Path) -> None:
    onnx.save(converted(GOLDEN, "dconv"), tmp_path / "model.onnx")
    shares = agreement(tmp_path / "model.onnx", np.load(GOLDEN / "dconv.npz"))
    assert min(shares[i] for i in STABLE) >= SHARE


def test_groups_and_modulation_are_read_from_the_config() -> None:
    network = config.read(GOLDEN / "dconv-v2.yaml").bottom_up
    assert isinstance(network, ResNet)
    assert (network.deformable, network.modulated, network.offset_groups) == ((3, 4, 5), True, 2)


@pytest.mark.slow
def test_modulated_convolutions_in_groups_match_detectron2(tmp_path: Path) -> None:
    """devtools/golden.py made the file. With noise of 1e-4 grey levels, detectron2 finds all 60 detections again."""
    onnx.save(converted(GOLDEN, "dconv-v2"), tmp_path / "model.onnx")
    shares = agreement(tmp_path / "model.onnx", np.load(GOLDEN / "dconv-v2.npz"))
    assert len(shares) == 3
    assert min(shares) >= SHARE


def layer(**changes: Any) -> ResNet:
    facts: dict[str, Any] = {"groups": 1, "width_per_group": WIDTH, "norm": "", "deformable": (3,)} | changes
    return ResNet(blocks=(1, 1), stem_channels=4, res2_channels=4, stride_in_1x1=True, **facts)


def by_definition(
    x: Any, offsets: Any, factors: Any, weight: Any, groups: int, offset_groups: int, stride: int, dilation: int
) -> Any:
    """Dai et al. 2017, equations 2 to 4, sample by sample in float64."""
    channels, height, width = x.shape
    out, into = weight.shape[:2]
    rows, columns = offsets.shape[-2:]
    offsets = offsets.reshape(offset_groups, 9, 2, rows, columns)
    factors = factors.reshape(offset_groups, 9, rows, columns)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 2), (1, 2)))
    result = np.zeros((out, rows, columns))
    for p, row, column in np.ndindex(9, rows, columns):
        samples = np.zeros(channels)
        for g, of_group in enumerate(np.split(np.arange(channels), offset_groups)):
            y = row * stride + (p // 3 - 1) * dilation + float(offsets[g, p, 0, row, column])
            x0 = column * stride + (p % 3 - 1) * dilation + float(offsets[g, p, 1, row, column])
            if not (-1 < y < height and -1 < x0 < width):
                continue
            top, left = int(np.floor(y)), int(np.floor(x0))
            down, right = y - top, x0 - left
            for dy, dx, share in (
                (0, 0, (1 - down) * (1 - right)),
                (0, 1, (1 - down) * right),
                (1, 0, down * (1 - right)),
                (1, 1, down * right),
            ):
                corner = padded[of_group, top + dy + 1, left + dx + 1]
                samples[of_group] += share * factors[g, p, row, column] * corner
        for o in range(out):
            first = o // (out // groups) * into
            result[o, row, column] += weight[o, :, p // 3, p % 3] @ samples[first : first + into]
    return np.maximum(result, 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, {"modulated": True}, {"offset_groups": 2}, {"modulated": True, "offset_groups": 4, "groups": 2}],
    ids=["plain", "modulated", "offset groups", "all groups"],
)
def test_a_layer_is_what_its_definition_says(changes: dict[str, Any], stride: int, dilation: int) -> None:
    net = layer(**changes)
    rng = np.random.default_rng(0)
    taps = 9 * net.offset_groups
    weight = rng.standard_normal((WIDTH, WIDTH // net.groups, 3, 3)).astype(np.float32)
    predictor = rng.standard_normal((taps * (3 if net.modulated else 2), WIDTH, 3, 3)).astype(np.float32) * 0.3
    tensors = {
        "c.weight": weight,
        "c.bias": np.zeros(WIDTH, np.float32),
        "c_offset.weight": predictor,
        "c_offset.bias": np.zeros(len(predictor), np.float32),
    }
    g = Graph()
    conv = Conv(WIDTH, WIDTH, 3, stride, net.groups, dilation, net.norm, bias=False, relu=True)
    y = deformable.convolution(g, Weights(tensors), net, "x", "c", conv)
    model = g.model([tensor("x", FLOAT, 1, WIDTH, "h", "w")], [tensor(y, FLOAT), tensor("c_offset", FLOAT)], {})
    run = openvino.compile_model(
        openvino.Core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for size in ((7, 9), (1, 1), (4, 13)):
        x = rng.standard_normal((WIDTH, *size)).astype(np.float32)
        found, predicted = run([x[None]]).values()
        offsets, factors = predicted[0, : 2 * taps], np.ones((taps, *predicted.shape[2:]))
        if net.modulated:
            factors = 1 / (1 + np.exp(-predicted[0, 2 * taps :].astype(np.float64)))
        wanted = by_definition(x, offsets, factors, weight, net.groups, net.offset_groups, stride, dilation)
        assert found.shape == (1, *wanted.shape)
        np.testing.assert_allclose(found[0], wanted, atol=2e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "all"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 3),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, "yes"]),
        ("MODEL.RESNETS.DEFORM_NUM_GROUPS", 0),
        ("MODEL.RESNETS.DEFORM_NUM_GROUPS", 3),
    ],
)
def test_inconsistent_config_is_refused_with_its_key(key: str, value: Any) -> None:
    given = changed("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    given["MODEL"]["RESNETS"][key.rpartition(".")[2]] = value
    with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
        config.parse(given)


def test_the_second_stage_has_no_deformable_res5() -> None:
    given = changed("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    given["MODEL"]["ROI_HEADS"]["NAME"] = "Res5ROIHeads"
    with pytest.raises(ConversionError, match="Res5ROIHeads has no deformable res5"):
        config.parse(given)


@pytest.mark.slow
def test_int8_samples_an_int8_map(tmp_path: Path) -> None:
    answers = np.load(GOLDEN / "dconv.npz")
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(photos):
        Image.fromarray(answers[f"image{i}"]).save(path)
    narrow = convert.quantised(converted(GOLDEN, "dconv"), photos)
    made_by = {name: node.op_type for node in narrow.graph.node for name in node.output}
    maps = [node for node in narrow.graph.node if node.name.endswith(deformable.MAP)]
    assert len(maps) == 4 + 6 + 3
    assert all(made_by[node.input[0]] == "DequantizeLinear" for node in maps)
    convolutions = [node for node in narrow.graph.node if node.op_type == "Conv"]
    assert all(made_by.get(node.input[1]) == "DequantizeLinear" for node in convolutions)
    onnx.save(narrow, tmp_path / "int8.onnx")
    found = load(tmp_path / "int8.onnx", threads=1, memory=Footprint(0, 0.0))(answers["image0"], 0.0, 20)
    assert len(found) > 0
