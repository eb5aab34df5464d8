"""What was in a bucket, or a folder, before anyone listened: the same work as for an event, object after object.

Nothing is remembered between runs: an object whose results are there is done, so a run that was stopped is taken up
again by starting it again, and runs beside events do no harm. Several tasks share a bucket by the hash of each name.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segment.bucket.objects import describe, is_result, segment_object
from segment.bucket.store import Object, Store, open_store, overlap
from segment.errors import Busy, ModelError, SettingsError, StorageError
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

WORKERS = 2
"""Objects in hand at once: while one is read or written, the other is in the network. More would only fill memory."""
LOG_SECONDS = 30.0
"""How often progress is logged where nobody watches a bar."""
FAILED = "failed for now"


def run(source: str, destination: str, service: Service, environment: Mapping[str, str], workers: int = WORKERS) -> int:
    """Segment every object below `source` that falls to this task; write results to `destination`.

    Each is gs://bucket/prefix or a folder; an empty destination is the output bucket of the settings. The environment
    says which task this is. Returns 0 when all are done, those refused for good included, and 1 if any failed in a way
    that may pass later. Raises SettingsError, ModelError, StorageError.
    """
    settings = service.settings
    index, count = task(environment)
    photos, photos_prefix = _source(source, settings)
    results, results_prefix = _destination(destination, settings)
    if overlap(f"{photos.address}/{photos_prefix}", f"{results.address}/{results_prefix}"):
        raise SettingsError(
            f"The results at {results.address}/{results_prefix} would be read as photos from "
            f"{photos.address}/{photos_prefix}: one is inside the other. Choose another place for the results."
        )
    service.load()
    with _progress() as progress:
        mine = _Shared(item for item in photos.objects(photos_prefix) if falls_to(item, index, count))

        def work() -> None:
            while (item := mine.next()) is not None:
                progress.count(_segment(service, photos, item, results, results_prefix))

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work) for _ in range(workers)]
            try:
                for future in futures:
                    future.result()
            finally:
                mine.close()
    return 1 if progress.counts[FAILED] else 0


def task(environment: Mapping[str, str]) -> tuple[int, int]:
    """This task's index and the number of tasks, as Cloud Run tells a job's; (0, 1) elsewhere. Raises SettingsError."""
    words = environment.get("CLOUD_RUN_TASK_INDEX", "0"), environment.get("CLOUD_RUN_TASK_COUNT", "1")
    if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise SettingsError(
            f"CLOUD_RUN_TASK_INDEX is {words[0]!r} and CLOUD_RUN_TASK_COUNT is {words[1]!r}; "
            "they must be whole numbers, the first less than the second."
        )
    return int(words[0]), int(words[1])


def falls_to(item: Object, index: int, count: int) -> bool:
    """Whether an object is a photo's, and falls to task `index` of `count`."""
    if item.name.endswith("/") or is_result(item):
        return False
    return zlib.crc32(item.name.encode("utf-8", "surrogateescape")) % count == index


def _source(address: str, settings: Settings) -> tuple[Store, str]:
    if not address.startswith("gs://") and not Path(address).is_dir():
        raise SettingsError(f"{address!r} is no folder; give one, or gs://bucket/prefix.")
    return open_store(address, settings.storage_seconds)


def _destination(address: str, settings: Settings) -> tuple[Store, str]:
    if address:
        store, prefix = open_store(address, settings.storage_seconds)
        return store, prefix if not prefix or prefix.endswith("/") else prefix + "/"
    if not settings.output_bucket:
        raise SettingsError("Say where results go: as the second argument, or by SEGMENT_OUTPUT_BUCKET.")
    return open_store(f"gs://{settings.output_bucket}/{settings.output_prefix}", settings.storage_seconds)


def _segment(service: Service, source: Store, item: Object, destination: Store, prefix: str) -> str:
    """What became of the object, in a word."""
    try:
        return segment_object(service, source, item, destination, prefix).kind
    except (StorageError, Busy, ModelError) as error:
        log.error("%s: %s: %s", item.name, FAILED, error, extra=describe(source, item))
    except Exception:
        log.exception("%s: %s: unexpected error", item.name, FAILED, extra=describe(source, item))
    return FAILED


class _Shared:
    """An iterator that several threads draw from."""

    def __init__(self, items: Iterator[Object]) -> None:
        self._items: Iterator[Object] | None = items
        self._lock = threading.Lock()

    def next(self) -> Object | None:
        """The next item; None at the end."""
        with self._lock:
            return next(self._items, None) if self._items else None

    def close(self) -> None:
        """Let this be the end."""
        with self._lock:
            self._items = None


# Progress


class _Progress:
    """How many objects came to what: shown on the bar, or else logged now and then."""

    def __init__(self, bar: Any = None) -> None:
        self.counts: Counter[str] = Counter()
        self._bar = bar
        self._lock = threading.Lock()
        self._logged = time.monotonic()

    def count(self, kind: str) -> None:
        """One more object is done."""
        with self._lock:
            self.counts[kind] += 1
            if self._bar is not None:
                self._bar.set_postfix_str(summary(self.counts), refresh=False)
                self._bar.update()
            elif time.monotonic() - self._logged > LOG_SECONDS:
                self._logged = time.monotonic()
                log.info("Backfill: %s", summary(self.counts))


@contextmanager
def _progress() -> Iterator[_Progress]:
    """A bar on a terminal, log entries elsewhere; a summary at the end."""
    if sys.stderr.isatty():
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        with tqdm(unit=" objects") as bar, logging_redirect_tqdm(), _only_warnings("segment.bucket.objects"):
            yield (progress := _Progress(bar))
    else:
        yield (progress := _Progress())
    level = logging.WARNING if progress.counts[FAILED] else logging.INFO
    log.log(level, "Backfill done: %s", summary(progress.counts), extra={"counts": dict(progress.counts)})


@contextmanager
def _only_warnings(name: str) -> Iterator[None]:
    """Keep a logger from logging what the bar counts."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def summary(counts: Mapping[str, int]) -> str:
    """3 segmented, 1 refused"""
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number) or "nothing to do"
