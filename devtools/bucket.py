"""A local bucket for development: photos from one folder are segmented, and the results are written to another.

Runs the tests' storage server and the real handler (functions-framework with `segment_object`). Like Pub/Sub, this tool
delivers the event of each new object until it is acknowledged. Files in the photos folder are uploaded to the bucket
`photos`; objects that the handler writes to the bucket `results` are copied to the results folder.

`python -m devtools.bucket [PHOTOS RESULTS]`; SEGMENT_ settings are passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from devtools.events import pubsub
from devtools.gcs import Cloud, Object
from devtools.server import free_port, start
from segment.bucket.store import Object as File
from segment.bucket.store.folder import Folder

PHOTOS, RESULTS = Path(".cache/bucket/photos"), Path(".cache/bucket/results")
POLL_SECONDS = 0.5
REDELIVERY_SECONDS = (1.0, 30.0)
"""The first and the longest pause between delivery attempts, in seconds."""


def main(arguments: list[str]) -> int:
    """Run until SIGINT or SIGTERM, or until the handler ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # background jobs of a shell ignore SIGINT by default
        signal.signal(number, signal.default_int_handler)
    photos, results = (Folder(path) for path in (arguments or (PHOTOS, RESULTS)))
    photos.path.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{(port := free_port())}"
    stopped = threading.Event()

    def finalized(written: Object) -> None:
        if written.bucket == "photos":
            deliveries.submit(deliver, url, written, stopped)
        else:
            results.write(written.name, written.content, written.content_type, written.metadata)
            print(f"  -> {results.path / written.name}", flush=True)

    with ThreadPoolExecutor(4) as deliveries, Cloud(on_finalize=finalized) as cloud:
        cloud.create_bucket("photos")
        cloud.create_bucket("results")
        own = {name: value for name, value in os.environ.items() if name.startswith("SEGMENT_")}
        ours = {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_OUTPUT_BUCKET": "results"}
        handler = start("segment_object", port, own | ours)
        print(f"Drop photos into {photos.path}\nand find results in {results.path}  (Ctrl-C stops it)", flush=True)
        try:
            watch(photos, results, cloud, lambda: handler.poll() is None)
        except KeyboardInterrupt:
            pass
        finally:
            stopped.set()
            handler.terminate()
        return handler.wait()


def watch(photos: Folder, results: Folder, cloud: Cloud, running: Callable[[], bool]) -> None:
    """Upload each new or changed file to the bucket, once its size no longer changes."""
    seen = {item.name: item for item in photos.objects() if (results.path / item.name).is_dir()}
    growing: dict[str, File] = {}
    while running():
        for item in photos.objects():
            if item == seen.get(item.name):
                continue
            if item != growing.get(item.name):
                growing[item.name] = item
                continue
            seen[item.name] = item
            data = photos.read(item, sys.maxsize)
            if data is not None:
                cloud.put("photos", item.name, data)
        time.sleep(POLL_SECONDS)


def deliver(url: str, written: Object, stopped: threading.Event) -> None:
    """Push the event until it is acknowledged."""
    pause, longest = REDELIVERY_SECONDS
    while not stopped.is_set():
        with contextlib.suppress(requests.RequestException):
            if pubsub(url, written).ok:
                return
        stopped.wait(pause)
        pause = min(2 * pause, longest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
