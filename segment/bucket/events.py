"""Bucket events: write the results of each new object to the output bucket, exactly once.

Events are delivered at least once: late, repeatedly, concurrently and in any order. Each event is about one generation
of one object, which determines the names of the results (results.py). Results are only written where no object exists.
A delivery therefore either finds the results complete, or writes the missing ones.

Outcomes of a delivery:

| outcome | response |
|---|---|
| the results are written, or existed before | acknowledged |
| the object was deleted or overwritten in the meantime | acknowledged: the new generation has its own event |
| RequestError (not an image, corrupt, too large), or the object cannot be read | `error.json`; acknowledged |
| StorageRefused: the output bucket does not exist or cannot be written | logged as ERROR; acknowledged |
| the event is malformed, or not for this service | logged; acknowledged |
| StorageError, Busy, ModelError, any other error | 503 or 500: redelivered, finally dead-lettered |

A delivery ends within SEGMENT_DELIVERY_SECONDS, plus the current stage or last storage call. Waiting and calls share
this time, so that it stays below the request timeout and Pub/Sub's acknowledgement deadline.

Photos of events that were acknowledged with an ERROR are processed by a backfill after the cause has been fixed.
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
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    ServiceUnavailable,
    UnsupportedMediaType,
)

from segment.bucket.objects import describe, segment_object
from segment.bucket.results import is_result
from segment.bucket.store import BUCKET, CLIENT, Location, Object, overlap
from segment.errors import Busy, ModelError, SettingsError, StorageError, StorageRefused
from segment.extras import require
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

FINALIZED = "google.cloud.storage.object.v1.finalized"
PUBLISHED = "google.cloud.pubsub.topic.v1.messagePublished"


class MalformedEvent(ValueError):
    """The event has none of the supported formats."""


def handle(service: Service, event: CloudEvent) -> None:
    """Handle one event. Returning acknowledges it; an HTTPException causes its redelivery."""
    from segment.bucket.store.google import Bucket  # imports 17 MB that the HTTP service does not need

    settings = service.settings
    try:
        found = parse(event)
    except MalformedEvent as error:
        log.error("Malformed event: %s", error, extra={"event": _get(event, "id"), "type": _get(event, "type")})
        return
    if found is None:
        log.info(
            "Ignored: the event is not about a new object.",
            extra={"event": _get(event, "id"), "type": _get(event, "type")},
        )
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
        segment_object(service, source, item, Location(destination, settings.output_prefix), deadline)
    except StorageRefused as error:
        log.error("%s: failed: %s", item.name, error, extra=describe(source, item))
    except (StorageError, Busy) as error:
        log.warning("%s: will be redelivered: %s", item.name, error, extra=describe(source, item))
        raise ServiceUnavailable from None
    except ModelError as error:
        log.error("%s: will be redelivered: %s", item.name, error, extra=describe(source, item))
        raise ServiceUnavailable from None
    except Exception:
        log.exception("%s: unexpected error", item.name, extra=describe(source, item))
        raise InternalServerError from None


def parse(event: CloudEvent) -> tuple[str, Object] | None:
    """The bucket and the new object of an event; None if the event is not about a new object.

    Two formats are supported: Eventarc's, whose data is the object resource, and a Pub/Sub push of a bucket
    notification, whose message contains the resource. Raises MalformedEvent.
    """
    kind, data = _get(event, "type"), event.get_data()
    if kind == PUBLISHED:
        message = _mapping(_mapping(data, "data").get("message"), "message")
        attributes = _mapping(message.get("attributes"), "attributes")
        kind = attributes.get("eventType")
        if not kind:
            raise MalformedEvent("The message has no attribute eventType; it is not a bucket notification.")
        return _new_object(_payload(message)) if kind == "OBJECT_FINALIZE" else None
    if kind == FINALIZED:
        return _new_object(data)
    if str(kind).startswith("google.cloud.storage.object."):
        return None
    raise MalformedEvent(f"The event's type is {kind!r}; it must be {FINALIZED} or {PUBLISHED}.")


def _payload(message: Mapping[str, Any]) -> object:
    try:
        return json.loads(base64.b64decode(message.get("data") or "", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise MalformedEvent(
            "The message's data is not base64-encoded JSON. Set the notification's payloadFormat to JSON_API_V1."
        ) from None


def _new_object(data: object) -> tuple[str, Object]:
    resource = _mapping(data, "data")
    bucket, name = (_string(resource, key) for key in ("bucket", "name"))
    if not BUCKET.fullmatch(bucket):
        raise MalformedEvent(f"{bucket[:100]!r} is not a valid bucket name.")
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
        raise MalformedEvent(f"Its {what} is not a JSON object.")
    return value


def _string(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise MalformedEvent(f"Its {key} is {str(value)[:100]!r}; it must be a non-empty string.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise MalformedEvent(f"Its {key} is {value[:100]!r}, which cannot be encoded in UTF-8.")
    return value


def _number(values: Mapping[str, Any], key: str) -> int:
    word = str(values.get(key))
    if not re.fullmatch(r"[0-9]{1,19}", word):
        raise MalformedEvent(f"Its {key} is {word[:100]!r}; it must be a whole number.")
    return int(word)


def _get(event: CloudEvent, attribute: str) -> Any:
    return event.get_attributes().get(attribute)


AMONG_RESULTS = "it is in the place of results, but is not one. Put photos in another bucket or under another prefix."
"""Logged as a warning, because the object may be a photo whose results somebody expects."""


def why_ignored(settings: Settings, bucket: str, item: Object) -> str:
    """The reason for ignoring an object; empty if it is to be segmented."""
    if settings.input_bucket and bucket != settings.input_bucket:
        return f"it is not in gs://{settings.input_bucket}."
    if not item.name.startswith(settings.input_prefix):
        return f"its name does not start with {settings.input_prefix!r}."
    if item.is_folder:
        return "it is a folder placeholder."
    if is_result(item):
        return "it is a result."
    if bucket == settings.output_bucket and item.name.startswith(settings.output_prefix):
        return AMONG_RESULTS
    return ""


# Start-up


def check(settings: Settings) -> None:
    """Check the settings for bucket events. Raises SettingsError, also if results would be segmented as photos.

    Raises MissingPackage if the client library of Cloud Storage is not installed.
    """
    require(CLIENT)
    if not settings.output_bucket:
        raise SettingsError("SEGMENT_OUTPUT_BUCKET is not set; it must be the name of the bucket for results.")
    for name in ("input_bucket", "output_bucket"):
        value = getattr(settings, name)
        if value and not BUCKET.fullmatch(value):
            raise SettingsError(f"SEGMENT_{name.upper()} is {value!r}; it must be the name of a bucket, without gs://.")
    source = f"gs://{settings.input_bucket}/{settings.input_prefix}"
    destination = f"gs://{settings.output_bucket}/{settings.output_prefix}"
    if overlap(source, destination):
        raise SettingsError(
            f"SEGMENT_INPUT_PREFIX {settings.input_prefix!r} and SEGMENT_OUTPUT_PREFIX {settings.output_prefix!r} are "
            f"in the same bucket, {settings.output_bucket}, and one starts with the other, so results would be "
            "segmented again in an endless loop. Use another output bucket, or prefixes such as photos/ and results/."
        )


def prepare(app: Flask, settings: Settings) -> None:
    """Set up the framework's app for events. Raises SettingsError."""
    check(settings)
    app.register_error_handler(Exception, _acknowledge_unreadable)


def _acknowledge_unreadable(error: Exception) -> ResponseReturnValue:
    """Acknowledge requests that the framework cannot parse as events; otherwise they would be redelivered for a day.

    `handle` only raises 500 and 503, so any other error is about the request itself.
    """
    if isinstance(error, HTTPException) and not isinstance(error, BadRequest | UnsupportedMediaType):
        return error
    log.error("Malformed event: the body is neither a CloudEvent nor a Pub/Sub message with data.")
    return "", 204
