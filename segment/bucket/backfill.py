"""Segment what is in a bucket or a folder already: for each object the same work as for an event.

Nothing is remembered between runs: an object whose results are there is done. So a run that was stopped continues when
it is started again, and runs beside events do no harm. Photos and results are listed in step, which costs one call per
1,000 photos and one per 1,000 results, and no other call for a photo that is done. Several tasks share a bucket by
ranges of names (shares.py).

A backfill is in no hurry: it waits for memory as long as it takes, and a page of the listing that fails is asked for
again, with growing pauses. SIGTERM ends it at once, as results are only ever written whole.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from segment.bucket import shares
from segment.bucket.listing import Range, beside_results, listed
from segment.bucket.objects import describe, is_done, is_result, segment_object
from segment.bucket.results import Results
from segment.bucket.store import Object, Store, open_store, overlap
from segment.errors import Busy, ModelError, SettingsError, StorageError
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

WORKERS = 16
"""Objects that are worked on at once, most of which wait for storage or for memory: enough to keep two cores busy when
a storage call takes 60 ms (benchmarks/backfill.py)."""
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
    own = shares.agreed(
        photos, photos_prefix, results, results_prefix, environment.get("CLOUD_RUN_EXECUTION", ""), index, count
    )
    with _progress() as progress:
        todo = _Shared(
            itertools.chain.from_iterable(
                unfinished(service, photos, photos_prefix, results, results_prefix, names, progress) for names in own
            )
        )

        def work() -> None:
            while (next_one := todo.next()) is not None:
                progress.count(_segment(service, photos, *next_one, results, results_prefix))

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work) for _ in range(workers)]
            try:
                for future in futures:
                    future.result()
            finally:
                todo.close()
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


def unfinished(
    service: Service,
    photos: Store,
    prefix: str,
    results: Store,
    results_prefix: str,
    names: Range,
    progress: Progress,
) -> Iterator[tuple[Object, Results | None]]:
    """The photos in the range that are not done, each with what is there of its results if that is known.

    Those that are done are counted as such. Raises StorageError, ModelError.
    """
    new = (item for item in listed(photos, prefix, names) if not item.name.endswith("/") and not is_result(item))
    for photo, there in beside_results(new, prefix, results, results_prefix, names):
        if there and is_done(service, results, there):
            progress.count("done before")
        else:
            yield photo, there


def patient(settings: Settings) -> Settings:
    """The settings with which a backfill waits for memory as long as it takes."""
    return replace(settings, wait_seconds=math.inf, queue=max(settings.queue, WORKERS))


def end_on_sigterm() -> None:
    """Let SIGTERM end this process at once, also as process 1, which the kernel would shield from it."""

    def end(number: int, frame: FrameType | None) -> None:
        log.warning("Stopped by SIGTERM. The next run continues with what has no results yet.")
        sys.stdout.flush()
        os._exit(128 + number)  # threads in the middle of a storage call or of the network are not waited for

    signal.signal(signal.SIGTERM, end)


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


def _segment(
    service: Service, source: Store, item: Object, there: Results | None, destination: Store, prefix: str
) -> str:
    """What became of the object, in a word."""
    try:
        return segment_object(service, source, item, destination, prefix, there=there).kind
    except (StorageError, Busy, ModelError) as error:
        log.error("%s: %s: %s", item.name, FAILED, error, extra=describe(source, item))
    except Exception:
        log.exception("%s: %s: unexpected error", item.name, FAILED, extra=describe(source, item))
    return FAILED


class _Shared:
    """An iterator that several threads draw from."""

    def __init__(self, items: Iterator[tuple[Object, Results | None]]) -> None:
        self._items: Iterator[tuple[Object, Results | None]] | None = items
        self._lock = threading.Lock()

    def next(self) -> tuple[Object, Results | None] | None:
        """The next item; None at the end."""
        with self._lock:
            return next(self._items, None) if self._items else None

    def close(self) -> None:
        """Let this be the end."""
        with self._lock:
            self._items = None


# Progress


class Progress:
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
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, log entries elsewhere; a summary at the end."""
    if sys.stderr.isatty():
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        with tqdm(unit=" objects") as bar, logging_redirect_tqdm(), _only_warnings("segment.bucket.objects"):
            yield (progress := Progress(bar))
    else:
        yield (progress := Progress())
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
