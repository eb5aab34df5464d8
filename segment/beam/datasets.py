"""The steps that write the datasets and the list of failures.

    Found -> WriteParquet -> names of files
    Found, Failure, names of files -> Write

A runner may run a step more than once, even at the same time. All objects are replaced atomically, so repeated steps
cause no duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import apache_beam as beam

from segment.beam.steps import Found, Job
from segment.beam.worker import Worker
from segment.bucket.results import SOURCE_KEY
from segment.bucket.store import Location
from segment.dataset import coco
from segment.dataset.entry import ERRORS_NAME, PARQUET_NAME, Failure, errors_csv
from segment.dataset.journal import Journal

_PIECE_BYTES = 1 << 20


class Describe(beam.DoFn):
    """Looks up the model's name and labels, which every dataset contains."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def process(self, _: object) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Raises ModelError."""
        service = self._worker.process().service
        yield service.model_name, service.labels


class WriteParquet(beam.DoFn):
    """Writes the instances in a range's photos as Parquet. Each range has its own files, written in parallel."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(self, part: tuple[int, Iterable[Found]], model: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
        """The names of the files. Raises StorageError."""
        from segment.dataset import parquet

        number, photos = part
        with _Output.open(self._job, self._worker) as output:
            output.collect(photos)
            for model_name, _ in model:
                folder = parquet.write(output.journal.entries(), model_name, output.folder)
                for index, file in enumerate(sorted(folder.iterdir())):
                    name = f"{folder.relative_to(output.folder).as_posix()}/part-{number:05}-{index:05}.parquet"
                    yield output.replace(name, _pieces(file), parquet.CONTENT_TYPE)


class Write(beam.DoFn):
    """Writes the list of failures and the COCO dataset, and deletes Parquet files of earlier runs.

    A journal on the disk of one worker sorts the photos by name and removes repetitions. Then they are written one at a
    time, so memory does not grow with their number. Images and annotations get the same numbers as with `segment
    image`, however the photos were distributed.
    """

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job, self._worker = job, worker

    def process(
        self,
        _: object,
        found: Iterable[Found],
        failures: Iterable[Failure],
        parquet_files: Iterable[str],
        model: Iterable[tuple[str, tuple[str, ...]]],
    ) -> None:
        """Raises StorageError."""
        with _Output.open(self._job, self._worker) as output:
            for failed in failures:
                output.journal.failed(failed.name, failed.error)
            output.replace(ERRORS_NAME, errors_csv(output.journal.failures()), "text/csv")
            for name, labels in model:
                if "coco" in self._job.datasets:
                    output.collect(found)
                    document = coco.document(output.journal.entries, labels)
                    output.replace(coco.FILE_NAME, document, "application/json")
                if "parquet" in self._job.datasets:
                    from segment.dataset import parquet

                    output.keep_only(f"{PARQUET_NAME}/{parquet.partition(name)}/", set(parquet_files))


@dataclass(frozen=True)
class _Output:
    """A folder on this worker's disk with a journal, and the location of the datasets.

    `metadata` marks the datasets as results.
    """

    folder: Path
    journal: Journal
    results: Location
    metadata: Mapping[str, str]

    @classmethod
    @contextmanager
    def open(cls, job: Job, worker: Worker) -> Iterator[_Output]:
        """The folder is deleted at the end of the context."""
        results = job.destination(worker.settings().storage_seconds)
        with TemporaryDirectory() as name, Journal(Path(name)) as journal:
            yield cls(Path(name), journal, results, {SOURCE_KEY: job.source.address})

    def collect(self, photos: Iterable[Found]) -> None:
        """Add photos to the journal."""
        for photo in photos:
            self.journal.done(photo.name, "", photo.generation, photo.document)

    def replace(self, name: str, pieces: Iterable[bytes], content_type: str) -> str:
        """Write an object to the destination, or replace it. Returns its whole name."""
        whole = self.results.prefix + name
        self.results.store.replace(whole, pieces, content_type, self.metadata)
        return whole

    def keep_only(self, folder: str, names: set[str]) -> None:
        """Delete all objects in a folder of the destination except those with these names."""
        store = self.results.store
        for item in store.objects(self.results.prefix + folder):
            if item.name not in names:
                store.delete(item)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            yield piece
