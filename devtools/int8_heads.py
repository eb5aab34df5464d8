"""Compare an int8 model with fp32: the detections, and the outputs of the heads for the same proposals.

    python -m devtools.int8_heads CONFIG CHECKPOINT [--scenes 12]

Detections differ if the backbone, the proposals or the heads differ. Scores and boxes of both files are therefore also
computed for the proposals of fp32. The scenes are those of training/shapes.py; the images are scaled to the size that
the network pads to.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, utils
from PIL import Image

from benchmarks import models
from segment import convert
from segment.convert import config as configs
from segment.convert import heads
from segment.convert.quantise import quantise
from segment.engine.file import load
from segment.engine.footprint import Footprint
from training.shapes import scene

CALIBRATION_SCENES = 12
SIDE = 352
"""Longer side of the images if the network does not pad to a square."""
SAME_PROPOSAL, SAME_DETECTION = 0.9, 0.8
"""Minimum IoU of two proposals or detections to be counted as the same."""
BEST = 20
"""Number of the best pairs of a proposal and a class whose scores are compared."""

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare int8 with fp32, and the heads on the same proposals.")
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=12)
    arguments = parser.parse_args()
    network = configs.read(arguments.config)
    wide, names = _converted(network, arguments.checkpoint)
    side = network.square or SIDE
    calibration = range(models.CALIBRATION_SEED, models.CALIBRATION_SEED + CALIBRATION_SCENES)
    narrow = quantise(wide, [_image(seed, side) for seed in calibration])
    images = [_image(seed, side) for seed in range(arguments.scenes)]
    for least in (0.5, 0.05):
        found, kept = _detections(wide, narrow, images, least)
        print(f"detections with a score of at least {least}: fp32 {found}, of which int8 has {kept}")
    for row in _heads(wide, narrow, names, images):
        print(row)


def _converted(network: configs.Config, checkpoint: Path) -> tuple[onnx.ModelProto, tuple[str, str, str]]:
    """The model, and the names of its proposals, their scores and their boxes."""
    names: list[str] = []
    box_head = heads.box_head

    def observed(*given: Any) -> tuple[str, str]:
        scores, boxes = box_head(*given)
        names.extend((given[4], scores, boxes))
        return scores, boxes

    with mock.patch.object(heads, "box_head", observed):
        model = convert.convert(network, convert.checkpoint.read(checkpoint))
    return model, (names[0], names[1], names[2])


def _image(seed: int, side: int) -> Pixels:
    image = Image.fromarray(scene(seed)[0])
    image.thumbnail((side, side))
    return np.asarray(image)


def _detections(wide: onnx.ModelProto, narrow: onnx.ModelProto, images: list[Pixels], least: float) -> tuple[int, int]:
    """The number of detections in fp32, and of those also in int8 with a score of at least 0.6 * `least`."""
    found = kept = 0
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for name, model in (("wide", wide), ("narrow", narrow)):
            onnx.save(model, Path(folder, name))
            engines.append(load(Path(folder, name), threads=1, memory=Footprint(0, 0.0)))
        for image in images:
            first, other = (engine(image, low, 100) for engine, low in zip(engines, (least, 0.6 * least), strict=True))
            for box, label in zip(first.boxes, first.classes, strict=True):
                near = _iou(box, other.boxes[other.classes == label])
                kept += bool(near.max(initial=0) > SAME_DETECTION)
            found += len(first)
    return found, kept


def _heads(
    wide: onnx.ModelProto, narrow: onnx.ModelProto, names: tuple[str, str, str], images: list[Pixels]
) -> list[str]:
    """A line of results for each image."""
    import openvino

    core, rows = openvino.Core(), []
    parts = [[_compiled(core, model, names, *ends) for ends in _ENDS] for model in (wide, narrow)]
    for image in images:
        rois, others = (next(iter(first({"image": image}).values())).copy() for first, _ in parts)
        (scores, boxes), (scores8, boxes8) = (
            [value.copy() for value in second({"image": image, names[0]: rois}).values()] for _, second in parts
        )
        shared = np.mean([_iou(roi, others).max(initial=0) > SAME_PROPOSAL for roi in rois])
        best, best8 = (np.argsort(-values.ravel())[:BEST] for values in (scores, scores8))
        change = np.sqrt(np.mean((scores - scores8) ** 2)) / scores.std()
        rows.append(
            f"proposals in common {shared:.0%}; on those of fp32: scores change by {change:.2f} standard deviations, "
            f"the best by {np.abs(scores.ravel()[best] - scores8.ravel()[best]).mean():.3f}, boxes by "
            f"{np.median(np.abs(boxes - boxes8).reshape(len(boxes), -1).max(axis=1)):.1f} pixels; of the {BEST} best "
            f"pairs {len(set(best) & set(best8))} stay"
        )
    return rows


_ENDS = ((("image",), (0,)), (("image", 0), (1, 2)))
"""Inputs and outputs of the part before the proposals, and of the heads; numbers are indices of names."""


def _compiled(core: Any, model: onnx.ModelProto, names: tuple[str, str, str], given: Any, wanted: Any) -> Any:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    shapes: tuple[tuple[str | int, ...], ...] = (("n", 4), ("n", "classes"), ("n", "boxes", 4))
    for name, shape in zip(names, shapes, strict=True):
        whole.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    part = utils.Extractor(whole).extract_model(
        [names[each] if isinstance(each, int) else each for each in given], [names[each] for each in wanted]
    )
    return core.compile_model(core.read_model(part.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _iou(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The IoU of one box with each of `boxes` (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    overlap: NDArray[np.float32] = shared / np.maximum(areas - shared, 1e-6)
    return overlap


if __name__ == "__main__":
    main()
