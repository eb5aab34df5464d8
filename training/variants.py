"""Train other families on the demo model's scenes, starting from its weights, with detectron2.

    python -m training.variants pointrend OUT   writes OUT.pkl (what was trained, as float16) and OUT.yaml (the config)
    python -m training.variants c4 OUT
    python -m training.variants mask_rcnn OUT

They are there to compare families on one task, which is why they share what they can with the demo model:

- `pointrend` (Kirillov et al. 2020) keeps the demo's backbone, feature pyramid, proposals and box head as they are, so
  that it finds exactly the same boxes, and trains the coarse mask head and the point head alone.
- `c4` (He et al. 2017, ResNet-50-C4) starts with the demo's backbone, whose res5 becomes the second stage's, and trains
  all but the stem and res2, as detectron2 does from ImageNet's weights.

- `mask_rcnn` trains the demo's own mask head for as many iterations as `pointrend`, to tell what PointRend adds from
  what longer training adds. Its weights are not kept here.

Batch norms keep the demo's statistics. About half an hour each on one CPU thread. `c4` gets 650 iterations, where the
demo had 5,000: enough to compare int8 with fp32, not to compare C4 with the demo.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.projects import point_rend

from training import families
from training.families import VARIANTS
from training.train import config, train


def variant_config(name: str) -> CfgNode:
    """The demo's config with a variant's changes."""
    cfg = config()
    point_rend.add_pointrend_config(cfg)
    cfg.merge_from_list(list(VARIANTS[name].options))
    return cfg


def build(name: str) -> torch.nn.Module:
    """A variant with the demo's weights, ready to train."""
    variant = VARIANTS[name]
    model = build_model(variant_config(name)).train()
    load(model, families.from_demo(variant))
    for key, parameter in model.named_parameters():
        parameter.requires_grad = parameter.requires_grad and key.startswith(variant.trained)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def load(model: torch.nn.Module, tensors: families.Tensors) -> None:
    """Give a model those values; it keeps its own where there are none."""
    values = {key: torch.from_numpy(np.asarray(value, np.float32)) for key, value in tensors.items()}
    unexpected = model.load_state_dict(values, strict=False).unexpected_keys
    assert not unexpected, unexpected


def save(model: torch.nn.Module, name: str, out: Path) -> None:
    """Write what was trained, floats as float16, and the config."""
    tensors = {
        key: value.detach().cpu().numpy()
        for key, value in model.state_dict().items()
        if key.startswith(VARIANTS[name].trained) and not key.endswith("num_batches_tracked")
    }
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
        load(model, families.trained(arguments.name, Path(checkpoint)))
    for phase in VARIANTS[arguments.name].phases[int(first) :]:
        train(model, *phase, save=lambda: save(model, arguments.name, arguments.out))
    save(model, arguments.name, arguments.out)


if __name__ == "__main__":
    main()
