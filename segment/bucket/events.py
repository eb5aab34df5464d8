"""Bucket events: a new object in a bucket becomes results in the output bucket, exactly once.

Events are delivered at least once, late, twice, at once and out of order. Each is about one generation of one object,
and the names of the results follow from that (results.py). They are written only where there is no object. So a
delivery finds the results complete and has nothing to do, or writes what is missing.

What a delivery results in, and how it is answered:

| | |
|---|---|
| the results are written, or were before | acknowledged |
| the object was deleted or overwritten meanwhile | acknowledged: its new generation has its own event |
| RequestError: not an image, corrupt, too large; the object may not be read | `error.json` beside it; acknowledged |
| StorageRefused: the output bucket does not exist or may not be written | ERROR in the log; acknowledged |
| the event is not understood, or not for this service | acknowledged, logged |
| StorageError, Busy, ModelError, anything else | 503 or 500: delivered again, at last dead-lettered |

The whole of a delivery ends by SEGMENT_DELIVERY_SECONDS, but for the stage or the last call that is under way: waiting
and calls share that time, so it stays below the request's time limit and Pub/Sub's acknowledgement deadline.

What is acknowledged with an ERROR is made up for by the backfill, once the cause has been removed.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from cloudevents.http import CloudEvent
from flask import Flask
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError, ServiceUnavailable

from segment.bucket.objects import describe, is_result, segment_object
from segment.bucket.store import Object, overlap
from segment.errors import Busy, ModelError, SettingsError, StorageError, StorageRefused
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

FINALIZED = "google.cloud.storage.object.v1.finalized"
PUBLISHED = "google.cloud.pubsub.topic.v1.messagePublished"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
"""A bucket's name (https://cloud.google.com/storage/docs/buckets#naming)."""


class NotUnderstood(ValueError):
    """An event of no shape that is known here."""


def handle(service: Service, event: CloudEvent) -> None:
    """Deal with one event: returning acknowledges it, raising an HTTPException has it delivered again."""
    from segment.bucket.store.google import Bucket  # 17 MB that requests over HTTP do not need

    settings = service.settings
    try:
        found = parse(event)
    except NotUnderstood as error:
        log.error("Event not understood: %s", error, extra={"event": _get(event, "id"), "type": _get(event, "type")})
        return
    if found is None:
        log.info("Ignored: not about a new object.", extra={"event": _get(event, "id"), "type": _get(event, "type")})
        return
    bucket, item = found
    deadline = time.monotonic() + settings.delivery_seconds
    source, destination = (
        Bucket(name, settings.storage_seconds, deadline) for name in (bucket, settings.output_bucket)
    )
    if reason := why_ignored(settings, bucket, item):
        level = logging.WARNING if reason is AMONG_RESULTS else logging.INFO
        log.log(level, "%s: ignored: %s", item.name, reason, extra=describe(source, item))
        return
    try:
        segment_object(service, source, item, destination, settings.output_prefix, deadline)
    except StorageRefused as error:
        log.error("%s: given up: %s", item.name, error, extra=describe(source, item))
    except (StorageError, Busy) as error:
        log.warning("%s: to be delivered again: %s", item.name, error, extra=describe(source, item))
        raise ServiceUnavailable from None
    except ModelError as error:
        log.error("%s: to be delivered again: %s", item.name, error, extra=describe(source, item))
        raise ServiceUnavailable from None
    except Exception:
        log.exception("%s: unexpected error", item.name, extra=describe(source, item))
        raise InternalServerError from None


def parse(event: CloudEvent) -> tuple[str, Object] | None:
    """The bucket and the new object that an event is about; None if it is about something else.

    Both shapes are read: Eventarc's, whose data is the object resource, and a Pub/Sub push of a bucket's
    notification, whose message has the resource as its data. Raises NotUnderstood.
    """
    kind, data = _get(event, "type"), event.get_data()
    if kind == PUBLISHED:
        message = _mapping(_mapping(data, "data").get("message"), "message")
        attributes = _mapping(message.get("attributes"), "attributes")
        kind = attributes.get("eventType")
        if not kind:
            raise NotUnderstood("The message has no eventType; it is no notification of a bucket.")
        return _new_object(_payload(message)) if kind == "OBJECT_FINALIZE" else None
    if kind == FINALIZED:
        return _new_object(data)
    if str(kind).startswith("google.cloud.storage.object."):
        return None
    raise NotUnderstood(f"The type is {kind!r}; it must be {FINALIZED} or {PUBLISHED}.")


