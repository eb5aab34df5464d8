"""Detections as files: a picture, COCO JSON, a map of instance ids, cut-outs.

The same detections always give the same bytes. No metadata of the photo is copied: it may say where it was taken.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segment import polygons, rle
from segment.detections import Detections
from segment.mask import THRESHOLD, Mask, Region, edge_distance
from segment.options import Segmentation
from segment.settings import OverlayFormat


@dataclass(frozen=True)
class File:
    """A result: `name` with its extension, MIME type, bytes."""

    name: str
    content_type: str
    body: bytes


_PNG: Mapping[str, Any] = {"compress_level": 1, "compress_type": 3}
"""zlib's run-length strategy. An overlay of 1280 x 960: 85 ms and 1.9 MB; level 1 alone 102 ms and 2.2 MB; level 6
315 ms and 1.9 MB. PNG's filters have done the rest: what is left of a photo holds no long matches."""
_SAVE: Mapping[OverlayFormat, Mapping[str, Any]] = {
    "png": _PNG,
    "jpeg": {"quality": 90},  # 3 ms, 0.3 MB
    "webp": {"quality": 85, "method": 1},  # 35 ms, 0.2 MB; method 4 takes three times as long for a sixth less
}


def picture(image: Image.Image, format: OverlayFormat) -> File:
    """`image` encoded, as overlay.png, .jpg or .webp."""
    buffer = io.BytesIO()
    image.save(buffer, format, **_SAVE[format])
    extension = {"jpeg": "jpg"}.get(format, format)
    return File(f"overlay.{extension}", f"image/{format}", buffer.getvalue())


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
        "annotations": [_annotation(detections, i, labels, segmentation) for i in range(len(detections))],
    }
    body = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return File("detections.json", "application/json", body.encode())


def _annotation(
    detections: Detections, index: int, labels: Sequence[str], segmentation: Segmentation
) -> dict[str, object]:
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


def ids(detections: Detections) -> File:
    """ids.png, grey: 0 is background, i + 1 instance i; 8 bits, 16 above 255 instances.

    Where masks overlap, the higher score is on top.
    """
    width, height = detections.size
    pixels = np.zeros((height, width), np.uint8 if len(detections) <= 255 else np.uint16)
    for index in np.argsort(detections.scores, kind="stable"):
        for (left, top, right, bottom), probabilities in detections.masks[index].strips(detections.size):
            pixels[top:bottom, left:right][probabilities >= THRESHOLD] = index + 1
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **_PNG)
    return File("ids.png", "image/png", buffer.getvalue())


def cutouts(photo: Image.Image, detections: Detections, labels: Sequence[str]) -> File:
    """cutouts.zip: each instance as a PNG with transparency, cropped to its mask, such as 01_person_0.98.png.

    `photo` is RGB of detections.size. An instance without a pixel has no file; the numbers are the instances' ids.
    """
    buffer = io.BytesIO()
    digits = max(2, len(str(len(detections))))
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: PNG is compressed already
        for index, mask in enumerate(detections.masks):
            cut = _cutout(photo, mask)
            if cut is None:
                continue
            label = _plain(labels[int(detections.classes[index])])
            name = f"{index + 1:0{digits}}_{label}_{detections.scores[index]:.2f}.png"
            with archive.open(zipfile.ZipInfo(name), "w") as entry:  # ZipInfo's date is fixed, so bytes are stable
                cut.save(entry, "PNG", **_PNG)
    return File("cutouts.zip", "application/zip", buffer.getvalue())


def _cutout(photo: Image.Image, mask: Mask) -> Image.Image | None:
    """The mask's part of the photo as RGBA; None if the mask has no pixel."""
    left, top, right, bottom = mask.region(photo.size)
    alpha = Image.new("L", (right - left, bottom - top))
    for strip, probabilities in mask.strips(photo.size):
        opacity = np.clip(edge_distance(probabilities) + 0.5, 0, 1)
        alpha.paste(Image.fromarray((opacity * 255).astype(np.uint8)), (0, strip[1] - top))
    box: Region | None = alpha.getbbox()
    if box is None:
        return None
    cut = photo.crop((left + box[0], top + box[1], left + box[2], top + box[3]))
    cut.putalpha(alpha.crop(box))
    return cut


def _plain(label: str) -> str:
    """`label` as part of a file's name: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-._")[:40] or "instance"
