"""Average precision of the demo model, by COCO's evaluation, on scenes that are not in its training data.

The scenes are training.shapes.scene(0) to scene(199). Detections use the same code as requests: segment.image resizes
the photo, segment.model runs the network, and segment.output encodes the masks. As in detectron2's evaluation, all
detections above the config's threshold of 0.05 count, at most 100 per photo.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segment import model
from segment.detections import Detections
from segment.output import rle
from segment.resize import Fit
from training.shapes import CLASSES, crowd, scene

Record = dict[str, object]
Scene = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]
"""Pixels, the shapes' visible masks (N, H, W), their classes (N,)."""

SCENES = 200
MIN_SCORE, MAX_DETECTIONS = 0.05, 100
BOUNDARY = 0.02
"""Width of a mask's boundary relative to the image's diagonal."""
DETECTRON2 = {"box": 61.2, "mask": 61.8}
"""AP of detectron2 with the same weights on the same scenes, not resized."""
FACTORS = (8, 12, 16, 20, 25, 32)
FIRST_CROWD, CROWDS, CROWD_FACTOR = 900_000, 12, 100
"""Scenes of 1600 x 1200 pixels with 80 shapes: first seed, number, and a render factor high enough for all shapes."""


@dataclass(frozen=True)
class Accuracy:
    """AP in percent, averaged over IoU 0.50 to 0.95, and the CPU seconds of one photo's run."""

    name: str
    precision: str
    fit: str
    render_factor: int | None
    box: float
    mask: float
    boundary: float
    box50: float
    mask50: float
    mask_small: float
    mask_medium: float
    mask_large: float
    cpu_seconds_per_run: float


def measure(file: Path, precision: str, fit: Fit | None = None, render_factor: int | None = None) -> Accuracy:
    """Evaluate a model file. Without a render factor, scenes are not resized."""
    seen = f"{fit}, render factor {render_factor}" if render_factor else "native size"
    row = _evaluate(file, (scene(seed) for seed in range(SCENES)), fit, render_factor)
    return replace(row, name=f"demo model {precision}, {seen}", precision=precision)


def measure_family(file: Path, name: str, precision: str) -> Accuracy:
    """Evaluate a model of another family that was trained on the same shapes. Scenes are not resized."""
    row = _evaluate(file, (scene(seed) for seed in range(SCENES)), None, None)
    return replace(row, name=f"{name}: {precision}", precision=precision, fit="family")


def measure_crowds(file: Path, proposals: int) -> Accuracy:
    """Evaluate a model file with a number of proposals on scenes with many shapes."""
    scenes = (crowd(seed) for seed in range(FIRST_CROWD, FIRST_CROWD + CROWDS))
    row = _evaluate(file, scenes, "aspect", CROWD_FACTOR)
    return replace(row, name=f"demo model fp32, {proposals:,} proposals", fit="crowd")


def _evaluate(file: Path, scenes: Iterable[Scene], fit: Fit | None, render_factor: int | None) -> Accuracy:
    network = model.load(file)
    truth, results, spent = Truth(), list[Record](), 0.0
    for number, (pixels, visible, classes) in enumerate(scenes):
        truth.add(number, visible, classes)
        photo = Image.fromarray(pixels)
        size = network.network_size(photo.size, render_factor, fit) if render_factor and fit else photo.size
        start = time.process_time()
        found = network.find(photo, size, MIN_SCORE, MAX_DETECTIONS)
        spent += time.process_time() - start
        results += records(number, found)
    box, mask, edge = (truth.evaluate(results, kind) for kind in ("bbox", "segm", "boundary"))
    return Accuracy(
        name="",
        precision="fp32",
        fit=fit or "native",
        render_factor=render_factor,
        box=box["all"],
        mask=mask["all"],
        boundary=edge["all"],
        box50=box["50"],
        mask50=mask["50"],
        mask_small=mask["small"],
        mask_medium=mask["medium"],
        mask_large=mask["large"],
        cpu_seconds_per_run=round(spent / len(truth.images), 4),
    )


class BoundaryEval(COCOeval):  # type: ignore[misc, unused-ignore]
    """Boundary AP (Cheng et al., "Boundary IoU", 2021).

    The boundary of a mask is its part within a distance of BOUNDARY times the image's diagonal from its edge. As in the
    authors' evaluation, the IoU of two masks is the minimum of mask IoU and boundary IoU.
    """

    def computeIoU(self, image: int, category: int) -> Any:  # noqa: N802 - COCOeval's name
        whole = super().computeIoU(image, category)
        if not len(whole):
            return whole
        truth, found = self._gts[image, category], self._dts[image, category]
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        theirs, ours = ([boundary(one["segmentation"]) for one in some] for some in (truth, [found[i] for i in order]))
        return np.minimum(whole, masks.iou(ours, theirs, [0] * len(theirs)))


def boundary(packed: Any) -> Any:
    """The boundary of a mask; both in COCO's compressed RLE."""
    mask = masks.decode(packed).astype(np.int64)
    height, width = mask.shape
    reach = max(1, round(BOUNDARY * float(np.hypot(height, width))))
    side = 2 * reach + 1
    sums = np.pad(mask, ((reach + 1, reach), (reach + 1, reach))).cumsum(axis=0).cumsum(axis=1)
    around = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return masks.encode(np.asfortranarray((mask == 1) & (around < side**2), np.uint8))


class Truth:
    """The visible shapes in the scenes, in COCO's annotation format."""

    def __init__(self) -> None:
        self.images: list[Record] = []
        self.annotations: list[Record] = []

    def add(self, seed: int, visible: NDArray[np.bool_], classes: NDArray[np.int64]) -> None:
        """Add a scene: its visible masks (N, H, W) and classes (N,)."""
        self.images.append({"id": seed, "width": visible.shape[2], "height": visible.shape[1]})
        for kind, mask in zip(classes, visible, strict=True):
            packed = masks.encode(np.asfortranarray(mask, np.uint8))
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": seed,
                    "category_id": int(kind),
                    "bbox": masks.toBbox(packed).tolist(),
                    "segmentation": packed,
                    "area": int(masks.area(packed)),
                    "iscrowd": 0,
                }
            )

    def evaluate(self, results: list[Record], kind: str) -> dict[str, float]:
        """Average precision by COCOeval for "bbox", "segm" or "boundary", in percent."""
        with contextlib.redirect_stdout(io.StringIO()):  # COCOeval prints its progress
            coco = COCO()
            categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
            coco.dataset = {"images": self.images, "annotations": self.annotations, "categories": categories}
            coco.createIndex()
            found = coco.loadRes([dict(result) for result in results])
            evaluation = BoundaryEval(coco, found, "segm") if kind == "boundary" else COCOeval(coco, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ("all", "50", "75", "small", "medium", "large")
        return {name: round(100 * float(value), 2) for name, value in zip(names, evaluation.stats, strict=False)}


def records(seed: int, found: Detections) -> list[Record]:
    """Detections as COCO's result records."""
    return [
        {
            "image_id": seed,
            "category_id": int(found.classes[i]),
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "segmentation": rle.compress(rle.runs(found.masks[i], found.size), found.size),
            "score": float(found.scores[i]),
        }
        for i, (x0, y0, x1, y1) in enumerate(found.boxes)
    ]
