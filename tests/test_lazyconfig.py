"""A LazyConfig file gives the same Config as the YAML config of the model, and nothing in it is executed."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segment import zoo
from segment.convert import config, document
from segment.convert.architecture import Config, MaskHead, ResNet
from segment.convert.document import Name
from segment.errors import ConversionError

GOLDEN = Path(__file__).parent / "golden"
"""lazy-*.yaml: written by detectron2's LazyConfig.save from its own configs of these names."""


def lazy(name: str = "lazy-r50") -> dict[str, Any]:
    return document.read(GOLDEN / f"{name}.yaml")


def changed(key: str, value: Any, name: str = "lazy-r50") -> dict[str, Any]:
    """The config with another value at a dotted key."""
    given = copy.deepcopy(lazy(name))
    *parents, last = key.split(".")
    at: Any = given
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at[parent]
    at[last] = value
    return given


def test_a_lazyconfig_is_read_as_the_yaml_config_of_the_same_model() -> None:
    assert config.read(GOLDEN / "lazy-r50.yaml") == config.parse(zoo.entry("mask_rcnn_R_50_FPN_1x").config)


@pytest.mark.parametrize(("modulated", "groups"), [(False, 1), (True, 2)])
def test_deformable_blocks_are_read_as_in_the_yaml_config(modulated: bool, groups: int) -> None:
    stages = "model.backbone.bottom_up.stages"
    given = changed(f"{stages}.block_class", Name("detectron2.modeling.backbone.resnet.DeformBottleneckBlock"))
    given["model"]["backbone"]["bottom_up"]["stages"] |= {"deform_modulated": modulated, "deform_num_groups": groups}
    yaml_config = copy.deepcopy(zoo.entry("mask_rcnn_R_50_FPN_1x").config)
    yaml_config["MODEL"]["RESNETS"] |= {
        "DEFORM_ON_PER_STAGE": [True] * 4,
        "DEFORM_MODULATED": modulated,
        "DEFORM_NUM_GROUPS": groups,
    }
    assert config.parse(given) == config.parse(yaml_config)


STAGES = "model.backbone.bottom_up.stages"


def listed(base: str = "lazy-r50") -> dict[str, Any]:
    """lazy-r50 with a separate call for each stage."""
    given = copy.deepcopy(lazy(base))
    given["model"]["backbone"]["bottom_up"]["stages"] = [
        {
            "_target_": "detectron2.modeling.ResNet.make_stage",
            "block_class": Name("detectron2.modeling.backbone.resnet.BottleneckBlock"),
            "num_blocks": blocks,
            "stride_per_block": [2 if i else 1] + [1] * (blocks - 1),
            "in_channels": 128 << i if i else 64,
            "bottleneck_channels": 64 << i,
            "out_channels": 256 << i,
            "norm": "FrozenBN",
            "stride_in_1x1": True,
        }
        for i, blocks in enumerate((3, 4, 6, 3))
    ]
    return given


def test_stages_listed_one_by_one_are_read_as_the_default_stages() -> None:
    assert config.parse(listed()) == config.read(GOLDEN / "lazy-r50.yaml")


def test_listed_stages_can_have_what_default_stages_cannot() -> None:
    """Some stages deformable, other numbers of blocks, wider bottlenecks, values that refer to another stage."""
    given = listed()
    stages = given["model"]["backbone"]["bottom_up"]["stages"]
    for i, stage in enumerate(stages):
        stage |= {"num_blocks": 2, "stride_per_block": [2 if i else 1, 1], "bottleneck_channels": 128 << i}
        stage |= {"num_groups": 32, "stride_in_1x1": False}
        stage["in_channels"] = f"${{..{i - 1}.out_channels}}" if i else "${...stem.out_channels}"
        if i:
            stage["block_class"] = Name("detectron2.modeling.backbone.resnet.DeformBottleneckBlock")
            stage["deform_modulated"] = True
    wanted = config.read(GOLDEN / "lazy-r50.yaml").bottom_up
    assert isinstance(wanted, ResNet)
    assert config.parse(given).bottom_up == replace(
        wanted,
        blocks=(2, 2, 2, 2),
        groups=32,
        width_per_group=4,
        stride_in_1x1=False,
        deformable=(3, 4, 5),
        modulated=True,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("0._target_", "detectron2.modeling.ResNet.make_default_stages"),
        ("0.block_class", Name("detectron2.modeling.backbone.resnet.BasicBlock")),
        ("0.num_blocks", 0),
        ("1.stride_per_block", [1, 1, 1, 1]),
        ("1.stride_per_block", [2, 1]),
        ("1.in_channels", 64),
        ("2.out_channels", 512),
        ("2.bottleneck_channels", 64),
        ("2.num_groups", 2),
        ("3.norm", "BN"),
        ("3.dilation", 2),
        ("3.dilation_per_block", [1, 2, 2]),
    ],
)
def test_unsupported_values_of_listed_stages_are_refused_with_their_key(key: str, value: Any) -> None:
    given = listed()
    number, name = key.split(".")
    given["model"]["backbone"]["bottom_up"]["stages"][int(number)][name] = value
    with pytest.raises(ConversionError, match=rf"{STAGES}\.{number}\.|{name}".replace("model.", r"model\.")):
        config.parse(given)


