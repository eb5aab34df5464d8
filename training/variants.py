"""Train other families on the demo model's scenes, starting from its weights, with detectron2.

    python -m training.variants pointrend OUT   writes OUT.pkl (what was trained, as float16) and OUT.yaml (the config)
    python -m training.variants c4 OUT
    python -m training.variants mask_rcnn OUT
    python -m training.variants scales OUT

The variants compare families on the same task, and therefore share as many weights as possible with the demo model:

- `pointrend` (Kirillov et al. 2020) keeps the demo's backbone, feature pyramid, proposals and box head as they are, so
  that it finds exactly the same boxes, and trains only the coarse mask head and the point head.
- `mask_rcnn` trains only the demo's mask head, for as many iterations as `pointrend`. It is the control that separates
  the effect of PointRend from that of longer training.
- `c4` (He et al. 2017, ResNet-50-C4) starts with the demo's backbone, whose res5 becomes that of the second stage, and
  trains everything except the stem and res2, as detectron2 does with ImageNet weights. It is trained for 2,845
  iterations; the demo was trained for 5,000.
- `scales` is the demo, trained further with shapes of 8 to 800 pixels, many of which are cut by the frame
  (`shapes.view`). The demo's training data have no shape above 211 pixels. It separates the effect of a tile's
  magnification from the effect of sizes that are not in the training data.

Batch norms keep the demo's statistics. `pointrend` and `mask_rcnn` take half an hour each on one CPU thread; `c4` and
`scales` were trained with `--device cuda`.

`c4` was saved without the RPN's layer `anchor_deltas` by mistake, and so was `scales` after its first phase. That layer
alone was trained again, with all other weights fixed: 250 iterations of 6 scenes from seed 8,000,000 on, Adam at 0.01.
"""

from __future__ import annotations

import argparse
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.projects import point_rend

from training import families, shapes
from training.families import VARIANTS
from training.train import Draw, config, train


def variant_config(name: str, device: str = "cpu") -> CfgNode:
    """The demo's config with a variant's changes."""
    cfg = config()
    point_rend.add_pointrend_config(cfg)
    cfg.merge_from_list([*VARIANTS[name].options, "MODEL.DEVICE", device])
    return cfg


def build(name: str, device: str) -> torch.nn.Module:
    """A variant with the demo's weights, ready to train."""
    variant = VARIANTS[name]
    model = build_model(variant_config(name, device)).train()
    load(model, families.from_demo(variant))
    for key, parameter in model.named_parameters():
        parameter.requires_grad = parameter.requires_grad and key.startswith(variant.trained)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def load(model: torch.nn.Module, tensors: families.Tensors) -> None:
    """Load values into a model. Parameters without a value are not changed."""
    values = {key: torch.from_numpy(np.asarray(value, np.float32)) for key, value in tensors.items()}
    unexpected = model.load_state_dict(values, strict=False).unexpected_keys
    assert not unexpected, unexpected


def save(model: torch.nn.Module, name: str, out: Path) -> None:
    """Write the trained tensors, with floats as float16, and the config. Batch norm statistics are the demo's."""
    tensors = {
        key: value.detach().cpu().numpy()
        for key, value in model.state_dict().items()
        if key.startswith(VARIANTS[name].trained)
        and not key.endswith(("num_batches_tracked", "running_mean", "running_var"))
    }
    halves = {key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in tensors.items()}
    with out.with_suffix(".pkl").open("wb") as file:
        pickle.dump({"model": halves, "__author__": f"shapes, {name}"}, file)
    out.with_suffix(".yaml").write_text(variant_config(name).dump())


def main() -> None:
    """Train the variant given on the command line."""
    parser = argparse.ArgumentParser(description="Train another family on the demo model's scenes.")
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", nargs=2, metavar=("CHECKPOINT", "PHASE"), help="start at a phase, counted from 0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = build(arguments.name, arguments.device)
    checkpoint, first = arguments.resume or ("", 0)
    if checkpoint:
        load(model, families.trained(arguments.name, Path(checkpoint)))
    draw: Draw = getattr(shapes, VARIANTS[arguments.name].draw)
    write = partial(save, model, arguments.name, arguments.out)
    for phase in VARIANTS[arguments.name].phases[int(first) :]:
        train(model, *phase, save=write, draw=draw, workers=arguments.workers)
    write()


if __name__ == "__main__":
    main()
