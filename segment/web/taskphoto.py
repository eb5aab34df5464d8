"""The photo of a Label Studio task: wherever its address points.

| address | read |
|---|---|
| `https://...` | as any URL; with Label Studio's token if it is on Label Studio |
| `/data/upload/...`, `/data/local-files/?d=...`, any path | from Label Studio, with its token |
| `gs://bucket/...` | from the bucket, if it is SEGMENT_INPUT_BUCKET; else as below |
| `s3://...`, `azure-blob://...` | through a signed URL that Label Studio makes from its own storage's credentials |
| `data:image/...;base64,...` | from the address itself |

The service's own credentials read no bucket but the one that the operator names: whoever may call the service would
otherwise read every bucket that it may read. (label_studio_sdk, label_studio_tools/core/utils/io.py resolves the same.)
"""

from __future__ import annotations

import base64
import logging
from typing import Any

from segment.errors import FetchError, RequestError, StorageError
from segment.settings import Settings
from segment.web.exchange import Exchange
from segment.web.fetch import Site
from segment.web.upload import from_base64

log = logging.getLogger(__name__)

CLOUD = ("gs://", "s3://", "azure-blob://")


def read_photo(exchange: Exchange, task: dict[str, Any], field: str) -> bytes:
    """The photo that `field` of the task's data names. Raises RequestError, RefusedURL, FetchError, TooLarge, Busy."""
    address = task["data"].get(field)
    if not isinstance(address, str) or not address:
        raise RequestError(f"The data of the task has no address of a photo in `{field[:100]}`.")
    if address.startswith("data:"):
        exchange.held.grow(len(address))
        return from_base64(address)
    settings = exchange.service.settings
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if address.startswith("gs://") and bucket == settings.input_bucket:
        return _read_object(exchange, bucket, name)
    if address.startswith(CLOUD):
        identity = base64.urlsafe_b64encode(address.encode()).decode()
        address = f"/tasks/{task.get('id')}/presign/?fileuri={identity}"
    site = _site(settings)
    if address.startswith(("http://", "https://")):
        return exchange.fetch(address, site)
    if site is None:
        raise RequestError(
            f"The address {address[:200]!r} is one of Label Studio's own. Set SEGMENT_LABEL_STUDIO_URL and "
            "SEGMENT_LABEL_STUDIO_TOKEN so that this service can fetch it."
        )
    path = address if address.startswith("/") else f"/{address}"
    path = f"/data{path}" if path.startswith("/upload/") else path
    return exchange.fetch(site.address.rstrip("/") + path, site)


def _site(settings: Settings) -> Site | None:
    if not settings.label_studio_url:
        return None
    token = settings.label_studio_token
    return Site(settings.label_studio_url, {"Authorization": f"Token {token}"} if token else {})


def _read_object(exchange: Exchange, bucket: str, name: str) -> bytes:
    from segment.bucket.store import open_store

    settings, limit = exchange.service.settings, exchange.service.upload_limit
    try:
        store, _ = open_store(f"gs://{bucket}", settings.storage_seconds)
        item = next((item for item in store.objects(name, name) if item.name == name), None)
        exchange.held.grow((item and item.size) or 0)
        data = store.read(item, limit) if item else None
    except StorageError as error:
        log.warning("%s", error)
        raise FetchError(f"gs://{bucket}/{name[:200]} cannot be read by this service now.") from None
    if data is None:
        raise FetchError(f"There is no gs://{bucket}/{name[:200]}.")
    return data
