"""ViTDet from LazyConfigs: supported and refused options, input sizes and int8. Detections: tests/test_convert.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from PIL import Image

from segment import convert, modelfile, zoo
from segment.convert import checkpoint, config, document
from segment.convert.architecture import MaskHead, SimplePyramid, ViT
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import ConversionError
from segment.model import EMBEDDED
from segment.model import load as segment_load
from training import shapes

GOLDEN = Path(__file__).parent / "golden"
"""vitdet: a narrow Mask R-CNN of projects/ViTDet, padded to 384 pixels. vitdet-cascade: its LVIS cascade, with resized
tables of relative positions. vitdet-dynamic: any input size, with residual blocks, without class token and bias."""


def lazy(name: str = "vitdet") -> dict[str, Any]:
    return copy.deepcopy(document.read(GOLDEN / f"{name}.yaml"))


def changed(key: str, value: Any) -> dict[str, Any]:
    """The config with a changed value at a dotted key of the backbone."""
    given = lazy()
    *parents, last = key.split(".")
    at: Any = given["model"]["backbone"]
    for parent in parents:
        at = at[parent]
    at[last] = value
    return given


def partial(name: str, **arguments: Any) -> document.Partial:
    return document.Partial(document.Name(name), arguments)


def test_what_lazyconfig_save_wrote_is_read() -> None:
    read = config.read(GOLDEN / "vitdet.yaml")
    assert read.bottom_up == ViT(
        patch=16,
        width=64,
        depth=4,
        heads=4,
        hidden=256,
        qkv_bias=True,
        positions=14,
        class_token=True,
        relative_positions=24,
        window=5,
        window_blocks=frozenset({0, 2}),
        residual_blocks=frozenset(),
        epsilon=1e-6,
    )
    assert read.pyramid == SimplePyramid(levels=(2, 3, 4, 5), channels=32, norm="LN", square=384)
    assert isinstance(read.mask, MaskHead)
    assert (read.box.norm, read.mask.norm, read.box.convs, read.box.fcs) == ("LN", "LN", 2, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_target_", "detectron2.modeling.backbone.vit.AnotherPyramid"),
        ("net._target_", "detectron2.modeling.MViT"),
        ("net._target_", "os.ViT"),
        ("net.patch_size", 14),
        ("net.patch_size", 0),
        ("net.embed_dim", 65),
        ("net.embed_dim", 10**9),
        ("net.depth", 10**9),
        ("net.mlp_ratio", float("nan")),
        ("net.num_heads", 0),
        ("net.in_chans", 4),
        ("net.img_size", 8),
        ("net.norm_layer", document.Name("torch.nn.BatchNorm2d")),
        ("net.norm_layer", document.Name("os.LayerNorm")),
        ("net.norm_layer", "LayerNorm"),
        ("net.norm_layer", partial("torch.nn.modules.normalization.GroupNorm", eps=1e-6)),
        ("net.norm_layer", partial("torch.nn.modules.normalization.LayerNorm", eps="small")),
        ("net.norm_layer", partial("torch.nn.modules.normalization.LayerNorm", elementwise_affine=False)),
        ("net.act_layer", document.Name("torch.nn.SiLU")),
        ("net.act_layer", partial("torch.nn.GELU", approximate="tanh")),
        ("net.use_rel_pos", 1),
        ("net.window_block_indexes", "all"),
        ("net.window_block_indexes", [-1]),
        ("net.window_size", -1),
        ("net.something_new", 1),
        ("scale_factors", [4.0, 1.0]),
        ("scale_factors", [8.0, 4.0, 2.0, 1.0, 0.5]),
        ("scale_factors", [4.0, 2.0, 1.0]),
        ("scale_factors", []),
        ("norm", ""),
        ("norm", "SomeNorm"),
        ("square_pad", -1),
        ("square_pad", 16),
        ("square_pad", 10**6),
        ("top_block._target_", "detectron2.modeling.backbone.fpn.LastLevelP6P7"),
    ],
)
def test_unsupported_values_are_refused_with_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConversionError, match=r"model\.backbone\." + key.rpartition(".")[0].replace(".", r"\.")):
        config.parse(changed(key, value))


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("lazy-vitdet-b", "mask_rcnn_vitdet_b_100ep"),
        ("lazy-vitdet-l-lvis", "lvis_cascade_mask_rcnn_vitdet_l_100ep"),
    ],
)
def test_the_zoos_rows_are_what_detectron2_saves(file: str, row: str) -> None:
    assert config.read(GOLDEN / f"{file}.yaml") == config.parse(zoo.entry(row).config)


def test_training_arguments_are_ignored() -> None:
    given = lazy()
    given["model"]["backbone"]["net"] |= {"drop_path_rate": 0.9, "use_act_checkpoint": True, "rel_pos_zero_init": False}
    assert config.parse(given) == config.read(GOLDEN / "vitdet.yaml")


@pytest.mark.parametrize(
    "keyword",
    [
        "!!python/object/apply:os.system ['touch TRACE']",
        "!!python/object/apply:functools.partial {args: [!!python/name:os.system ''], state: "
        "!!python/tuple [!!python/name:os.system '', !!python/tuple [], {}, null]}",
    ],
)
def test_norm_layer_with_a_call_is_refused(keyword: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "config.yaml"
    lines = (GOLDEN / "vitdet.yaml").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "norm_layer" in line)
    lines[at : at + 6] = [lines[at].partition("norm_layer")[0] + "norm_layer: " + keyword.replace("TRACE", str(trace))]
    path.write_text("\n".join(lines))
    with pytest.raises(ConversionError, match=r"config\.yaml"):
        config.read(path)
    assert not trace.exists()


def model(name: str) -> onnx.ModelProto:
    return convert.convert(config.read(GOLDEN / f"{name}.yaml"), checkpoint.read(GOLDEN / f"{name}.pkl"))


@pytest.mark.parametrize("name", ["vitdet", "vitdet-dynamic"])
def test_any_image_size_is_accepted(name: str, tmp_path: Path) -> None:
    onnx.save(model(name), tmp_path / "model.onnx")
    engine = load(tmp_path / "model.onnx", threads=1, memory=Footprint(0, 0.0))
    for size in ((1, 1), (31, 33), (500, 40)):
        assert engine(np.full((*size, 3), 90, np.uint8), 0.0, 10).size == size[::-1]


def test_a_photo_is_scaled_to_the_square_whatever_the_render_factor(tmp_path: Path) -> None:
    onnx.save(model("vitdet"), tmp_path / "model.onnx")
    loaded = segment_load(tmp_path / "model.onnx")
    assert loaded.fixed_size
    assert (
        loaded.network_size((4000, 3000), 10, "aspect") == loaded.network_size((4000, 3000), 64, "square") == (384, 288)
    )
    assert loaded.network_size((100, 101), 25, "aspect") == (380, 384)
    assert loaded.network_size((10_000, 1), 25, "aspect") == (384, 1)


def test_a_file_of_an_earlier_version_has_no_square() -> None:
    facts = {key: value for key, value in modelfile.metadata(EMBEDDED).items() if not key.endswith("square")}
    read = modelfile.ModelMetadata.from_metadata(facts)
    assert read is not None
    assert read.square == 0


def test_more_than_a_file_can_hold_is_refused() -> None:
    weights = checkpoint.read(GOLDEN / "vitdet.pkl")
    weights["backbone.net.pos_embed"] = np.broadcast_to(np.float16(0), (1, 1 << 20, 512))  # 2 GiB in float32
    with pytest.raises(ConversionError, match=r"2\.1 GB in float32"):
        convert.convert(config.read(GOLDEN / "vitdet.yaml"), weights)


def test_a_file_is_a_valid_onnx_file() -> None:
    for name in ("vitdet", "vitdet-dynamic"):
        onnx.checker.check_model(model(name), full_check=True)


@pytest.mark.slow
def test_int8_quantises_every_linear_layer_and_keeps_the_maps(tmp_path: Path) -> None:
    answers = np.load(GOLDEN / "vitdet.npz")
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(photos):
        Image.fromarray(answers[f"image{i}"]).save(path)
    wide = model("vitdet")
    narrow = convert.quantised(wide, photos)
    made_by = {output: node.op_type for node in narrow.graph.node for output in node.output}
    layers = [node for node in narrow.graph.node if node.op_type in ("Conv", "Gemm")]
    assert sum(".blocks." in node.name for node in layers) == 4 * 4
    assert {made_by.get(node.input[1]) for node in layers} == {"DequantizeLinear"}
    exact, near = (pyramid_maps(each, answers["image0"]) for each in (wide, narrow))
    errors = {name: np.linalg.norm(near[name] - exact[name]) / np.std(exact[name]) for name in exact}
    assert len(errors) == 4
    assert all(error < 0.1 * np.sqrt(exact[name].size) for name, error in errors.items())


@pytest.mark.slow
def test_int8_keeps_the_maps_better_than_those_of_a_resnet(tmp_path: Path) -> None:
    """Both have random weights and no fixed input size; the scenes are not those of the calibration."""
    photos = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(photos):
        Image.fromarray(shapes.scene(3_000_000 + seed, (256, 256))[0]).save(path)
    noise = {}
    for name in ("vitdet-dynamic", "r50"):
        wide = model(name)
        narrow = convert.quantised(wide, photos)
        exact, near = (pyramid_maps(each, shapes.scene(0, (256, 256))[0]) for each in (wide, narrow))
        noise[name] = {key: float(np.square(near[key] - exact[key]).mean() / exact[key].var()) for key in exact}
        print(name, {key: f"{-10 * np.log10(value):.1f} dB" for key, value in noise[name].items()})
    assert max(noise["vitdet-dynamic"].values()) < min(noise["r50"].values())


def pyramid_maps(given: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    """The feature maps that the RoiAlign operations read, by name."""
    names = sorted({node.input[0] for node in given.graph.node if node.op_type == "RoiAlign"})
    for name in names:
        given.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    core = openvino.Core()
    network = core.compile_model(core.read_model(given.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = network({"image": image, "min_score": np.float32(0.05), "max_detections": np.int64(20)})
    return {name: found[4 + i].copy() for i, name in enumerate(names)}
