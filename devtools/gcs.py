"""An in-memory emulator of Cloud Storage for tests and development: the JSON API over HTTP, on localhost.

It implements what google-cloud-storage uses if STORAGE_EMULATOR_HOST is set (https://cloud.google.com/storage/docs/json_api/v1):
buckets; objects inserted in one piece, as multipart or resumably in chunks; metadata and media (whole, in ranges, by
generation); patch, delete, list with prefix, delimiter, fields and pages. Generations increase, preconditions are
checked (https://cloud.google.com/storage/docs/request-preconditions), checksums are verified, errors have Google's
format.
There is no versioning: a generation that was overwritten or deleted returns 404, as in a bucket without versioning.

For tests, it also records all writes (`writes`) and requests (`requests`), and injects faults (`faults`): an error
status, a closed connection, a delay, or a hold until the test releases it. A fault can occur before the request is
read, in the middle of its body, or after it was carried out but before the response.

    with Cloud() as cloud:
        cloud.create_bucket("photos")
        cloud.faults.add(Fault(503, path="/upload/", probability=0.2))
        os.environ["STORAGE_EMULATOR_HOST"] = cloud.url

`python -m devtools.gcs PORT BUCKET...` runs it alone.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import heapq
import itertools
import json
import random
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import google_crc32c

MAX_NAME_BYTES = 1024
CHUNK_STEP = 256 << 10
"""The size in bytes of every chunk of a resumable upload but the last is a multiple of this."""
LISTED, MOST_LISTED = 1000, {"noAcl": 5000, "full": 2000}
"""Number of objects that a call lists by default, and at most by projection. gcsfuse relies on the latter."""
_REASONS = {
    400: "invalid",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    412: "conditionNotMet",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    501: "notImplemented",
    503: "backendError",
}


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str = "", reason: str = "") -> None:
        self.status, self.reason = status, reason or _REASONS.get(status, "backendError")
        super().__init__(message or self.reason)


class _Cut(Exception):
    """Close the connection without a response."""


# Faults


@dataclass(eq=False)
class Fault:
    """A fault to inject.

    `effect`: respond with this status, cut the connection, stall for `seconds` and then cut it, or hold it until
    `release()`. `reason`: Google's word for the cause of an error status. `when`: before anything is read; in the
    middle of the request's body or, without one, of the response's body; or after the request was carried out, instead
    of the response. `method`: a regular expression for the whole method. `path`: one that is searched in the unquoted
    path and query. The first `skip` matching requests are not affected; the fault is injected into each later one with
    `probability`, at most `times` times.
    """

    effect: int | Literal["cut", "stall", "hold"]
    when: Literal["before", "half", "after"] = "before"
    method: str = ".*"
    path: str = ""
    probability: float = 1.0
    skip: int = 0
    times: int | None = None
    seconds: float = 60.0
    reason: str = ""
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Release the delayed or held requests."""
        self.released.set()

    def strike(self, when: str) -> None:
        """Inject the fault if it is due. Raises Refused or _Cut."""
        if when != self.when:
            return
        self.reached.set()
        if isinstance(self.effect, int):
            raise Refused(self.effect, "A fault on demand.", self.reason)
        if self.effect != "cut":
            self.released.wait(None if self.effect == "hold" else self.seconds)
        if self.effect != "hold":
            raise _Cut


class Faults:
    """The active faults. At most one, the first that matches, is injected per request."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Activate a fault."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def clear(self) -> None:
        """Remove all faults and release held requests."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()

    def draw(self, method: str, target: str) -> Fault | None:
        """The fault to inject into this request, if any."""
        with self._lock:
            for fault in self._faults:
                if not (re.fullmatch(fault.method, method) and re.search(fault.path, target)):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.hits != fault.times and self._random.random() < fault.probability:
                    fault.hits += 1
                    return fault
        return None


# Stored objects


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


@dataclass
class _Upload:
    """A resumable upload; `object` is its result once it is complete."""

    bucket: str
    about: Mapping[str, Any]
    query: Mapping[str, str]
    content: bytearray = field(default_factory=bytearray)
    object: Object | None = None


