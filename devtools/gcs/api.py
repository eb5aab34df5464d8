"""The JSON API of Cloud Storage (https://cloud.google.com/storage/docs/json_api/v1)."""

from __future__ import annotations

import base64
import json
import re
import uuid
from typing import Any
from urllib.parse import quote

from devtools.gcs.messages import Answer, Refused, Request, json_answer
from devtools.gcs.objects import Object, patched, require
from devtools.gcs.storage import Storage
from devtools.gcs.uploads import Upload, multipart, take_chunk

LISTED, MOST_LISTED = 1000, {"noAcl": 5000, "full": 2000}
"""Number of objects that a call lists by default, and at most by projection. gcsfuse relies on the latter."""


class Api:
    """The API of `storage`; `url` is the address of its server."""

    def __init__(self, storage: Storage, url: str) -> None:
        self._storage, self._url = storage, url
        self._uploads: dict[str, Upload] = {}

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
        with self._storage.lock:
            if request.method == "POST" and not name:
                name = json.loads(request.body)["name"]
                if name in self._storage.buckets:
                    raise Refused(409, "Your previous request to create the named bucket succeeded and you own it.")
                self._storage.create_bucket(name)
            elif request.method != "GET":
                raise Refused(501, f"{request.method} of a bucket is not served here.")
            self._storage.contents(name)
            about = {"kind": "storage#bucket", "id": name, "name": name, "location": "US", "metageneration": "1"}
            return json_answer(about)

    def _object(self, request: Request, bucket: str, name: str) -> Answer:
        reading = request.method in ("GET", "HEAD")
        with self._storage.lock:
            found = self._storage.find(bucket, name, request.query)
            require(request.query, found, reading)
            if reading:
                if request.query.get("alt") == "media":
                    return _media(found, request.headers.get("range", ""))
            elif request.method == "DELETE":
                self._storage.require_permission(bucket, found)
                self._storage.delete(bucket, name)
                return Answer(204)
            elif request.method in ("PATCH", "PUT"):
                found = patched(found, json.loads(request.body), request.method == "PUT")
                self._storage.change(found)
            else:
                raise Refused(501, f"{request.method} of an object is not served here.")
            return json_answer(found.resource(self._url))

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
        for found in self._storage.sorted_from(bucket, prefix, max(query.get("startOffset", ""), after)):
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
                resource = found.resource(self._url)
                items.append({key: value for key, value in resource.items() if key in wanted} if wanted else resource)
            else:
                folders.append(entry)
            last = entry
        if items:
            document["items"] = items
        if folders:
            document["prefixes"] = folders
        return json_answer(document)

    def _upload(self, request: Request, bucket: str) -> Answer:
        how = request.query.get("uploadType")
        with self._storage.lock:
            self._storage.contents(bucket)
        if how == "media":
            about = {"name": request.query.get("name"), "contentType": request.headers.get("content-type")}
            return json_answer(self._storage.write(bucket, about, request.body, request.query).resource(self._url))
        if how == "multipart":
            about, content = multipart(request)
            return json_answer(self._storage.write(bucket, about, content, request.query).resource(self._url))
        if how != "resumable":
            raise Refused(400, f"uploadType is {how!r}; it must be media, multipart or resumable.")
        if request.method == "POST":
            return self._start_resumable(request, bucket)
        return self._resume(request)

    def _start_resumable(self, request: Request, bucket: str) -> Answer:
        about = {"contentType": request.headers.get("x-upload-content-type"), **json.loads(request.body or b"{}")}
        about["name"] = about.get("name") or request.query.get("name")
        with self._storage.lock:
            found = self._storage.contents(bucket).get(str(about["name"]))
            self._storage.require_permission(bucket, found)
            require(request.query, found)
            key = uuid.uuid4().hex
            self._uploads[key] = Upload(bucket, about, request.query)
        location = f"{self._url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={key}"
        return Answer(200, b"", {"Location": location, "X-GUploader-UploadID": key})

    def _resume(self, request: Request) -> Answer:
        """Receive a chunk, or return the status of the upload (Content-Range: bytes */TOTAL)."""
        with self._storage.lock:
            upload = self._uploads.get(request.query.get("upload_id", ""))
            if upload is None:
                raise Refused(404, "There is no such upload.")
            if upload.object is None:
                total = take_chunk(upload.content, request)
                if total != len(upload.content):
                    held = {"Range": f"bytes=0-{len(upload.content) - 1}"} if upload.content else {}
                    return Answer(308, b"", held)
                upload.object = self._storage.write(upload.bucket, upload.about, bytes(upload.content), upload.query)
                upload.content.clear()
            return json_answer(upload.object.resource(self._url))


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
