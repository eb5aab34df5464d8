"""The steps that list and segment the photos.

    Source -> Divide -> ranges -> List -> Photo -> Segment -> Found, Failure

A runner may run a step more than once, even at the same time. Files per photo are only written if they do not exist, so
repeated steps cause no duplicates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from segment.beam.source import Source
from segment.beam.worker import Worker
from segment.bucket import documents
from segment.bucket.backfill import AHEAD
from segment.bucket.listing import Range, beside_results
from segment.bucket.objects import segment_object
from segment.bucket.results import Results
from segment.bucket.store import Location, Object, open_results
from segment.bucket.tally import FAILED
from segment.dataset.entry import Entry, Failure
from segment.dataset.job import Dataset
from segment.errors import Busy, ModelError, OptionError
from segment.options import Options
from segment.output.coco import dump

FAILURES = "failures"
"""The output of `Segment` for photos that could not be segmented."""
METRICS = "segment"
"""The namespace of the counters of photos by outcome."""


@dataclass(frozen=True)
class Job:
    """The photos to segment, and the results to write.

    `output`: a folder or gs://bucket/prefix/. `options`: unparsed. `files`: whether files are written for each photo.
    """

    source: Source
    output: str
    options: Mapping[str, str]
    files: bool = True
    datasets: tuple[Dataset, ...] = ()

    def destination(self, seconds: float) -> Location:
        """The location to which results are written."""
        return open_results(self.output, seconds)


@dataclass(frozen=True)
class Photo:
    """A photo to segment. `part`: number of its range of names. `existing`: its results, if they are known."""

    part: int
    item: Object
    existing: Results | None


@dataclass(frozen=True)
class Found:
    """The detections in a photo. `document`: `image` and `annotations` of its JSON."""

    part: int
    name: str
    generation: int
    document: bytes

    @classmethod
    def of(cls, part: int, entry: Entry) -> Found:
        """The same as an entry of a dataset, with the number of its range."""
        return cls(part, entry.name, entry.generation, dump(entry.document))


_Outcome = tuple[str, Found | Failure | None]
"""The kind of a photo's outcome, and the result to pass on."""


class Divide(beam.DoFn):
    """Divides a source into ranges of names, which are numbered in order and listed in parallel."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def process(self, source: Source) -> Iterator[tuple[int, Range]]:
        """Raises StorageError."""
        yield from enumerate(source.ranges(self._worker.settings().storage_seconds))


class List(beam.DoFn):
    """Lists the photos in a range of names, and their existing results if files are written for each photo."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(self, part: tuple[int, Range]) -> Iterator[Photo]:
        """Raises StorageError."""
        number, names = part
        seconds = self._worker.settings().storage_seconds
        photos = self._job.source.objects(seconds, names)
        if self._job.files:
            found = beside_results(photos, self._job.source.prefix, self._job.destination(seconds), names)
            yield from (Photo(number, item, existing) for item, existing in found)
        else:
            yield from (Photo(number, item, None) for item in photos)


class Segment(beam.DoFn):
    """Segments photos in the same way as bucket events, several of a bundle at a time.

    A runner passes the photos of a bundle one after the other. They are processed in the threads of the process, so
    that reading, writing and several runs of the network overlap. A bundle is finished when all of its photos are.
    """

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def setup(self) -> None:
        """Load the model. Raises ModelError, OptionError."""
        self._process = self._worker.process()
        self._service = self._process.service
        settings = self._service.settings
        self._options = Options.parse(self._job.options, settings)
        self._service.check(self._options)
        self._source = self._job.source.location(settings.storage_seconds).store
        self._destination = self._job.destination(settings.storage_seconds)

    def start_bundle(self) -> None:
        """No photo of this bundle has been started."""
        self._started = deque[Future[_Outcome]]()

    def process(self, photo: Photo) -> Iterator[Found | TaggedOutput]:
        """Start a photo, and return the results of earlier ones that are finished.

        A result is a Found if there is a dataset, or a Failure for the output FAILURES. Raises ModelError, OptionError.
        """
        self._started.append(self._process.pool.submit(self._outcome, photo))
        while self._started and (len(self._started) >= AHEAD or self._started[0].done()):
            yield from self._results()

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        """Return the results of the other photos. Raises ModelError, OptionError."""
        window = GlobalWindow()
        while self._started:
            for result in self._results():
                tag, value = (result.tag, result.value) if isinstance(result, TaggedOutput) else (None, result)
                windowed = WindowedValue(value, window.max_timestamp(), (window,))
                yield TaggedOutput(tag, windowed) if tag else windowed

    def _results(self) -> Iterator[Found | TaggedOutput]:
        """The result of the photo that was started first, if there is one."""
        try:
            kind, result = self._started.popleft().result()
        except BaseException:
            for future in self._started:
                future.cancel()
            raise
        Metrics.counter(METRICS, kind).inc()
        if isinstance(result, Failure):
            yield TaggedOutput(FAILURES, result)
        elif result is not None:
            yield result

    def _outcome(self, photo: Photo) -> _Outcome:
        """The outcome's kind, and the result to pass on. Raises ModelError, OptionError."""
        item = photo.item
        try:
            return self._segment(photo)
        except (ModelError, OptionError):
            raise  # the next photo would fail as well
        except Exception as error:
            return FAILED, documents.failed(self._source, item, error)

    def _segment(self, photo: Photo) -> _Outcome:
        """Waits for memory without a time limit."""
        while True:
            try:
                return self._with_files(photo) if self._job.files else self._without_files(photo)
            except Busy as busy:
                time.sleep(busy.retry_after)

    def _with_files(self, photo: Photo) -> _Outcome:
        service, item, results = self._service, photo.item, self._destination
        outcome = segment_object(service, self._source, item, results, existing=photo.existing, options=self._options)
        if not (self._job.datasets or outcome.failed):
            return outcome.kind, None
        found = documents.entry(service, item, outcome, results.store)
        return outcome.kind, Found.of(photo.part, found) if isinstance(found, Entry) else found

    def _without_files(self, photo: Photo) -> _Outcome:
        kind, found = documents.segment(self._service, self._source, photo.item, self._options)
        return kind, Found.of(photo.part, found) if isinstance(found, Entry) else found