def test_stages_of_the_pyramid_are_required() -> None:
    given = listed()
    del given["model"]["backbone"]["bottom_up"]["stages"][3]
    with pytest.raises(ConversionError, match="stages lists fewer stages"):
        config.parse(given)
    with pytest.raises(ConversionError, match=r"bottom_up\.depth, w_0, w_a and w_m give fewer stages"):
        config.parse(changed("model.backbone.bottom_up.depth", 5, "lazy-regnetx"))


def test_unsaved_norms_are_batch_norms() -> None:
    """The zoo's LSJ configs create the norm of their heads with a lambda, of which only the name is saved."""
    ours = config.read(GOLDEN / "lazy-r50-lsj.yaml")
    wanted = config.parse(zoo.entry("mask_rcnn_R_50_FPN_100ep_LSJ").config)
    assert isinstance(wanted.mask, MaskHead)
    assert ours == replace(wanted, box=replace(wanted.box, norm="BN"), mask=replace(wanted.mask, norm="BN"))


def cascade() -> dict[str, Any]:
    given = lazy()
    heads = given["model"]["roi_heads"]
    heads["_target_"] = "detectron2.modeling.roi_heads.CascadeROIHeads"
    head, predictor = heads.pop("box_head"), heads.pop("box_predictor")
    heads["box_heads"] = [copy.deepcopy(head) for _ in range(3)]
    heads["box_predictors"] = [
        {
            **predictor,
            "box2box_transform": {**predictor["box2box_transform"], "weights": weights},
            "cls_agnostic_bbox_reg": True,
            "num_classes": "${...num_classes}",
        }
        for weights in ([10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15])
    ]
    return given


def test_a_cascade() -> None:
    assert config.parse(cascade()) == config.parse(zoo.entry("cascade_mask_rcnn_R_50_FPN_1x").config)


def test_a_cascade_whose_stages_differ_is_refused() -> None:
    given = cascade()
    given["model"]["roi_heads"]["box_heads"][1]["fc_dims"] = [512, 512]
    with pytest.raises(ConversionError, match=r"model\.roi_heads\.box_heads"):
        config.parse(given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model._target_", "detectron2.modeling.PanopticFPN"),
        ("model._target_", "os.GeneralizedRCNN"),
        ("model.backbone", None),
        ("model.backbone._target_", "detectron2.modeling.RetinaNet"),
        ("model.backbone.top_block._target_", "detectron2.modeling.backbone.fpn.LastLevelP6P7"),
        ("model.backbone.square_pad", 1024),
        ("model.backbone.bottom_up.stem.norm", "LN"),
        ("model.backbone.in_features", ["res2", "res4"]),
        ("model.backbone.bottom_up.stages.depth", 20),
        ("model.backbone.bottom_up.stages.norm", "GN"),
        ("model.backbone.bottom_up.stages.deform_modulated", True),
        ("model.backbone.bottom_up.stages._target_", "detectron2.modeling.ResNet.make_stage"),
        ("model.proposal_generator.anchor_generator.strides", [8, 16, 32, 64, 128]),
        ("model.proposal_generator.post_nms_topk", [1000, 0]),
        ("model.roi_heads._target_", "detectron2.projects.point_rend.PointRendROIHeads"),
        ("model.roi_heads.box_pooler.pooler_type", "ROIPool"),
        ("model.roi_heads.box_pooler.scales", [0.25]),
        ("model.roi_heads.box_head.fc_dims", []),
        ("model.roi_heads.box_head.fc_dims", [512, 1024]),
        ("model.roi_heads.box_predictor.box2box_transform.scale_clamp", 2.0),
        ("model.roi_heads.mask_head.conv_dims", []),
        ("model.roi_heads.mask_head.conv_norm", document.Name("torch.nn.modules.normalization.LayerNorm")),
        ("model.roi_heads.keypoint_head", {"_target_": "detectron2.modeling.KRCNNConvDeconvUpsampleHead"}),
        ("model.roi_heads.num_classes", "many"),
        ("model.roi_heads.num_classes", True),
        ("model.pixel_mean", [1.0]),
        ("model.input_format", "YUV-BT.601"),
        ("model.something_new", 1),
        ("dataloader.test.mapper.image_format", "RGB"),
    ],
)
def test_unsupported_values_are_refused_with_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
        config.parse(changed(key, value))


