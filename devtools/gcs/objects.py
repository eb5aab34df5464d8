"""One generation of an object, its changes and its preconditions."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import google_crc32c

from devtools.gcs.messages import Refused


@dataclass(frozen=True)
class Object:
    """A generation of an object. Immutable: a new metageneration is a new instance."""

    bucket: str
    name: str
    generation: int
    content: bytes
    content_type: str
    content_encoding: str
    metadata: Mapping[str, str]
    created: str
    updated: str
    metageneration: int = 1

    @property
    def crc32c(self) -> str:
        """The checksum as the API writes it: base64, big-endian."""
        return base64.b64encode(google_crc32c.value(self.content).to_bytes(4, "big")).decode()

    @property
    def md5(self) -> str:
        """The MD5 as the API writes it, in base64."""
        return base64.b64encode(hashlib.md5(self.content).digest()).decode()

    def resource(self, host: str = "https://storage.googleapis.com") -> dict[str, Any]:
        """The object resource. Integers are strings, as in the API."""
        path = f"b/{self.bucket}/o/{quote(self.name, safe='')}"
        resource: dict[str, Any] = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{host}/storage/v1/{path}",
            "mediaLink": f"{host}/download/storage/v1/{path}?generation={self.generation}&alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.content)),
            "md5Hash": self.md5,
            "crc32c": self.crc32c,
            "etag": self.etag,
            "timeCreated": self.created,
            "updated": self.updated,
        }
        if self.content_encoding:
            resource["contentEncoding"] = self.content_encoding
        if self.metadata:
            resource["metadata"] = dict(self.metadata)
        return resource

    @property
    def etag(self) -> str:
        """An ETag that changes with each generation and metageneration."""
        return base64.b64encode(f"{self.generation}/{self.metageneration}".encode()).decode()


@dataclass(frozen=True)
class Write:
    """A write of an object, or a deletion, for which `sha256` is empty."""

    bucket: str
    name: str
    generation: int
    sha256: str


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def require(query: Mapping[str, str], found: Object | None, reading: bool = False) -> None:
    """Check the request's preconditions for the current object. Raises Refused 412, or 304 for a read."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else 0
    for word, value in (("Generation", generation), ("Metageneration", metageneration)):
        match, other = query.get(f"if{word}Match"), query.get(f"if{word}NotMatch")
        if match is not None and int(match) != value:
            raise Refused(412, f"At least one of the pre-conditions you specified did not hold: if{word}Match.")
        if other is not None and int(other) == value:
            raise Refused(304 if reading else 412, f"The pre-condition if{word}NotMatch did not hold.")


def patched(found: Object, changes: Mapping[str, Any], whole: bool) -> Object:
    """The object with its metadata merged (patch: null removes a key) or replaced (update)."""
    metadata = {} if whole else dict(found.metadata)
    metadata.update(changes.get("metadata") or {})
    if "metadata" in changes and changes["metadata"] is None:
        metadata = {}
    return replace(
        found,
        content_type=changes.get("contentType", found.content_type),
        content_encoding=changes.get("contentEncoding", found.content_encoding),
        metadata={key: value for key, value in metadata.items() if value is not None},
        updated=now(),
        metageneration=found.metageneration + 1,
    )
