"""The steps of the pipeline.

    Source -> Divide -> ranges -> List -> Photo -> Segment -> Found -> WriteParquet
                                                          -> Found, Failed  -> Write

A runner may run a step twice, or twice at once. Files per photo are written only where there are none, the datasets
and the list of failures in one piece: whatever is repeated, each is there once.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from segment.beam.source import Source
from segment.beam.worker import Worker
from segment.bucket.backfill import FAILED
from segment.bucket.listing import Range, beside_results
from segment.bucket.objects import read_photo, segment_object
from segment.bucket.results import SOURCE_KEY, Results, folder_of
from segment.bucket.store import Object, Store, open_store
from segment.dataset import coco
from segment.dataset.job import Dataset
from segment.dataset.journal import Journal
from segment.dataset.run import ERRORS_NAME
from segment.errors import Busy, ModelError, OptionError, RequestError, StorageError
from segment.formats import FORMATS
from segment.options import Options
from segment.output.coco import categories, dump
from segment.service import Service

log = logging.getLogger(__name__)

FAILURES = "failures"
"""The output of `Segment` with the photos that could not be segmented."""
METRICS = "segment"
"""The namespace of the counters: how many photos came to what."""


@dataclass(frozen=True)
class Job:
    """What is made of the photos of `source`, and where.

    `output`: a folder or gs://bucket/prefix/. `options`: as text. `files`: whether each photo has files of its own.
    """

    source: Source
    output: str
    options: Mapping[str, str]
    files: bool = True
    datasets: tuple[Dataset, ...] = ()

    def destination(self, seconds: float) -> tuple[Store, str]:
        """Where results are written, and what their names start with."""
        store, prefix = open_store(self.output, seconds)
        return store, prefix if not prefix or prefix.endswith("/") else prefix + "/"


@dataclass(frozen=True)
class Photo:
    """A photo to be segmented. `part`: number of its range of names. `there`: its results, as far as known."""

    part: int
    item: Object
    there: Results | None


@dataclass(frozen=True)
class Found:
    """What was found in a photo. `document`: `image` and `annotations` of its JSON."""

    part: int
    name: str
    generation: int
    document: bytes


@dataclass(frozen=True)
class Failed:
    """A photo that could not be segmented, and why."""

    name: str
    error: str


class Divide(beam.DoFn):
    """The ranges of names of a source, numbered in order, which are listed in parallel."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def process(self, source: Source) -> Iterator[tuple[int, Range]]:
        """Raises StorageError."""
        yield from enumerate(source.ranges(self._worker.settings().storage_seconds))


class List(beam.DoFn):
    """The photos in a range of names, each with what is there of its results, if it has files of its own."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(self, part: tuple[int, Range]) -> Iterator[Photo]:
        """Raises StorageError."""
        number, names = part
        seconds = self._worker.settings().storage_seconds
        photos = self._job.source.objects(seconds, names)
        if self._job.files:
            destination, prefix = self._job.destination(seconds)
            found = beside_results(photos, self._job.source.prefix, destination, prefix, names)
            yield from (Photo(number, item, there) for item, there in found)
        else:
            yield from (Photo(number, item, None) for item in photos)


class Segment(beam.DoFn):
    """Segment photos, each as a bucket event is dealt with; the model is loaded once per process."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def setup(self) -> None:
        """Load the model. Raises ModelError, OptionError."""
        self._service = self._worker.service()
        settings = self._service.settings
        self._options = Options.parse(self._job.options, settings)
        self._service.check(self._options)
        self._source = self._job.source.store(settings.storage_seconds)
        self._destination, self._prefix = self._job.destination(settings.storage_seconds)

    def process(self, photo: Photo) -> Iterator[Found | TaggedOutput]:
        """A Found if a dataset needs it, or a Failed for the output FAILURES. Raises ModelError, OptionError."""
        item = photo.item
        try:
            kind, result = self._segment(photo)
        except (ModelError, OptionError):
            raise  # the next photo would fail as well
        except StorageError as error:
            log.error("%s: %s: %s", item.name, FAILED, error)
            kind, result = FAILED, Failed(item.name, str(error))
        except Exception:
            log.exception("%s: %s: unexpected error", item.name, FAILED)
            kind, result = FAILED, Failed(item.name, "An unexpected error, which the worker's log describes.")
        Metrics.counter(METRICS, kind).inc()
        if isinstance(result, Failed):
            yield TaggedOutput(FAILURES, result)
        elif result is not None:
            yield result

    def _segment(self, photo: Photo) -> tuple[str, Found | Failed | None]:
        """What became of the photo, in a word, and what is passed on. Waits for memory as long as it takes."""
        while True:
            try:
                return self._with_files(photo) if self._job.files else self._without_files(photo)
            except Busy as busy:
                time.sleep(busy.retry_after)

    def _with_files(self, photo: Photo) -> tuple[str, Found | Failed | None]:
        item = photo.item
        outcome = segment_object(
            self._service, self._source, item, self._destination, self._prefix, there=photo.there, options=self._options
        )
        if outcome.kind in {"refused", "lost"}:
            return outcome.kind, Failed(item.name, outcome.reason)
        if outcome.kind == "gone" or not self._job.datasets:
            return outcome.kind, None
        document = outcome.document if outcome.document is not None else self._written(photo)
        if document is None:
            return FAILED, Failed(item.name, "Its results were deleted while this run went on. Run it again.")
        return outcome.kind, _found(photo, document, self._service)

    def _written(self, photo: Photo) -> bytes | None:
        """The JSON of a photo that was segmented before."""
        there = photo.there or Results.find(self._destination, folder_of(self._prefix, photo.item))
        file = there.files.get(FORMATS["json"].file_name)
        return self._destination.read(file, file.size or _MAX_DOCUMENT) if file else None

    def _without_files(self, photo: Photo) -> tuple[str, Found | Failed | None]:
        try:
            with ExitStack() as held:
                data = read_photo(self._service, self._source, photo.item, held)
                if data is None:
                    return "gone", None
                (file,) = self._service.segment(data, self._options, ("json",), held).files
        except OptionError:
            raise
        except RequestError as error:
            return "refused", Failed(photo.item.name, str(error))
        return "segmented", _found(photo, file.body, self._service)