def _payload(message: Mapping[str, Any]) -> object:
    try:
        return json.loads(base64.b64decode(message.get("data") or "", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise NotUnderstood("The message's data is not base64 of JSON; payloadFormat must be JSON_API_V1.") from None


def _new_object(data: object) -> tuple[str, Object]:
    resource = _mapping(data, "data")
    bucket, name = (_string(resource, key) for key in ("bucket", "name"))
    if not _BUCKET.fullmatch(bucket):
        raise NotUnderstood(f"{bucket[:100]!r} cannot be a bucket's name.")
    metadata = resource.get("metadata") or {}
    size, crc32c = resource.get("size"), resource.get("crc32c")
    item = Object(
        name,
        _number(resource, "generation"),
        None if size is None else _number(resource, "size"),
        crc32c if isinstance(crc32c, str) else None,
        metadata if isinstance(metadata, dict) else {},
    )
    return bucket, item


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NotUnderstood(f"Its {what} is no JSON object.")
    return value


def _string(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise NotUnderstood(f"Its {key} is {str(value)[:100]!r}; it must be a text.")
    return value


def _number(values: Mapping[str, Any], key: str) -> int:
    word = str(values.get(key))
    if not re.fullmatch(r"[0-9]{1,19}", word):
        raise NotUnderstood(f"Its {key} is {word[:100]!r}; it must be a whole number.")
    return int(word)


def _get(event: CloudEvent, attribute: str) -> Any:
    return event.get_attributes().get(attribute)


AMONG_RESULTS = "it is where results are written, and is none. Photos need another bucket or another prefix."
"""An object ignored for this may be a photo that somebody waits for."""


def why_ignored(settings: Settings, bucket: str, item: Object) -> str:
    """Why an object is not for us; empty if it is."""
    if settings.input_bucket and bucket != settings.input_bucket:
        return f"it is not in gs://{settings.input_bucket}."
    if not item.name.startswith(settings.input_prefix):
        return f"its name does not start with {settings.input_prefix!r}."
    if item.name.endswith("/"):
        return "it stands for a folder."
    if is_result(item):
        return "it is a result."
    if bucket == settings.output_bucket and item.name.startswith(settings.output_prefix):
        return AMONG_RESULTS
    return ""


# Starting


def check(settings: Settings) -> None:
    """Refuse settings with which events cannot be handled, or results would be read as photos. Raises SettingsError."""
    if not settings.output_bucket:
        raise SettingsError("SEGMENT_OUTPUT_BUCKET is empty; it must name the bucket that results are written to.")
    for name in ("input_bucket", "output_bucket"):
        value = getattr(settings, name)
        if value and not _BUCKET.fullmatch(value):
            raise SettingsError(f"SEGMENT_{name.upper()} is {value!r}; it must be a bucket's name alone.")
    source = f"gs://{settings.input_bucket}/{settings.input_prefix}"
    destination = f"gs://{settings.output_bucket}/{settings.output_prefix}"
    if overlap(source, destination):
        raise SettingsError(
            f"SEGMENT_INPUT_PREFIX {settings.input_prefix!r} and SEGMENT_OUTPUT_PREFIX {settings.output_prefix!r} are "
            f"in the same bucket, {settings.output_bucket}, and one begins with the other: results would be "
            "segmented again, for ever. Use another output bucket, or prefixes such as photos/ and results/."
        )


def prepare(app: Flask, settings: Settings) -> None:
    """Make the framework's app one that answers events. Raises SettingsError."""
    check(settings)
    app.register_error_handler(Exception, _acknowledge_unreadable)


def _acknowledge_unreadable(error: Exception) -> ResponseReturnValue:
    """Acknowledge what the framework cannot even make an event of; it would come back for a day.

    `handle` raises nothing but 500 and 503, so anything else is about the request itself.
    """
    if isinstance(error, HTTPException) and not isinstance(error, BadRequest):
        return error
    log.error("Event not understood: the body is no CloudEvent and no Pub/Sub message with data.")
    return "", 204
