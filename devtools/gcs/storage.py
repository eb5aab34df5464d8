"""Buckets and their objects, for many threads."""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from devtools.gcs.messages import Refused
from devtools.gcs.objects import Object, Write, now, require

MAX_NAME_BYTES = 1024


class Storage:
    """The buckets. Its methods for tests are those of an administrator; requests of clients are checked.

    `on_finalize`: called with each written object, when a bucket would send a notification. `create_only`: names of
    buckets whose objects clients may not replace or delete, as with the role Storage Object Creator. `versioned`: names
    of buckets that keep overwritten and deleted generations. `writes`: all writes and deletions. `lock`: held while
    something is looked up and changed.
    """

    def __init__(self, on_finalize: Callable[[Object], None] | None = None) -> None:
        self.create_only: set[str] = set()
        self.versioned: set[str] = set()
        self.writes: list[Write] = []
        self.lock = threading.RLock()
        self._on_finalize = on_finalize
        self._buckets: dict[str, dict[str, Object]] = {}
        self._noncurrent: dict[tuple[str, str, int], Object] = {}
        self._names: dict[str, list[str]] = {}  # sorted names by bucket, computed on demand
        self._virtual: dict[str, Callable[[str], Iterator[Object]]] = {}
        self._generation = time.time_ns() // 1000

    # For tests

    def create_bucket(self, name: str) -> None:
        """Create a bucket if it does not exist."""
        with self.lock:
            self._buckets.setdefault(name, {})

    def create_virtual_bucket(self, name: str, listing: Callable[[str], Iterator[Object]]) -> None:
        """Create a bucket with objects that are generated when they are listed, in addition to written objects.

        `listing(start)` generates them, sorted by name, from the name `start` on. They can only be listed, and may be
        more than fit into memory.
        """
        self.create_bucket(name)
        self._virtual[name] = listing

    def put(
        self,
        bucket: str,
        name: str,
        content: bytes,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        content_encoding: str = "",
    ) -> Object:
        """Write an object without preconditions."""
        about = {"contentType": content_type, "contentEncoding": content_encoding, "metadata": metadata}
        return self.write(bucket, {"name": name, **about}, content)

    def delete(self, bucket: str, name: str) -> None:
        """Delete an object. Raises Refused if it does not exist."""
        with self.lock:
            found = self.find(bucket, name, {})
            self._archive(found)
            del self._buckets[bucket][name]
            self._names.pop(bucket, None)
            self.writes.append(Write(bucket, name, found.generation, ""))

    def objects(self, bucket: str, prefix: str = "") -> dict[str, Object]:
        """The objects whose name starts with `prefix`, by name, sorted."""
        with self.lock:
            return {name: found for name, found in sorted(self._buckets[bucket].items()) if name.startswith(prefix)}

    # For requests

    @property
    def buckets(self) -> frozenset[str]:
        """The names of the buckets."""
        return frozenset(self._buckets)

    def contents(self, bucket: str) -> dict[str, Object]:
        """The objects of a bucket by name. Raises Refused if it does not exist."""
        if bucket not in self._buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self._buckets[bucket]

    def find(self, bucket: str, name: str, query: Mapping[str, str]) -> Object:
        """The object, in the generation that `query` asks for, if any. Raises Refused if it does not exist."""
        found = self.contents(bucket).get(name)
        if "generation" in query and (found is None or query["generation"] != str(found.generation)):
            found = self._noncurrent.get((bucket, name, int(query["generation"])))
        if found is None:
            raise Refused(404, f"No such object: {bucket}/{name}")
        return found

    def change(self, changed: Object) -> None:
        """Replace a generation of an object by a later metageneration."""
        with self.lock:
            self._buckets[changed.bucket][changed.name] = changed

    def require_permission(self, bucket: str, found: Object | None) -> None:
        """Raise Refused if clients may not replace or delete this object."""
        if found and bucket in self.create_only:
            raise Refused(403, "The account does not have storage.objects.delete access to the object.")

    def write(
        self, bucket: str, about: Mapping[str, Any], content: bytes, query: Mapping[str, str] | None = None
    ) -> Object:
        """Write an object. `query`: the parameters of a client's request, whose permissions are checked.

        `about`: the resource that the client has sent. Raises Refused.
        """
        name = str(about.get("name") or (query or {}).get("name") or "")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES or re.search(r"[\r\n]", name):
            raise Refused(400, f"The name is {len(name.encode())} bytes long, or has a line break.")
        with self.lock:
            if query is not None:
                self.require_permission(bucket, self.contents(bucket).get(name))
                require(query, self.contents(bucket).get(name))
            self.contents(bucket)
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            written_at = now()
            written = Object(
                bucket,
                name,
                self._generation,
                content,
                about.get("contentType") or "application/octet-stream",
                about.get("contentEncoding") or "",
                about.get("metadata") or {},
                written_at,
                written_at,
            )
            for key, actual in (("crc32c", written.crc32c), ("md5Hash", written.md5)):
                if about.get(key, actual) != actual:
                    raise Refused(400, f"Provided {key} {about[key]!r} doesn't match calculated {key} {actual!r}.")
            self._archive(self._buckets[bucket].get(name))
            self._buckets[bucket][name] = written
            self._names.pop(bucket, None)
            self.writes.append(Write(bucket, name, written.generation, hashlib.sha256(content).hexdigest()))
        if self._on_finalize:
            self._on_finalize(written)
        return written

    def _archive(self, found: Object | None) -> None:
        if found and found.bucket in self.versioned:
            self._noncurrent[found.bucket, found.name, found.generation] = found

    def sorted_from(self, bucket: str, prefix: str, start: str) -> Iterator[Object]:
        """The objects whose name starts with `prefix`, sorted by name, from the name `start` on."""
        with self.lock:
            objects = self.contents(bucket)
            if bucket not in self._names:
                self._names[bucket] = sorted(objects)
            names = self._names[bucket]
        first = bisect.bisect_left(names, max(prefix, start))
        below = itertools.takewhile(lambda name: name.startswith(prefix), itertools.islice(names, first, None))
        there = (found for found in map(objects.get, below) if found)  # skips objects deleted meanwhile
        made = self._virtual[bucket](max(prefix, start)) if bucket in self._virtual else iter(())
        made = itertools.takewhile(lambda found: found.name.startswith(prefix), made)
        return heapq.merge(there, made, key=lambda found: found.name)