@dataclass(frozen=True)
class Request:
    """One request; `path` is unquoted and has no query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(document: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _error(error: Refused, media: bool) -> Answer:
    """Google's error document; the media endpoint returns plain text."""
    if media:
        return Answer(error.status, str(error).encode(), {"Content-Type": "text/html; charset=UTF-8"})
    detail = {"message": str(error), "domain": "global", "reason": error.reason}
    return _json({"error": {"code": error.status, "message": str(error), "errors": [detail]}}, error.status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _require(query: Mapping[str, str], found: Object | None, reading: bool = False) -> None:
    """Check the request's preconditions for the current object. Raises Refused 412, or 304 for a read."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else 0
    for word, value in (("Generation", generation), ("Metageneration", metageneration)):
        match, other = query.get(f"if{word}Match"), query.get(f"if{word}NotMatch")
        if match is not None and int(match) != value:
            raise Refused(412, f"At least one of the pre-conditions you specified did not hold: if{word}Match.")
        if other is not None and int(other) == value:
            raise Refused(304 if reading else 412, f"The pre-condition if{word}NotMatch did not hold.")


class Cloud:
    """The server with its buckets; a context manager that serves while it is entered.

    `on_finalize`: called with each written object, when a bucket would send a notification. `latency`: minimum time of
    a request in seconds, as over a network. `create_only`: names of buckets whose objects clients may not replace or
    delete, as with the role Storage Object Creator.
    """

    def __init__(self, port: int = 0, seed: int = 0, on_finalize: Callable[[Object], None] | None = None) -> None:
        self.faults = Faults(seed)
        self.latency = 0.0
        self.create_only: set[str] = set()
        self.writes: list[Write] = []
        self.requests: list[tuple[str, str]] = []
        self._on_finalize = on_finalize
        self._buckets: dict[str, dict[str, Object]] = {}
        self._names: dict[str, list[str]] = {}  # sorted names by bucket, computed on demand
        self._virtual: dict[str, Callable[[str], Iterator[Object]]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._generation = time.time_ns() // 1000
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.cloud = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    # From Python, for tests

    def create_bucket(self, name: str) -> None:
        """Create a bucket if it does not exist."""
        with self._lock:
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
        return self._write(bucket, {"name": name, **about}, content)

    def delete(self, bucket: str, name: str) -> None:
        """Delete an object. Raises Refused if it does not exist."""
        with self._lock:
            found = self._find(bucket, name, {})
            del self._buckets[bucket][name]
            self._names.pop(bucket, None)
            self.writes.append(Write(bucket, name, found.generation, ""))

    def objects(self, bucket: str, prefix: str = "") -> dict[str, Object]:
        """The objects whose name starts with `prefix`, by name, sorted."""
        with self._lock:
            return {name: found for name, found in sorted(self._buckets[bucket].items()) if name.startswith(prefix)}

    # Over HTTP

    def answer(self, request: Request) -> Answer:
        """Handle a request. Raises Refused."""
        parts = request.path.split("/")  # ["", "storage", "v1", "b", BUCKET, "o", NAME...]
        kind = ""
        if parts[1] in ("upload", "download"):
            kind = parts.pop(1)
        if parts[1:4] != ["storage", "v1", "b"]:
            raise Refused(404, f"There is nothing at {request.path}.")
        bucket, name = "/".join(parts[4:5]), "/".join(parts[6:])
        if parts[5:6] == ["o"]:
            if kind == "upload":
                return self._upload(request, bucket)
            return self._object(request, bucket, name) if name else self._list(request, bucket)
        return self._bucket(request, bucket)

    def _bucket(self, request: Request, name: str) -> Answer:
        with self._lock:
            if request.method == "POST" and not name:
                name = json.loads(request.body)["name"]
                if name in self._buckets:
                    raise Refused(409, "Your previous request to create the named bucket succeeded and you own it.")
                self._buckets[name] = {}
            elif request.method != "GET":
                raise Refused(501, f"{request.method} of a bucket is not served here.")
            self._in(name)
            return _json({"kind": "storage#bucket", "id": name, "name": name, "location": "US", "metageneration": "1"})

    def _object(self, request: Request, bucket: str, name: str) -> Answer:
        reading = request.method in ("GET", "HEAD")
        with self._lock:
            found = self._find(bucket, name, request.query)
            _require(request.query, found, reading)
            if reading:
                if request.query.get("alt") == "media":
                    return _media(found, request.headers.get("range", ""))
            elif request.method == "DELETE":
                self._require_permission(bucket, found)
                self.delete(bucket, name)
                return Answer(204)
            elif request.method in ("PATCH", "PUT"):
                found = self._buckets[bucket][name] = _patched(found, json.loads(request.body), request.method == "PUT")
            else:
                raise Refused(501, f"{request.method} of an object is not served here.")
            return _json(found.resource(self.url))

    def _list(self, request: Request, bucket: str) -> Answer:
        if request.method != "GET":
            raise Refused(501, "Insert objects at /upload/.")
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("maxResults") or LISTED), MOST_LISTED[query.get("projection", "noAcl")])
        after = base64.b64decode(query.get("pageToken", "")).decode()
        fields = re.search(r"\bitems\(([^)]*)\)", query.get("fields", ""))
        wanted = set(fields[1].split(",")) if fields else None
        items: list[dict[str, Any]] = []
        folders: list[str] = []
        document: dict[str, Any] = {"kind": "storage#objects"}
        last = after
        for found in self._from(bucket, prefix, max(query.get("startOffset", ""), after)):
            name = found.name
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entry = name if cut < 0 else name[: cut + len(delimiter)]
            if entry <= after or entry in folders:
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                break
            if len(items) + len(folders) == limit:
                document["nextPageToken"] = base64.b64encode(last.encode()).decode()
                break
            if cut < 0:
                resource = found.resource(self.url)
                items.append({key: value for key, value in resource.items() if key in wanted} if wanted else resource)
            else:
                folders.append(entry)
            last = entry
        if items:
            document["items"] = items
        if folders:
            document["prefixes"] = folders
        return _json(document)

    def _from(self, bucket: str, prefix: str, start: str) -> Iterator[Object]:
        """The objects whose name starts with `prefix`, sorted by name, from the name `start` on."""
        with self._lock:
            objects = self._in(bucket)
            if bucket not in self._names:
                self._names[bucket] = sorted(objects)
            names = self._names[bucket]
        first = bisect.bisect_left(names, max(prefix, start))
        below = itertools.takewhile(lambda name: name.startswith(prefix), itertools.islice(names, first, None))
        there = (found for found in map(objects.get, below) if found)  # skips objects deleted meanwhile
        made = self._virtual[bucket](max(prefix, start)) if bucket in self._virtual else iter(())
        made = itertools.takewhile(lambda found: found.name.startswith(prefix), made)
        return heapq.merge(there, made, key=lambda found: found.name)

    def _upload(self, request: Request, bucket: str) -> Answer:
        how = request.query.get("uploadType")
        with self._lock:
            self._in(bucket)
        if how == "media":
            about = {"name": request.query.get("name"), "contentType": request.headers.get("content-type")}
            return _json(self._write(bucket, about, request.body, request.query).resource(self.url))
        if how == "multipart":
            about, content = _multipart(request)
            return _json(self._write(bucket, about, content, request.query).resource(self.url))
        if how != "resumable":
            raise Refused(400, f"uploadType is {how!r}; it must be media, multipart or resumable.")
        if request.method == "POST":
            return self._start_resumable(request, bucket)
        return self._resume(request)

    def _start_resumable(self, request: Request, bucket: str) -> Answer:
        about = {"contentType": request.headers.get("x-upload-content-type"), **json.loads(request.body or b"{}")}
        about["name"] = about.get("name") or request.query.get("name")
        with self._lock:
            found = self._in(bucket).get(str(about["name"]))
            self._require_permission(bucket, found)
            _require(request.query, found)
            key = uuid.uuid4().hex
            self._uploads[key] = _Upload(bucket, about, request.query)
        location = f"{self.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={key}"
        return Answer(200, b"", {"Location": location, "X-GUploader-UploadID": key})

    def _resume(self, request: Request) -> Answer:
        """Receive a chunk, or return the status of the upload (Content-Range: bytes */TOTAL)."""
        with self._lock:
            upload = self._uploads.get(request.query.get("upload_id", ""))
            if upload is None:
                raise Refused(404, "There is no such upload.")
            if upload.object is None:
                total = _take_chunk(upload.content, request)
                if total != len(upload.content):
                    held = {"Range": f"bytes=0-{len(upload.content) - 1}"} if upload.content else {}
                    return Answer(308, b"", held)
                upload.object = self._write(upload.bucket, upload.about, bytes(upload.content), upload.query)
                upload.content.clear()
            return _json(upload.object.resource(self.url))

    def _in(self, bucket: str) -> dict[str, Object]:
        if bucket not in self._buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self._buckets[bucket]

    def _find(self, bucket: str, name: str, query: Mapping[str, str]) -> Object:
        found = self._in(bucket).get(name)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise Refused(404, f"No such object: {bucket}/{name}")
        return found

    def _require_permission(self, bucket: str, found: Object | None) -> None:
        if found and bucket in self.create_only:
            raise Refused(403, "The account does not have storage.objects.delete access to the object.")

    def _write(
        self, bucket: str, about: Mapping[str, Any], content: bytes, query: Mapping[str, str] | None = None
    ) -> Object:
        """Write an object. `query`: the parameters of a client's request, whose permissions are checked."""
        name = str(about.get("name") or (query or {}).get("name") or "")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES or re.search(r"[\r\n]", name):
            raise Refused(400, f"The name is {len(name.encode())} bytes long, or has a line break.")
        with self._lock:
            if query is not None:
                self._require_permission(bucket, self._in(bucket).get(name))
                _require(query, self._in(bucket).get(name))
            self._in(bucket)
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            now = _now()
            written = Object(
                bucket,
                name,
                self._generation,
                content,
                about.get("contentType") or "application/octet-stream",
                about.get("contentEncoding") or "",
                about.get("metadata") or {},
                now,
                now,
            )
            for key, actual in (("crc32c", written.crc32c), ("md5Hash", written.md5)):
                if about.get(key, actual) != actual:
                    raise Refused(400, f"Provided {key} {about[key]!r} doesn't match calculated {key} {actual!r}.")
            self._buckets[bucket][name] = written
            self._names.pop(bucket, None)
            self.writes.append(Write(bucket, name, written.generation, hashlib.sha256(content).hexdigest()))
        if self._on_finalize:
            self._on_finalize(written)
        return written


def _patched(found: Object, changes: Mapping[str, Any], whole: bool) -> Object:
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
        updated=_now(),
        metageneration=found.metageneration + 1,
    )