def test_a_c4_is_read_as_the_yaml_config_of_the_same_model() -> None:
    assert config.read(GOLDEN / "lazy-r50-c4.yaml") == config.parse(zoo.entry("mask_rcnn_R_50_C4_1x").config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.proposal_generator.in_features", ["res5"]),
        ("model.proposal_generator.in_features", ["res3", "res4"]),
        ("model.roi_heads._target_", "detectron2.modeling.roi_heads.RROIHeads"),
        ("model.roi_heads.in_features", ["res3", "res4"]),
        ("model.roi_heads.pooler.pooler_type", "ROIAlignRotated"),
        ("model.roi_heads.res5._target_", "detectron2.modeling.ResNet.make_default_stages"),
        ("model.roi_heads.res5.norm", "BN"),
        ("model.roi_heads.res5.num_blocks", 2),
        ("model.roi_heads.res5.stride_per_block", [1, 1, 1]),
        ("model.roi_heads.res5.bottleneck_channels", 256),
        ("model.roi_heads.box_predictor.box_dim", 5),
    ],
)
def test_a_c4_with_other_parts_is_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
        config.parse(changed(key, value, "lazy-r50-c4"))


def test_a_dc5_is_read_as_the_yaml_config_of_the_same_model() -> None:
    assert config.read(GOLDEN / "lazy-r50-dc5.yaml") == config.parse(zoo.entry("mask_rcnn_R_50_DC5_1x").config)


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("model.backbone.stages.3.dilation", 3, "model.backbone.stages.3.dilation"),
        ("model.backbone.stages.2.dilation", 2, "model.backbone.stages.2.dilation"),
        ("model.backbone.stages.3.stride_per_block", [2, 1, 1], "model.backbone.stages.3.stride_per_block"),
        ("model.backbone.out_features", ["res4"], "model.proposal_generator.in_features"),
        ("model.roi_heads.box_in_features", ["res4"], "model.roi_heads.box_in_features"),
        ("model.roi_heads.mask_in_features", ["res5", "res4"], "model.roi_heads.mask_in_features"),
        ("model.roi_heads._target_", "detectron2.modeling.roi_heads.Res5ROIHeads", "model.roi_heads._target_"),
        ("model.proposal_generator.anchor_generator.strides", [32], "anchor_generator.strides"),
    ],
)
def test_a_dc5_with_other_parts_is_refused_by_key(key: str, value: Any, refused: str) -> None:
    with pytest.raises(ConversionError, match=refused.replace(".", r"\.")):
        config.parse(changed(key, value, "lazy-r50-dc5"))


@pytest.mark.parametrize("depth", [18, 34])
def test_small_resnets_are_read_as_the_yaml_config_of_the_same_model(depth: int) -> None:
    lazy = changed("model.backbone.bottom_up.stages.depth", depth)
    yaml = dict(zoo.entry("mask_rcnn_R_50_FPN_3x").config)
    resnets = {**yaml["MODEL"]["RESNETS"], "DEPTH": depth, "RES2_OUT_CHANNELS": 64, "STRIDE_IN_1X1": False}
    yaml["MODEL"] = {**yaml["MODEL"], "RESNETS": resnets}
    lazy["model"]["backbone"]["bottom_up"]["stages"].pop("stride_in_1x1", None)
    assert config.parse(lazy).bottom_up == config.parse(yaml).bottom_up


def test_a_resnet_has_the_stages_up_to_its_last_feature_map() -> None:
    given = changed("model.backbone.bottom_up.out_features", ["res2", "res3", "res4"])
    given["model"]["backbone"]["in_features"] = ["res2", "res3", "res4"]
    given["model"]["proposal_generator"] |= {"in_features": ["p2", "p3", "p4", "p5"]}
    given["model"]["proposal_generator"]["anchor_generator"] |= {
        "sizes": [[32], [64], [128], [256]],
        "strides": [4, 8, 16, 32],
    }
    for part in ("box", "mask"):
        given["model"]["roi_heads"][f"{part}_in_features"] = ["p2", "p3", "p4"]
        given["model"]["roi_heads"][f"{part}_pooler"]["scales"] = [1 / 4, 1 / 8, 1 / 16]
    network = config.parse(given).bottom_up
    assert isinstance(network, ResNet)
    assert network.blocks == (3, 4, 6)


