"""The dataset of a backfill: one COCO document, Parquet, or both, of all photos of the source that have results.

A task adds the photos of its share in the order of the listing. They are written in parts of about PART_BYTES, so
memory does not grow with their number: Parquet files, which are final, and gzipped JSON lines, which are temporary. The
last task that finishes combines the lines of all tasks into instances.json and errors.csv, and deletes what remains of
earlier runs.

The name of a part consists of the number of its range of names (shares.py) and a number within the range. So a task
that is started again replaces its own parts, a new run replaces those of the run before, and no row appears twice.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segment.bucket.results import SOURCE_KEY
from segment.bucket.store import Object, Store
from segment.dataset import coco
from segment.dataset.entry import ERRORS_NAME, Entry, Failure, errors_csv
from segment.dataset.job import Dataset
from segment.errors import StorageError
from segment.output.coco import dump

if TYPE_CHECKING:
    from segment.dataset.parquet import Part

log = logging.getLogger(__name__)

FOLDER = "_segment/dataset/"
"""Where the temporary objects are, below the results."""
PARQUET_FOLDER = "instances.parquet/"
PART_BYTES = 4 << 20
"""Size at which a part is written. The last group of rows can exceed it."""
ROWS_PER_GROUP = 2000
MEMORY_BYTES = 32 << 20
"""Memory that a task needs for its dataset: parts of both kinds, a copy while one is uploaded, and finished photos that
wait for their turn."""
_READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where a task writes its part of a dataset.

    `prefix`: that of the results. `source`: address of the photos. `run`: name of the job's execution. `index`,
    `count`: number of the task, and of all tasks.
    """

    results: Store
    prefix: str
    source: str
    run: str
    index: int
    count: int

    @property
    def folder(self) -> str:
        """The prefix of the temporary objects, the same for all tasks of a run."""
        about = f"{self.source}\n{self.count}"
        digest = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{self.prefix}{FOLDER}{self.run or 'tasks'}-{digest}/"

    def finished(self, index: int) -> str:
        """The object that lists the parts of a task; it exists once the task has finished."""
        return f"{self.folder}task-{index:05}.json"

    @property
    def claim(self) -> str:
        """The object that contains the number of the task that combines the parts."""
        return f"{self.folder}combined-by.json"

    def write(self, name: str, pieces: Iterable[bytes], content_type: str = "application/json") -> None:
        """Write an object, or replace it. Raises StorageError."""
        self.results.replace(name, pieces, content_type, {SOURCE_KEY: self.source})

    def temporary(self) -> dict[str, Object]:
        """The temporary objects by name. Raises StorageError."""
        return {item.name: item for item in self.results.objects(self.folder)}

    def read(self, item: Object) -> bytes:
        """Read a temporary object. Raises StorageError."""
        data = self.results.read(item, item.size or _READ_BYTES)
        if data is None:
            raise StorageError(f"{self.results.address}/{item.name} was deleted while this run went on. Run it again.")
        return data


