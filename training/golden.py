"""Write golden files: the results of detectron2 for narrow networks with random values.

    python -m training.golden FOLDER implicit      writes FOLDER/implicit.yaml, .pkl and .npz
    python -m training.golden FOLDER               all of them

The weights are generated from a seed (benchmarks/checkpoints.py) and stored as float16; the results are computed with
the rounded weights. The images are scenes (shapes.py), which are not resized. Masks are stored as booleans with the
threshold 0.5, at which rendered masks are compared.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects import point_rend

from benchmarks import checkpoints
from segment.convert import config as configs
from training.shapes import scene

SIZES = ((301, 237), (400, 400), (160, 288))
"""(width, height) of the images."""
CLASSES = 7
R50, CASCADE = (
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
)
# fmt: off
NARROW = (
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 300, "MODEL.RPN.POST_NMS_TOPK_TEST", 100, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 64, "TEST.DETECTIONS_PER_IMAGE", 20,
)
RENDERED = (
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.FC_DIM", 48,
    "MODEL.POINT_HEAD.NUM_CLASSES", CLASSES,
)
POINTREND = (
    *RENDERED, "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True,
    "MODEL.POINT_HEAD.FC_DIM", 32,
)
IMPLICIT = (
    *RENDERED, "MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendMaskHead", "MODEL.POINT_HEAD.NAME", "ImplicitPointHead",
    "MODEL.POINT_HEAD.FC_DIM", 16, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3,
)
X101 = (
    "MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.PIXEL_STD", [57.375, 57.12, 58.395],
)
FAMILIES: dict[str, tuple[str, int, tuple[Any, ...]]] = {
    # name: (the zoo's config, seed, options)
    "implicit": (R50, 3, IMPLICIT),
    "implicit-agnostic": (R50, 4, (
        *IMPLICIT, "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True, "MODEL.POINT_HEAD.IN_FEATURES", ["p2", "p3"],
        "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 400, "MODEL.POINT_HEAD.NUM_FC", 2,
    )),
    "implicit-places": (R50, 5, (*IMPLICIT, "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED", False)),
    "implicit-features": (R50, 6, (*IMPLICIT, *X101, "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", False)),
    "pointrend-r50": (R50, 7, POINTREND),
    "pointrend-x101": (R50, 8, (*POINTREND, *X101)),
    "pointrend-r101": (R50, 9, (
        *POINTREND, "MODEL.RESNETS.DEPTH", 101, "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False,
        "MODEL.POINT_HEAD.FC_DIM", 40,
    )),
    "pointrend-agnostic": (R50, 10, (
        *POINTREND, "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True, "MODEL.POINT_HEAD.NUM_FC", 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 24, "MODEL.ROI_MASK_HEAD.NUM_FC", 1,
    )),
    "pointrend-levels": (R50, 11, (
        *POINTREND, "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p2", "p3"], "MODEL.POINT_HEAD.IN_FEATURES", ["p2", "p4"],
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 4, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 300,
        "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 5, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 10,
    )),
    "pointrend-gn": (R50, 12, (
        *POINTREND, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.RESNETS.STRIDE_IN_1X1", False,
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2,
    )),
    "pointrend-cascade": (CASCADE, 13, POINTREND),
}
# fmt: on


def family(name: str) -> tuple[CfgNode, dict[str, np.ndarray]]:
    """The config of a family, and a checkpoint with random values whose floats are float16."""
    base, seed, options = FAMILIES[name]
    cfg = get_cfg()
    point_rend.add_pointrend_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(base))
    cfg.merge_from_list([*NARROW, *options])
    tensors = checkpoints.checkpoint(configs.parse(yaml.safe_load(cfg.dump())), seed)
    halves = {
        key: value.astype(np.float16) if value.dtype == np.float32 else np.asarray(value)
        for key, value in tensors.items()
    }
    return cfg, halves


def answers(cfg: CfgNode, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images and the results of detectron2: image0, boxes0, scores0, classes0, masks0, image1 and so on."""
    model = build_model(cfg).eval()
    values = {key: torch.from_numpy(np.asarray(value, np.float32)) for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected, unexpected
    assert all(key.startswith("pixel_") or "anchor_generator" in key for key in missing), missing
    found: dict[str, np.ndarray] = {}
    for i, size in enumerate(SIZES):
        image = scene(i, size)[0]
        bgr = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).permute(2, 0, 1)
        with torch.no_grad():
            (one,) = model.inference([{"image": bgr, "height": size[1], "width": size[0]}], do_postprocess=False)
        found[f"image{i}"] = image
        found[f"boxes{i}"] = one.pred_boxes.tensor.numpy()
        found[f"scores{i}"] = one.scores.numpy()
        found[f"classes{i}"] = one.pred_classes.numpy()
        found[f"masks{i}"] = one.pred_masks[:, 0].numpy() >= 0.5
    return found


def main() -> None:
    """Write the golden files given on the command line."""
    parser = argparse.ArgumentParser(description="Write the results of detectron2 for narrow random networks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(FAMILIES)}; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FAMILIES:
        cfg, tensors = family(name)
        path = arguments.folder / name
        path.with_suffix(".yaml").write_text(cfg.dump())
        with path.with_suffix(".pkl").open("wb") as file:
            pickle.dump({"model": tensors, "__author__": f"random values, {name}"}, file)
        found = answers(cfg, tensors)
        np.savez_compressed(path.with_suffix(".npz"), **dict[str, Any](found))
        print(name, [len(found[f"scores{i}"]) for i in range(len(SIZES))], flush=True)


if __name__ == "__main__":
    main()
