"""Segment a folder of photos: several at a time, resumable, with datasets at the end.

Decoding, drawing and encoding of some photos overlap with the network's run on another: the service lets runs take
turns and reserves each photo's memory before it is decoded, so that more jobs wait rather than use more memory.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from segment import container
from segment.dataset import coco, photos
from segment.dataset.journal import Journal
from segment.dataset.photos import Photo
from segment.errors import Busy, OptionError, SegmentError
from segment.formats import FORMATS, Format
from segment.model import locate
from segment.options import Options
from segment.service import Service

Dataset = Literal["coco", "parquet"]
ERRORS_NAME = "errors.csv"
SHOWN_FAILURES = 20
"""How many failures are printed at the end; errors.csv has all."""


@dataclass(frozen=True)
class Job:
    """What is made of each photo: files in `formats` below `output`, and entries for `datasets`."""

    output: Path
    options: Options
    formats: tuple[Format, ...]
    datasets: tuple[Dataset, ...] = ()

    def key(self, photo: Photo, service: Service) -> tuple[str, int]:
        """What the results follow from, as a hash, and the photo's modification time in nanoseconds. Raises OSError."""
        status, model = photo.path.stat(), locate(service.settings)
        made_by = (str(model), model.stat().st_mtime_ns, service.settings.engine, self.options, self.formats)
        given = (
            *made_by,
            bool(self.datasets),
            service.settings.labels,
            photo.result,
            status.st_size,
            status.st_mtime_ns,
        )
        return hashlib.sha256(repr(given).encode("utf-8", "backslashreplace")).hexdigest(), status.st_mtime_ns

    def files(self, photo: Photo) -> list[Path]:
        """The photo's result files, one per format."""
        return [self.output / f"{photo.result}.{FORMATS[kind].file_name}" for kind in self.formats]


@dataclass(frozen=True)
class Done:
    """What came of a photo. `document`: its JSON, if a dataset is to be written."""

    instances: int
    milliseconds: float
    document: bytes | None


def run(paths: Sequence[Path], job: Job, service: Service, jobs: int | None = None) -> int:
    """Segment the photos in `paths`, then write the datasets. Returns 0, or 1 if any photo failed.

    `jobs`: photos in work at a time; None is one more than the CPUs. Photos that an earlier run with the same options
    finished are skipped. A photo that fails is reported at the end, and in errors.csv. Raises ModelError, OptionError,
    StorageError.
    """
    if "parquet" in job.datasets and job.options.segmentation != "rle":
        raise OptionError("segmentation", "Parquet holds masks as run lengths; leave out segmentation=polygons.")
    if "parquet" in job.datasets:
        import pyarrow  # noqa: F401 - refuse now rather than after the last photo
    unlisted: list[OSError] = []
    found = photos.find(paths, job.output, unlisted.append)
    first = list(itertools.islice(found, 1))  # refuses paths that conflict before anything is written
    service.load()
    job.output.mkdir(parents=True, exist_ok=True)
    with Journal(job.output) as journal:
        _segment_all(itertools.chain(first, found), job, service, journal, jobs or container.cpus() + 1)
        for error in unlisted:
            journal.failed(str(error.filename), error.strerror or str(error))
        if "coco" in job.datasets:
            print(coco.write(journal.entries, service.labels, job.output))
        if "parquet" in job.datasets:
            from segment.dataset import parquet

            print(parquet.write(journal.entries(), service.model_name, job.output))
        return 1 if _report(journal, job.output / ERRORS_NAME) else 0


def _segment_all(found: Iterable[Photo], job: Job, service: Service, journal: Journal, jobs: int) -> None:
    pending: dict[Future[Done], tuple[Photo, str, int]] = {}
    skipped = 0
    with ThreadPoolExecutor(jobs) as pool, tqdm(unit="photo", disable=not sys.stderr.isatty()) as bar:

        def collect() -> None:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                _record(future, *pending.pop(future), journal)
                bar.update()

        for photo in found:
            try:
                key, generation = job.key(photo, service)
            except OSError as error:
                journal.failed(photo.name, error.strerror or str(error))
                continue
            if all(file.exists() for file in job.files(photo)) and journal.resume(photo.name, key):
                skipped += 1
                bar.update()
                continue
            pending[pool.submit(_segment, photo, job, service)] = photo, key, generation
            while len(pending) > jobs:
                collect()
        while pending:
            collect()
    if skipped:
        print(f"{skipped} photos were done before")


def _segment(photo: Photo, job: Job, service: Service) -> Done:
    """Segment one photo and write its files, waiting for memory as long as it takes."""
    while True:
        try:
            return _segment_now(photo, job, service)
        except Busy as busy:
            time.sleep(busy.retry_after)


def _segment_now(photo: Photo, job: Job, service: Service) -> Done:
    formats = job.formats
    if job.datasets and "json" not in formats:
        formats = (*formats, "json")
    with ExitStack() as held:
        held.enter_context(service.receive()).grow(photo.path.stat().st_size)
        result = service.segment(photo.path.read_bytes(), job.options, formats, held)
        bodies = {kind: file.body for kind, file in zip(formats, result.files, strict=True)}
        for kind, path in zip(job.formats, job.files(photo), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bodies[kind])
        document = bodies["json"] if job.datasets else None
        return Done(result.instances, sum(result.timings.values()), document)


def _record(future: Future[Done], photo: Photo, key: str, generation: int, journal: Journal) -> None:
    try:
        done = future.result()
    except OptionError:
        raise  # it would fail for every photo
    except (SegmentError, OSError) as error:
        journal.failed(photo.name, str(error))
        return
    journal.done(photo.name, key, generation, done.document)
    tqdm.write(f"{photo.name}: {done.instances} instances in {done.milliseconds:.0f} ms")


def _report(journal: Journal, path: Path) -> int:
    """Print the failures of the run and write them to `path`. Returns how many there are."""
    count = 0
    path.unlink(missing_ok=True)
    for count, (name, error) in enumerate(journal.failures(), 1):
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if count == 1:
                rows.writerow(["photo", "error"])
            rows.writerow([name, error])
        if count <= SHOWN_FAILURES:
            print(f"{name}: {error}", file=sys.stderr)
    if count:
        print(f"{count} photos could not be segmented; all are listed in {path}", file=sys.stderr)
    return count
