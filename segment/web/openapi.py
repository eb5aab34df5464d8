"""The HTTP interface as an OpenAPI 3.1 document, and as a page to read.

Options and their ranges come from options.py, media types and problems from app.py, which stands above and hands them
in: the document cannot say anything else than the service does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jinja2

from segment.options import Options, describe
from segment.progress import Stage
from segment.settings import Settings
from segment.web import openapi_labelling

Json = dict[str, Any]
Problems = Sequence[tuple[int, str, str]]
"""Status, title and meaning of each problem."""

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
"""Types a photo's own body may be named with; any image/* is taken, the bytes decide."""

RESULT_HEADERS = {
    "Segment-Instances": "How many instances were found.",
    "Segment-Network-Size": "Width x height in pixels that the network saw.",
    "Segment-Photo-Size": "Width x height in pixels of the photo, upright.",
    "Segment-Picture-Size": "Width x height in pixels of the picture; less than the photo's only for lack of memory.",
    "Segment-Render-Factor": "The render factor that was used; absent if the model file has an input of a fixed size.",
    "Segment-Detail": "The detail that was used: tiles a side that were looked at beside the whole; 1 is none.",
    "Server-Timing": "Milliseconds by stage.",
}


def options(settings: Settings) -> dict[str, Json]:
    """Every option of a request: its JSON Schema with default and description."""
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
    """The OpenAPI document. `media_types`: what a result may be; `problems`: what may go wrong with a photo."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Segment",
            "version": "1.0.0",
            "summary": "A photo in, every object in it as a mask, a label and a score out.",
            "description": ABOUT,
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/segment": _segment(options(settings), media_types, problems),
            "/model": _plain("model", "What is served: labels, cost in memory and time, options", "Model"),
            "/health": _plain("health", "Whether the process lives", "Status"),
            "/ready": _plain("ready", "Whether the model is loaded; loads it", "Status"),
            "/progress": _plain("progress", "How far the preparation of the model is", "Progress"),
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
    """Where the page speaks of the problem of this title."""
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
Send a photo to /segment. The answer is the photo with every object drawn as a mask with its label and score, or the
same as data. /detect is an alias, for clients of the original application.

A photo is the body itself, the field "file" of a form, or in JSON "image" (base64 or a data URL) or "url". Options go
into the query, or beside the photo into the form or the JSON. The format of the answer is set by the option "format",
or else by the Accept header.
"""


def _segment(schemas: dict[str, Json], media_types: Sequence[str], problems: Problems) -> Json:
    failures = _failures(problems)
    detections: Json = {"schema": {"$ref": "#/components/schemas/Detections"}}
    result = {
        "description": "The segmented photo, in the format asked for.",
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
    """The responses with a problem, by status."""
    titles: dict[int, list[str]] = {}
    for status, title, _ in problems:
        titles.setdefault(status, []).append(title)
    return {str(status): _problem(", or ".join(titles[status]) + ".") for status in sorted(titles)}


def _bodies(schemas: dict[str, Json]) -> dict[str, Json]:
    """The forms and JSON objects that carry a photo, each with its options.

    They are named components, and what JSON may hold is two of them: client generators make a class of each. Generated
    clients send every default. An option is refused when it is given twice, so only the query's have defaults.
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
    "description": "Where the photo is: a public http or https URL.",
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
    "description": "COCO's compressed run lengths, or with segmentation=polygons a list of polygons.",
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
"""An answer for a photo of 8 x 6 pixels, short enough to read; tests/test_openapi.py checks it against a real one."""
SCHEMAS: Json = {
    "Problem": _object(
        "type title status detail",
        type={"type": "string", "format": "uri-reference"},
        title=_TEXT,
        status=_WHOLE,
        detail={"type": "string", "description": "What was wrong, which value, what would work."},
        option={"type": "string", "description": "The option that was wrong, if one was."},
    ),
    "Status": _object("status", status=_TEXT, model=_TEXT),
    "Progress": _object(
        "stage text done total",
        stage={"type": "string", "enum": list(get_args(Stage)), "description": "The stages, in their order."},
        text={"type": "string", "description": "The stage in a sentence; of `failed`, what was wrong."},
        done={"type": "integer", "description": "Bytes of the download that have been received."},
        total={"type": ["integer", "null"], "description": "Bytes of the whole download, if known."},
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
