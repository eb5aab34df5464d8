"""The OpenAPI 3.1 document of the HTTP API (https://spec.openapis.org/oas/v3.1.0); docs.py shows it as a page.

Options and their ranges come from options.py; media types and problems are passed in by app.py. The document is
therefore always consistent with the service.
"""

from __future__ import annotations

from collections.abc import Sequence

import segment
from segment.options import Options, describe
from segment.settings import Settings
from segment.web import openapi_labelling
from segment.web.schemas import BINARY, SCHEMAS, URL, Json

Problems = Sequence[tuple[int, str, str]]
"""(status, title, description) of each problem."""

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
        "content": {kind: detections if kind == "application/json" else {"schema": BINARY} for kind in media_types},
    }
    responses = {"200": result, **failures}
    parameters = [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in schemas.items()
    ]
    form, data = ({"$ref": f"#/components/schemas/{name}"} for name in ("FormBody", "JsonBody"))
    content = {"multipart/form-data": form, "application/json": data, **dict.fromkeys(PHOTO_TYPES, BINARY)}
    return {
        "get": {
            "operationId": "segmentUrl",
            "summary": "Segment the photo at a URL",
            "parameters": [
                {"name": "url", "in": "query", "required": True, "schema": URL, "description": URL["description"]},
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
    """The schemas of the form and of the two JSON bodies. They are named, because generators create a class for each.

    The form may contain the options, but is documented without them: openapi-generator makes its fields arguments
    beside those of the query, and the client for TypeScript did not compile. Generated clients send every default, and
    an option must not be given twice, so only the options in the query have defaults.
    """
    schemas = {name: {k: v for k, v in schema.items() if k != "default"} for name, schema in schemas.items()}
    image = {"type": "string", "contentEncoding": "base64", "description": "The photo in base64, or a data URL."}
    return {
        "FormBody": {"type": "object", "properties": {"file": BINARY}, "required": ["file"]},
        "JsonBody": {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("UrlBody", "ImageBody")]},
        "UrlBody": _json_body("url", URL, schemas),
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
