"""Models of other families for the demo model's task: their differences from the demo, and their weights.

A file of trained weights only contains the trained tensors; the others are those of the demo (shapes.pkl). This module
needs NumPy only; the training is in variants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.convert import checkpoint
from training import shapes

FOLDER = Path(__file__).parent
Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Variant:
    """The differences from the demo model.

    `options`: config keys and values. `begun`: prefixes of the tensors that are initialised with the demo's values.
    `trained`: prefixes of the tensors that are trained, from the demo's values or from scratch. `renamed`: prefixes of
    tensors in the demo, and the corresponding prefixes in the variant. `phases`: as train.PHASES, with the number of
    iterations over which the learning rate decays. `draw`: the function of shapes.py that draws the scenes.
    """

    options: tuple[Any, ...]
    begun: tuple[str, ...]
    trained: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    phases: tuple[tuple[int, float, int, int, int], ...]
    draw: str = "scene"


# fmt: off
VARIANTS = {
    "mask_rcnn": Variant(
        options=(
            "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 48,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5,
        ),
        begun=("backbone.", "proposal_generator.", "roi_heads."),
        trained=("roi_heads.mask_head.",),
        renamed=(),
        phases=((1000, 0.04, 4_000_000, 256, 2000), (400, 0.015, 5_000_000, 256, 400)),
    ),
    "pointrend": Variant(
        options=(
            "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 48,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5, "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead",
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.FC_DIM", 256, "MODEL.ROI_MASK_HEAD.NUM_FC", 2,
            "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 7, "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p2"],
            "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.POINT_HEAD.FC_DIM", 64, "MODEL.POINT_HEAD.NUM_FC", 3,
            "MODEL.POINT_HEAD.IN_FEATURES", ["p2"], "MODEL.POINT_HEAD.NUM_CLASSES", len(shapes.CLASSES),
        ),
        begun=("backbone.", "proposal_generator.", "roi_heads.box_"),
        trained=("roi_heads.mask_head.",),
        renamed=(),
        phases=((1000, 0.04, 4_000_000, 256, 2000), (400, 0.015, 5_000_000, 256, 400)),
    ),
    "c4": Variant(
        options=(
            "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 2,
            "MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]],
            "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64,
            "MODEL.ROI_BOX_HEAD.NAME", "", "MODEL.ROI_BOX_HEAD.NUM_FC", 0,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
        ),
        begun=("backbone.stem.", "backbone.res", "roi_heads.res5."),
        trained=("backbone.res3.", "backbone.res4.", "proposal_generator.", "roi_heads."),
        renamed=(("backbone.bottom_up.res5.", "roi_heads.res5."), ("backbone.bottom_up.", "backbone.")),
        phases=((1755, 0.03, 4_000_000, 256, 1755), (1090, 0.015, 5_000_000, 352, 1090)),
    ),
    "scales": Variant(
        options=("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128),
        begun=("backbone.", "proposal_generator.", "roi_heads."),
        trained=("backbone.", "proposal_generator.", "roi_heads."),
        renamed=(),
        phases=((2484, 0.03, 7_000_000, 448, 2484), (5308, 0.03, 9_000_000, 448, 5308)),
        draw="view",
    ),
}
# fmt: on


def from_demo(variant: Variant) -> Tensors:
    """The demo's tensors with which a variant is initialised, by their names in the variant."""

    def here(name: str) -> str:
        found = ((old, new) for old, new in variant.renamed if name.startswith(old))
        old, new = next(found, ("", ""))
        return new + name.removeprefix(old)

    tensors = {here(name): value for name, value in checkpoint.read(FOLDER / "shapes.pkl").items()}
    return {
        name: value
        for name, value in tensors.items()
        if name.startswith(variant.begun) and not name.endswith("num_batches_tracked")
    }


def config_file(name: str) -> Path:
    """The config of a variant: the demo's if they only differ in keys of the training."""
    own = FOLDER / f"{name}.yaml"
    return own if own.exists() else FOLDER / "shapes.yaml"


def trained(name: str, file: Path | None = None) -> Tensors:
    """All tensors of a trained variant. `file`: the trained tensors; by default the file in this folder."""
    variant = VARIANTS[name]
    own: Mapping[str, NDArray[np.generic]] = checkpoint.read(file or FOLDER / f"{name}.pkl")
    return {**from_demo(variant), **own}