def _media(found: Object, range_header: str) -> Answer:
    headers = {
        "Content-Type": found.content_type,
        "ETag": found.etag,
        "X-Goog-Generation": str(found.generation),
        "X-Goog-Metageneration": str(found.metageneration),
        "X-Goog-Hash": f"crc32c={found.crc32c},md5={found.md5}",
        "X-Goog-Stored-Content-Length": str(len(found.content)),
        "X-Goog-Stored-Content-Encoding": found.content_encoding or "identity",
        "Accept-Ranges": "bytes",
    }
    if found.content_encoding:
        headers["Content-Encoding"] = found.content_encoding
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", range_header)
    if not match or not (match[1] or match[2]):
        return Answer(200, found.content, headers)
    size = len(found.content)
    first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first >= size:
        raise Refused(416, f"The requested range cannot be satisfied: the object has {size} bytes.")
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(206, found.content[first : last + 1], headers)


def _multipart(request: Request) -> tuple[dict[str, Any], bytes]:
    """The two parts of multipart/related: the resource as JSON, and the content."""
    head = f"Content-Type: {request.headers.get('content-type', '')}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head, headersonly=True)
    boundary = message.get_boundary()
    if not boundary:
        raise Refused(400, "A multipart upload needs a boundary.")
    # Not with the email parser, which would change line ends in the content.
    pieces = request.body.split(b"--" + boundary.encode())
    if len(pieces) != 4 or pieces[3].strip() != b"--":
        raise Refused(400, "A multipart upload has exactly two parts.")
    (_, resource), (head, content) = (
        piece.removesuffix(b"\r\n").split(b"\r\n\r\n", maxsplit=1) for piece in pieces[1:3]
    )
    content_type = BytesParser(policy=HTTP).parsebytes(head.lstrip(), headersonly=True).get_content_type()
    return {"contentType": content_type, **json.loads(resource)}, content


