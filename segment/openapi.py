"""The HTTP interface as an OpenAPI 3.1 document, derived from what the code admits.

Options and their ranges come from options.py, media types and problems from web.py's tables (handed in, since web.py
stands above this module), so the document cannot say anything else than the service does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segment.options import Options, describe
from segment.settings import Settings

Json = dict[str, Any]

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
    "Segment-Render-Factor": "The render factor that was used.",
    "Server-Timing": "Milliseconds by stage.",
}


def options(settings: Settings) -> dict[str, Json]:
    """Every option of a request: its JSON Schema with default and description."""
    defaults = vars(Options.defaults(settings))
    found = {}
    for name, option in describe(settings).items():
        default = defaults[name]
        schema = {**option.schema, "description": option.about}
        if default is None:
            schema["default"] = "auto"
        elif default != ():
            schema["default"] = default
        found[name] = schema
    return found


def document(settings: Settings, media_types: Mapping[str, str], problems: Mapping[int, str]) -> Json:
    """The OpenAPI document. `media_types`: what a result may be; `problems`: status -> what it means."""
    parameters = [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in options(settings).items()
    ]
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
            "/segment": _segment(parameters, options(settings), media_types, problems),
            "/model": _plain("model", "What is served: labels, cost in memory, options", "Model"),
            "/health": _plain("health", "Alive", "Status"),
            "/ready": _plain(
                "ready", "Model loaded; loads it", "Status", {"503": _problem("The model cannot be loaded.")}
            ),
        },
        "components": {"schemas": SCHEMAS},
    }


ABOUT = """\
Send a photo, get it back with every object drawn as a mask with its label and score, or get the same as data.

An option stands in the query, or beside the photo in a form or in JSON. What is answered is set by `format`, or else
by the `Accept` header. Every error is a problem document (RFC 9457) whose `detail` says what was wrong and what would
work.
"""


def _segment(
    parameters: list[Json], schemas: dict[str, Json], media: Mapping[str, str], problems: Mapping[int, str]
) -> Json:
    binary = {"type": "string", "format": "binary"}
    result = {
        "description": "The segmented photo, in the format asked for.",
        "headers": {
            name: {"description": about, "schema": {"type": "string"}} for name, about in RESULT_HEADERS.items()
        },
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/Detections"} if kind == "application/json" else {}}
            for kind in media
        },
    }
    responses = {"200": result} | {str(status): _problem(about) for status, about in problems.items()}
    url = {"type": "string", "format": "uri", "description": "Where the photo is: a public http or https URL."}
    image = {"type": "string", "contentEncoding": "base64", "description": "The photo in base64, or a data URL."}
    form = {"type": "object", "properties": {"file": binary, **schemas}, "required": ["file"]}
    body = {
        "type": "object",
        "properties": {"url": url, "image": image, **schemas},
        "oneOf": [{"required": ["url"]}, {"required": ["image"]}],
        "additionalProperties": False,
    }
    return {
        "get": {
            "operationId": "segmentUrl",
            "summary": "Segment the photo at a URL",
            "parameters": [{"name": "url", "in": "query", "required": True, "schema": url}, *parameters],
            "responses": responses,
        },
        "post": {
            "operationId": "segment",
            "summary": "Segment a photo",
            "parameters": parameters,
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": form},
                    "application/json": {"schema": body},
                    **{kind: {"schema": binary} for kind in PHOTO_TYPES},
                },
            },
            "responses": responses,
        },
    }


def _plain(operation: str, summary: str, schema: str, more: Mapping[str, Json] | None = None) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    responses = {"200": {"description": summary, "content": content}, **(more or {})}
    return {"get": {"operationId": operation, "summary": summary, "responses": responses}}


def _problem(about: str) -> Json:
    return {
        "description": about,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


SCHEMAS: Json = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What was wrong, which value, what would work."},
            "option": {"type": "string", "description": "The option that was wrong, for a 400 about one."},
        },
    },
    "Status": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string"}, "model": {"type": "string"}},
    },
    "Model": {"type": "object", "required": ["name", "labels", "options"]},
    "Detections": {"type": "object"},
}
