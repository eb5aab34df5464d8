"""The parts of a dataset: objects with gzipped lines of JSON, one per photo, sorted by name.

A backfill that writes no files per photo continues from them. An attempt is one run of a task over a range of names. It
writes all photos of the range again, both known and newly segmented ones. Therefore the newest attempt is complete up
to its last photo, and the previous attempt is used from there on.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Iterator

from segment.bucket.store import Object, Store
from segment.dataset.entry import Entry, Failure, shown
from segment.errors import StorageError

SUFFIX = ".jsonl.gz"
_READ_BYTES = 1 << 30


def read(store: Store, item: Object) -> bytes:
    """The content of a temporary object. Raises StorageError."""
    data = store.read(item, item.size or _READ_BYTES)
    if data is None:
        raise StorageError(f"{store.address}/{item.name} was deleted during this run. Run it again.")
    return data


def photos(store: Store, part: Object) -> Iterator[Entry | Failure]:
    """The photos in a part. Raises StorageError."""
    with gzip.open(io.BytesIO(read(store, part))) as lines:
        for line in lines:
            value = json.loads(line)
            yield Failure(**value) if "error" in value else Entry(**value)


class Earlier:
    """The photos of earlier attempts in a range. `folder`: the start of the names of the range's parts.

    The names continue with ATTEMPT-NUMBER. One part is in memory at a time. Raises StorageError.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._attempts: dict[int, list[Object]] = {}
        for part in store.objects(folder):
            self._attempts.setdefault(int(part.name.removeprefix(folder).partition("-")[0]), []).append(part)
        self._photos = self._all()
        self._next = next(self._photos, None)

    @property
    def attempt(self) -> int:
        """The number of the next attempt."""
        return max(self._attempts, default=-1) + 1

    def find(self, item: Object) -> Entry | Failure | None:
        """The entry of this generation of a photo; None if it has to be segmented. Must be called in order of names."""
        name = shown(item.name)  # an escaped name can be out of order; then the photo is segmented again
        while self._next and self._next.name < name:
            self._next = next(self._photos, None)
        found = self._next
        return found if found and (found.name, found.generation) == (name, item.generation) else None

    def _all(self) -> Iterator[Entry | Failure]:
        last = ""
        for attempt in sorted(self._attempts, reverse=True):
            parts = (photos(self._store, part) for part in self._attempts[attempt])
            for found in itertools.chain.from_iterable(parts):
                if found.name > last:
                    last = found.name
                    yield found
