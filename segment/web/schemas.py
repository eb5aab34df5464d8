"""JSON Schemas (https://json-schema.org) of requests and responses, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, get_args

from segment.progress import Stage

Json = dict[str, Any]


def object_of(required: str, **properties: Json) -> Json:
    """An object with these properties. `required`: names of the required ones, separated by spaces."""
    return {"type": "object", "required": required.split(), "properties": properties}


BINARY = {"type": "string", "format": "binary"}
URL = {
    "type": "string",
    "format": "uri",
    "minLength": 1,
    "description": "The photo's URL: http or https, with a public address.",
}
TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
LIST_OF_TEXT = {"type": "array", "items": TEXT}
BOX = {
    "type": "array",
    "items": NUMBER,
    "minItems": 4,
    "maxItems": 4,
    "description": "x, y, width, height in pixels.",
}
MASK = {
    "description": "COCO's compressed RLE, or a list of polygons with segmentation=polygons.",
    "anyOf": [
        object_of("size counts", size={"type": "array", "items": WHOLE}, counts=TEXT),
        {"type": "array", "items": {"type": "array", "items": NUMBER}},
    ],
}
SCHEMAS: Json = {
    "Problem": object_of(
        "type title status detail",
        type={"type": "string", "format": "uri-reference"},
        title=TEXT,
        status=WHOLE,
        detail={"type": "string", "description": "What was wrong, which value, and what would work."},
        option={"type": "string", "description": "The invalid option, if any."},
    ),
    "Status": object_of("status", status=TEXT, model=TEXT),
    "Progress": object_of(
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
    "Model": object_of("name labels options max_upload", name=TEXT, labels=LIST_OF_TEXT, max_upload=WHOLE),
    "Detections": object_of(
        "info licenses image images categories annotations",
        info=object_of("description", description=TEXT),
        licenses={"type": "array", "items": {"type": "object"}},
        image=object_of("width height", width=WHOLE, height=WHOLE),
        images={
            "type": "array",
            "items": object_of("id file_name width height", id=WHOLE, file_name=TEXT, width=WHOLE, height=WHOLE),
        },
        categories={"type": "array", "items": object_of("id name", id=WHOLE, name=TEXT)},
        annotations={
            "type": "array",
            "items": object_of(
                "id image_id category_id category_name score bbox area iscrowd segmentation",
                id=WHOLE,
                image_id=WHOLE,
                category_id={**WHOLE, "description": "The number of the category, from 1."},
                category_name=TEXT,
                score=NUMBER,
                bbox=BOX,
                area=WHOLE,
                iscrowd={"type": "integer", "const": 0},
                segmentation=MASK,
            ),
        },
    ),
}
"""The schemas that the document names, without those of bodies with options (openapi.py)."""