@pytest.mark.parametrize("network", ["MViT", "SwinTransformer"])
def test_another_backbone_is_refused_by_its_name(network: str) -> None:
    """The error is not about the names of its maps or its padding, which also differ from a ResNet's."""
    given = lazy()
    given["model"]["backbone"]["bottom_up"] = {"_target_": f"detectron2.modeling.{network}"}
    given["model"]["backbone"] |= {"in_features": ["scale2", "scale3"], "square_pad": 1024}
    with pytest.raises(
        ConversionError, match=rf"model\.backbone\.bottom_up\._target_ is detectron2\.modeling\.{network}"
    ):
        config.parse(given)


def test_a_map_that_the_backbone_does_not_return_is_refused() -> None:
    given = changed("model.backbone.in_features", ["res2", "res3", "res4", "res5"])
    given["model"]["backbone"]["bottom_up"]["out_features"] = ["res3", "res4", "res5"]
    with pytest.raises(ConversionError, match=r"model\.backbone\.bottom_up\.out_features"):
        config.parse(given)


# Interpolations


@pytest.mark.parametrize(
    "reference", ["${model.roi_heads.num_classes}", "${..num_classes}", "${...roi_heads.num_classes}"]
)
def test_interpolations(reference: str) -> None:
    given = changed("model.roi_heads.mask_head.num_classes", reference)
    assert config.parse(given) == config.parse(lazy())


@pytest.mark.parametrize(
    "reference",
    [
        "${.num_classes}",
        "${..nothing}",
        "${...........num_classes}",
        "${oc.env:HOME}",
        "a${..num_classes}",
        "${",
        "${}",
    ],
)
def test_unresolved_interpolations_are_refused(reference: str) -> None:
    with pytest.raises(ConversionError, match=r"interpolation"):
        config.parse(changed("model.roi_heads.mask_head.num_classes", reference))


# Files that would run code


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch TRACE']",
        "!!python/object/apply:subprocess.check_call [[touch, TRACE]]",
        "!!python/object/new:pathlib.Path [TRACE]",
        "!!python/object:pathlib.Path {a: b}",
        "!!python/module:antigravity ''",
        "!!python/object/apply:functools.partial {args: [!!python/name:os.system ''], state: "
        "!!python/tuple [!!python/name:os.system '', !!python/tuple ['touch TRACE'], {}, null]}",
        "!!python/object/apply:functools.partial {args: [!!python/name:torch.nn.LayerNorm ''], state: "
        "!!python/tuple [!!python/name:os.system '', !!python/tuple [], {}, null]}",
        "!!python/object/apply:functools.partial [!!python/name:torch.nn.LayerNorm '']",
        "!!python/object/apply:functools.partial {args: [], state: 5}",
        "!!python/object/apply:detectron2.modeling.FPN []",
        "!!python/tuple {a: b}",
        "!!python/bytes aGVsbG8=",
        "!custom x",
    ],
)
def test_tags_with_imports_or_calls_are_refused(value: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "config.yaml", tmp_path / "trace"
    path.write_text((GOLDEN / "lazy-r50.yaml").read_text() + "extra: " + value.replace("TRACE", str(trace)) + "\n")
    with pytest.raises(ConversionError, match=r"config\.yaml"):
        config.read(path)
    assert not trace.exists()


def test_names_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_at_import.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "config.yaml"
    path.write_text((GOLDEN / "lazy-r50.yaml").read_text() + "extra: !!python/name:runs_at_import.value ''\n")
    assert config.read(path) == config.parse(lazy())
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 10)}]\n" for m, n in zip("abcdefg", "bcdefgh", strict=True)),
        "model: &m {a: *m}",
        "model: " + "[" * 100 + "]" * 100,
        "x: '" + "y" * (3 << 20) + "'",
        "1: 2",
        "[1, 2]",
        "model: 5",
        "model: {_target_: [1]}",
    ],
    ids=["expands", "circle", "deep", "long", "number", "list", "value", "target"],
)
def test_malformed_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConversionError):
        config.read(tmp_path / "config.yaml")


def test_a_value_of_another_type_is_refused() -> None:
    """With any one argument of a valid config replaced, parsing returns a Config or raises a ConversionError."""
    given = cascade()
    odds: list[Any] = [None, "text", -1, [], {}, [[]], float("nan"), 10**400, "${model}", document.Name("os.system")]

    def change(node: Any) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, dict | list):
                change(value)
            for odd in odds:
                node[key] = odd
                with contextlib.suppress(ConversionError):
                    assert isinstance(config.parse(given), Config)
            node[key] = value

    change(given["model"])
