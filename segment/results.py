"""What the library returns for a photo: detections with their class names, and their forms in other libraries.

supervision, FiftyOne and pycocotools each have a type for instances with masks. None of the first two is a dependency:
each is imported by the method that needs it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from segment.detections import Detections
from segment.errors import MissingPackage
from segment.mask import THRESHOLD
from segment.options import Segmentation
from segment.output.coco import annotation


@dataclass(frozen=True)
class Results(Detections):
    """The instances found in a photo, best score first, with `labels`, the model's class names by index."""

    labels: tuple[str, ...]

    @classmethod
    def of(cls, detections: Detections, labels: tuple[str, ...]) -> Self:
        """`detections`, with the model's labels."""
        return cls(**vars(detections), labels=labels)

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.labels[index] for index in self.classes]

    def to_coco(self, image_id: int = 1, segmentation: Segmentation = "rle") -> list[dict[str, object]]:
        """The instances in COCO's results format, as `pycocotools.coco.COCO.loadRes` reads it.

        Each has `image_id`, `category_id` (the index into `labels` plus one), `category_name`, `bbox` (x, y, width,
        height in pixels), `score`, `area` and `segmentation`: compressed RLE, or polygons, which are exact for display
        but which COCO's tools fill without holes.
        """
        return [annotation(self, index, self.labels, segmentation, image_id) for index in range(len(self))]

    def to_supervision(self, dense: bool = False) -> Any:
        """The instances as `supervision.Detections`, with the class names in `data["class_name"]`.

        The masks are a `supervision.CompactMask`, which keeps run lengths, or with `dense` an (N, height, width) bool
        array: 1.2 GB for 100 instances in a photo of 12 megapixels. Raises MissingPackage without supervision 0.28 or
        later.
        """
        supervision = _import("supervision", "CompactMask", "supervision>=0.28")
        width, height = self.size
        runs = [row["segmentation"] for row in self.to_coco()]
        # The crops are whole pixels, right and bottom included: the box, rounded outwards.
        regions = [mask.region(self.size) for mask in self.masks]
        crops = np.array(regions, np.float32).reshape(-1, 4) - np.array([0, 0, 1, 1], np.float32)
        masks = supervision.CompactMask.from_coco_rle(runs, crops, (height, width))
        return supervision.Detections(
            xyxy=self.boxes,
            mask=masks.to_dense() if dense else masks,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """The instances as `fiftyone.Detections`: boxes relative to the photo's size, masks cropped to their boxes.

        A mask there has whole pixels, so each box is rounded outwards to whole pixels.
        Raises MissingPackage without fiftyone.
        """
        fiftyone = _import("fiftyone", "Detections", "fiftyone")
        width, height = self.size
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=name,
                    confidence=float(score),
                    bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
                    mask=mask.paste((left, top, right, bottom)) >= THRESHOLD,
                )
                for name, score, mask in zip(self.names, self.scores, self.masks, strict=True)
                for left, top, right, bottom in [mask.region(self.size)]
            ]
        )


def _import(package: str, attribute: str, requirement: str) -> Any:
    """The package, if it has `attribute`. Raises MissingPackage."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        module = None
    if not hasattr(module, attribute):
        raise MissingPackage(
            f"This conversion needs the package {package}. Install it with: pip install '{requirement}'"
        )
    return module
