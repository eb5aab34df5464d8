"""Segment the existing objects of a bucket or a folder, in the same way as bucket events.

A run keeps no state: an object is done if its results exist. Therefore an interrupted run continues when it is started
again, and a run can take place at the same time as events. Photos and results are listed together in the order of their
names, which costs a call per page of photos and one per page of results (store/google.py), and no other call for a
photo that is done.
Several tasks divide a bucket by ranges of names (shares.py).

With a dataset, the photos are also added to one dataset (dataset.py). It contains every photo of the source that has
results, including those of earlier runs and of events. The JSON of such a photo is read. If only the dataset is
written, there are no files per photo, and a run continues from the dataset's parts.

A backfill waits for memory without a time limit. If listing a page fails, it is retried with increasing delays. SIGTERM
ends the process immediately, which is safe because results are written atomically.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

from segment import container
from segment.bucket import dataset, documents, shares
from segment.bucket.dataset import Place, TaskDataset
from segment.bucket.listing import Range, beside_results, listed
from segment.bucket.objects import DONE, Outcome, is_done, segment_object
from segment.bucket.results import Results, is_result
from segment.bucket.store import Location, Object, check_apart, open_results, open_store
from segment.bucket.tally import FAILED, Tally, shown_tally
from segment.dataset.entry import Entry, Failure
from segment.dataset.job import Dataset
from segment.errors import SettingsError
from segment.options import Options
from segment.service import Service
from segment.settings import Settings

log = logging.getLogger(__name__)

WORKERS = 16
"""Number of objects that are processed at once. Most of them wait for storage or memory. This is enough to keep two
cores busy if a storage call takes 60 ms (benchmarks/backfill.py)."""
AHEAD = 4 * WORKERS
"""Number of objects that may be started before the oldest of them is finished."""

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
    """Segment every object below `source` that belongs to this task, and write results to `destination`.

    Both are gs://bucket/prefix or a folder; an empty destination is the output bucket of the settings. `environment`
    contains the number of this task. `datasets`: formats of the dataset. `files`: whether files are written for each
    photo; if so and there is a dataset, the service must write JSON. Without them there must be a dataset.

    Returns 0 if all objects are done, including those that cannot be segmented, and 1 if any failed for a reason that
    may be temporary. Raises SettingsError, ModelError, StorageError.
    """
    settings = service.settings
    index, count = task(environment)
    photos, results = _source(source, settings), _destination(destination, settings)
    check_apart(photos.address, results.address)
    if "parquet" in datasets:
        import pyarrow.parquet  # noqa: F401 - must be imported before the available memory is computed
    service.load()
    execution = environment.get("CLOUD_RUN_EXECUTION", "")
    division = execution if files else ""  # parts of earlier runs are by range, so the ranges must stay the same
    own = shares.agreed(photos, results, division, index, count)
    place = Place(results, photos.address, execution, index, count, files)
    output = TaskDataset(place, datasets, service.model_name, service.labels) if datasets else None
    if output:
        output.start()
    with shown_tally() as tally:
        job = _Job(service, photos, results, tally, output, files)
        with _pool(workers) as pool:
            todo = (photo for part, names in enumerate(own) for photo in job.photos(part * count + index, names))
            for photo, kind, found in _in_order(pool, job.segment, todo):
                tally.count(kind)
                if output and found:
                    output.add(photo.part, found)
        if output:
            output.finish()
    return 1 if tally.counts[FAILED] else 0


def task(environment: Mapping[str, str]) -> tuple[int, int]:
    """This task's index and the number of tasks of the Cloud Run job; (0, 1) elsewhere. Raises SettingsError."""
    words = environment.get("CLOUD_RUN_TASK_INDEX", "0"), environment.get("CLOUD_RUN_TASK_COUNT", "1")
    if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise SettingsError(
            f"CLOUD_RUN_TASK_INDEX is {words[0]!r} and CLOUD_RUN_TASK_COUNT is {words[1]!r}; "
            "they must be whole numbers, and the first must be less than the second."
        )
    return int(words[0]), int(words[1])


