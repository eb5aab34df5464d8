"""Cloud Storage as a store, with Google's client library.

Failed requests are retried with backoff until the call's time limit. Retries are safe, because reads specify the
generation and writes require that the object does not exist (https://cloud.google.com/storage/docs/retry-strategy). If
the response to a write was lost, the retry is refused, and the object exists. A 403 because of an exceeded quota is an
error that may pass (StorageError), not one of permissions (StorageRefused).

Objects are downloaded as stored and decompressed here (content-encoding gzip), because the checksum is that of the
stored bytes.
"""

from __future__ import annotations

import base64
import io
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import google_crc32c
from google.api_core.exceptions import BadRequest, Forbidden, GoogleAPIError, NotFound, PreconditionFailed
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage import Blob, Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException
from requests.adapters import HTTPAdapter

from segment.bucket.store import Object
from segment.bucket.store.answer import explanation, is_quota
from segment.errors import CorruptImage, StorageError, StorageRefused, TooLarge

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
"""Read timeout of a connection, after which the request is retried."""
LAST_SECONDS = 1.0
"""Time limit of a call that starts after the deadline."""
CONNECTIONS = 32
"""Size of the connection pool; as many threads can make calls at once."""
CHUNK_BYTES = 8 << 20
"""Larger results are uploaded in chunks of this size, each of which is copied."""
REPLACE_CHUNK_BYTES = 2 << 20
"""Size of the chunks of an object that is written from pieces. Two of them are in memory. With 8 MiB, the
upload of the dataset of 30,000 photos raised a backfill's memory by 15 MiB."""
PAGE = 5000
"""Number of objects that a call is asked to list. Cloud Storage lists 1,000 by default, and its
documentation recommends no more; Google's gcsfuse relies on 5,000 with `projection=noAcl`, the client's default. A
server that lists fewer at a time is called more often."""
LISTED = "items(name,generation,size,crc32c,metadata),nextPageToken"
"""The fields that are requested when listing objects."""


@cache
def client() -> Client:
    """The client of this process with its connection pool, created on first use."""
    # Otherwise the client looks up every bucket in the background, for traces that are not recorded here.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    made = Client(project=None)
    for scheme in ("https://", "http://"):
        made._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))  # noqa: SLF001 - there is no public way
    return made