_MAX_DOCUMENT = 1 << 30


def _found(photo: Photo, document: bytes, service: Service) -> Found | Failed:
    """The part of a photo's JSON that datasets need."""
    whole: dict[str, Any] = json.loads(document)
    if whole["categories"] != categories(service.labels):
        return Failed(
            photo.item.name,
            f"It was segmented before, by the model {whole['image'].get('model')}, whose classes are others. "
            "Delete its results, or choose another output, to have it segmented again.",
        )
    own = dump({key: whole[key] for key in ("image", "annotations")})
    return Found(photo.part, photo.item.name, photo.item.generation, own)


class Describe(beam.DoFn):
    """The model's name and labels, which every dataset states."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def process(self, _: object) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Raises ModelError."""
        service = self._worker.service()
        yield service.model_name, service.labels


class WriteParquet(beam.DoFn):
    """Write the instances of the photos of a range as Parquet: each range has files of its own, written in parallel."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(self, part: tuple[int, Iterable[Found]], model: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
        """The names of the files. Raises StorageError."""
        from segment.dataset import parquet

        number, photos = part
        with _Output.open(self._job, self._worker) as output:
            output.collect(photos)
            for name, _ in model:
                folder = parquet.write(output.journal.entries(), name, output.folder)
                for index, file in enumerate(sorted(folder.iterdir())):
                    moved = file.rename(folder / f"part-{number:05}-{index:05}.parquet")
                    yield output.replace(moved, "application/vnd.apache.parquet")


class Write(beam.DoFn):
    """Write the list of failures and the COCO dataset, from what all workers found. Delete Parquet files of other runs.

    A journal on the disk of one worker puts the photos in order of their names and drops repetitions. Then they are
    written one at a time, so that memory does not grow with their number. So images and annotations are numbered as
    `segment image` numbers them, however the photos were distributed.
    """

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(
        self,
        _: object,
        found: Iterable[Found],
        failures: Iterable[Failed],
        parquet_files: Iterable[str],
        model: Iterable[tuple[str, tuple[str, ...]]],
    ) -> None:
        """Raises StorageError."""
        with _Output.open(self._job, self._worker) as output:
            for failed in failures:
                output.journal.failed(failed.name, failed.error)
            output.replace(_write_failures(output.journal, output.folder), "text/csv")
            for name, labels in model:
                if "coco" in self._job.datasets:
                    output.collect(found)
                    output.replace(coco.write(output.journal.entries, labels, output.folder), "application/json")
                if "parquet" in self._job.datasets:
                    output.keep_only(f"instances.parquet/model={quote(name, safe='')}/", set(parquet_files))


@dataclass(frozen=True)
class _Output:
    """A folder on this worker's disk with a journal, and the destination to which its files are copied.

    `metadata` marks the copies as results.
    """

    folder: Path
    journal: Journal
    destination: Store
    prefix: str
    metadata: Mapping[str, str]

    @classmethod
    @contextmanager
    def open(cls, job: Job, worker: Worker) -> Iterator[_Output]:
        """For as long as the context lasts."""
        destination, prefix = job.destination(worker.settings().storage_seconds)
        with TemporaryDirectory() as name, Journal(Path(name)) as journal:
            yield cls(Path(name), journal, destination, prefix, {SOURCE_KEY: job.source.address})

    def collect(self, photos: Iterable[Found]) -> None:
        """Enter photos into the journal."""
        for photo in photos:
            self.journal.done(photo.name, "", photo.generation, photo.document)

    def replace(self, file: Path, content_type: str) -> str:
        """Move a file to the destination, in place of the one that is there. Returns its name."""
        name = self.prefix + file.relative_to(self.folder).as_posix()
        self.destination.replace(name, file, content_type, self.metadata)
        file.unlink()
        return name

    def keep_only(self, folder: str, names: set[str]) -> None:
        """Delete what is in a folder of the destination but for these names."""
        for item in self.destination.objects(self.prefix + folder):
            if item.name not in names:
                self.destination.delete(item)


def _write_failures(journal: Journal, folder: Path) -> Path:
    """The photos that failed, in order of their names; only a header if none did."""
    path = folder / ERRORS_NAME
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["photo", "error"])
        rows.writerows(journal.failures())
    return path