def patient(settings: Settings, datasets: Sequence[Dataset] = ()) -> Settings:
    """The settings of a backfill, which waits for memory without a time limit and leaves some for datasets."""
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
    """Let SIGTERM end this process immediately. Process 1 ignores the signal if there is no handler."""

    def end(number: int, frame: FrameType | None) -> None:
        log.warning("Stopped by SIGTERM. The next run continues with the photos that have no results.")
        sys.stdout.flush()
        os._exit(128 + number)  # without waiting for threads in a storage call or in the network

    signal.signal(signal.SIGTERM, end)


def _source(address: str, settings: Settings) -> Location:
    if not address.startswith("gs://") and not Path(address).is_dir():
        raise SettingsError(f"The source {address!r} is not a folder; it must be a folder or gs://bucket/prefix.")
    return open_store(address, settings.storage_seconds)


def _destination(address: str, settings: Settings) -> Location:
    if address:
        if not address.startswith("gs://") and Path(address).exists() and not Path(address).is_dir():
            raise SettingsError(f"The destination {address!r} is a file; it must be a folder or gs://bucket/prefix.")
        return open_results(address, settings.storage_seconds)
    if not settings.output_bucket:
        raise SettingsError(
            "There is no destination for the results: give it as the second argument, or set SEGMENT_OUTPUT_BUCKET."
        )
    return open_store(f"gs://{settings.output_bucket}/{settings.output_prefix}", settings.storage_seconds)


@dataclass(frozen=True)
class _Photo:
    """A photo that is not done, or that is to be added to the dataset.

    `part`: number of its range of names. `existing`: its results, if they are known. `entry`: its entry from an earlier
    run without files per photo.
    """

    part: int
    item: Object
    existing: Results | None
    done: bool
    entry: Entry | Failure | None = None


@dataclass(frozen=True)
class _Job:
    """The processing of each photo. `output`: the dataset. `files`: whether files are written for each photo."""

    service: Service
    source: Location
    results: Location
    tally: Tally
    output: TaskDataset | None
    files: bool

    def photos(self, part: int, names: Range) -> Iterator[_Photo]:
        """The photos in a range that are not done; if there is a dataset, all photos.

        Omitted photos are counted as done. Raises StorageError, ModelError.
        """
        listing = listed(self.source, names)
        new = (item for item in listing if not item.is_folder and not is_result(item))
        if self.output and not self.files:
            earlier = self.output.earlier(part)
            for item in new:
                found = earlier.find(item)
                yield _Photo(part, item, None, found is not None, found)
            return
        for item, existing in beside_results(new, self.source.prefix, self.results, names):
            done = existing is not None and is_done(self.service, self.results.store, existing)
            if done and not self.output:
                self.tally.count(DONE)
            else:
                yield _Photo(part, item, existing, done)

    def segment(self, photo: _Photo) -> tuple[_Photo, str, Entry | Failure | None]:
        """Segment a photo unless it is done. Returns the photo, the kind of outcome, and its entry for the dataset."""
        service, source, item, results = self.service, self.source.store, photo.item, self.results
        try:
            if photo.entry:
                return photo, DONE, photo.entry
            if not self.files:
                kind, found = documents.segment(service, source, item, Options.defaults(service.settings))
                return photo, kind, found
            if photo.done:
                outcome = Outcome(DONE, existing=photo.existing)
            else:
                outcome = segment_object(service, source, item, results, existing=photo.existing)
            found = documents.entry(service, item, outcome, results.store) if self.output else None
            return photo, outcome.kind, found
        except Exception as error:
            return photo, FAILED, documents.failed(source, item, error)


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool that starts no further work after an error."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of `work` in the order of the items. At most AHEAD items are in progress."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        while begun and (len(begun) >= AHEAD or begun[0].done()):
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
