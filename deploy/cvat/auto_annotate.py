"""Auto-annotation of CVAT's tasks from the command line, for a CVAT without nuclio such as app.cvat.ai.

cvat-cli runs this where it is called: it downloads the task's photos, sends them to the service, uploads the shapes.

    cvat-cli task auto-annotate TASK --function-file deploy/cvat/auto_annotate.py -p url=str:http://localhost:8080
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import PIL.Image

QUALITY, SECONDS = 95, 120


class Segment:
    """The service at `url` as a detection function, see cvat_sdk.auto_annotation.DetectionFunction."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        spec = json.loads(self._call("/api/functions/segment")["metadata"]["annotations"]["spec"])
        self.ids = {label["name"]: label["id"] for label in spec}
        labels = [cvataa.label_spec(name, number, type="mask") for name, number in self.ids.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image) -> list[Any]:
        """The shapes in a photo: masks, or polygons if the caller asks for them."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
        body: dict[str, Any] = {"image": base64.b64encode(buffer.getvalue()).decode()}
        if context.conf_threshold is not None:
            body["threshold"] = context.conf_threshold
        return [self._shape(context, shape) for shape in self._call("/api/function_invocations", body)]

    def _shape(self, context: cvataa.DetectionFunctionContext, shape: dict[str, Any]) -> Any:
        label = self.ids[shape["label"]]
        if context.conv_mask_to_poly:
            return cvataa.polygon(label, shape["points"])
        *pixels, left, top, right, bottom = shape["mask"]
        return cvataa.mask(label, [*_run_lengths(pixels), left, top, right, bottom])

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)


def _run_lengths(pixels: list[int]) -> Iterator[int]:
    """The lengths of runs of 0 and 1 by turns, 0 first."""
    if pixels[0]:
        yield 0
    for _, run in groupby(pixels):
        yield sum(1 for _ in run)


def create(url: str = "http://localhost:8080") -> Segment:
    """What cvat-cli calls, with the parameters given by -p."""
    return Segment(url)
