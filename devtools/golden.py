"""Generate golden files: narrow models with random values, and detectron2's detections with them.

    PYTHON -m devtools.golden FOLDER [NAME ...] [--seed 0] [--offsets 1.0]

PYTHON needs detectron2 and this project's requirements. Writes NAME.yaml (the full config as dumped by detectron2, or
saved if it is a LazyConfig), NAME.pkl (the checkpoint, in float16) and NAME.npz (three images and the detections in
each), for tests/test_convert.py. Prints the share of detections that detectron2 reproduces when noise of 1e-4 grey
levels is added to the image: with less than 95 %, a test would compare rounding errors.
`dconv-gn` needs `--offsets 0.1` to reach that.

detectron2 runs modulated deformable convolutions, and those with more than one group of offsets, on GPUs only. Here all
are run by torchvision.ops.deform_conv2d, which detectron2 uses for the others on a CPU.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import checkpoints
from segment import zoo
from segment.convert import config as configs
from segment.convert.architecture import PointRend
from training.shapes import scene

SIZES = ((301, 237), (400, 400), (160, 288))
"""Width and height of the images."""
CLASSES, FOUND, NOISE = 7, 20, 1e-4
BOX_ERROR, SCORE_ERROR, MASK_ERROR = 0.05, 1e-3, 5e-3
"""The tolerances of tests/test_convert.py."""

RESNETS, MASK, POINT = "MODEL.RESNETS.", "MODEL.ROI_MASK_HEAD.", "MODEL.POINT_HEAD."
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "TEST.DETECTIONS_PER_IMAGE": FOUND,
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
}
"""The changes to the zoo model's config in all families."""
POINTREND = {MASK + "FC_DIM": 48, POINT + "NUM_CLASSES": CLASSES, POINT + "FC_DIM": 32}
IMPLICIT = POINTREND | {
    MASK + "NAME": "ImplicitPointRendMaskHead",
    MASK + "POOLER_TYPE": "",
    POINT + "NAME": "ImplicitPointHead",
    POINT + "FC_DIM": 16,
    POINT + "SUBDIVISION_STEPS": 3,
}
WIDE_ENOUGH_FOR_GN = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 32}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # name: (model of the zoo, changes)
    "dconv-r50": ("mask_rcnn_R_50_FPN_3x_dconv_c3-c5", {}),
    "dconv-v2": (
        "mask_rcnn_R_50_FPN_3x_dconv_c3-c5",
        {RESNETS + "DEFORM_MODULATED": True, RESNETS + "DEFORM_NUM_GROUPS": 2},
    ),
    "dconv-gn": (
        "mask_rcnn_R_50_FPN_3x_gn",
        {RESNETS + "DEFORM_ON_PER_STAGE": [True] * 4, RESNETS + "DEFORM_MODULATED": True} | WIDE_ENOUGH_FOR_GN,
    ),
    "dconv-cascade": (
        "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
        {RESNETS + "NUM_GROUPS": 4, RESNETS + "WIDTH_PER_GROUP": 4, RESNETS + "DEPTH": 50},
    ),
    "dconv-x152": (
        "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
        {RESNETS + "NUM_GROUPS": 8, RESNETS + "WIDTH_PER_GROUP": 2},
    ),
    "dconv-dc5": (
        "mask_rcnn_R_50_DC5_3x",
        {RESNETS + "DEFORM_ON_PER_STAGE": [False, False, True, True], RESNETS + "DEFORM_NUM_GROUPS": 4},
    ),
    "dconv-c4": (
        "mask_rcnn_R_50_C4_3x",
        {RESNETS + "DEFORM_ON_PER_STAGE": [False, True, True, False], RESNETS + "DEFORM_MODULATED": True},
    ),
    "roialign": (  # configs of 2019 and before
        "mask_rcnn_R_50_FPN_3x",
        {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign", "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign"},
    ),
    "convs": (  # a box head without fully connected layers, LN in the pyramid, no two boxes of a class that overlap
        "mask_rcnn_R_50_FPN_3x",
        {RESNETS + "RES2_OUT_CHANNELS": 16, RESNETS + "WIDTH_PER_GROUP": 4, "MODEL.FPN.NORM": "LN"}
        | {"MODEL.ROI_BOX_HEAD.NUM_CONV": 2, "MODEL.ROI_BOX_HEAD.NUM_FC": 0, "MODEL.FPN.OUT_CHANNELS": 16}
        | {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.0, "MODEL.RPN.NMS_THRESH": 1.0},
    ),
    "pointrend-agnostic": (
        "pointrend_rcnn_R_50_FPN_3x_coco",
        POINTREND | {RESNETS + "NORM": "", POINT + "CLS_AGNOSTIC_MASK": True, POINT + "COARSE_PRED_EACH_LAYER": False},
    ),
    "pointrend-levels": (
        "pointrend_rcnn_R_50_FPN_3x_coco",
        POINTREND
        | {MASK + "IN_FEATURES": ["p2", "p3"], MASK + "OUTPUT_SIDE_RESOLUTION": 5, MASK + "POOLER_RESOLUTION": 10}
        | {POINT + "IN_FEATURES": ["p2", "p4"]}
        | {POINT + "SUBDIVISION_STEPS": 4, POINT + "SUBDIVISION_NUM_POINTS": 300},
    ),
    "pointrend-cascade": (
        "cascade_mask_rcnn_R_50_FPN_3x",
        POINTREND | {MASK + "POOLER_TYPE": "", MASK + "NAME": "PointRendMaskHead", MASK + "POINT_HEAD_ON": True},
    ),
    "implicit": ("mask_rcnn_R_50_FPN_3x", IMPLICIT),
    "implicit-agnostic": (
        "mask_rcnn_R_50_FPN_3x",
        IMPLICIT
        | {POINT + "CLS_AGNOSTIC_MASK": True, POINT + "IN_FEATURES": ["p2", "p3"]}
        | {POINT + "SUBDIVISION_NUM_POINTS": 400, POINT + "NUM_FC": 2},
    ),
    "implicit-places": ("mask_rcnn_R_50_FPN_3x", IMPLICIT | {"MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED": False}),
    "implicit-features": ("mask_rcnn_R_50_FPN_3x", IMPLICIT | {"MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": False}),
}

