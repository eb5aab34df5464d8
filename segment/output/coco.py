"""Detections as a COCO document (https://cocodataset.org/#format-data), with the score of COCO's results format.

The document is a dataset of one image, which `pycocotools.coco.COCO` loads. The same detections always give the same
bytes. No metadata of the photo is copied, because it may contain private data such as a location.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from segment.detections import Detections
from segment.formats import File, file
from segment.options import Segmentation
from segment.output import polygons, rle

INFO = {"description": "Instances found by segment-serverless"}


def coco(
    detections: Detections, labels: Sequence[str], segmentation: Segmentation, about: Mapping[str, object]
) -> File:
    """detections.json, a COCO document.

        {"info": {"description": "..."},
         "licenses": [],
         "image": {"width": 1280, "height": 960, ...about},
         "images": [{"id": 1, "file_name": "", "width": 1280, "height": 960}],
         "categories": [{"id": 1, "name": "person", "supercategory": ""}, ...],
         "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "category_name": "person", "score": 0.98,
                          "bbox": [x, y, width, height], "area": 1234, "iscrowd": 0, "segmentation": ...}, ...]}

    All lengths are in pixels of the photo. `id` is the instance's value in the map of ids. `area` is the number of the
    mask's pixels. `segmentation` is compressed RLE or a list of polygons (see rle.py, polygons.py). `category_id` is
    the index into the model's labels plus one, because many readers of COCO use category 0 for the background. `image`
    is not part of COCO; it contains `about`, which describes how the photo was segmented. A photo sent over HTTP has no
    name, so `file_name` is empty.
    """
    width, height = detections.size
    document = {
        "info": INFO,
        "licenses": [],
        "image": {"width": width, "height": height, **about},
        "images": [{"id": 1, "file_name": "", "width": width, "height": height}],
        "categories": categories(labels),
        "annotations": [],
    }
    # Each annotation is encoded at once: as Python numbers, polygons need several times the memory of their digits.
    annotations = [dump(annotation(detections, i, labels, segmentation)) for i in range(len(detections))]
    return file("json", dump(document).removesuffix(b"]}") + b",".join(annotations) + b"]}")


def categories(labels: Sequence[str]) -> list[dict[str, object]]:
    """COCO's categories for the model's labels, numbered from 1."""
    return [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(labels, 1)]


def dump(value: object) -> bytes:
    """`value` as compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def annotation(
    detections: Detections, index: int, labels: Sequence[str], segmentation: Segmentation, image_id: int = 1
) -> dict[str, object]:
    """One instance as a COCO annotation; see `coco` for the fields."""
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
        "image_id": image_id,
        "category_id": category + 1,
        "category_name": labels[category],
        "score": round(float(detections.scores[index]), 4),
        "bbox": [round(value, 2) + 0.0 for value in (x0, y0, x1 - x0, y1 - y0)],  # + 0.0: never -0.0
        "area": area,
        "iscrowd": 0,
        "segmentation": outline,
    }
