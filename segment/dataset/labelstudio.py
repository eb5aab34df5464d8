"""Write a dataset as tasks with predictions for Label Studio, which does not import masks from COCO as run lengths.

The file is a list of tasks in Label Studio's JSON format (https://labelstud.io/guide/predictions), written one photo at
a time. Regions are those of the ML backend (labelling/labelstudio.py): the project's labelling config determines tags,
labels and minimum scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as coco

from segment.dataset import files
from segment.dataset.entry import Entry
from segment.detections import Detections
from segment.errors import OptionError
from segment.labelling.labelstudio import CLOUD, Control, controls, prediction
from segment.mask import Mask
from segment.output.coco import dump

FILE_NAME, CONFIG_NAME = "tasks.json", "label_config.xml"
IMAGE_ROOT = "/data/local-files/?d="
"""The start of the addresses of photos in Label Studio's local storage, relative to its document root."""


def default_config(labels: Sequence[str]) -> str:
    """A labelling config with a brush for each of the model's labels."""
    rows = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in dict.fromkeys(labels))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="mask" toName="image">\n'
        f"{rows}  </BrushLabels>\n</View>\n"
    )


def read_config(text: str, labels: Sequence[str]) -> tuple[Control, ...]:
    """The control tags of a labelling config. Raises RequestError if none fits the labels, OptionError."""
    found = controls(text, labels)
    if len({control.field for control in found}) > 1:
        raise OptionError(
            "label-config", "The labelling config has several images per task; a photo has one task here."
        )
    return found


def write(entries: Iterable[Entry], controls: Sequence[Control], root: str, version: str, path: Path) -> Path:
    """Write the tasks of `entries`, whose masks are RLE, to `path`; see `files.write`. Returns it. Raises OSError.

    `root`: start of the photos' addresses, to which their names are appended, percent-encoded unless it is in cloud
    storage. `version`: that of the model.
    """
    return files.write(path, tasks(entries, controls, root, version))


def tasks(entries: Iterable[Entry], controls: Sequence[Control], root: str, version: str) -> Iterator[bytes]:
    """The list of tasks in small pieces; see `write`."""
    separator = b"["
    for entry in entries:
        data = {controls[0].field: _address(root, entry.name)}
        yield separator + b"\n" + dump({"data": data})[:-1] + b',"predictions":['
        yield from prediction(detections(entry.document), controls, 0.0, version)
        yield b"]}"
        separator = b","
    yield b"[]\n" if separator == b"[" else b"\n]\n"


def _address(root: str, name: str) -> str:
    """The address of a photo in Label Studio, which does not decode names in cloud storage."""
    return root + (name if root.startswith(CLOUD) else quote(name))


def detections(document: dict[str, Any]) -> Detections:
    """The instances in a photo's JSON with RLE masks (output/coco.py). Each mask is decoded when it is accessed."""
    size = document["image"]["width"], document["image"]["height"]
    found = document["annotations"]
    boxes = np.array([one["bbox"] for one in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([one["score"] for one in found], np.float32)
    classes = np.array([one["category_id"] - 1 for one in found], np.int64)
    masks = _Masks([one["segmentation"] for one in found])
    return Detections(boxes, scores, classes, masks, size)


class _Masks(Sequence[Mask]):
    """Masks with one cell per pixel of their smallest rectangle. One is in memory at a time."""

    def __init__(self, rles: Sequence[dict[str, Any]]) -> None:
        self._rles = rles

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Any) -> Any:
        rle = self._rles[index]
        left, top, width, height = (int(value) for value in coco.toBbox(rle))
        place = float(left), float(top), float(left + width), float(top + height)
        grid = coco.decode(rle)[top : top + height, left : left + width].astype(np.float32)
        return Mask(grid if grid.size else np.zeros((1, 1), np.float32), place, place)
