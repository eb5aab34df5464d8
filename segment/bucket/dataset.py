"""The dataset of a backfill: one COCO document, Parquet, or both, of all photos of the source that have results.

A task adds the photos of its share in the order of the listing. They are written in parts of about PART_BYTES, so
memory does not grow with their number: Parquet files, which are final, and gzipped JSON lines (parts.py), which are
temporary. The last task that finishes combines the lines of all tasks into instances.json and errors.csv, and deletes
the remains of earlier runs.

The name of a part consists of the number of its range of names (shares.py) and its number within the range. Therefore a
restarted task replaces its own parts, a new run replaces those of the previous run, and no row appears twice.

Without files per photo, the lines are kept, because later runs continue from them. The ranges then stay the same, and
each attempt writes its own lines (parts.py).
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segment.bucket import parts, shares
from segment.bucket.parts import Earlier
from segment.bucket.results import SOURCE_KEY
from segment.bucket.store import Location, Object, find
from segment.dataset import coco
from segment.dataset.entry import ERRORS_NAME, PARQUET_NAME, Entry, Failure, errors_csv
from segment.dataset.job import Dataset
from segment.errors import SettingsError
from segment.output.coco import dump

if TYPE_CHECKING:
    from segment.dataset.parquet import Part

log = logging.getLogger(__name__)

FOLDER = "_segment/dataset/"
"""The folder of the temporary objects, relative to the results."""
PART_BYTES = 4 << 20
"""Size at which a part is written. The last group of rows can exceed it."""
PART_SECONDS = 300.0
"""Time after which a smaller part is written if there are no files per photo. A killed task loses at most this."""
ROWS_PER_GROUP = 2000
_ABOUT = "about.json"
"""The object with the number of tasks and the classes for which lines are kept."""
MEMORY_BYTES = 32 << 20
"""Memory that a task needs for its dataset: parts of both kinds, a copy while one is uploaded, and finished photos that
wait for their turn."""


@dataclass(frozen=True)
class Place:
    """Where a task writes its part of a dataset.

    `source`: address of the photos. `run`: name of the job's execution. `index`, `count`: number of the task, and of
    all tasks. `files`: whether there are files for each photo.
    """

    results: Location
    source: str
    run: str
    index: int
    count: int
    files: bool = True

    @property
    def lines(self) -> str:
        """The prefix of the lines of all tasks."""
        if self.files:
            return self.folder
        return f"{self.results.prefix}{FOLDER}kept-{shares.digest(self.source)}/"

    @property
    def folder(self) -> str:
        """The prefix of the temporary objects, the same for all tasks of a run."""
        return f"{self.results.prefix}{FOLDER}{self.run or 'tasks'}-{shares.digest(self.source, self.count)}/"

    def finished(self, index: int) -> str:
        """The object that lists the parts of a task; it exists once the task has finished."""
        return f"{self.folder}task-{index:05}.json"

    @property
    def claim(self) -> str:
        """The object that contains the number of the task that combines the parts."""
        return f"{self.folder}combined-by.json"

    def write(self, name: str, pieces: Iterable[bytes], content_type: str = "application/json") -> None:
        """Write an object, or replace it. Raises StorageError."""
        self.results.store.replace(name, pieces, content_type, {SOURCE_KEY: self.source})

    def temporary(self) -> dict[str, Object]:
        """The temporary objects by name. Raises StorageError."""
        return {item.name: item for item in self.results.store.objects(self.folder)}

    def read(self, item: Object) -> bytes:
        """Read a temporary object. Raises StorageError."""
        return parts.read(self.results.store, item)


class TaskDataset:
    """One task's part of a dataset. `kinds`: the formats of the dataset. `model`: name of the loaded model."""

    def __init__(self, place: Place, kinds: Sequence[Dataset], model: str, labels: Sequence[str]) -> None:
        self._place, self._kinds, self._model, self._labels = place, kinds, model, labels
        self._lines: list[str] = []
        self._parquet: list[str] = []
        self._range, self._number, self._attempts = 0, 0, dict[int, int]()
        self._open, self._opened = _Buffers(), time.monotonic()

    def start(self) -> None:
        """Delete the records of an earlier attempt of this task. Raises StorageError, SettingsError."""
        place = self._place
        if not place.files:
            self._agree()
        for name, item in place.temporary().items():
            is_own_claim = name == place.claim and place.read(item) == dump(place.index)
            if is_own_claim or name == place.finished(place.index):
                place.results.store.delete(item)

    def _agree(self) -> None:
        """Check that the lines that are kept can be continued. Raises StorageError, SettingsError."""
        place = self._place
        name, own = f"{place.lines}{_ABOUT}", {"tasks": place.count, "labels": list(self._labels)}
        if place.results.store.write(name, dump(own), "application/json", {SOURCE_KEY: place.source}):
            return
        item = find(place.results.store, name)
        kept = json.loads(place.read(item)) if item else own
        for what, now, before in (
            ("number of tasks", own["tasks"], kept["tasks"]),
            ("model's classes", own["labels"], kept["labels"]),
        ):
            if now != before:
                raise SettingsError(
                    f"The dataset in {place.results.address} was started with another {what}: "
                    f"{str(before)[:200]}, not {str(now)[:200]}. Use the same again, or delete {place.lines} and "
                    f"{place.results.prefix}{shares.FOLDER} to segment all photos again."
                )

    def earlier(self, range_number: int) -> Earlier:
        """The photos of earlier attempts in a range. Must be called before photos of the range are added.

        Raises StorageError.
        """
        found = Earlier(self._place.results.store, f"{self._place.lines}{range_number:05}-")
        self._attempts[range_number] = found.attempt
        return found

    def add(self, range_number: int, found: Entry | Failure) -> None:
        """Add a photo of a range. Ranges must be added one after the other. Raises StorageError."""
        if range_number != self._range:
            self._write()
            self._range, self._number = range_number, 0
        if isinstance(found, Failure):
            self._open.add_line(vars(found))
        else:
            if "coco" in self._kinds or not self._place.files:
                self._open.add_line(vars(found))
            if "parquet" in self._kinds:
                self._open.add_rows(str(found.document["image"].get("model", self._model)), found)
        waited = not self._place.files and time.monotonic() - self._opened > PART_SECONDS
        if waited or self._open.size >= PART_BYTES:
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
        attempt = "" if self._place.files else f"{self._attempts.get(self._range, 0):05}-"
        lines, parquet_parts = self._open.close()
        if lines:
            self._lines.append(f"{self._place.lines}{self._range:05}-{attempt}{self._number:05}{parts.SUFFIX}")
            self._place.write(self._lines[-1], [lines], "application/gzip")
        for model, rows in parquet_parts.items():
            from segment.dataset import parquet

            name = f"{self._place.results.prefix}{PARQUET_NAME}/{parquet.partition(model)}/part-{number}.parquet"
            self._parquet.append(name)
            self._place.write(name, [rows], parquet.CONTENT_TYPE)
        self._number += 1
        self._open, self._opened = _Buffers(), time.monotonic()

    def _is_last(self) -> bool:
        """Whether all tasks have finished, and this one combines their parts."""
        place = self._place
        existing = place.temporary()
        if missing := [index for index in range(place.count) if place.finished(index) not in existing]:
            log.info("%d of %d tasks have not finished; the last will write the dataset.", len(missing), place.count)
            return False
        own = dump(place.index)
        if place.results.store.write(place.claim, own, "application/json", {SOURCE_KEY: place.source}):
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
        """Bytes written so far, without those still in the compressor's buffer."""
        return self._lines.tell() + sum(buffer.tell() for buffer, _ in self._parts.values())

    def add_line(self, value: object) -> None:
        """Add a line of JSON."""
        if self._gzip is None:
            self._gzip = gzip.GzipFile(fileobj=self._lines, mode="wb", compresslevel=3, mtime=0)
        self._gzip.write(dump(value) + b"\n")

    def add_rows(self, model: str, entry: Entry) -> None:
        """Add the rows of a photo that was segmented with this model."""
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
    kept = {} if place.files else {item.name: item for item in place.results.store.objects(place.lines)}
    names = sorted(name for task in tasks for name in task["lines"])
    lines = [{**existing, **kept}[name] for name in names]

    def entries() -> Iterator[Entry]:
        return (found for found in _read(place, lines) if isinstance(found, Entry))

    if "coco" in kinds:
        place.write(place.results.prefix + coco.FILE_NAME, coco.document(entries, labels))
    failures = (found for found in _read(place, lines) if isinstance(found, Failure))
    place.write(place.results.prefix + ERRORS_NAME, errors_csv(failures), "text/csv")
    if "parquet" in kinds:
        current = {name for task in tasks for name in task["parquet"]}
        for item in place.results.store.objects(f"{place.results.prefix}{PARQUET_NAME}/"):
            if item.name not in current:
                place.results.store.delete(item)
    current = {f"{place.lines}{_ABOUT}", *names}
    old = [item for name, item in kept.items() if name not in current]
    for item in (*old, *place.temporary().values()):
        place.results.store.delete(item)
    log.info("Wrote the dataset below %s.", place.results.address)


def _read(place: Place, lines: Sequence[Object]) -> Iterator[Entry | Failure]:
    return itertools.chain.from_iterable(parts.photos(place.results.store, part) for part in lines)
