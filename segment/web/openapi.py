"""The documentation of the HTTP API: an OpenAPI 3.1 document, and a page.

Options and their ranges come from options.py; media types and problems are passed in by app.py. The document is
therefore always consistent with the service.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jinja2

import segment
from segment.options import Options, describe
from segment.progress import Stage
from segment.settings import Settings
from segment.web import openapi_labelling

Json = dict[str, Any]
Problems = Sequence[tuple[int, str, str]]
"""(status, title, description) of each problem."""

TEMPLATE = Path(__file__).parent / "page" / "docs.html"
PHOTO_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "application/octet-stream",
)
"""Documented content types of a photo as the body. Any image/* is accepted, and the bytes determine the format."""

RESULT_HEADERS = {
    "Segment-Instances": "Number of instances.",
    "Segment-Network-Size": "Width x height of the network's input in pixels.",
    "Segment-Photo-Size": "Width x height of the photo in pixels, with its orientation applied.",
    "Segment-Picture-Size": "Width x height of the result in pixels; smaller than the photo if memory was short.",
    "Segment-Render-Factor": "The render factor used; absent if the network's input has a fixed size.",
    "Segment-Detail": "The detail used: number of tiles per side in addition to the whole photo; 1 means none.",
    "Server-Timing": "Milliseconds by stage.",
}


def options(settings: Settings) -> dict[str, Json]:
    """The JSON Schema of every option, with its default and description."""
    defaults = vars(Options.defaults(settings))
    found = {}
    for name, option in describe(settings).items():
        default = defaults[name]
        schema = {**option.value.schema, "description": option.about}
        if default is None:
            schema["default"] = "auto"
        elif default != ():
            schema["default"] = default
        found[name] = schema
    return found


def document(settings: Settings, media_types: Sequence[str], problems: Problems) -> Json:
    """The OpenAPI document. `media_types`: media types of results. `problems`: problems of requests with a photo."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Segment",
            "version": segment.__version__,
            "summary": "Instance segmentation: a mask, a label and a score for every object in a photo.",
            "description": ABOUT,
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/segment": _segment(options(settings), media_types, problems),
            "/model": _plain("model", "The model: labels, memory, time, options", "Model"),
            "/health": _plain("health", "Whether the process is alive", "Status"),
            "/ready": _plain("ready", "Whether the model is loaded; loads it if needed", "Status"),
            "/progress": _plain("progress", "The progress of the preparation of the model", "Progress"),
            **openapi_labelling.paths(settings.labelling, _failures(problems)),
        },
        "components": {"schemas": {**SCHEMAS, **_bodies(options(settings))}},
    }


def page(document: Json, problems: Problems) -> str:
    """The document as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    parameters = document["paths"]["/segment"]["post"]["parameters"]
    rows = [
        {
            "name": parameter["name"],
            "admits": _admitted(parameter["schema"]),
            "default": _plainly(parameter["schema"].get("default", "")),
            "about": parameter["description"],
        }
        for parameter in parameters
    ]
    errors = [(status, title, about, anchor(title)) for status, title, about in sorted(problems)]
    samples = {name: json.dumps(sample, indent=2) for name, sample in _SAMPLES.items()}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        document=document, options=rows, headers=RESULT_HEADERS, problems=errors, samples=samples
    )


def anchor(title: str) -> str:
    """The anchor of the problem with this title on the page."""
    return title.lower().replace(" ", "-")


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


ABOUT = """\
Send a photo to /segment. The response is the photo with a mask, a label and a score drawn for every object, or the
same as data. /detect is an alias for clients of the original application.

The photo is the body itself, the field "file" of a form, or "image" (base64 or a data URL) or "url" in JSON. Options
are given in the query, the form or the JSON. The option "format" sets the format of the response; without it, the
Accept header does.
"""


def _segment(schemas: dict[str, Json], media_types: Sequence[str], problems: Problems) -> Json:
    failures = _failures(problems)
    detections: Json = {"schema": {"$ref": "#/components/schemas/Detections"}}
    result = {
        "description": "The segmented photo in the requested format.",
        "headers": {n: {"description": about, "schema": {"type": "string"}} for n, about in RESULT_HEADERS.items()},
        "content": {kind: detections if kind == "application/json" else {"schema": _BINARY} for kind in media_types},
    }
    responses = {"200": result, **failures}
    parameters = [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in schemas.items()
    ]
    by_url_or_data = {"oneOf": [{"$ref": "#/components/schemas/UrlBody"}, {"$ref": "#/components/schemas/ImageBody"}]}
    form = {"$ref": "#/components/schemas/FormBody"}
    content = {"multipart/form-data": form, "application/json": by_url_or_data, **dict.fromkeys(PHOTO_TYPES, _BINARY)}
    return {
        "get": {
            "operationId": "segmentUrl",
            "summary": "Segment the photo at a URL",
            "parameters": [
                {"name": "url", "in": "query", "required": True, "schema": _URL, "description": _URL["description"]},
                *parameters,
            ],
            "responses": responses,
        },
        "post": {
            "operationId": "segment",
            "summary": "Segment a photo",
            "parameters": parameters,
            "requestBody": {"required": True, "content": {kind: {"schema": s} for kind, s in content.items()}},
            "responses": responses,
        },
    }


def _failures(problems: Problems) -> Json:
    """Responses with a problem document, by status."""
    titles: dict[int, list[str]] = {}
    for status, title, _ in problems:
        titles.setdefault(status, []).append(title)
    return {str(status): _problem(", or ".join(titles[status]) + ".") for status in sorted(titles)}


def _bodies(schemas: dict[str, Json]) -> dict[str, Json]:
    """The schemas of the form and of the two JSON bodies, each with the options.

    They are named components, because client generators create a class for each. Generated clients send every default,
    and an option must not be given twice, so only the options in the query have defaults.
    """
    schemas = {name: {k: v for k, v in schema.items() if k != "default"} for name, schema in schemas.items()}
    image = {"type": "string", "contentEncoding": "base64", "description": "The photo in base64, or a data URL."}
    return {
        "FormBody": {"type": "object", "properties": {"file": _BINARY, **schemas}, "required": ["file"]},
        "UrlBody": _json_body("url", _URL, schemas),
        "ImageBody": _json_body("image", image, schemas),
    }


def _json_body(name: str, schema: Json, schemas: dict[str, Json]) -> Json:
    return {
        "type": "object",
        "properties": {name: schema, **schemas},
        "required": [name],
        "additionalProperties": False,
    }


def _plain(operation: str, summary: str, schema: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    responses = {"200": {"description": summary + ".", "content": content}}
    if operation not in ("health", "progress"):
        responses["503"] = _problem("The model is still being prepared, or it cannot be loaded.")
    return {"get": {"operationId": operation, "summary": summary, "responses": responses}}


def _problem(about: str) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": about, "content": {"application/problem+json": {"schema": schema}}}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


_BINARY = {"type": "string", "format": "binary"}
_URL = {
    "type": "string",
    "format": "uri",
    "minLength": 1,
    "description": "The photo's URL: http or https, with a public address.",
}
_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_LIST_OF_TEXT = {"type": "array", "items": _TEXT}
_BOX = {
    "type": "array",
    "items": _NUMBER,
    "minItems": 4,
    "maxItems": 4,
    "description": "x, y, width, height in pixels.",
}
_MASK = {
    "description": "COCO's compressed RLE, or a list of polygons with segmentation=polygons.",
    "anyOf": [
        _object("size counts", size={"type": "array", "items": _WHOLE}, counts=_TEXT),
        {"type": "array", "items": {"type": "array", "items": _NUMBER}},
    ],
}
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
SCHEMAS: Json = {
    "Problem": _object(
        "type title status detail",
        type={"type": "string", "format": "uri-reference"},
        title=_TEXT,
        status=_WHOLE,
        detail={"type": "string", "description": "What was wrong, which value, and what would work."},
        option={"type": "string", "description": "The invalid option, if any."},
    ),
    "Status": _object("status", status=_TEXT, model=_TEXT),
    "Progress": _object(
        "stage text done total",
        stage={
            "type": "string",
            "enum": list(get_args(Stage)),
            "description": "The current stage; the stages are listed in order.",
        },
        text={"type": "string", "description": "A description of the stage; for `failed`, the reason."},
        done={"type": "integer", "description": "Downloaded bytes."},
        total={"type": ["integer", "null"], "description": "Total bytes of the download, if known."},
    ),
    "Model": _object("name labels options max_upload", name=_TEXT, labels=_LIST_OF_TEXT, max_upload=_WHOLE),
    "Detections": _object(
        "info licenses image images categories annotations",
        info=_object("description", description=_TEXT),
        licenses={"type": "array", "items": {"type": "object"}},
        image=_object("width height", width=_WHOLE, height=_WHOLE),
        images={
            "type": "array",
            "items": _object("id file_name width height", id=_WHOLE, file_name=_TEXT, width=_WHOLE, height=_WHOLE),
        },
        categories={"type": "array", "items": _object("id name", id=_WHOLE, name=_TEXT)},
        annotations={
            "type": "array",
            "items": _object(
                "id image_id category_id category_name score bbox area iscrowd segmentation",
                id=_WHOLE,
                image_id=_WHOLE,
                category_id={**_WHOLE, "description": "The number of the category, from 1."},
                category_name=_TEXT,
                score=_NUMBER,
                bbox=_BOX,
                area=_WHOLE,
                iscrowd={"type": "integer", "const": 0},
                segmentation=_MASK,
            ),
        },
    ),
}
_SAMPLES = {"detections": DETECTIONS_SAMPLE, "problem": PROBLEM_SAMPLE}