class Bucket:
    """A Store in a bucket.

    Failed calls are retried for `seconds`, or until `deadline` (time.monotonic()) if that is earlier; the last attempt
    may take READ_SECONDS longer. A call that starts after the deadline has LAST_SECONDS, so that work that is almost
    finished can be completed.
    """

    def __init__(self, name: str, seconds: float, deadline: float = math.inf) -> None:
        self.name = name
        self._seconds, self._deadline = seconds, deadline

    @property
    def seconds(self) -> float:
        """Time limit of a call that starts now."""
        return min(self._seconds, max(LAST_SECONDS, self._deadline - time.monotonic()))

    @property
    def _call(self) -> dict[str, Any]:
        seconds = self.seconds
        return {
            "timeout": (min(CONNECT_SECONDS, seconds), min(READ_SECONDS, seconds)),
            "retry": DEFAULT_RETRY.with_timeout(seconds).with_delay(initial=min(1.0, seconds / 60), maximum=10.0),
        }

    @property
    def address(self) -> str:
        """gs://bucket"""
        return f"gs://{self.name}"

    def objects(self, prefix: str = "", start: str = "", end: str = "", most: int = 0) -> Iterator[Object]:
        """The objects whose names start with `prefix` and are from `start` up to `end`, PAGE of them per call."""
        where: dict[str, Any] = {"prefix": prefix or None, "start_offset": start or None, "end_offset": end or None}
        where |= {"page_size": PAGE, "max_results": most or None}
        with self._as_storage_error("list"):
            for blob in client().list_blobs(self.name, fields=LISTED, **where, **self._call):
                yield Object(blob.name, blob.generation, blob.size, blob.crc32c, blob.metadata or {})

    def read(self, item: Object, limit: int) -> bytes | None:
        """Read that generation, verified and decompressed; None if it was deleted or overwritten."""
        if item.size is not None and item.size > limit:
            raise TooLarge(_too_large(limit, item.size))
        sink = _Sink(limit, self.seconds)
        with self._as_storage_error("read"):
            blob = client().bucket(self.name).blob(item.name, generation=item.generation)
            try:
                blob.download_to_file(sink, raw_download=True, **self._call)
            except NotFound:
                self._require_bucket()
                return None
        data = sink.getvalue()
        self._verify(data, blob, item)
        return _unpack(data, limit) if blob.content_encoding == "gzip" else data

    def _require_bucket(self) -> None:
        """Raise NotFound if the bucket does not exist. Only needs the permission to list objects."""
        next(iter(client().list_blobs(self.name, max_results=1, **self._call)), None)

    def _verify(self, data: bytes, blob: Blob, item: Object) -> None:
        """Compare the bytes with the object's checksum. The client does not do this after resuming a download."""
        expected = item.crc32c or blob.crc32c
        if expected and base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode() != expected:
            raise StorageError(f"The download of {self.address}/{item.name} does not match its checksum.")

    def write(self, name: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Write an object; False if it exists already."""
        with self._as_storage_error("write"):
            blob = client().bucket(self.name).blob(name, chunk_size=CHUNK_BYTES)
            blob.metadata = dict(metadata)
            try:
                blob.upload_from_string(body, content_type, if_generation_match=0, **self._call)
            except (PreconditionFailed, Forbidden):
                # An account that may not replace objects may get a 403 for one that exists, instead of a 412.
                if not self._exists(name):
                    raise  # after a 412, it existed and was deleted: a retry may succeed
                return False
            except NotFound as error:  # of the bucket, or of a resumable upload that has expired
                self._require_bucket()
                raise StorageError(f"Could not write in {self.address}: {explanation(error)}") from error
        return True

    def _exists(self, name: str) -> bool:
        """Whether the object exists; False if the account may not read it."""
        try:
            return bool(client().bucket(self.name).blob(name).exists(**self._call))
        except Forbidden:
            return False

    def replace(self, name: str, pieces: Iterable[bytes], content_type: str, metadata: Mapping[str, str]) -> None:
        """Write an object in a resumable upload, REPLACE_CHUNK_BYTES at a time, and replace an existing one."""
        with self._as_storage_error("write"):
            blob = client().bucket(self.name).blob(name)
            blob.metadata = dict(metadata)
            upload = blob.open("wb", chunk_size=REPLACE_CHUNK_BYTES, content_type=content_type, **self._call)
            try:
                with upload:
                    for piece in pieces:
                        upload.write(piece)  # an error ends the upload without an object
            except BaseException:
                if not upload.closed:  # when it is deleted, Python would close it, which uploads again
                    with suppress(Exception):
                        upload.terminate()
                raise

    def delete(self, item: Object) -> None:
        """Delete that generation, if it still exists."""
        with self._as_storage_error("delete"), suppress(NotFound, PreconditionFailed):
            blob = client().bucket(self.name).blob(item.name)
            blob.delete(if_generation_match=item.generation, **self._call)

    @contextmanager
    def _as_storage_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BadRequest, Forbidden, NotFound) as error:
            kind = StorageError if is_quota(error) else StorageRefused
            raise kind(f"Could not {what} in {self.address}: {explanation(error)}") from error
        except (GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, RequestException, OSError) as error:
            raise StorageError(f"Could not {what} in {self.address}: {explanation(error)}") from error


class _Sink(io.BytesIO):
    """The target of a download, with limits of size and time."""

    def __init__(self, limit: int, seconds: float) -> None:
        super().__init__()
        self._limit = limit
        self._deadline = time.monotonic() + seconds

    def write(self, data: Any) -> int:
        """Append `data`. Raises TooLarge, StorageError."""
        if self.tell() + len(data) > self._limit:
            raise TooLarge(_too_large(self._limit))
        if time.monotonic() > self._deadline:
            raise StorageError("The download exceeded its time limit.")
        return super().write(data)


def _unpack(data: bytes, limit: int) -> bytes:
    """Decompress gzip, up to `limit` bytes. Raises TooLarge, CorruptImage."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, limit + 1)
    except zlib.error:
        raise CorruptImage(_NO_GZIP) from None
    if len(content) > limit:
        raise TooLarge(_too_large(limit))
    if not unpacker.eof:
        raise CorruptImage(_NO_GZIP)
    return content


_NO_GZIP = "The object's content-encoding is gzip, but its content is not gzip, or is truncated."


def _too_large(limit: int, size: int | None = None) -> str:
    found = f"has {size:,} bytes" if size else "is larger when decompressed than the maximum"
    return f"The object {found}; the maximum is {limit:,} bytes."
