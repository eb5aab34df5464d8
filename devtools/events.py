"""Send events of a bucket as HTTP requests, in both formats that a CloudEvent target receives."""

from __future__ import annotations

import base64
import json
from typing import Any

import requests

from devtools.gcs import Object

TIMEOUT = 60.0


def eventarc(url: str, item: Object) -> requests.Response:
    """Send an event as Eventarc does: a CloudEvent in HTTP binary mode, whose data is the object resource."""
    return post_event(url, item.resource(), f"objects/{item.name}")


def post_event(url: str, data: Any, subject: str, kind: str = "finalized") -> requests.Response:
    """Send a storage event of type `kind` with `data`."""
    headers = {
        "ce-id": "1096434104173400",
        "ce-source": "//storage.googleapis.com/projects/_/buckets/photos",
        "ce-specversion": "1.0",
        "ce-subject": subject.encode("ascii", "xmlcharrefreplace").decode(),
        "ce-type": f"google.cloud.storage.object.v1.{kind}",
        "ce-time": "2026-11-22T10:00:00.000Z",
    }
    return requests.post(url, json=data, headers=headers, timeout=TIMEOUT)


def pubsub(url: str, item: Object, kind: str = "OBJECT_FINALIZE") -> requests.Response:
    """Send an event as a Pub/Sub push subscription to the bucket's notifications does."""
    return requests.post(url, json=push_message(item, kind), timeout=TIMEOUT)


def push_message(item: Object, kind: str = "OBJECT_FINALIZE") -> dict[str, Any]:
    """The body of a push (https://cloud.google.com/storage/docs/pubsub-notifications)."""
    attributes = {
        "eventType": kind,
        "bucketId": item.bucket,
        "objectId": item.name,
        "objectGeneration": str(item.generation),
        "payloadFormat": "JSON_API_V1",
        "notificationConfig": f"projects/_/buckets/{item.bucket}/notificationConfigs/1",
    }
    data = base64.b64encode(json.dumps(item.resource()).encode()).decode()
    return {
        "message": {"attributes": attributes, "data": data, "messageId": "9", "publishTime": "2026-11-22T10:00:00Z"},
        "subscription": "projects/p/subscriptions/photos",
        "deliveryAttempt": 1,
    }
