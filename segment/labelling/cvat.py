"""CVAT: detections as the response of an automatic annotation function, and the description of that function.

CVAT calls functions of the serverless platform nuclio (cvat/apps/lambda_manager/views.py). It lists them with their
labels, sends {"image": base64, "threshold": 0.5}, and gets a list of shapes:

    [{"confidence": "0.98", "label": "person", "type": "mask",
      "points": [x, y, x, y, ...], "mask": [0, 1, 1, ..., left, top, right, bottom]}, ...]

`mask` contains the pixels of the mask's rectangle, row by row, and then the rectangle, with right and bottom inclusive.
`points` is the outline of the mask's largest part. CVAT uses it instead of the mask if the user asks for polygons.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from segment.detections import Detections
from segment.mask import THRESHOLD, Mask, Region
from segment.output.coco import dump
from segment.output.polygons import outlines

NAME = "segment"
"""The function's name in nuclio."""


def shapes(found: Detections, labels: Sequence[str]) -> Iterator[bytes]:
    """`found`, in pixels of the photo, as CVAT's list of shapes in JSON, in pieces of at most 512 KiB.

    Instances whose masks have no pixels are left out.
    """
    separator = b"["
    for index, mask in enumerate(found.masks):
        region = _tight(mask, found.size)
        if region is None:
            continue
        about = {
            "confidence": f"{found.scores[index]:.4f}",
            "label": labels[int(found.classes[index])],
            "type": "mask",
            "points": next(iter(outlines(mask, found.size)), _corners(region)),
        }
        yield separator + dump(about)[:-1] + b',"mask":['
        yield from _pixels(mask, found.size, region)
        yield dump([region[0], region[1], region[2] - 1, region[3] - 1])[1:] + b"}"
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def metadata(model: str, labels: Sequence[str]) -> dict[str, str]:
    """The `annotations` of the function's metadata in nuclio, as CVAT reads them. Labels must be unique for CVAT."""
    spec = [{"id": index, "name": name, "type": "mask"} for index, name in enumerate(dict.fromkeys(labels), 1)]
    return {"name": f"Segment: {model}", "type": "detector", "spec": json.dumps(spec, ensure_ascii=False)}


def function(model: str, labels: Sequence[str]) -> dict[str, object]:
    """The function's description by nuclio's dashboard: the fields that CVAT reads."""
    return {
        "metadata": {"name": NAME, "namespace": "nuclio", "annotations": metadata(model, labels)},
        "spec": {"description": f"Instance segmentation with the model {model}", "handler": "main:handler"},
        "status": {"state": "ready"},
    }


def function_yaml(model: str, labels: Sequence[str], image: str) -> str:
    """function.yaml for deploy/cvat, with this model's labels. `nuctl deploy` builds the function from `image`.

    nuclio installs its runtime as root into /venv, which is first on the image's PATH. Each worker is a process that
    loads the model.
    """
    about = metadata(model, labels)
    spec = ",\n".join("        " + json.dumps(label, ensure_ascii=False) for label in json.loads(about["spec"]))
    return _FUNCTION_YAML.format(name=NAME, title=json.dumps(about["name"]), spec=spec, image=json.dumps(image))


_FUNCTION_YAML = """\
# Made by `python -m segment cvat`, with the labels of the model that the image serves.
metadata:
  name: {name}
  namespace: cvat
  annotations:
    name: {title}
    type: detector
    spec: |
      [
{spec}
      ]

spec:
  description: Instance segmentation
  runtime: python:3.11
  handler: function:handler
  eventTimeout: 60s
  env:
    - name: PYTHONPATH
      value: /app

  build:
    image: cvat.{name}
    baseImage: {image}
    directives:
      preCopy:
        - kind: USER
          value: root

  triggers:
    http:
      kind: http
      maxWorkers: 1
      workerAvailabilityTimeoutMilliseconds: 60000
      attributes:
        maxRequestBodySize: 50331648

  platform:
    attributes:
      restartPolicy:
        name: always
        maximumRetryCount: 3
      mountMode: volume
"""


def _tight(mask: Mask, size: tuple[int, int]) -> Region | None:
    """The smallest rectangle that contains the mask's pixels, right and bottom exclusive; None if it has none."""
    left, top, right, bottom = size[0], size[1], 0, 0
    for (x, y, _, _), probabilities in mask.strips(size):
        inside = probabilities >= THRESHOLD
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            left, right = min(left, x + int(columns[0])), max(right, x + int(columns[-1]) + 1)
            top, bottom = min(top, y + int(rows[0])), max(bottom, y + int(rows[-1]) + 1)
    return (left, top, right, bottom) if right else None


def _pixels(mask: Mask, size: tuple[int, int], region: Region) -> Iterator[bytes]:
    """The pixels of `region` as "0," and "1,", in strips."""
    left, top, right, bottom = region
    for (x, y, _, end), probabilities in mask.strips(size):
        rows = probabilities[max(top - y, 0) : max(bottom - y, 0), left - x : right - x] >= THRESHOLD
        if end > top and rows.size:
            yield np.where(rows, np.frombuffer(b"1,", "S2"), np.frombuffer(b"0,", "S2")).tobytes()


def _corners(region: Region) -> list[float]:
    left, top, right, bottom = map(float, region)
    return [left, top, right, top, right, bottom, left, bottom]
