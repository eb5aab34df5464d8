"""Read the photos of Label Studio's tasks.

| address | read |
|---|---|
| `https://...` | like any URL; with Label Studio's token if it is on Label Studio |
| `/data/upload/...`, `/data/local-files/?d=...`, any path | from Label Studio, with its token |
| `gs://bucket/...` | from the bucket, if it is SEGMENT_INPUT_BUCKET; otherwise like `s3://` |
| `s3://...`, `azure-blob://...` | through a signed URL that Label Studio creates for the task |
| `data:image/...;base64,...` | from the address itself |

The service's own credentials are only used for the bucket in its settings. Otherwise, anyone who can call the service
could have any photo segmented that the service can read. label_studio_sdk resolves the same addresses
(label_studio_sdk/_extensions/label_studio_tools/core/utils/io.py).
"""

from __future__ import annotations

import base64
import json
import logging
from contextlib import suppress
from functools import cached_property
from typing import Any

from segment.bucket.objects import read_into
from segment.bucket.store import find, open_store
from segment.errors import FetchError, RequestError, StorageError
from segment.labelling.labelstudio import CLOUD
from segment.settings import Settings
from segment.web.address import parse
from segment.web.client import Limits
from segment.web.exchange import Exchange
from segment.web.fetch import Site, post
from segment.web.upload import from_base64

log = logging.getLogger(__name__)

TOKEN_BYTES = 1 << 16
"""Maximum length of Label Studio's answer with an access token."""


class TaskPhotos:
    """Reads the photos of the tasks of one request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read(self, exchange: Exchange, task: dict[str, Any], field: str) -> bytes:
        """Read the photo at the address in `field` of the task's data, with memory reserved by `exchange`.

        Raises RequestError, RefusedURL, FetchError, TooLarge, Busy.
        """
        address = task["data"].get(field)
        if not isinstance(address, str) or not address:
            raise RequestError(f"`{field[:100]}` in the data of the task must be the address of a photo.")
        if address.startswith("data:"):
            exchange.held.grow(len(address))
            return from_base64(address)
        bucket, _, name = address.removeprefix("gs://").partition("/")
        if address.startswith("gs://") and bucket and bucket == self._settings.input_bucket:
            return self._read_object(exchange, bucket, name)
        if address.startswith(("http://", "https://")):
            return exchange.fetch(address, self._site if self._is_label_studio(address) else None)
        if self._site is None:
            raise RequestError(
                f"The photo {address[:200]!r} can only be read through Label Studio. Set SEGMENT_LABEL_STUDIO_URL and "
                "SEGMENT_LABEL_STUDIO_TOKEN so that this service can fetch it."
            )
        if address.startswith(CLOUD):
            identity = base64.urlsafe_b64encode(address.encode()).decode()
            path = f"/tasks/{task.get('id')}/presign/?fileuri={identity}"
        else:
            path = "/" + address.removeprefix("/")
            path = f"/data{path}" if path.startswith("/upload/") else path
        return exchange.fetch(self._site.address.rstrip("/") + path, self._site)

    def _is_label_studio(self, url: str) -> bool:
        address = self._settings.label_studio_url
        return bool(address) and Site(address, {}).has(parse(url))

    @cached_property
    def _site(self) -> Site | None:
        """Label Studio, if its address is in the settings. Raises FetchError if it does not accept the token.

        A personal access token (a JWT, which contains two dots) is exchanged for one that is valid for some minutes.
        """
        settings = self._settings
        address, token = settings.label_studio_url, settings.label_studio_token
        if not address or not token:
            return Site(address, {}) if address else None
        if token.count(".") != 2:
            return Site(address, {"Authorization": f"Token {token}"})
        limits, access = Limits(TOKEN_BYTES, settings.fetch_seconds), ""
        with suppress(ValueError, KeyError, TypeError):
            answer = post(Site(address, {}), "/api/token/refresh/", {"refresh": token}, limits)
            access = str(json.loads(answer)["access"])
        if not access.isprintable() or not access:
            raise FetchError("Label Studio answered without an access token. Check SEGMENT_LABEL_STUDIO_URL.")
        return Site(address, {"Authorization": f"Bearer {access}"})

    def _read_object(self, exchange: Exchange, bucket: str, name: str) -> bytes:
        limit = exchange.service.upload_limit
        try:
            store = open_store(f"gs://{bucket}", self._settings.storage_seconds).store
            item = find(store, name)
            data = read_into(exchange.held, store, item, limit) if item else None
        except StorageError as error:
            log.warning("%s", error)
            raise FetchError(f"gs://{bucket}/{name[:200]} could not be read; try again later.") from None
        if data is None:
            raise FetchError(f"gs://{bucket}/{name[:200]} does not exist.")
        return data
