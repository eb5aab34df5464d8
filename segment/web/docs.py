"""The page /docs: the OpenAPI document as HTML, with sample responses and a description of each problem."""

from __future__ import annotations

import json
import re

import jinja2

from segment.web.assets import PAGE
from segment.web.openapi import RESULT_HEADERS, Problems
from segment.web.problems import anchor
from segment.web.schemas import Json

TEMPLATE = PAGE / "docs.html"
PROBLEM_SAMPLE: Json = {
    "type": "/docs#bad-option",
    "title": "Bad option",
    "status": 400,
    "detail": "min_score is '2'; it must be a number from 0 to 1.",
    "option": "min_score",
}
DETECTIONS_SAMPLE: Json = {
    "image": {"width": 8, "height": 6, "model": "shapes", "render_factor": 25, "fit": "aspect", "detail": 1},
    "categories": [{"id": 1, "name": "circle"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "category_name": "circle",
            "score": 0.98,
            "bbox": [2, 1, 4, 4],
            "area": 14,
            "iscrowd": 0,
            "segmentation": {"size": [6, 8], "counts": ">321000O<"},
        }
    ],
}
"""A short example, for a photo of 8 x 6 pixels; tests/test_openapi.py compares it with a real response."""


def page(document: Json, problems: Problems) -> str:
    """The document as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    parameters = document["paths"]["/segment"]["post"]["parameters"]
    rows = [
        {
            "name": parameter["name"],
            "admits": _admitted(parameter["schema"]),
            "default": _plainly(parameter["schema"].get("default", "all")),  # only classes has none: no restriction
            "about": parameter["description"],
        }
        for parameter in parameters
    ]
    errors = [(status, title, about, anchor(title)) for status, title, about in sorted(problems)]
    samples = {"detections": DETECTIONS_SAMPLE, "problem": PROBLEM_SAMPLE}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        document=document,
        options=rows,
        headers=RESULT_HEADERS,
        problems=errors,
        samples={name: _pretty(sample) for name, sample in samples.items()},
    )


def _pretty(sample: Json) -> str:
    """Indented JSON with lists of numbers on one line."""
    text = json.dumps(sample, indent=2)
    return re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def _admitted(schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(_admitted(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "minimum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    return "true, false" if schema["type"] == "boolean" else "names"


def _plainly(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