class TaskDataset:
    """One task's part of a dataset. `kinds`: the formats of the dataset. `model`: name of the loaded model."""

    def __init__(self, place: Place, kinds: Sequence[Dataset], model: str, labels: Sequence[str]) -> None:
        self._place, self._kinds, self._model, self._labels = place, kinds, model, labels
        self._lines: list[str] = []
        self._parquet: list[str] = []
        self._range, self._number = 0, 0
        self._open = _Buffers()

    def start(self) -> None:
        """Take back what an earlier attempt of this task said about itself. Raises StorageError."""
        place = self._place
        for name, item in place.temporary().items():
            is_own_claim = name == place.claim and place.read(item) == dump(place.index)
            if is_own_claim or name == place.finished(place.index):
                place.results.delete(item)

    def add(self, range_number: int, found: Entry | Failure) -> None:
        """Add a photo of a range. Ranges are added one after the other. Raises StorageError."""
        if range_number != self._range:
            self._write()
            self._range, self._number = range_number, 0
        if isinstance(found, Failure):
            self._open.add_line({"name": found.name, "error": found.error})
        else:
            if "coco" in self._kinds:
                self._open.add_line(vars(found))
            if "parquet" in self._kinds:
                self._open.add_rows(str(found.document["image"].get("model", self._model)), found)
        if self._open.size >= PART_BYTES:
            self._write()

    def finish(self) -> None:
        """Write the last part. If all other tasks have finished, combine the parts of all. Raises StorageError."""
        self._write()
        place = self._place
        place.write(place.finished(place.index), [dump({"lines": self._lines, "parquet": self._parquet})])
        if self._is_last():
            _combine(place, self._kinds, self._labels)

    def _write(self) -> None:
        number = f"{self._range:05}-{self._number:05}"
        lines, parts = self._open.close()
        if lines:
            self._lines.append(f"{self._place.folder}{number}.jsonl.gz")
            self._place.write(self._lines[-1], [lines], "application/gzip")
        for model, rows in parts.items():
            from segment.dataset import parquet

            name = f"{self._place.prefix}{PARQUET_FOLDER}{parquet.partition(model)}/part-{number}.parquet"
            self._parquet.append(name)
            self._place.write(name, [rows], parquet.CONTENT_TYPE)
        self._number += 1
        self._open = _Buffers()

    def _is_last(self) -> bool:
        """Whether all tasks have finished, and this one combines their parts."""
        place = self._place
        existing = place.temporary()
        if missing := [index for index in range(place.count) if place.finished(index) not in existing]:
            log.info("%d of %d tasks have not finished; the last will write the dataset.", len(missing), place.count)
            return False
        own = dump(place.index)
        if place.results.write(place.claim, own, "application/json", {SOURCE_KEY: place.source}):
            return True
        claim = place.temporary().get(place.claim)
        return claim is not None and place.read(claim) == own


class _Buffers:
    """The part that is being written, in memory."""

    def __init__(self) -> None:
        self._lines = io.BytesIO()
        self._gzip: gzip.GzipFile | None = None
        self._parts: dict[str, tuple[io.BytesIO, Part]] = {}

    @property
    def size(self) -> int:
        """Bytes written so far, without those that compression still holds."""
        return self._lines.tell() + sum(buffer.tell() for buffer, _ in self._parts.values())

    def add_line(self, value: object) -> None:
        """Add a line of JSON."""
        if self._gzip is None:
            self._gzip = gzip.GzipFile(fileobj=self._lines, mode="wb", compresslevel=3, mtime=0)
        self._gzip.write(dump(value) + b"\n")

    def add_rows(self, model: str, entry: Entry) -> None:
        """Add the rows of a photo that this model has segmented."""
        from segment.dataset.parquet import Part

        if model not in self._parts:
            buffer = io.BytesIO()
            self._parts[model] = buffer, Part(buffer, ROWS_PER_GROUP)
        self._parts[model][1].add(entry)

    def close(self) -> tuple[bytes, dict[str, bytes]]:
        """The lines, and the Parquet file of each model. Empty if nothing was added."""
        if self._gzip is not None:
            self._gzip.close()
        for _, part in self._parts.values():
            part.close()
        return self._lines.getvalue(), {model: buffer.getvalue() for model, (buffer, _) in self._parts.items()}


def _combine(place: Place, kinds: Sequence[Dataset], labels: Sequence[str]) -> None:
    """Write instances.json and errors.csv from the lines of all tasks, and delete what is no longer needed."""
    existing = place.temporary()
    tasks = [json.loads(place.read(existing[place.finished(index)])) for index in range(place.count)]
    lines = [existing[name] for name in sorted(name for task in tasks for name in task["lines"])]

    def entries() -> Iterator[Entry]:
        return (found for found in _read(place, lines) if isinstance(found, Entry))

    if "coco" in kinds:
        place.write(place.prefix + coco.FILE_NAME, coco.document(entries, labels))
    failures = (found for found in _read(place, lines) if isinstance(found, Failure))
    place.write(place.prefix + ERRORS_NAME, errors_csv(failures), "text/csv")
    if "parquet" in kinds:
        kept = {name for task in tasks for name in task["parquet"]}
        for item in place.results.objects(place.prefix + PARQUET_FOLDER):
            if item.name not in kept:
                place.results.delete(item)
    for item in place.temporary().values():
        place.results.delete(item)
    log.info("Wrote the dataset below %s/%s.", place.results.address, place.prefix)


def _read(place: Place, parts: Sequence[Object]) -> Iterator[Entry | Failure]:
    for part in parts:
        with gzip.open(io.BytesIO(place.read(part))) as lines:
            for line in lines:
                value = json.loads(line)
                yield Failure(**value) if "error" in value else Entry(**value)