def _take_chunk(content: bytearray, request: Request) -> int | None:
    """Append the request's chunk. Returns the total size, or None if it is not known yet. Raises Refused."""
    whole = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", ""))
    if whole is None:  # the content in one piece
        content[:] = request.body
        return len(request.body)
    total = None if whole[3] == "*" else int(whole[3])
    if whole[1] is None:
        return total
    first, last = int(whole[1]), int(whole[2])
    if last - first + 1 != len(request.body) or first > len(content):
        raise Refused(400, f"Chunk {first}-{last} with {len(request.body)} bytes does not fit at {len(content)}.")
    if last + 1 != total and len(request.body) % CHUNK_STEP:
        raise Refused(400, f"Every chunk but the last is a multiple of {CHUNK_STEP} bytes.")
    content.extend(request.body[len(content) - first :])
    return total


# HTTP


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    cloud: Cloud

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors from closed connections; other errors are bugs and are printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""

    def do_GET(self) -> None:
        """Handle any method, with injected faults."""
        cloud, url = self.server.cloud, urlsplit(self.path)
        cloud.requests.append((self.command, unquote(self.path)))
        time.sleep(cloud.latency)
        fault = cloud.faults.draw(self.command, unquote(self.path))
        media = url.path.startswith("/download/")
        self._unread = int(self.headers.get("Content-Length") or 0)
        try:
            try:
                self._strike(fault, "before")
                has_body = self._unread > 0
                body = self._read(fault)
                query = dict(parse_qsl(url.query, keep_blank_values=True))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = cloud.answer(Request(self.command, unquote(url.path), query, headers, body))
                self._strike(fault, "after")
            except Refused as error:
                answer, has_body = _error(error, media), True
            self._send(answer, None if has_body else fault)
        except _Cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _strike(self, fault: Fault | None, when: str) -> None:
        if fault:
            fault.strike(when)

    def _read(self, fault: Fault | None) -> bytes:
        half = self._unread // 2
        body = self._receive(half)
        if self._unread:
            self._strike(fault, "half")
        return body + self._receive(self._unread)

    def _receive(self, size: int) -> bytes:
        data = self.rfile.read(size) if size else b""
        self._unread -= len(data)
        if len(data) < size:
            raise _Cut  # the client disconnected: an incomplete body is not written
        return data

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        self._receive(self._unread)  # an unread body would be parsed as the next request
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        empty = answer.status in (204, 304)
        if not empty:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not empty and self.command != "HEAD":
            half = len(answer.body) // 2
            self.wfile.write(answer.body[:half])
            if fault:
                self.wfile.flush()
            try:
                self._strike(fault, "half")
            except Refused:
                raise _Cut from None  # too late for another status
            self.wfile.write(answer.body[half:])
        self.wfile.flush()


def main(arguments: list[str]) -> None:
    """Serve the given buckets until interrupted."""
    port, *buckets = arguments
    with Cloud(int(port)) as cloud:
        for bucket in buckets:
            cloud.create_bucket(bucket)
        print(f"STORAGE_EMULATOR_HOST={cloud.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
