"""Why a photo was refused, as written into its error.json, and when it is tried again.

A refusal is final if the reason is the photo itself. If the reason is a limit of the instance or of the settings, the
error.json contains these (`Limits`), and the photo is tried again when they have changed. If the reason is a missing
permission, it is tried with each event and backfill.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from segment import container
from segment.bucket.results import GENERATION_KEY, SOURCE_KEY
from segment.bucket.store import Object, Store
from segment.errors import RequestError, StorageRefused, TooLarge
from segment.options import Options
from segment.service import Service

LIMITS_KEY = "segment-limits"
"""Custom metadata with the limits that caused a refusal."""
_SMALL = 1 << 16
"""Upper bound for the size of an error.json in bytes."""


class NameTooLong(RequestError):
    """The photo's name is so long that the names of its results would exceed the limit."""


class SourceRefused(StorageRefused):
    """The photo cannot be read, for lack of permission or the like."""


@dataclass(frozen=True)
class Limits:
    """The limits that caused a refusal: memory in bytes, model and settings. If they change, the photo is retried."""

    memory: int
    max_upload: int
    model: str
    settings: str

    @classmethod
    def of(cls, service: Service, options: Options) -> Limits:
        """The present limits of a service for requests with these options."""
        settings = service.settings
        asked = (options, settings.output_formats, settings.fixed_bytes, settings.bytes_per_pixel)
        return cls(
            memory=container.memory_limit(settings.memory),
            max_upload=settings.max_upload,
            model=f"{service.model_name} {service.model_digest}",
            settings=repr(asked),
        )

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


def cause(error: RequestError | SourceRefused, limits: Limits) -> str:
    """The limits to record in an error.json, as JSON; empty if the photo must not be tried again."""
    if isinstance(error, SourceRefused):  # a change of permissions cannot be detected, so the photo is always retried
        return json.dumps("access")
    return limits.text() if isinstance(error, TooLarge | NameTooLong) else ""


def recorded_cause(store: Store, error: Object) -> str:
    """The limits that an error.json records; empty if the cause is the photo itself."""
    if error.metadata:
        return error.metadata.get(LIMITS_KEY, "")
    body = store.read(error, _SMALL) or b"{}"  # a folder keeps no metadata
    try:
        problem: Any = json.loads(body)
        limits = problem.get("limits")
    except (ValueError, AttributeError):
        return ""
    return json.dumps(limits, sort_keys=True) if limits else ""


def is_final(store: Store, error: Object, limits: Limits) -> bool:
    """Whether the photo would be refused for the reason in this error.json again."""
    return recorded_cause(store, error) in ("", limits.text())


def other_name(limits: str) -> str:
    """The name of an error.json with these limits that cannot replace another one."""
    return f"error-{hashlib.sha256(limits.encode()).hexdigest()[:8]}.json"


def document(error: RequestError | SourceRefused, limits: str, origin: Mapping[str, str]) -> bytes:
    """The content of an error.json: a problem document (RFC 9457). `origin`: metadata of the photo's results."""
    kind = "StorageRefused" if isinstance(error, StorageRefused) else type(error).__name__
    problem: dict[str, object] = {"title": _words(kind), "detail": str(error)}
    problem |= {"source": origin[SOURCE_KEY], "generation": origin[GENERATION_KEY]}
    if limits:
        problem["limits"] = json.loads(limits)
    return json.dumps(problem, ensure_ascii=False).encode()


def _words(name: str) -> str:
    """CorruptImage -> Corrupt image."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()