LAZY = ("lazy-stages", "lazy-c4", "lazy-basic")
"""LazyConfigs (see `_lazy`)."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write narrow checkpoints and what detectron2 finds with them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*FAMILIES, *LAZY))}; without any, all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--offsets", type=float, default=1.0, help="spread in pixels of deformable layers' offsets")
    arguments = parser.parse_args()
    for name in arguments.names or (*FAMILIES, *LAZY):
        kept = make(name, arguments.folder, arguments.seed, arguments.offsets)
        print(name, "found again with noise:", *(f"{share:.0%}" for share in kept), flush=True)


def make(name: str, folder: Path, seed: int, offsets: float) -> list[float]:
    """Write the files of a family. Returns for each image the share of detections that are reproduced with noise."""
    file = folder / f"{name}.yaml"
    if name in LAZY:
        from detectron2.config import LazyConfig

        config = _lazy(name)
        LazyConfig.save(config, str(file))
    else:
        base, changes = FAMILIES[name]
        config = _config(zoo.entry(base).config, {**NARROW, **changes})
        file.write_text(config.dump())
    read = configs.read(file)
    tensors: dict[str, Any] = {
        key: tensor.astype(np.float16) if tensor.dtype == np.float32 else tensor
        for key, tensor in checkpoints.checkpoint(read, seed).items()
    }
    for key in tensors:
        if key.endswith("conv2_offset.weight"):
            tensors[key] *= np.float16(offsets / checkpoints.OFFSET)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps({"model": tensors, "__author__": f"seed {seed}"}))
    model = _model(config, tensors)
    noise, kept = np.random.default_rng(seed), []
    answers: dict[str, Any] = {}
    for i, size in enumerate(SIZES):
        pixels = np.asarray(Image.fromarray(scene(seed * len(SIZES) + i, (640, 480))[0]).resize(size))
        found = _run(read.format, model, pixels.astype(np.float32))
        shaken = _run(read.format, model, pixels + noise.normal(0, NOISE, pixels.shape).astype(np.float32))
        kept.append(float(np.mean([any(_same(one, other) for other in shaken) for one in found])))
        answers[f"image{i}"] = pixels
        for key, values in zip(("boxes", "scores", "classes", "masks"), zip(*found, strict=True), strict=True):
            answers[f"{key}{i}"] = np.stack(values)
        rendered = isinstance(read.mask, PointRend)  # compared as pixels, as in tests/test_convert.py
        answers[f"masks{i}"] = answers[f"masks{i}"] >= 0.5 if rendered else answers[f"masks{i}"].astype(np.float16)
    np.savez_compressed(folder / f"{name}.npz", **answers)
    return kept


def _config(below: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """detectron2's defaults, then the zoo model's config, then `changes`, by dotted key."""
    from detectron2.config import CfgNode, get_cfg
    from detectron2.projects.point_rend import add_pointrend_config

    config = get_cfg()
    add_pointrend_config(config)
    config.merge_from_other_cfg(CfgNode(below))
    config.merge_from_list([part for pair in changes.items() for part in pair])
    config.MODEL.DEVICE = "cpu"
    return config


def _lazy(name: str) -> Any:
    """A LazyConfig with a list of stages that neither a YAML config nor make_default_stages can express.

    It has non-standard numbers of blocks, a wide bottleneck in two groups, and deformable convolutions in res4 only.
    `lazy-c4` has res5 in the heads, ROIAlign as in configs of 2019, and no feature pyramid. `lazy-basic` has the basic
    blocks of ResNet-18 and 34.
    """
    from detectron2.model_zoo import get_config

    c4, basic = name == "lazy-c4", name == "lazy-basic"
    config = get_config(f"common/models/mask_rcnn_{'c4' if c4 else 'fpn'}.py")
    model, heads = config.model, config.model.roi_heads
    network = model.backbone if c4 else model.backbone.bottom_up
    network.stem.out_channels = 8
    network.stages = [_stage(i, blocks, basic) for i, blocks in enumerate((2, 1, 3) if c4 else (2, 1, 3, 1))]
    if c4:
        heads.res5.update(in_channels=128, bottleneck_channels=128, out_channels=256, num_groups=2, stride_in_1x1=False)
        heads.pooler.pooler_type = "ROIAlign"
        model.proposal_generator.head.in_channels = 128
        heads.mask_head.conv_dims = [32]
    else:
        model.backbone.out_channels = model.proposal_generator.head.in_channels = 32
        heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = 32
        heads.box_head.fc_dims = [64, 64]
        heads.box_predictor.input_shape.channels = 64
        heads.mask_head.conv_dims = [32] * 5
    heads.num_classes = CLASSES
    heads.box_predictor.test_score_thresh, heads.box_predictor.test_topk_per_image = 0.01, FOUND
    model.pixel_std = NARROW["MODEL.PIXEL_STD"]
    return config


def _stage(i: int, blocks: int, basic: bool) -> Any:
    from detectron2.config import LazyCall
    from detectron2.modeling import ResNet
    from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock

    stage = LazyCall(ResNet.make_stage)(
        block_class=BasicBlock if basic else DeformBottleneckBlock if i == 2 else BottleneckBlock,
        num_blocks=blocks,
        stride_per_block=[2 if i else 1] + [1] * (blocks - 1),
        in_channels=f"${{..{i - 1}.out_channels}}" if i else "${...stem.out_channels}",
        out_channels=(8 if basic else 32) << i,
        norm="FrozenBN",
    )
    if not basic:
        stage.update(bottleneck_channels=16 << i, num_groups=2, stride_in_1x1=False)
    return stage


def _model(config: Any, tensors: Mapping[str, Any]) -> Any:
    import torch
    from detectron2.config import CfgNode, instantiate
    from detectron2.layers import deform_conv
    from detectron2.modeling import build_model
    from torchvision.ops import deform_conv2d

    deform_conv.deform_conv = lambda x, offset, weight, stride, padding, dilation, groups, offset_groups, *_: (
        deform_conv2d(x, offset, weight, None, stride, padding, dilation)
    )
    deform_conv.modulated_deform_conv = (
        lambda x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups: deform_conv2d(
            x, offset, weight, bias, stride, padding, dilation, mask
        )
    )
    model = (build_model(config) if isinstance(config, CfgNode) else instantiate(config.model)).eval()
    state = {key: torch.from_numpy(np.asarray(tensor, np.float32)) for key, tensor in tensors.items()}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"pixel_mean", "pixel_std"}
    return model


Found = tuple[Any, Any, Any, Any]
"""Box, score, class and mask of one detection."""


def _run(channels: str, model: Any, pixels: Any) -> list[Found]:
    """The detections in float32 (H, W, 3) RGB pixels, best first. `channels`: the order that the model expects."""
    import torch

    if channels == "BGR":
        pixels = pixels[..., ::-1]
    with torch.no_grad():
        image = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
        found = model.inference([image], do_postprocess=False)[0]
    fields = (found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks[:, 0])
    return list(zip(*(field.numpy() for field in fields), strict=True))


def _same(one: Found, other: Found) -> bool:
    return bool(
        one[2] == other[2]
        and abs(one[1] - other[1]) < SCORE_ERROR
        and np.abs(one[0] - other[0]).max() < BOX_ERROR
        and np.abs(one[3] - other[3]).mean() < MASK_ERROR
    )


if __name__ == "__main__":
    main()
