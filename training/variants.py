"""Train other families on the demo model's scenes, starting from its weights, with detectron2.

    python -m training.variants pointrend OUT   writes OUT.pkl (the model zoo's format, float16) and OUT.yaml
    python -m training.variants c4 OUT

They are there to compare families on one task, which is why they share what they can with the demo model:

- `pointrend` (Kirillov et al. 2020) keeps the demo's backbone, feature pyramid, proposals and box head as they are, so
  that it finds exactly the same boxes, and trains the coarse mask head and the point head alone.
- `c4` (He et al. 2017, ResNet-50-C4) starts with the demo's backbone, whose res5 becomes the second stage's, and trains
  all but the stem and res2, as detectron2 does from ImageNet's weights.

Batch norms keep the demo's statistics. About half an hour each on one CPU thread.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.projects import point_rend

from training import shapes
from training.train import config, train

DEMO = Path(__file__).parent / "shapes.pkl"


@dataclass(frozen=True)
class Variant:
    """What differs from the demo model.

    `options`: config keys and values. `trained`: prefixes of the names of the parameters that are trained. `renamed`:
    prefixes of the demo's tensors and what they are called here. `phases`: as train.PHASES, and the iterations over
    which the learning rate decays.
    """

    options: tuple[Any, ...]
    trained: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    phases: tuple[tuple[int, float, int, int, int], ...]


# fmt: off
VARIANTS = {
    "pointrend": Variant(
        options=(
            "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 48,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5, "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead",
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.FC_DIM", 256, "MODEL.ROI_MASK_HEAD.NUM_FC", 2,
            "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 7, "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p2"],
            "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.POINT_HEAD.FC_DIM", 64, "MODEL.POINT_HEAD.NUM_FC", 3,
            "MODEL.POINT_HEAD.IN_FEATURES", ["p2"], "MODEL.POINT_HEAD.NUM_CLASSES", len(shapes.CLASSES),
        ),
        trained=("roi_heads.mask_head.",),
        renamed=(),
        phases=((1000, 0.04, 4_000_000, 256, 2000), (400, 0.015, 5_000_000, 256, 400)),
    ),
    "c4": Variant(
        options=(
            "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 2,
            "MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]],
            "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
            "MODEL.ROI_BOX_HEAD.NAME", "", "MODEL.ROI_BOX_HEAD.NUM_FC", 0,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
        ),
        trained=("backbone.res3.", "backbone.res4.", "proposal_generator.", "roi_heads."),
        renamed=(("backbone.bottom_up.res5.", "roi_heads.res5."), ("backbone.bottom_up.", "backbone.")),
        phases=((250, 0.02, 4_000_000, 256, 250),),
    ),
}
# fmt: on


def variant_config(name: str) -> CfgNode:
    """The demo's config with a variant's changes."""
    cfg = config()
    point_rend.add_pointrend_config(cfg)
    cfg.merge_from_list(list(VARIANTS[name].options))
    return cfg


def demo_weights(variant: Variant, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The demo's tensors that the variant's network has a place for, by their names there."""
    with DEMO.open("rb") as file:
        tensors = pickle.load(file)["model"]
    places = model.state_dict()
    found = {}
    for demo_name, value in tensors.items():
        name = demo_name
        for old, new in variant.renamed:
            if demo_name.startswith(old):
                name = new + demo_name.removeprefix(old)
                break
        if name in places and places[name].shape == value.shape:
            found[name] = torch.from_numpy(value)
    return found


def build(name: str) -> torch.nn.Module:
    """A variant with the demo's weights, ready to train."""
    variant = VARIANTS[name]
    model = build_model(variant_config(name)).train()
    model.load_state_dict(demo_weights(variant, model), strict=False)
    for key, parameter in model.named_parameters():
        parameter.requires_grad = parameter.requires_grad and key.startswith(variant.trained)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def save(model: torch.nn.Module, name: str, out: Path) -> None:
    """Write the checkpoint, floats as float16, and the config."""
    tensors = {key: value.detach().cpu().numpy() for key, value in model.state_dict().items()}
    halves = {key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in tensors.items()}
    with out.with_suffix(".pkl").open("wb") as file:
        pickle.dump({"model": halves, "__author__": f"shapes, {name}"}, file)
    out.with_suffix(".yaml").write_text(variant_config(name).dump())


def main() -> None:
    """Train the variant that the command line names."""
    parser = argparse.ArgumentParser(description="Train another family on the demo model's scenes.")
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", nargs=2, metavar=("CHECKPOINT", "PHASE"), help="begin at a phase, counted from 0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = build(arguments.name)
    checkpoint, first = arguments.resume or ("", 0)
    if checkpoint:
        with Path(checkpoint).open("rb") as file:
            tensors = pickle.load(file)["model"]
        model.load_state_dict({key: torch.from_numpy(value).float() for key, value in tensors.items()})
    for phase in VARIANTS[arguments.name].phases[int(first) :]:
        train(model, *phase, save=lambda: save(model, arguments.name, arguments.out))
    save(model, arguments.name, arguments.out)


if __name__ == "__main__":
    main()
