"""Segment the objects that are in a bucket or a folder already, in the same way as bucket events.

Nothing is remembered between runs: an object is done if its results exist. So an interrupted run continues when it is
started again, and runs beside events do no harm. Photos and results are listed in step, which costs one call per 1,000
photos and one per 1,000 results, and no other call for a photo that is done. Several tasks share a bucket by ranges of
names (shares.py).

With a dataset, the photos are also added to one dataset (dataset.py). It contains every photo of the source that has
results, whether they were made by this run, an earlier one or an event, so the JSON of a photo that was done before is
read. If only the dataset is wanted, no files are written for each photo, and a run continues from the dataset's parts.

A backfill waits for memory as long as it takes. A page of the listing that fails is requested again after a growing
pause. SIGTERM ends the process at once, which is safe because results are written atomically.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from segment import container
from segment.bucket import dataset, documents, shares
from segment.bucket.dataset import Place, TaskDataset
from segment.bucket.listing import Range, beside_results, listed
from segment.bucket.objects import Outcome, describe, is_done, is_result, segment_object
from segment.bucket.results import Results
from segment.bucket.store import Object, Store, open_store, overlap
from segment.dataset.entry import Entry, Failure
from segment.dataset.job import Dataset
from segment.errors import Busy, ModelError, SettingsError, StorageError
from segment.options import Options
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

WORKERS = 16
"""Number of objects that are processed at once. Most of them wait for storage or memory. This is enough to keep two
cores busy if a storage call takes 60 ms (benchmarks/backfill.py)."""
AHEAD = 4 * WORKERS
"""Number of objects that are begun before the oldest of them is finished."""
LOG_SECONDS = 30.0
"""Interval at which progress is logged if there is no terminal."""
FAILED = "failed for now"

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    source: str,
    destination: str,
    service: Service,
    environment: Mapping[str, str],
    workers: int = WORKERS,
    datasets: Sequence[Dataset] = (),
    files: bool = True,
) -> int:
    """Segment every object below `source` that falls to this task, and write results to `destination`.

    Both are gs://bucket/prefix or a folder; an empty destination is the output bucket of the settings. `environment`
    contains the number of this task. `datasets`: formats of the dataset. `files`: whether files are written for each
    photo; if so and there is a dataset, the service must write JSON. Without them there must be a dataset.

    Returns 0 if all objects are done, including those that cannot be segmented, and 1 if any failed for a reason that
    may pass. Raises SettingsError, ModelError, StorageError.
    """
    settings = service.settings
    index, count = task(environment)
    photos, photos_prefix = _source(source, settings)
    results, results_prefix = _destination(destination, settings)
    photos_address = f"{photos.address}/{photos_prefix}"
    if overlap(photos_address, f"{results.address}/{results_prefix}"):
        raise SettingsError(
            f"The results at {results.address}/{results_prefix} would be read as photos from {photos_address}: one is "
            "inside the other. Choose another place for the results."
        )
    if "parquet" in datasets:
        import pyarrow.parquet  # noqa: F401 - before the memory that is left is computed
    service.load()
    execution = environment.get("CLOUD_RUN_EXECUTION", "")
    division = execution if files else ""  # what is kept of earlier runs is by range
    own = shares.agreed(photos, photos_prefix, results, results_prefix, division, index, count)
    place = Place(results, results_prefix, photos_address, execution, index, count, files)
    output = TaskDataset(place, datasets, service.model_name, service.labels) if datasets else None
    if output:
        output.start()
    with _progress() as progress:
        job = _Job(service, photos, photos_prefix, results, results_prefix, progress, output, files)
        with _pool(workers) as pool:
            todo = (photo for part, names in enumerate(own) for photo in job.photos(part * count + index, names))
            for photo, kind, found in _in_order(pool, job.segment, todo):
                progress.count(kind)
                if output and found:
                    output.add(photo.part, found)
        if output:
            output.finish()
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


def patient(settings: Settings, datasets: Sequence[Dataset] = ()) -> Settings:
    """The settings of a backfill, which waits for memory as long as it takes and leaves some for datasets."""
    changed = replace(settings, wait_seconds=math.inf, queue=max(settings.queue, WORKERS))
    if not datasets:
        return changed
    formats = settings.output_formats
    return replace(
        changed,
        memory=max(1, container.memory_limit(settings.memory) - dataset.MEMORY_BYTES),
        output_formats=formats if "json" in formats else (*formats, "json"),
    )


def end_on_sigterm() -> None:
    """Let SIGTERM end this process at once, also if it is process 1, which ignores the signal without a handler."""

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


@dataclass(frozen=True)
class _Photo:
    """A photo that is not done, or whose entry in the dataset is wanted. `part`: number of its range of names.

    `existing`: its results, if they are known. `entry`: what an earlier run without files per photo found in it.
    """

    part: int
    item: Object
    existing: Results | None
    done: bool
    entry: Entry | Failure | None = None


@dataclass(frozen=True)
class _Job:
    """What is done with each photo. `output`: the dataset. `files`: whether files are written for each photo."""

    service: Service
    source: Store
    prefix: str
    results: Store
    results_prefix: str
    progress: Progress
    output: TaskDataset | None
    files: bool

    def photos(self, part: int, names: Range) -> Iterator[_Photo]:
        """The photos in a range that are not done; if there is a dataset, all photos. Raises StorageError, ModelError.

        Photos that are left out are counted.
        """
        listing = listed(self.source, self.prefix, names)
        new = (item for item in listing if not item.name.endswith("/") and not is_result(item))
        if self.output and not self.files:
            earlier = self.output.earlier(part)
            for item in new:
                found = earlier.find(item)
                yield _Photo(part, item, None, found is not None, found)
            return
        for item, existing in beside_results(new, self.prefix, self.results, self.results_prefix, names):
            done = existing is not None and is_done(self.service, self.results, existing)
            if done and not self.output:
                self.progress.count(DONE.kind)
            else:
                yield _Photo(part, item, existing, done)

    def segment(self, photo: _Photo) -> tuple[_Photo, str, Entry | Failure | None]:
        """Segment a photo unless it is done. Returns it, the kind of outcome, and its entry if there is a dataset."""
        service, item, results, prefix = self.service, photo.item, self.results, self.results_prefix
        try:
            if photo.entry:
                return photo, DONE.kind, photo.entry
            if not self.files:
                kind, found = documents.segment(service, self.source, item, Options.defaults(service.settings))
                return photo, kind, found
            if photo.done:
                outcome = DONE
            else:
                outcome = segment_object(service, self.source, item, results, prefix, existing=photo.existing)
            found = documents.entry(service, item, outcome, results, prefix, photo.existing) if self.output else None
            return photo, outcome.kind, found
        except (StorageError, Busy, ModelError) as error:
            log.error("%s: %s: %s", item.name, FAILED, error, extra=describe(self.source, item))
            return photo, FAILED, Failure(item.name, str(error))
        except Exception:
            log.exception("%s: %s: unexpected error", item.name, FAILED, extra=describe(self.source, item))
            return photo, FAILED, Failure(item.name, "An unexpected error; see the log.")


DONE = Outcome("done before")


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin nothing more after an error."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of `work` in the order of the items, of which AHEAD are begun at a time."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        while begun and (len(begun) >= AHEAD or begun[0].done()):
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


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
