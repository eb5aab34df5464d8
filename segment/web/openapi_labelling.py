"""The part of the OpenAPI document about the interfaces of labelling tools (labelling.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from segment.labelling import cvat
from segment.settings import Labelling
from segment.web.schemas import NUMBER, TEXT, Json, object_of

_NUMBERS: Json = {"type": "array", "items": NUMBER}
_ANY: Json = {"type": "object"}


def paths(tools: Iterable[str], failures: Mapping[str, Json]) -> Json:
    """The operations of `tools`. `failures`: problem responses of an operation on a photo, by status."""
    found: Json = {}
    for tool, operations in PATHS.items():
        if tool in tools:
            for path, (method, operation) in operations.items():
                responses = {"200": operation["responses"]["200"], **failures}
                found[path] = {method: {**operation, "responses": responses}}
    return found


def _operation(name: str, summary: str, answer: Json, body: Json | None = None) -> Json:
    content = {"application/json": {"schema": answer}}
    operation: Json = {"operationId": name, "summary": summary}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return {**operation, "responses": {"200": {"description": f"{summary}.", "content": content}}}


_CONFIG = {**TEXT, "description": "The project's labelling config, XML."}
_TASK = object_of("data", id={"type": "integer"}, data={**_ANY, "description": "Field -> address of a photo."})
_REGION = object_of("id from_name to_name type value score", id=TEXT, score=NUMBER, value=_ANY)
_PREDICTION = object_of(
    "result score model_version",
    result={"type": "array", "items": _REGION},
    score=NUMBER,
    model_version=TEXT,
)
_FUNCTION = object_of("metadata spec status", metadata=_ANY, spec=_ANY, status=_ANY)
_SHAPE = object_of(
    "confidence label type points mask",
    confidence=TEXT,
    label=TEXT,
    type={"const": "mask"},
    points={**_NUMBERS, "description": "The outline of the mask's largest part: x, y, x, y, ..."},
    mask={**_NUMBERS, "description": "The pixels of a rectangle, row by row, then its left, top, right and bottom."},
)
PATHS: Mapping[Labelling, Mapping[str, tuple[str, Json]]] = {
    "label-studio": {
        "/setup": (
            "post",
            _operation(
                "labelStudioSetup",
                "The model's version, for Label Studio",
                object_of("model_version", model_version=TEXT),
                object_of("schema", project=TEXT, schema=_CONFIG),
            ),
        ),
        "/predict": (
            "post",
            _operation(
                "labelStudioPredict",
                "Predictions for Label Studio's tasks",
                object_of(
                    "results",
                    results={
                        "type": "array",
                        "items": {"anyOf": [_PREDICTION, {"type": "array", "items": _PREDICTION}]},
                        "description": "For each task a prediction, or a list: empty if its photo could not be read.",
                    },
                ),
                object_of(
                    "tasks label_config",
                    tasks={"type": "array", "items": _TASK},
                    label_config=_CONFIG,
                    project=TEXT,
                ),
            ),
        ),
        "/webhook": (
            "post",
            _operation(
                "labelStudioWebhook",
                "Accepts and ignores annotations, because the model does not learn from them",
                _ANY,
                _ANY,
            ),
        ),
    },
    "cvat": {
        "/api/functions": (
            "get",
            _operation(
                "cvatFunctions",
                "The list of functions, in nuclio's format",
                object_of(cvat.NAME, **{cvat.NAME: _FUNCTION}),
            ),
        ),
        f"/api/functions/{cvat.NAME}": (
            "get",
            _operation("cvatFunction", "The description of the function, in nuclio's format", _FUNCTION),
        ),
        "/api/function_invocations": (
            "post",
            _operation(
                "cvatInvoke",
                "The shapes in a photo, for CVAT",
                {"type": "array", "items": _SHAPE},
                object_of(
                    "image",
                    image={"type": "string", "contentEncoding": "base64"},
                    threshold={"type": "number", "minimum": 0, "maximum": 1, "description": "The minimum score."},
                ),
            ),
        ),
    },
}
