"""The detections in a photo with their class names, and conversions to the types of other libraries.

supervision and FiftyOne are optional: each is imported by the method that needs it.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from segment import image, values
from segment.detections import Detections
from segment.errors import MissingPackage
from segment.image import Photo
from segment.mask import THRESHOLD
from segment.options import Colours, Segmentation, parse_option
from segment.output import overlay
from segment.output.coco import annotation
from segment.output.font import open_font


@dataclass(frozen=True, eq=False, repr=False)
class Results(Detections):
    """The instances in a photo, sorted by descending score. `labels`: the model's class names by index."""

    labels: tuple[str, ...]

    @classmethod
    def of(cls, detections: Detections, labels: tuple[str, ...]) -> Self:
        """Results from `detections` and the model's labels."""
        return cls(**vars(detections), labels=labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        width, height = self.size
        return f"<{type(self).__name__}: {counts or 'no instances'} in {width} x {height} pixels>"

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.labels[index] for index in self.classes]

    def draw(
        self,
        photo: Photo,
        *,
        masks: bool = True,
        boxes: bool = True,
        labels: bool = True,
        colours: Colours = "instance",
        font: str | os.PathLike[str] = "",
    ) -> Image.Image:
        """A copy of `photo` with the instances drawn on it, as the service returns it.

        `photo`: as for Model, of any size. `masks`, `boxes`, `labels`: whether to draw them. `colours`: "instance"
        chooses colours that contrast with the photo and with neighbouring instances, "class" uses one colour per class.
        `font`: a TTF, OTF or TTC file for class names in other scripts than Latin, Greek and Cyrillic, which are
        otherwise shown as numbers. Raises OptionError for other `colours` and for a font that cannot be read, and the
        errors of Model for the photo.
        """
        parse_option("colours", values.choice(Colours), colours)
        picture = image.to_rgb(photo).copy()
        found = self.at(picture.size)
        letters = open_font(Path(font)) if font else None
        shown = {"masks": masks, "boxes": boxes, "text": labels}
        overlay.draw(picture, found, self.labels, colours=colours, font=letters, **shown)
        return picture

    def to_coco(self, image_id: int = 1, segmentation: Segmentation = "rle") -> list[dict[str, object]]:
        """The instances in COCO's results format, for `pycocotools.coco.COCO.loadRes`.

        Each has `id` (from 1), `image_id`, `category_id` (index into `labels` plus one), `category_name`, `bbox` (x, y,
        width, height in pixels), `score`, `area` in pixels, `iscrowd` (0) and `segmentation`: compressed RLE, or
        polygons. COCO's tools fill the holes of polygons, so use RLE with them. Raises OptionError for another
        `segmentation`.
        """
        parse_option("segmentation", values.choice(Segmentation), segmentation)
        return [annotation(self, index, self.labels, segmentation, image_id) for index in range(len(self))]

    def to_supervision(self, dense: bool = False) -> Any:
        """The instances as `supervision.Detections`, with the class names in `data["class_name"]`.

        The masks are a `supervision.CompactMask` (run lengths), or with `dense` an (N, height, width) bool array, which
        takes 1.2 GB for 100 instances in a photo of 12 megapixels. Raises MissingPackage if supervision 0.28 or later
        is not installed.
        """
        supervision = _import("supervision", "CompactMask", "supervision>=0.28")
        width, height = self.size
        runs = [row["segmentation"] for row in self.to_coco()]
        # Crops are boxes rounded outwards to whole pixels, right and bottom inclusive.
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

        Boxes are rounded outwards to whole pixels, because FiftyOne's masks cover whole pixels of their boxes. Raises
        MissingPackage if fiftyone is not installed.
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
    """Import `package`. Raises MissingPackage if it is not installed or has no `attribute`."""
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
