"""Detections as JSON in COCO's terms (https://cocodataset.org/#format-results).

The same detections always give the same bytes. No metadata of the photo is copied: it may say where it was taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from segment.detections import Detections
from segment.formats import File, file
from segment.options import Segmentation
from segment.output import polygons, rle


def coco(
    detections: Detections, labels: Sequence[str], segmentation: Segmentation, about: Mapping[str, object]
) -> File:
    """detections.json in COCO's terms.

        {"image": {"width": 1280, "height": 960, ...about},
         "categories": [{"id": 0, "name": "person"}, ...],
         "annotations": [{"id": 1, "category_id": 0, "category_name": "person", "score": 0.98,
                          "bbox": [x, y, width, height], "area": 1234, "iscrowd": 0, "segmentation": ...}, ...]}

    All in pixels of the frame. `id` is the instance's value in the map of ids. `area` is the number of the mask's
    pixels. `segmentation` is compressed RLE or a list of polygons (see rle.py, polygons.py). `category_id` is the
    index into the model's labels.
    """
    width, height = detections.size
    document = {
        "image": {"width": width, "height": height, **about},
        "categories": [{"id": index, "name": name} for index, name in enumerate(labels)],
        "annotations": [],
    }
    # As text one by one: the numbers of a polygon take several times the memory of their digits.
    annotations = [_dump(annotation(detections, i, labels, segmentation)) for i in range(len(detections))]
    return file("json", _dump(document).removesuffix(b"]}") + b",".join(annotations) + b"]}")


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def annotation(
    detections: Detections, index: int, labels: Sequence[str], segmentation: Segmentation
) -> dict[str, object]:
    """One instance in COCO's terms; see `coco` for the fields."""
    mask, size = detections.masks[index], detections.size
    x0, y0, x1, y1 = (float(value) for value in detections.boxes[index])
    category = int(detections.classes[index])
    runs = rle.runs(mask, size)
    area = rle.area(runs)
    if segmentation == "rle":
        outline: object = rle.compress(runs, size)
    else:
        outline = polygons.polygons(mask, size) if area else []
    return {
        "id": index + 1,
        "category_id": category,
        "category_name": labels[category],
        "score": round(float(detections.scores[index]), 4),
        "bbox": [round(value, 2) + 0.0 for value in (x0, y0, x1 - x0, y1 - y0)],  # + 0.0: never -0.0
        "area": area,
        "iscrowd": 0,
        "segmentation": outline,
    }
